"""The console's parts: text shown as it is, progress as a bar or as plain lines, tables.

Text from data and models cannot drive the terminal: no markup is interpreted, and control
characters are shown as escapes. A bar is for a terminal only; elsewhere a line now and then.
"""

import contextlib
import os
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from textwrap import TextWrapper
from typing import Any, TextIO

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

LINE_SECONDS = 20.0  # a plain progress line at the latest after so long,
LINE_SHARE = 0.1  # or after a tenth of the work,
LINE_WORTH = 1.0  # seconds of work that are worth a line
LINE_PAUSE = 5.0  # but never two within so long


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
        if prose and self.is_terminal:
            safe = "\n".join(_broken(line, self.width) for line in safe.split("\n"))
        self.print(Text(safe, style), soft_wrap=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.file.fileno())  # else Python complains about the pipe at exit
            os.close(null)


def _broken(line: str, width: int) -> str:
    """A line in parts of at most `width` columns, the later ones indented by two."""
    if len(line) <= width:
        return line
    wrapper = TextWrapper(
        width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(line)


def shown(text: str) -> str:
    """Text with control characters and lone surrogates as escapes; newline, tab, spaces stay."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs"
        else char.encode("unicode_escape").decode()
        for char in text
    )


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


def is_terminal(stream: TextIO) -> bool:
    return hasattr(stream, "isatty") and stream.isatty()


def _values(values: Mapping[str, Any]) -> str:
    return "".join(f", {key} {cell_text(value)}" for key, value in values.items())


def cell_text(value: object) -> str:
    """A table's cell: floats with 4 significant digits at least, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 10 or value == 0 else f"{value:.4g}"
    return shown(str(value)).replace("\n", "\\n")


def aligned(columns: Sequence[str], cells: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Columns by width, two spaces apart; the first to the left, numbers to the right.

    With `left` all to the left: words.
    """
    rows = [[shown(column) for column in columns], *cells]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if i and not left else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
