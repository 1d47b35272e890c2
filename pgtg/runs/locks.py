"""Locks on files, which the kernel frees when their process ends, however it ends.

Not `filelock`: it has no shared lock on a file, asks again and again where this waits, and where a
disk has no `flock` it leaves a marker that outlives a kill.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def acquire(
    path: Path,
    *,
    shared: bool = False,
    wait: bool = True,
    waiting: Callable[[], None] = lambda: None,
) -> int:
    """A descriptor that holds the lock file `path` until it is closed.

    Args:
        path: Made where it is missing. Who holds it may delete it: it is then made again.
        shared: Together with others that share it; else alone.
        wait: Until those who hold it let it go.
        waiting: Called once before it waits.

    Raises:
        BlockingIOError: It is held, and `wait` is off.
        OSError: It cannot be made, or this disk has no locks.
    """
    mode, asked = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX), False
    while True:
        with contextlib.ExitStack() as undo:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            undo.callback(os.close, lock)
            try:
                fcntl.flock(lock, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if not asked:
                    waiting()
                asked = True
                fcntl.flock(lock, mode)  # a signal's handler may raise out of this
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    undo.pop_all()
                    return lock


@contextlib.contextmanager
def locked(
    path: Path, *, shared: bool = False, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Holds a lock file within; see `acquire`."""
    lock = acquire(path, shared=shared, waiting=waiting)
    try:
        yield
    finally:
        os.close(lock)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file alone. Writes nothing."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
