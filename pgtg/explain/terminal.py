"""Texts with shaded tokens on a terminal; with marks in place of colours where it shows none."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

from pgtg.explain.credit import Entry, View
from pgtg.explain.gather import Credit
from pgtg.explain.shading import LEVELS, LIGHT, STRONG, Scale, visible
from pgtg.models import pieces
from pgtg.models.pieces import Piece
from pgtg.runs.console import QuietConsole
from pgtg.runs.layout import screen, shown

DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
LONGEST_SOURCE = 600  # characters of a source that are shown


def show(credit: Credit) -> None:
    """Print all groups to stdout."""
    console = QuietConsole(markup=False, emoji=False, highlight=False)
    painter = Painter(console, credit.special)
    labels = [run.label for run in credit.runs]
    _print(console, Text(f"{credit.origin}, {credit.order}", "bold"))
    for run, scale in zip(credit.runs, credit.scales, strict=True):
        if run.worth:
            _print(console, Text(f"{run.label}: {run.worth}"))
        _print(console, painter.legend(run.label, scale))
        if note := scale.note(run.about.bound):
            _print(console, Text(f"{run.label}: {note}"))
    for group in credit.groups:
        _print(console, Text())
        _print(console, Text(shown(group.id), "bold"))
        if group.source:
            _print(console, _field("source", group.source))
        for reference in group.references:
            _print(console, _field("reference", reference))
        for entry in group.entries:
            _print(console, painter.entry(entry, labels, credit.scales))
        if group.pairs:
            wrong = "; ".join(
                f"{label}: {count}" for label, count in zip(labels, group.wrong, strict=True)
            )
            _print(console, Text(f"wrong of {group.pairs} pairs: {wrong}", "dim"))


def _print(console: Console, text: Text) -> None:
    """On a terminal broken at spaces, later parts indented as the first."""
    width = screen(console.file)
    for line in text.split("\n", allow_blank=True):
        indent = len(line.plain) - len(line.plain.lstrip(" "))
        if width is None or len(line) <= width:
            console.print(line, soft_wrap=True)
            continue
        for part in line[indent:].divide(_breaks(line.plain[indent:], width - indent)):
            part.rstrip()
            console.print(Text(" " * indent).append_text(part), soft_wrap=True)


def _breaks(text: str, width: int) -> list[int]:
    """Where lines of at most `width` columns begin after the first, each at a word."""
    found = [0]
    for word in re.finditer(r"\S+", text):
        if word.start() > found[-1] and word.end() - found[-1] > width:
            found.append(word.start())
    return found[1:]


def _field(name: str, text: str) -> Text:
    cut = text[:LONGEST_SOURCE] + (" […]" if len(text) > LONGEST_SOURCE else "")
    return Text(f"{name}: ", "dim").append(shown(cut), Style(dim=False))


class Painter:
    """Tokens as parts of a line: shaded where the console has colours, else with marks.

    A mark is a digit after the token, 0 for the lowest rewards of the scale and 9 for the highest.
    """

    def __init__(self, console: Console, special: frozenset[int]):
        self._special = special
        self._colours = console.color_system is not None and not console.no_color
        encoding = (getattr(console.file, "encoding", None) or "ascii").lower()
        self._fine = encoding.replace("-", "").startswith("utf")

    def legend(self, label: str, scale: Scale) -> Text:
        """The scale line of a run."""
        line = Text(f"{label}: reward ")
        if self._colours:
            line.append(f"by shade, middle {scale.number(scale.middle)} (median):\n  ")
            line.append(f"{scale.number(scale.low)} ")
            for level in range(-LEVELS, LEVELS + 1):
                line.append("  ", _style(level))
            return line.append(f" {scale.number(scale.high)}")
        low, high = (f"{self._mark(v, scale)} = {scale.number(v)}" for v in (scale.low, scale.high))
        ends = f"{low} or less … {high} or more"
        return line.append(f"{ends}, median {scale.number(scale.middle)}")

    def entry(self, entry: Entry, labels: Sequence[str], scales: Sequence[Scale]) -> Text:
        """What judge and runs say of a text, and the text, once for each run."""
        judged = "judge n/a"
        if entry.score is not None:
            place = "" if entry.score_rank is None else f" (#{entry.score_rank})"
            judged = f"judge {entry.score:.2f}{place}"
        lines = []
        for label, scale, view in zip(labels, scales, entry.views, strict=True):
            line = Text(
                f"  {judged}  {label} e {scale.number(view.evaluation)} (#{view.rank})", "dim"
            )
            lines += [line, Text("    ").append_text(self.text(view, scale))]
        return Text("\n").join(lines)

    def text(self, view: View, scale: Scale) -> Text:
        """A text by its tokens."""
        line = Text()
        for piece, reward in zip(view.pieces, view.rewards, strict=True):
            before, word, after = _parts(view.text[piece.start : piece.end], self._name(piece))
            line.append(before)
            line.append(word, _style(scale.level(reward)) if self._colours else "")
            if not self._colours:
                line.append(self._mark(reward, scale))
            line.append(after)
        rest = view.text[view.pieces[-1].end :] if view.pieces else view.text
        return line.append(shown(rest), "dim strike") if rest else line

    def _name(self, piece: Piece) -> str:
        return pieces.name(piece, special=piece.id in self._special)

    def _mark(self, reward: float, scale: Scale) -> str:
        step = round((scale.level(reward) + LEVELS) * 9 / (2 * LEVELS))
        return DIGITS[step] if self._fine else f"/{step}"


def _parts(text: str, name: str) -> tuple[str, str, str]:
    """White space before a token, what is shaded, and the line break after it.

    White space that is all of a token is shaded as a mark, and so is a token without text.
    """
    if not text:
        return "", name, ""
    word = text.lstrip(" ")
    before = text[: len(text) - len(word)]
    if not word:
        before, word = "", "␣" * len(text)
    marked = "".join(visible(char) or char if char != " " else char for char in word)
    return before, shown(marked), "\n    " if word.endswith("\n") else ""


def _style(level: int) -> Style:
    """Background by reward, with ink that can be read on it."""
    ink = "#ffffff" if abs(level) >= STRONG else "#000000"
    return Style(color=ink, bgcolor=LIGHT[level + LEVELS])
