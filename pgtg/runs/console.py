"""The console: text shown as it is, progress as a bar or as plain lines.

Text from data and models cannot drive the terminal: no markup is interpreted, and control
characters are shown as escapes. A bar is for a terminal only; elsewhere a line now and then.
`layout` breaks lines and fits tables.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pgtg.runs.layout import (
    Cells,
    aligned,
    cell_text,
    fitted,
    folded,
    is_terminal,
    more_columns,
    screen,
    shown,
)

LINE_SECONDS = 20.0  # a plain progress line at the latest after so long,
LINE_SHARE = 0.1  # or after a tenth of the work,
LINE_WORTH = 1.0  # seconds of work that are worth a line
LINE_PAUSE = 5.0  # but never two within so long

DUMB = ("dumb", "unknown")  # terminals that do nothing but show lines


class Lines:
    """Progress as plain lines, for a console that is no terminal."""

    def __init__(
        self,
        title: str,
        total: int | None,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ):
        self._title, self._total, self._say, self._note = title, total, say, note
        self._done, self._told_done = 0, 0
        self._start = self._told = time.monotonic()  # never jumps back, unlike the clock
        self._shown: Mapping[str, Any] = {}

    def advance(self, n: int = 1, **shown: Any) -> None:
        """Counts n more, with values to show next to the count."""
        self._done += n
        self._shown = shown or self._shown
        waited = time.monotonic() - self._told
        share = (self._done - self._told_done) / self._total if self._total else 0.0
        complete = self._total is not None and self._done >= self._total
        due = waited >= LINE_SECONDS or (share >= LINE_SHARE and waited >= LINE_PAUSE)
        if due and not complete:
            self._told, self._told_done = time.monotonic(), self._done
            self._say(f"{self._count()}{self._left()}{_values(self._shown)}")

    def end(self) -> None:
        """The last line; of work that was done at once, for the log only."""
        seconds = time.monotonic() - self._start
        tell = self._say if seconds >= LINE_WORTH else self._note
        tell(f"{self._count()} in {_duration(seconds)}{_values(self._shown)}")

    def _count(self) -> str:
        return f"{self._title}: {self._done}" + (f"/{self._total}" if self._total else "")

    def _left(self) -> str:
        if not self._total or not self._done:
            return ""
        seconds = time.monotonic() - self._start
        return f", {_duration(seconds / self._done * (self._total - self._done))} left"


class Bar:
    """Progress as a bar on a terminal."""

    def __init__(self, bars: Progress, task: TaskID):
        self._bars, self._task = bars, task

    def advance(self, n: int = 1, **shown: Any) -> None:
        """Counts n more, with values to show next to the bar."""
        if shown:
            self._bars.update(self._task, shown=_values(shown).removeprefix(", "))
        self._bars.advance(self._task, n)

    def line(self, title: str) -> str:
        """What the bar came to, for log.txt."""
        task = self._bars.tasks[self._task]
        total = f"/{int(task.total)}" if task.total is not None else ""
        return f"{title}: {int(task.completed)}{total} in {_duration(task.elapsed or 0.0)}"


class QuietConsole(Console):
    """A console whose reader may leave: then it falls silent, and the run continues."""

    def tell(self, text: str, style: str = "", *, prose: bool = False) -> None:
        """Text as it is, without markup or wrapping, in what the stream's encoding can hold.

        On a terminal prose is broken at spaces; words, such as paths, stay whole.
        """
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        safe = shown(text).encode(encoding, "backslashreplace").decode(encoding)
        self.print(Text(folded(safe, self.file) if prose else safe, style), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], cells: Cells, first: Sequence[str]) -> None:
        """A table under its title; on a terminal no wider than that, with a bold head."""
        width = screen(self.file)
        if width is None:
            self.tell(f"{title}\n{aligned(columns, cells)}")
            return
        head, body, left_out = fitted(columns, cells, width, first=first)
        self.tell(f"\n{title}", prose=True)
        self.tell(head, style="bold")
        self.tell("─" * max(map(len, f"{head}\n{body}".split("\n"))), style="dim")
        self.tell(body)
        if left_out:
            self.tell(more_columns(left_out), style="dim", prose=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.file.fileno())  # else Python complains about the pipe at exit
            os.close(null)


def rich_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
        console=console,
        transient=True,
    )


def moves(stream: IO[str]) -> bool:
    """Whether a bar can be drawn there: on a terminal that can go back in a line."""
    return is_terminal(stream) and os.environ.get("TERM", "") not in DUMB


def _values(values: Mapping[str, Any]) -> str:
    return "".join(f", {key} {cell_text(value)}" for key, value in values.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
