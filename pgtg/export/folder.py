"""Where an export goes: a folder that is there whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgtg.errors import ConfigError
from pgtg.models.token_classifier import REWARD_JSON
from pgtg.runs.artifacts import replace_folder
from pgtg.runs.files import sync, writing

POLICY_JSON = "pgtg_policy.json"
PREFERENCES_JSON = "pgtg_preferences.json"


def require_free(out: Path, *, force: bool) -> None:
    """Refuse to write over what is there.

    Args:
        out: A folder or file to be.
        force: Replace a file, or a folder that an earlier export made; no other.

    Raises:
        ConfigError: Something is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if out.is_dir() and force and not any((out / name).is_file() for name in _MARKS):
        raise ConfigError(f"--out {out} is no earlier export: --force does not replace it")
    if not force:
        raise ConfigError(f"--out {out} is there already: choose another, or --force replaces it")


_MARKS = (REWARD_JSON, POLICY_JSON, PREFERENCES_JSON)  # what every exported folder has one of


@contextmanager
def growing(out: Path, *, force: bool) -> Iterator[Path]:
    """A hidden folder next to `out`, which takes its place when the block ends well.

    Where the block raises, nothing is left of it.

    Raises:
        ConfigError: A file, or a folder that must not be replaced, is there.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder")
    require_free(out, force=force)
    fresh = out.parent / f".{out.name}.{secrets.token_hex(6)}.tmp"
    try:
        with writing(out):
            fresh.mkdir(parents=True)
        yield fresh
        with writing(out):
            for path in fresh.iterdir():
                sync(path)
            sync(fresh)
        replace_folder(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
