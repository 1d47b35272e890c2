"""The judge in worker processes, so that it runs during generation.

Any number of workers gives the same bits: a score depends on its own pair of texts only. Without a
number in the config they are started where there are cores for them, once judging in this process
has taken INLINE_S seconds: a short run does not wait for their start. Workers are spawned (never
forked: the parent holds a model and its threads) and

- do not import the parent's main module, so a script without a `__main__` guard is safe and the
  command line's modules are not loaded again;
- are out of reach of Ctrl-C and of signals to the process group: the parent decides what happens;
- end by themselves when the parent is gone, however it went;
- are killed, with an error for whoever waits, when they have finished nothing for `HUNG_S` seconds.
"""

import atexit
import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pgtg.config import JudgeConfig, TextJudgeConfig
from pgtg.errors import ConfigError, PgtgError
from pgtg.judges import TextJudge
from pgtg.judges.text import build_judge
from pgtg.runtime import distributed

T = TypeVar("T")
CHUNK = 32  # texts a worker scores at a time: some 10 ms of METEOR
_DIED = (
    "a judge worker process died (killed, or out of memory): "
    "use fewer by judge.workers=n, or judge.workers=0 to judge in the main process"
)
INLINE_S = 1.0  # s of judging in this process before workers are worth their start
MOST = 4  # workers that are started without being asked for: METEOR of 5,000 texts a second
HUNG_S = 300.0  # s: a part is CHUNK texts, a worker's start included
_HUNG = (
    "the judge's worker processes finished nothing for {seconds:.0f} s and were ended: give the "
    "same command again to resume, with judge.workers=0 to judge in the main process"
)
ENDING_S = 5.0  # s in which a worker may finish its part when the pool is closed
_HELD = ("SIGINT", "SIGTERM")  # signals that wait while a worker starts

_judge: TextJudge | None = None  # this worker's judge


class JudgePool:
    """Scores texts by the config's judge, in `cfg.workers` processes, inline when 0, and at first
    inline, then in `free_cores()` processes when None.

    Args:
        cfg: Judge and number of workers.
        splitter: Sentence splitter, see `pgtg.metrics.sentences`.
        words: What is a word, see `pgtg.metrics.words`.

    Raises:
        ConfigError: Unknown judge or splitter, negative number of workers.
        MissingResourceError: What the judge needs is not on this machine.
    """

    def __init__(self, cfg: JudgeConfig, splitter: str = "regex", words: str = "default"):
        assert isinstance(cfg, TextJudgeConfig)  # config check
        if (cfg.workers or 0) < 0:
            raise ConfigError(f"judge.workers={cfg.workers}: give 0 (inline) or more")
        # here too, so that a missing resource shows now
        self._inline = build_judge(cfg, splitter, words)
        self._cfg, self._how = cfg, (splitter, words)
        self._workers: ProcessPoolExecutor | None = None
        self._watch: _Watch | None = None
        self._later = free_cores() if cfg.workers is None else 0
        self._spent = 0.0  # s of judging here
        if cfg.workers:
            self._start(cfg.workers)

    def _start(self, count: int) -> None:
        self._workers, processes = _start_workers(self._cfg, *self._how, count)
        self._watch = _Watch(processes)

    @property
    def name(self) -> str:
        """The judge's, as in the config."""
        return self._cfg.name

    @property
    def reference(self) -> str:
        """How references are given: as_given, or as_trained."""
        return self._cfg.reference

    def describe(self) -> Mapping[str, Any]:
        return self._inline.describe()

    def unread(self, texts: Iterable[str]) -> float:
        """Share of the letters of texts that the judge does not read, in [0, 1]."""
        return self._inline.unread(texts)

    def submit(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Future[list[float]]:
        """Scores in the order of `texts`, as a future.

        Raises (from the future's `result`):
            PgtgError: A score is not finite, or a worker died.
        """
        if len(texts) != len(references):
            raise ValueError(f"{len(texts)} texts, {len(references)} lists of references")
        rows = [(text, tuple(refs)) for text, refs in zip(texts, references, strict=True)]
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        if self._workers is None and self._later and self._spent > INLINE_S:
            self._start(self._later)
        if self._workers is None or self._watch is None:
            began = time.perf_counter()
            done = [_called(_score, self._inline, chunk) for chunk in chunks]
            self._spent += time.perf_counter() - began
            return joined(done)
        try:
            parts = [self._workers.submit(_score_here, chunk) for chunk in chunks]
        except BrokenProcessPool as error:
            raise PgtgError(self._watch.why()) from error
        self._watch.follow(parts)
        return joined(parts, self._watch.why)

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """As `submit`, and waits."""
        return self.submit(texts, references).result()

    def close(self) -> None:
        """Ends the workers; what was submitted and not begun is cancelled."""
        if self._workers is not None and self._watch is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._watch.end()
            self._workers.shutdown(wait=True)

    def __enter__(self) -> "JudgePool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Watch:
    """Ends worker processes that hang: nothing was finished for HUNG_S seconds, or at the close."""

    def __init__(self, processes: Sequence[BaseProcess]):
        self._processes = processes
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._open, self._last, self._hung = 0, 0.0, False
        threading.Thread(target=self._look, daemon=True).start()

    def follow(self, parts: Sequence[Future[list[float]]]) -> None:
        with self._lock:
            self._last = self._last if self._open else time.monotonic()
            self._open += len(parts)
        for part in parts:
            part.add_done_callback(self._done)

    def why(self) -> str:
        """What ended the workers."""
        return _HUNG.format(seconds=HUNG_S) if self._hung else _DIED

    def end(self) -> None:
        """Waits a moment for the workers to end by themselves."""
        self._closed.set()
        deadline = time.monotonic() + ENDING_S
        alive = [process.sentinel for process in self._processes]
        while alive and time.monotonic() < deadline:
            ended = multiprocessing.connection.wait(alive, deadline - time.monotonic())
            alive = [sentinel for sentinel in alive if sentinel not in ended]
        self._kill(alive)

    def _kill(self, sentinels: Sequence[int]) -> None:
        for process in self._processes:
            if process.sentinel in sentinels:
                process.kill()

    def _done(self, _: Future[list[float]]) -> None:
        with self._lock:
            self._open, self._last = self._open - 1, time.monotonic()

    def _look(self) -> None:
        while not self._closed.wait(min(1.0, HUNG_S / 4)):
            with self._lock:
                hung = self._open > 0 and time.monotonic() - self._last > HUNG_S
            if hung:
                self._hung = True
                self._kill([process.sentinel for process in self._processes])
                return


def _score(judge: TextJudge, rows: list[tuple[str, tuple[str, ...]]]) -> list[float]:
    scores = judge.score([text for text, _ in rows], [references for _, references in rows])
    for (text, _), score in zip(rows, scores, strict=True):
        if not math.isfinite(score):
            raise PgtgError(f"judge {judge.name}: score {score} for the text {text[:80]!r}")
    return scores


def _score_here(rows: list[tuple[str, tuple[str, ...]]]) -> list[float]:
    assert _judge is not None  # the initializer has built it
    return _score(_judge, rows)


def _called(function: Callable[..., list[float]], *arguments: object) -> Future[list[float]]:
    """The finished future of a call made here."""
    future: Future[list[float]] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:  # met at result(), as with workers
        future.set_exception(error)
    return future


def joined(parts: list[Future[list[T]]], why: Callable[[], str] = lambda: _DIED) -> Future[list[T]]:
    """One future for the concatenated results of the parts; the first failure is its failure."""
    whole: Future[list[T]] = Future()
    lock, left = threading.Lock(), len(parts)

    def settle() -> None:
        if any(part.cancelled() for part in parts):
            whole.cancel()
            return
        error = next((error for part in parts if (error := part.exception())), None)
        if isinstance(error, BrokenProcessPool):
            error = PgtgError(why())
        if error is not None:
            whole.set_exception(error)
        else:
            whole.set_result([score for part in parts for score in part.result()])

    def one_done(_: Future[list[T]]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            settle()

    if not parts:
        settle()
    for part in parts:
        part.add_done_callback(one_done)
    return whole


def free_cores() -> int:
    """Workers that this process has cores for: none where there are two or fewer."""
    share = int(os.environ.get("PGTG_THREADS") or 0)  # a sweep's share for a job
    known = hasattr(os, "sched_getaffinity")
    cores = share or (len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)
    cores //= distributed.count()
    return min(cores - 1, MOST) if cores > 2 else 0


def _start_workers(
    cfg: TextJudgeConfig, splitter: str, words: str, count: int
) -> tuple[ProcessPoolExecutor, list[BaseProcess]]:
    import nltk

    workers = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(cfg, splitter, words, list(nltk.data.path)),
    )
    others = multiprocessing.active_children()
    with _apart():
        for _ in range(count):  # each submission starts one process while none is idle
            workers.submit(os.getpid)
    return workers, [one for one in multiprocessing.active_children() if one not in others]


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Starts processes that neither import our main module nor see signals until they begin.

    A spawned process inherits the blocked signals and imports what stands as `__main__`.
    """
    held = {getattr(signal, name) for name in _HELD}
    masked = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held) if masked else set()
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(cfg: TextJudgeConfig, splitter: str, words: str, nltk_path: list[str]) -> None:
    """What a worker does first: leave the parent's process group, watch the parent, get ready."""
    global _judge
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # drops one that came while it was held
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {getattr(signal, name) for name in _HELD})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the executor ends workers by it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    atexit.register(os._exit, 0)  # taking WordNet's tables apart one by one takes 1.5 s
    import nltk

    nltk.data.path[:] = nltk_path
    _judge = build_judge(cfg, splitter, words)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
