"""Signals that ask a run to stop: remembered while something must not be cut, raised right after.

SIGTERM (a scheduler's) and SIGINT (Ctrl-C) raise `Interrupted` in the main thread. Inside
`uninterrupted` they wait for its end, so that an optimiser update is done whole or not at all and
its state is saved before the process leaves.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_held = 0  # how many `uninterrupted` blocks are open
_pending: int | None = None


class Interrupted(BaseException):
    """A signal asked the run to stop. Not an Exception, so that no handler swallows it."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = EXIT_CODES[signal.Signals(signum)]


def install() -> None:
    """Handle SIGTERM and SIGINT in this process. Main thread only."""
    for signum in EXIT_CODES:
        signal.signal(signum, _handle)


def _handle(signum: int, frame: FrameType | None) -> None:
    global _pending
    if _held:
        _pending = signum
    else:
        raise Interrupted(signum)


@contextmanager
def uninterrupted(
    save: Callable[[], None] | None = None,
    agreed: Callable[[int | None], int | None] = lambda pending: pending,
) -> Iterator[None]:
    """Hold signals back to the end of the block; then save, if one came, and raise it.

    Args:
        save: Called before the signal is raised.
        agreed: From the signal that came, if any, to the one that counts: that of another process.
    """
    global _held, _pending
    _held += 1
    try:
        yield
        signum = agreed(_pending)
        if signum is not None:
            _pending = signum
            if _held == 1 and save is not None:
                save()
    finally:
        _held -= 1
        if _held == 0 and _pending is not None:
            signum, _pending = _pending, None
            raise Interrupted(signum)
