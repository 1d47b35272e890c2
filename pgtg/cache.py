"""The cache by content hash, shared by runs: a sweep makes one warm start, not one per job."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pgtg.artifacts import Artifact, replace_folder, safe_name
from pgtg.errors import ArtifactError
from pgtg.files import remove, writing


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


def cached(cache_dir: str | Path, kind: str, key: str) -> Artifact:
    """The artifact of this kind for this content hash, in a cache that runs may share."""
    return CachedArtifact(Path(cache_dir).expanduser() / safe_name(kind) / safe_name(key))


def _intact(artifact: Artifact) -> bool:
    try:
        artifact.verify()
    except ArtifactError:
        return False
    return True


@contextlib.contextmanager
def _alone(final: Path) -> Iterator[None]:
    """One process at a time tidies up or places a folder; nobody is inside for long."""
    lock = _open_lock(final.parent / f".{final.name}.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


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
