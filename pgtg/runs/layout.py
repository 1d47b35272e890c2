"""Text fitted to a terminal: prose broken at spaces, tables with as many columns as there is room
for, and no character that would drive it. Elsewhere than on a terminal lines have any length.
"""

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from textwrap import TextWrapper
from typing import IO

WIDE = "PGTG_WIDE"  # set: tables have all their columns, wider than the terminal or not
NUMBER = re.compile(r"[-+−<]?[\d.]|-$|n/a$|inf$|nan$|$|\[[-+\d]")
GAP = 2  # spaces between columns
WHOLE = 12  # characters of a cell that is never broken, such as "6 h ago"
TEXT = 24  # columns that a text in a table needs not be narrower than

Cells = Sequence[Sequence[str]]  # the rows of a table


def is_terminal(stream: IO[str]) -> bool:
    return hasattr(stream, "isatty") and stream.isatty()


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
