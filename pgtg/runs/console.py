"""The console's parts: text shown as it is, progress as a bar or as plain lines, tables.

Text from data and models cannot drive the terminal: no markup is interpreted, and control
characters are shown as escapes. A bar is for a terminal only; elsewhere a line now and then. On a
terminal nothing is wider than it is: prose is broken at spaces, and tables have fewer columns.
"""

import contextlib
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import TextWrapper
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

LINE_SECONDS = 20.0  # a plain progress line at the latest after so long,
LINE_SHARE = 0.1  # or after a tenth of the work,
LINE_WORTH = 1.0  # seconds of work that are worth a line
LINE_PAUSE = 5.0  # but never two within so long

WIDE = "PGTG_WIDE"  # set: tables have all their columns, wider than the terminal or not
NUMBER = re.compile(r"[-+−<]?[\d.]|-$|n/a$|inf$|nan$|$|\[[-+\d]")
GAP = 2  # spaces between columns
WHOLE = 12  # characters of a cell that is never broken, such as "6 h ago"
TEXT = 24  # columns that a text in a table needs not be narrower than
DUMB = ("dumb", "unknown")  # terminals that do nothing but show lines

Cells = Sequence[Sequence[str]]  # the rows of a table


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


def screen(stream: IO[str]) -> int | None:
    """Columns of the terminal behind a stream; None where there is none: lines have any length."""
    if not is_terminal(stream):
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    with contextlib.suppress(OSError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def folded(text: str, stream: IO[str], *, indent: str = "  ") -> str:
    """Prose as a stream shows it: on a terminal broken at spaces, later parts indented.

    Words, such as paths, stay whole.
    """
    width = screen(stream)
    if width is None:
        return text
    return "\n".join("\n".join(_broken(line, width, indent)) for line in text.split("\n"))


def _broken(line: str, width: int, indent: str = "") -> list[str]:
    """A line in parts of at most `width` columns, the later ones indented."""
    if len(line) <= width:
        return [line]
    return TextWrapper(
        width,
        initial_indent=line[: len(line) - len(line.lstrip(" "))],
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).wrap(line.lstrip(" "))


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


def is_terminal(stream: IO[str]) -> bool:
    return hasattr(stream, "isatty") and stream.isatty()


def moves(stream: IO[str]) -> bool:
    """Whether a bar can be drawn there: on a terminal that can go back in a line."""
    return is_terminal(stream) and os.environ.get("TERM", "") not in DUMB


def _values(values: Mapping[str, Any]) -> str:
    return "".join(f", {key} {cell_text(value)}" for key, value in values.items())


def cell_text(value: object) -> str:
    """A table's cell: floats with 4 significant digits at least, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 10 or value == 0 else f"{value:.4g}"
    return shown(str(value)).replace("\n", "\\n")


def aligned(columns: Sequence[str], cells: Cells, *, left: bool = False) -> str:
    """Columns by width, two spaces apart; words to the left, numbers to the right.

    With `left` all to the left: words.
    """
    rows = [[shown(column) for column in columns], *cells]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(columns))]
    return "\n".join(_lines(rows, widths, _numbers(cells, range(len(columns)), left)))


def fitted(
    columns: Sequence[str],
    cells: Cells,
    width: int,
    *,
    left: bool = False,
    first: Sequence[str] = (),
) -> tuple[str, str, list[str]]:
    """A table of at most `width` columns of the screen: its head, its rows, what was left out.

    The first column stays, then those that `first` names, then the others from left to right, as
    long as there is room for their longest word and for texts on about two lines. No word and no
    number is ever cut.
    """
    rows = [[shown(column) for column in columns], *cells]
    places = range(len(columns))
    whole = [max(len(row[i]) for row in rows if i < len(row)) for i in places]
    least = [max(_least(row[i]) for row in rows if i < len(row)) for i in places]
    rank = {name: place for place, name in enumerate(first)}
    kept, room = list[int](), width + GAP
    if os.environ.get(WIDE):
        kept, room, least = [*places], 0, whole
    for i in sorted(places, key=lambda i: (i > 0, rank.get(columns[i], len(rank)), i)):
        if i not in kept and (not kept or least[i] + GAP <= room):
            kept.append(i)
            room -= least[i] + GAP
    widths = dict.fromkeys(places, 0)
    for i in kept:  # what is left over goes to the columns that would be broken
        widths[i] = least[i] + min(whole[i] - least[i], max(room, 0))
        room -= widths[i] - least[i]
    kept.sort()
    own, numbers = [widths[i] for i in kept], _numbers(cells, kept, left)
    head, *body = [
        "\n".join(_lines(_parts([row[i] if i < len(row) else "" for i in kept], own), own, numbers))
        for row in rows
    ]
    left_out = [columns[i] for i in places if i not in kept]
    return head, "\n".join(body), left_out


def tabled(columns: Sequence[str], cells: Cells, stream: IO[str], *, left: bool = False) -> str:
    """A table as a stream shows it, with a line about what a terminal has no room for."""
    width = screen(stream)
    if width is None:
        return aligned(columns, cells, left=left)
    head, body, left_out = fitted(columns, cells, width, left=left)
    more = [folded(more_columns(left_out), stream)] if left_out else []
    return "\n".join([head, *([body] if body else []), *more])


def more_columns(names: Sequence[str]) -> str:
    """The line under a table that has not all its columns."""
    return f"left out: {', '.join(names)} (--wide shows all columns)"


def listed(rows: Iterable[tuple[str, str]], stream: IO[str], *, width: int = 0) -> str:
    """Names in a column, with what is said of each: on a terminal broken at spaces, under itself.

    Args:
        rows: Name and text.
        stream: Where it is shown.
        width: Of the column of names at least.
    """
    rows = [*rows]
    width = max([width, *(len(name) for name, _ in rows)])
    limit = screen(stream)
    indent = width + GAP if limit is None or limit - width > TEXT else 4
    lines = []
    for name, text in rows:
        if indent < width + GAP:  # no room for two columns
            lines += [name, *(_broken(" " * indent + text, limit or 0, " " * indent))]
        else:
            lines.append(folded(f"{name:<{width}}{' ' * GAP}{text}", stream, indent=" " * indent))
    return "\n".join(lines)


def _numbers(cells: Cells, places: Iterable[int], left: bool) -> list[bool]:
    """Whether columns hold numbers, which stand to the right."""
    columns = [[row[i] for row in cells if i < len(row)] for i in places]
    return [i > 0 and not left and all(map(NUMBER.match, cells)) for i, cells in enumerate(columns)]


def _least(cell: str) -> int:
    """Columns that a cell needs at least: its longest word, and half of a text that is not long."""
    if len(cell) <= WHOLE:
        return len(cell)
    longest = max((len(word) for word in cell.split()), default=0)
    return max(longest, min((len(cell) + 1) // 2, TEXT))


def _parts(row: Sequence[str], widths: Sequence[int]) -> list[list[str]]:
    """The lines of a row whose cells are broken at spaces."""
    cells = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    return [[cell[n] if n < len(cell) else "" for cell in cells] for n in range(height)]


def _lines(rows: Cells, widths: Sequence[int], numbers: Sequence[bool]) -> list[str]:
    return [
        (" " * GAP)
        .join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=False)
        )
        .rstrip()
        for row in rows
    ]


def counted(number: int, what: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
