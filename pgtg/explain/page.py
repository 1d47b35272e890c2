"""Token credit as one HTML page: no network, light and dark, by mouse and by keyboard.

All of it stands in the page as text, so it can be read, searched and printed without the script,
which only adds numbers to the tokens, order and choice. Every text is escaped; a content security
policy forbids all but the page's own style and this one script, which it knows by its hash.
"""

import base64
import hashlib
import html
from importlib.resources import files

from pgtg.explain.credit import Entry, Explained, View
from pgtg.explain.gather import Credit
from pgtg.explain.shading import DARK, LEVELS, LIGHT, STRONG, Scale, spelled, visible
from pgtg.models import pieces
from pgtg.models.pieces import Piece

UNDERLINED = 4  # levels from here on are underlined as well: colour is not the only sign
LONG = 600  # characters of a source from which on it scrolls in a box of its own

SHADING = """Each token is shaded by the reward that the run's reward model gives it: blue above the
middle of the run's own scale, orange below. Hover a token, or reach it with Tab and the arrow keys,
for the number."""
NUMBERS = """e is the aggregator's evaluation of the whole text; # is a rank among the texts of one
source, 1 is best."""


def as_page(credit: Credit) -> str:
    """The page."""
    folder = files("pgtg.explain")
    css = shades() + folder.joinpath("page.css").read_text(encoding="utf-8")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; script-src 'sha256-{digest}'"
    )
    about = credit.runs[0].about
    heading = text(f"Token credit: {about.task}, {about.name}, seed {about.seed}")
    drawn = Drawing(credit)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{heading}</title>",
        f"<style>\n{css}</style>",
        "</head>",
        "<body>",
        f"<h1>{heading}</h1>",
        drawn.facts(),
        drawn.controls(),
        '<main id="groups">',
        *(drawn.group(group) for group in credit.groups),
        "</main>",
        '<div id="tip" role="tooltip" hidden></div>',
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def shades() -> str:
    """Style rules of the 13 levels."""

    def rules(colours: list[str]) -> str:
        return "".join(f".l{n} {{ background: {c}; }}\n" for n, c in enumerate(colours))

    dark = "@media (prefers-color-scheme: dark) {\n" + rules(DARK) + "}\n"
    return rules(LIGHT) + dark + "@media print {\n" + rules(LIGHT) + "}\n"


def text(value: str) -> str:
    """Any text as text, with marks for characters that cannot be seen or would reorder it."""
    return "".join(_character(char) for char in value)


def _character(char: str) -> str:
    mark = None if char in " \u00a0" else visible(char)
    if mark is None:
        return html.escape(char, quote=True)
    return f"<u>{mark}</u>{char if char in chr(10) + chr(9) else ''}"


class Drawing:
    """The parts of the page, for the runs of one credit."""

    def __init__(self, credit: Credit):
        self._credit = credit
        self._labels = [text(run.label) for run in credit.runs]

    def facts(self) -> str:
        """Where texts and numbers are from, and the scale of each run."""
        credit = self._credit
        said = [f"Texts: {text(credit.origin)}; {text(credit.order)}.", SHADING, NUMBERS]
        legends = "".join(self._legend(n, scale) for n, scale in enumerate(credit.scales))
        return (
            "<ul>" + "".join(f"<li>{line}</li>" for line in said) + "</ul>"
            f'<div class="legends">{legends}</div>'
        )

    def _legend(self, number: int, scale: Scale) -> str:
        run = self._credit.runs[number]
        swatches = "".join(f'<i class="l{n}"></i>' for n in range(2 * LEVELS + 1))
        found = [group.wrong[number] for group in self._credit.groups]
        pairs = sum(group.pairs for group in self._credit.groups)
        right = f"; {pairs - sum(found)} of {pairs} pairs as the judge" if pairs else ""
        low, middle, high = map(scale.number, (scale.low, scale.middle, scale.high))
        notes = [line for line in (run.worth, scale.note(run.about.bound)) if line]
        said = "".join(f"<br>{text(line)}" for line in notes)
        return (
            f'<p class="legend"><b>{self._labels[number]}</b> '
            f"<span>{low} {swatches} {high}</span>, middle {middle} (median)"
            f'{right}{said}<br><span class="soft">{text(run.path.name)}: '
            f"aggregator {text(run.about.aggregator.name)}, head {text(run.about.head)}, bound "
            f"{text(run.about.bound)}</span></p>"
        )

    def controls(self) -> str:
        """Order and choice; hidden until the script is there."""
        runs = "".join(
            f'<option value="{n}">{name}</option>' for n, name in enumerate(self._labels)
        )
        which = f'<label>for <select name="run">{runs}</select></label>'
        return (
            '<form id="controls" role="search" hidden>\n'
            '<label>find <input name="find" type="search" size="14"></label>\n'
            '<label>order <select name="order"><option value="data">as given</option>'
            '<option value="wrong">mis-ranked first</option>'
            '<option value="spread">widest rewards first</option></select></label>\n'
            f"{which if len(self._labels) > 1 else ''}"
            '<label><input name="wrong" type="checkbox"> only mis-ranked</label>\n'
            '<label><input name="spaces" type="checkbox"> show spaces as ␣</label>\n'
            '<output name="count" aria-live="polite"></output>\n</form>'
        )

    def group(self, group: Explained) -> str:
        """One source with its texts."""
        wrong = "; ".join(
            f"{label}: {count}" if len(self._labels) > 1 else f"{count}"
            for label, count in zip(self._labels, group.wrong, strict=True)
        )
        badge = f"wrong of {group.pairs} pairs: {wrong}" if group.pairs else "no judged pair"
        spread = " ".join(f"{self._spread(group, n):.6g}" for n in range(len(self._labels)))
        entries = "\n".join(self._entry(entry, n) for n, entry in enumerate(group.entries, 1))
        return (
            f'<article data-wrong="{" ".join(map(str, group.wrong))}" data-spread="{spread}">\n'
            f'<header><h2 dir="auto">{text(group.id)}</h2><span class="soft">{badge}</span>'
            f"</header>\n{_given(group)}{entries}\n</article>"
        )

    def _spread(self, group: Explained, run: int) -> float:
        """Largest reward minus smallest, in widths of the run's scale."""
        rewards = [r for entry in group.entries for r in entry.views[run].rewards]
        scale = self._credit.scales[run]
        width = scale.high - scale.middle
        return (max(rewards) - min(rewards)) / width if width > 0 else 0.0

    def _entry(self, entry: Entry, number: int) -> str:
        judged = "judge n/a"
        if entry.score is not None:
            place = "" if entry.score_rank is None else f" (#{entry.score_rank})"
            judged = f"judge <strong>{entry.score:.2f}</strong>{place}"
        views = "\n".join(self._view(entry, n, number) for n in range(len(entry.views)))
        return (
            f'<section class="entry" aria-label="text {number}">\n<p class="say">{judged}</p>\n'
            f'<div class="views">\n{views}\n</div>\n</section>'
        )

    def _view(self, entry: Entry, run: int, number: int) -> str:
        view, scale = entry.views[run], self._credit.scales[run]
        rank = f"#{view.rank}"
        if entry.score_rank not in (None, view.rank):
            rank = f'<span class="off">#{view.rank}, judge #{entry.score_rank}</span>'
        label = f"tokens of text {number} under {self._labels[run]}"
        tokens = "".join(
            self._token(view, piece, reward, scale)
            for piece, reward in zip(view.pieces, view.rewards, strict=True)
        )
        rest = text(view.text[view.pieces[-1].end :])
        rest = f'<span class="cut" title="not read: cut to fit">{rest}</span>' if rest else ""
        return (
            f'<div><p class="say"><b>{self._labels[run]}</b> e {scale.number(view.evaluation)} '
            f'({rank})</p>\n<p class="tokens" dir="auto" aria-label="{label}">{tokens}{rest}</p>'
            "</div>"
        )

    def _token(self, view: View, piece: Piece, reward: float, scale: Scale) -> str:
        part = view.text[piece.start : piece.end]
        word = part.lstrip(" ") or part  # the space between two words is left without a shade
        level = scale.level(reward)
        kinds = [f"l{level + LEVELS}"]
        kinds += ["strong"] * (abs(level) >= STRONG)
        kinds += ["up"] * (level >= UNDERLINED) + ["down"] * (level <= -UNDERLINED)
        body, said = text(word) if word.strip(" ") else f"<u>{spelled(word)}</u>", spelled(part)
        if not part:
            said = pieces.name(piece, special=piece.id in self._credit.special)
            body = f"<u>{html.escape(said)}</u>"
        extra = f' data-s="{html.escape(said, quote=True)}"' if said != part else ""
        number, before = scale.number(reward), part[: len(part) - len(word)]
        before = before if piece.start else ""  # a completion's first space would indent its line
        return f'{before}<i class="{" ".join(kinds)}" data-r="{number}"{extra}>{body}</i>'


def _given(group: Explained) -> str:
    """Source and references."""
    rows = []
    if group.source:
        kind = ' class="long" tabindex="0"' if len(group.source) > LONG else ""
        rows.append(f'<dt>source</dt><dd dir="auto"{kind}>{text(group.source)}</dd>')
    rows += [
        f'<dt>reference</dt><dd dir="auto">{text(each.lstrip(" "))}</dd>'
        for each in group.references
    ]
    return f"<dl>{''.join(rows)}</dl>\n" if rows else ""
