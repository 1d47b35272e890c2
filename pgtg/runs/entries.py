"""What the cache holds, how large it may grow, and what goes first."""

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from pgtg.config.sizes import parse_size
from pgtg.errors import ArtifactError, ConfigError
from pgtg.runs.artifacts import MANIFEST, Artifact
from pgtg.runs.cache import CachedArtifact, alone, sweep
from pgtg.runs.files import writing

DEFAULT = "~/.cache/pgtg"  # as in conf/
SIZE, DEFAULT_SIZE = "PGTG_CACHE_SIZE", "20GB"
ANSWERS = "answers"  # kind of the classifiers' answers: sqlite files, see judges/memo.py


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Args:
        kind: What it is, e.g. "warm_start", "sample", "answers".
        path: Its folder, or the sqlite file of a classifier's answers.
        label: Which run first made it, in words.
        size: Of its files [bytes]; files that run folders link to take no room twice.
        last_use: When it was last made or taken [seconds since 1970].
    """

    kind: str
    path: Path
    label: str
    size: int
    last_use: float


def default_cache() -> Path:
    """The cache of a run that does not say `cache=`."""
    return Path(os.environ.get("PGTG_CACHE") or DEFAULT).expanduser()


def size_limit() -> int | None:
    """Bytes that the cache may hold, from PGTG_CACHE_SIZE; None for any number ("off").

    Raises:
        ConfigError: It is not a size.
    """
    text = os.environ.get(SIZE) or DEFAULT_SIZE
    try:
        return None if text == "off" else parse_size(text)
    except ValueError as error:
        raise ConfigError(f"{SIZE}: {error}, or off") from error


def entries(cache_dir: Path) -> list[Entry]:
    """All that a cache holds, last used first."""
    found = []
    for kind in sorted(cache_dir.iterdir()) if cache_dir.is_dir() else []:
        if kind.name.startswith(".") or not kind.is_dir():
            continue
        paths = [path for path in kind.iterdir() if not path.name.startswith(".")]
        if kind.name == ANSWERS:
            found += [_answers(path) for path in paths if path.suffix == ".sqlite"]
        else:
            found += [_entry(kind.name, path) for path in paths if (path / MANIFEST).is_file()]
    gone = (entry for entry in found if entry is not None)  # deleted while we looked
    return sorted(gone, key=lambda entry: -entry.last_use)


def prune(cache_dir: Path, limit: int, *, keep: Path | None = None) -> list[Entry]:
    """Delete what was used longest ago until at most `limit` bytes are left.

    Never what is in use; nor `keep`; nor answers of classifiers, see `clear_answers`.

    Returns:
        What was deleted.
    """
    here, deleted = entries(cache_dir), []
    total = sum(entry.size for entry in here)
    for entry in reversed(here):
        if total <= limit:
            break
        if entry.path != keep and entry.kind != ANSWERS and CachedArtifact(entry.path).discard():
            deleted.append(entry)
            total -= entry.size
    return deleted


def clear_answers(cache_dir: Path) -> list[Entry]:
    """Delete classifiers' answers that no process has open. Only where this process has none."""
    deleted = []
    for entry in entries(cache_dir):
        if entry.kind != ANSWERS:
            continue
        with alone(entry.path):
            if _closed(entry.path):
                for end in ("", "-wal", "-shm"):
                    entry.path.with_name(entry.path.name + end).unlink(missing_ok=True)
                deleted.append(entry)
    return deleted


def clear_leftovers(cache_dir: Path) -> None:
    """Delete what killed processes left half-made."""
    for folder in cache_dir.glob("*/.*.making"):
        name = folder.name[1:].rsplit(".", 2)[0]
        final = folder.parent / name
        with writing(final), alone(final):
            sweep(final)


def _entry(kind: str, path: Path) -> Entry | None:
    try:
        files = [p.stat() for p in path.rglob("*") if p.is_file()]
        used = (path / MANIFEST).stat().st_mtime
        label = Artifact(path).manifest()["extra"].get("label", "")
    except (OSError, ArtifactError):
        return None
    return Entry(kind, path, str(label), sum(info.st_size for info in files), used)


def _answers(path: Path) -> Entry | None:
    try:
        parts = [p.stat() for p in path.parent.glob(f"{path.name}*")]
        used = max(info.st_mtime for info in parts)
    except (OSError, ValueError):
        return None
    size = sum(info.st_size for info in parts)
    return Entry(ANSWERS, path, "a classifier's answers to prompts", size, used)


def _closed(path: Path) -> bool:
    """Whether no other process has an sqlite file open: each holds a shared lock on these bytes."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
        return True
    return False


def show_age(last_use: float) -> str:
    """How long ago, in words."""
    seconds = max(time.time() - last_use, 0.0)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
