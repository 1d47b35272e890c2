"""A few daemon threads that wait for others: a process that ends does not wait for them."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class Threads:
    """Calls functions, at most so many at once, in the order in which they were handed in.

    Not a `ThreadPoolExecutor`: that one is joined when the process ends, so that Ctrl-C would wait
    for the slowest server's time-out.
    """

    def __init__(self, count: int):
        self._count, self._started = count, 0
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        """The future of a call."""
        future: Future[Any] = Future()
        self._waiting.put((future, function, given))
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._work, daemon=True).start()
        return future

    def close(self) -> None:
        """Cancels what has not begun; what has begun ends when it does."""
        with suppress(queue.Empty):
            while True:
                future, _, _ = self._waiting.get_nowait()
                future.cancel()
        for _ in range(self._started):
            self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, function, given = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*given))
            except BaseException as error:  # met at result()
                future.set_exception(error)
