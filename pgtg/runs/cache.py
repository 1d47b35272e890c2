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
from pathlib import Path

from pgtg.errors import ArtifactError, PgtgError
from pgtg.runs.artifacts import MANIFEST, Artifact, replace_folder, safe_name
from pgtg.runs.files import remove, writing

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
            self._lock = _open_lock(self._folder.with_suffix(".lock"))
            fcntl.flock(self._lock, fcntl.LOCK_EX)
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


@contextlib.contextmanager
def alone(final: Path) -> Iterator[None]:
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


def sweep(final: Path) -> None:
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
