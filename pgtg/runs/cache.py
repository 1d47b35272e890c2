"""The cache by content hash, shared by runs: a sweep makes one warm start, not one per job.

    <cache>/<kind>/<key>/       one artifact; the time of its manifest is that of its last use
    <cache>/<kind>/.<key>.use   lock: makers alone, readers together; the kernel frees it

An entry only saves time: what it holds is checked when it is taken, and every entry may be deleted.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pgtg.errors import ArtifactError, PgtgError
from pgtg.runs.artifacts import MANIFEST, Artifact, replace_folder, safe_name
from pgtg.runs.files import remove, writing
from pgtg.runs.locks import acquire, locked

Tell = Callable[[str], None]


class CachedArtifact(Artifact):
    """An artifact that several processes may make at once: who is first wins, the others agree.

    Each works in a folder of its own, so nothing is kept after a kill. A lock file next to that
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
            with alone(self.path):
                sweep(self.path)
            self._lock = acquire(self._folder.with_suffix(".lock"))
            self._folder.mkdir()  # after the lock: a folder whose lock is free has no maker
        self._began = time.monotonic()
        return self._folder

    @contextlib.contextmanager
    def held(self, tell: Tell, *, alone: bool) -> Iterator[None]:
        """Nobody deletes the entry within; with `alone`, nobody else makes or reads it either.

        Waits for whoever makes it, and says so. A maker that is killed is waited for no longer.

        Raises:
            PgtgError: The lock cannot be made: the cache cannot be written.
        """
        path = self._use_lock()

        def waiting() -> None:
            tell(f"{self.path}: another process makes it")

        with contextlib.ExitStack() as holding:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                holding.enter_context(locked(path, shared=not alone, waiting=waiting))
            yield

    def used(self) -> None:
        """Notes the time of this use; a cache that cannot be written goes without."""
        with contextlib.suppress(OSError):
            os.utime(self.path / MANIFEST)

    def discard(self) -> bool:
        """Deletes the entry unless it is in use. Returns whether it is gone."""
        try:
            lock = acquire(self._use_lock(), wait=False)
        except OSError:
            return False  # in use, or not ours to delete
        try:
            self.remove()
            with writing(self.path), alone(self.path):
                sweep(self.path)
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
        with writing(self.path), alone(self.path):
            if _intact(self):
                remove(partial)
            else:
                replace_folder(partial, self.path)
            partial.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)
        self._folder = None

    def _use_lock(self) -> Path:
        return self.path.parent / f".{self.path.name}.use"


def cached(cache_dir: str | Path, kind: str, key: str) -> CachedArtifact:
    """The artifact of this kind for this content hash, in a cache that runs may share."""
    return CachedArtifact(Path(cache_dir).expanduser() / safe_name(kind) / safe_name(key))


def _intact(artifact: Artifact) -> bool:
    try:
        artifact.verify()
    except ArtifactError:
        return False
    return True


def alone(final: Path) -> contextlib.AbstractContextManager[None]:
    """One process at a time tidies up or places a folder; nobody is inside for long."""
    return locked(final.parent / f".{final.name}.lock")


def sweep(final: Path) -> None:
    """Deletes the garbage and the working folders of makers that were killed."""
    for garbage in final.parent.glob(f".{final.name}.*.tmp"):
        remove(garbage)
    for folder in final.parent.glob(f".{final.name}.*.making"):
        try:
            lock = acquire(folder.with_suffix(".lock"), wait=False)
        except BlockingIOError:
            continue  # its maker lives
        try:
            if folder.is_dir():
                remove(folder)
            folder.with_suffix(".lock").unlink(missing_ok=True)
        finally:
            os.close(lock)
