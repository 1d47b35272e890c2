"""What a run says: metrics.jsonl always, log.txt, the console, and a tracker that is never fatal.

Results go to stdout, all else to stderr. metrics.jsonl holds no time of day, so that two runs
with one seed write the same bytes; log.txt has the time. Text from data and models is shown as it
is: no markup is interpreted, and control characters are shown as escapes, so that a text cannot
drive the terminal. A console that went away (a closed pipe) does not end a run.
"""

import contextlib
import datetime
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgtg.errors import ArtifactError
from pgtg.runs.console import Bar, Lines, QuietConsole, moves, rich_progress
from pgtg.runs.files import atomic, finite, json_line, read_json, writing
from pgtg.runs.layout import aligned, cell_text, shown
from pgtg.runs.tracker import NullTracker, Tracker, tracker

__all__ = ["ENDED", "RunLog", "tracker"]

ENDED = "all that was asked for is done"  # the last line of log.txt, unless something went wrong


class RunLog:
    """One run's log. Close it in `finally`, with the exit code.

    Args:
        folder: Run folder; None keeps no files (evaluation of a plain model folder).
        tracker: From `tracker(...)`; started here.
        quiet: Only warnings and results on the console; the files get everything.
        mute: Nothing on the console at all: another process of the run speaks.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        tracker: Tracker | None = None,
        quiet: bool = False,
        mute: bool = False,
    ):
        self._quiet = quiet or mute
        plain: Any = {"markup": False, "emoji": False, "highlight": False, "quiet": mute}
        self._stderr = QuietConsole(stderr=True, **plain)
        self._stdout = QuietConsole(**plain)
        self._noted: set[str] = set()
        self._metrics: Any = None
        self._text: Any = None
        if folder is not None:
            self._path = Path(folder) / "metrics.jsonl"
            self._check = Path(folder) / "metrics.check.json"
            with writing(self._path):
                self._metrics = _append(self._path)
                self._text = _append(Path(folder) / "log.txt")
            _end_at_line(self._metrics)
        self._tracker: Tracker = tracker or NullTracker()
        self._tracking, self._failed = True, False
        self._track(self._start_tracker)

    def metrics(self, stage: str, round: int, step: int, values: Mapping[str, float]) -> None:
        """One line {"stage", "round", "step", ...} in metrics.jsonl; the tracker gets it too.

        Raises:
            DivergedError: A value is not finite; nothing is written.
            ValueError: A value is named stage, round or step.
        """
        if clash := {"stage", "round", "step"} & {*values}:
            raise ValueError(f"metrics cannot be named {sorted(clash)}")
        numbers = finite(values, f"{stage} round {round} step {step}")
        if self._metrics is not None:
            row = {"stage": stage, "round": round, "step": step, **numbers}
            with writing(self._path):
                _write_all(self._metrics, json_line(row, self._path))
        self._track(lambda: self._tracker.log(stage, round, step, numbers))

    def say(self, text: str) -> None:
        """A line to stderr and log.txt."""
        self._note("", text)
        if not self._quiet:
            self._stderr.tell(text, prose=True)

    def note(self, text: str) -> None:
        """A line to log.txt only."""
        self._note("", text)

    def note_once(self, text: str) -> None:
        """A line to log.txt that is not repeated."""
        if text not in self._noted:
            self._noted.add(text)
            self.note(text)

    def warn(self, text: str) -> None:
        """A warning to stderr, also when quiet, and to log.txt."""
        self._note("warning: ", text)
        self._stderr.tell(f"warning: {text}", style="yellow", prose=True)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        first: Sequence[str] = (),
    ) -> None:
        """Results to stdout. A terminal that is too narrow shows fewer columns: those that `first`
        names, then the others from the left; log.txt has all."""
        cells = [[cell_text(value) for value in row] for row in rows]
        self._note("", f"{title}\n{aligned(columns, cells)}")
        self._stdout.table(title, columns, cells, first)

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None) -> "Iterator[Bar | Lines]":
        """A context whose value has `.advance(n=1, **shown)`: a bar with ETA on a terminal.

        Elsewhere a plain line now and then: after a tenth of the work or 20 seconds, not two
        within 5 seconds, and one at the end.
        """
        if self._quiet or not moves(sys.stderr):
            lines = Lines(title, total, self.say, self.note)
            yield lines
            lines.end()
            return
        with rich_progress(self._stderr) as bars:
            bar = Bar(bars, bars.add_task(shown(title), total=total, shown=""))
            yield bar
        self._note("", bar.line(title))

    def position(self) -> int:
        """Bytes of metrics.jsonl, which are on the disk for good when this returns.

        Their checksum is kept next to the file, so that a later `rewind` finds damage.
        """
        if self._metrics is None:
            return 0
        with writing(self._path):
            os.fsync(self._metrics)
        size = os.fstat(self._metrics).st_size
        self._keep_check(size)
        return size

    def rewind(self, position: int) -> None:
        """Drops the lines after `position`, which the resumed run will write again.

        Raises:
            ArtifactError: The file ends before `position`, no line ends there, or it is not what
                was written.
        """
        if self._metrics is None:
            return
        size = os.fstat(self._metrics).st_size
        ends = position == 0 or os.pread(self._metrics, 1, position - 1) == b"\n"
        if position > size or not ends:
            raise ArtifactError(
                f"{self._path} does not fit the saved run (a line must end at byte {position}, it "
                f"has {size} bytes): restore the file, or start the run again in another run_dir"
            )
        self._verify()
        self._keep_check(position)  # before the file is cut: it always covers what was checked
        with writing(self._path):
            os.ftruncate(self._metrics, position)
            os.fsync(self._metrics)

    def _keep_check(self, size: int) -> None:
        """Only the process that has the file comes here, so nothing that all must call is used."""
        kept = {"bytes": size, "sha256": self._digest(size)}
        with atomic(self._check) as temporary:
            temporary.write_bytes(json_line(kept, self._check))

    def _verify(self) -> None:
        """Raises ArtifactError if the lines that were once checked are others now."""
        if not self._check.exists():  # nothing was committed yet, or by a version without checksums
            return
        kept = read_json(self._check)
        size = kept.get("bytes") if isinstance(kept, dict) else None
        if type(size) is not int or kept != {"bytes": size, "sha256": self._digest(size)}:
            raise ArtifactError(
                f"{self._path} is not what the run wrote (its checksum in {self._check.name} "
                f"differs): restore the file, or delete {self._check} to resume with it as it is"
            )

    def _digest(self, size: int) -> str:
        """sha256 of the file's first bytes."""
        return hashlib.sha256(os.pread(self._metrics, max(size, 0), 0)).hexdigest()

    def rows(
        self, name: str, round: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """A table for the tracker alone: generations and what is thought of them."""
        self._track(lambda: self._tracker.table(name, round, columns, rows))

    def page(self, name: str, path: Path) -> None:
        """An HTML page for the tracker alone."""
        self._track(lambda: self._tracker.page(name, path))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's final numbers, for the tracker."""
        self._track(lambda: self._tracker.summary(values))

    def close(self, exit_code: int) -> None:
        """Ends the tracker's run as finished (0) or failed, and closes the files."""
        self._tracking = True  # a tracker that failed is still told that the run ends
        self._track(lambda: self._tracker.close(exit_code))
        self._tracker = NullTracker()
        for file in (self._metrics, self._text):
            if file is not None:
                os.close(file)
        self._metrics = self._text = None

    def _track(self, call: Callable[[], None]) -> None:
        """Tells the tracker; its first failure is said, and it is left alone from then on."""
        if not self._tracking:
            return
        try:
            call()
        except Exception as error:
            self._tracking = False
            if not self._failed:
                self._failed = True
                reason = " ".join(str(error).split())[:200]
                self.warn(
                    f"the tracker failed ({type(error).__name__}: {reason}): the run continues "
                    "without it, metrics.jsonl has everything"
                )

    def _start_tracker(self) -> None:
        said = self._tracker.start()
        if said:
            self.warn(said)
        if where := self._tracker.kept():
            self.say(where)

    def _note(self, kind: str, text: str) -> None:
        """Lines to log.txt, each with the time of day."""
        if self._text is None:
            return
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        lines = "".join(f"{now} {kind}{line}\n" for line in shown(text).split("\n"))
        with writing(self._path.with_name("log.txt")):
            _write_all(self._text, lines.encode("utf-8"))


def _append(path: Path) -> int:
    """Opens for appending, never through a link."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.open(path, flags, 0o644)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _end_at_line(descriptor: int) -> None:
    """Cuts the half line that a kill or a full disk may have left at the end."""
    size = os.fstat(descriptor).st_size
    start = size
    while start > 0:
        block = os.pread(descriptor, min(start, 65536), max(start - 65536, 0))
        end = block.rfind(b"\n")
        start = max(start - 65536, 0)
        if end >= 0:
            os.ftruncate(descriptor, start + end + 1)
            return
    os.ftruncate(descriptor, 0)
