"""The cache by content hash, shared by runs: a sweep makes one warm start, not one per job.

    <cache>/<kind>/<key>/       one artifact; the time of its manifest is that of its last use
    <cache>/<kind>/.<key>.use   lock: makers alone, readers together; the kernel frees it

An entry only saves time: what it holds is checked when it is taken, and every entry may be deleted.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.artifacts import MANIFEST, Artifact, replace_folder, safe_name
from pgtg.errors import ArtifactError, ConfigError, PgtgError
from pgtg.files import remove, writing
from pgtg.sizes import parse_size

DEFAULT = "~/.cache/pgtg"  # as in conf/
SIZE, DEFAULT_SIZE = "PGTG_CACHE_SIZE", "20GB"
ANSWERS = "answers"  # kind of the classifiers' answers: sqlite files, see judges/memo.py
Tell = Callable[[str], None]


class CachedArtifact(Artifact):
    """An artifact that several processes may make at once: who is first wins, the others agree.

    Each works in a folder of its own, so nothing is kept after a kill. A lock file beside that
    folder tells the next comer whether its maker still lives.
    """

    _folder: Path | None = None
    _lock: int = -1

    def working(self, inputs: str, *, fresh: bool = True) -> Path:
        """A fresh hidden folder of this process's own."""
        token = secrets.token_hex(6)
        self._folder = self.path.parent / f".{self.path.name}.{token}.making"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                _sweep(self.path)
            self._lock = _open_lock(self._folder.with_suffix(".lock"))
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._folder.mkdir()  # after the lock: a folder whose lock is free has no maker
        return self._folder

    @contextlib.contextmanager
    def held(self, tell: Tell, *, alone: bool) -> Iterator[None]:
        """Nobody deletes the entry within; with `alone`, nobody else makes or reads it either.

        Waits for whoever makes it, and says so. A maker that is killed is waited for no longer.

        Raises:
            PgtgError: The lock cannot be made: the cache cannot be written.
        """
        path = self._use_lock()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _locked(path, alone, lambda: tell(f"{self.path}: another process makes it"))
        try:
            yield
        finally:
            os.close(lock)

    def used(self) -> None:
        """Notes the time of this use; a cache that cannot be written goes without."""
        with contextlib.suppress(OSError):
            os.utime(self.path / MANIFEST)

    def discard(self) -> bool:
        """Deletes the entry unless it is in use. Returns whether it is gone."""
        lock = _try_lock(self._use_lock())
        if lock is None:
            return False
        try:
            self.remove()
            with writing(self.path), _alone(self.path):
                _sweep(self.path)
                for name in ("use", "lock"):
                    (self.path.parent / f".{self.path.name}.{name}").unlink(missing_ok=True)
        finally:
            os.close(lock)
        return True

    def abandon(self) -> None:
        """Ends work on an entry that could not be finished."""
        if self._folder is not None:
            with contextlib.suppress(OSError, PgtgError):
                remove(self._folder)
                self._folder.with_suffix(".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._folder = None

    def _partial(self, inputs: str) -> Path:
        return self._folder or self.path.parent / f".{self.path.name}.making"

    def _place(self, partial: Path) -> None:
        with writing(self.path), _alone(self.path):
            if _intact(self):
                remove(partial)
            else:
                replace_folder(partial, self.path)
            partial.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)
        self._folder = None

    def _use_lock(self) -> Path:
        return self.path.parent / f".{self.path.name}.use"


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


def cached(cache_dir: str | Path, kind: str, key: str) -> CachedArtifact:
    """The artifact of this kind for this content hash, in a cache that runs may share."""
    return CachedArtifact(Path(cache_dir).expanduser() / safe_name(kind) / safe_name(key))


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

    Never what is in use; nor `keep`; nor answers of classifiers unless limit is 0, since a process
    that has such a file open must not try its locks.

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
        if entry.kind == ANSWERS and _closed(entry.path):
            for end in ("", "-wal", "-shm"):
                entry.path.with_name(entry.path.name + end).unlink(missing_ok=True)
            deleted.append(entry)
    return deleted


def clear_leftovers(cache_dir: Path) -> None:
    """Delete what killed processes left half-made."""
    for folder in cache_dir.glob("*/.*.making"):
        name = folder.name[1:].rsplit(".", 2)[0]
        final = folder.parent / name
        with writing(final), _alone(final):
            _sweep(final)


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


def _intact(artifact: Artifact) -> bool:
    try:
        artifact.verify()
    except ArtifactError:
        return False
    return True


@contextlib.contextmanager
def _alone(final: Path) -> Iterator[None]:
    """One process at a time tidies up or places a folder; nobody is inside for long."""
    lock = _locked(final.parent / f".{final.name}.lock", True, lambda: None)
    try:
        yield
    finally:
        os.close(lock)


def _locked(path: Path, alone: bool, wait: Callable[[], None]) -> int:
    """A locked descriptor; `wait` is called once if another process holds the lock.

    A lock file may be deleted by whoever holds it, so the one that was got must still be there.
    """
    mode, told = fcntl.LOCK_EX if alone else fcntl.LOCK_SH, False
    while True:
        lock = _open_lock(path)
        try:
            try:
                fcntl.flock(lock, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    wait()
                told = True
                fcntl.flock(lock, mode)  # a signal's handler may raise out of this
            if _still_there(lock, path):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """The lock for oneself, None if it is held or cannot be made."""
    try:
        lock = _open_lock(path)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _still_there(lock, path):
            return lock
    except OSError:
        pass  # in use
    os.close(lock)
    return None


def _still_there(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _sweep(final: Path) -> None:
    """Deletes the garbage and the working folders of makers that were killed."""
    for garbage in final.parent.glob(f".{final.name}.*.tmp"):
        remove(garbage)
    for folder in final.parent.glob(f".{final.name}.*.making"):
        lock = _open_lock(folder.with_suffix(".lock"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its maker lives
        else:
            if folder.is_dir():
                remove(folder)
            folder.with_suffix(".lock").unlink(missing_ok=True)
        finally:
            os.close(lock)


def show_age(last_use: float) -> str:
    """How long ago, in words."""
    seconds = max(time.time() - last_use, 0.0)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def facts(cache_dir: Path) -> dict[str, Any]:
    """Bytes and number of entries, for the doctor."""
    here = entries(cache_dir)
    return {"entries": len(here), "bytes": sum(entry.size for entry in here)}
