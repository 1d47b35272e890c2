"""The credit page: what it holds, and how it behaves in a browser."""

import html
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pgtg.explain.credit import Explained, Group, Passage, explained, views
from pgtg.explain.gather import Credit
from pgtg.explain.page import as_page
from pgtg.explain.runs import Reader
from pgtg.explain.shading import DARK, LEVELS, LIGHT, STRONG, Scale
from pgtg.models.pieces import Piece
from pgtg.models.token_classifier import About
from pgtg.ops.aggregate import Aggregator
from tests.support.browser import Page, browser, needs_chromium
from tests.support.tiny import tiny

HOSTILE = ("<script>", "alert('x')", "</script>", " 👩\u200d👩\u200d👧", " e\u0301\u0301")
HOSTILE += (" שלום", "\u202e", "\u200b", "\n", "\t", "&amp;", "\"'")
INKS = {"--weak-ink": "#1a1b1c #f0f1f2", "--strong-ink": "#ffffff #101112"}  # light, dark


def group(name: str, texts: dict[str, tuple[float, list[float]]], runs: int) -> Explained:
    """A group of texts of words by white space: judge's score and rewards; runs after the first
    see them the other way round."""
    passages, cuts, rewards = [], [], []
    for text, (score, values) in texts.items():
        words = re.findall(r"\s*\S+", text)
        ends = [sum(map(len, words[: n + 1])) for n in range(len(words))]
        found = [Piece(n, w, e - len(w), e) for n, (w, e) in enumerate(zip(words, ends))]  # noqa: B905
        cuts.append((text, [*found, Piece(99, "</s>", len(text), len(text))]))
        passages.append(Passage(text, score=score))
        rewards.append([*values, 1.0])
    made = Group(name, "a <b>source</b>", ("its & reference",), tuple(passages))
    aggregator = Aggregator.of(tiny().aggregator)
    read = [
        views(cuts, rewards if not n else [[-r for r in row] for row in rewards], aggregator)
        for n in range(runs)
    ]
    return explained(made, read)


def credit(runs: int = 2) -> Credit:
    """Three sources: ordered right, wrong, and hostile texts of one token each piece."""
    right = {"the good one": (9.0, [2.0, 3.0, 2.0]), "a bad one": (1.0, [0.0, 0.5, 0.2])}
    wrong = {"praised by judge": (5.0, [0.1, 0.2, 0.0]), "liked by model": (4.0, [2.0, 2.5, 2.0])}
    text = "".join(HOSTILE)
    ends = [sum(map(len, HOSTILE[: n + 1])) for n in range(len(HOSTILE))]
    found = [Piece(n, w, e - len(w), e) for n, (w, e) in enumerate(zip(HOSTILE, ends))]  # noqa: B905
    found.insert(4, Piece(50, "âĤ", found[3].end, found[3].end))  # bytes of half a character
    values = [n / 4 for n in range(len(found))]
    hostile = Group("<i>hostile</i>", text, (text,), (Passage(text, score=1.0),))
    view = views([(text, found)], [values], Aggregator.of(tiny().aggregator))
    groups = [group("right", right, runs), group("wrong", wrong, runs)]
    groups.append(explained(hostile, [view] * runs))
    about = About("summarize", "made up", 0, "paper", "softplus", tiny().aggregator)
    none: Any = None
    opened = [
        Reader(
            path=Path(f"/home/somebody/run{n}"),
            about=about,
            codec=none,
            sourceless=False,
            model=none,
            label=n,
        )
        for n in ("avg", "max<b>")[:runs]
    ]
    scales = [Scale(-1.0, 0.5, 2.0)] * runs
    return Credit(groups, opened, scales, frozenset({99}), "made up", "rouge1")


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("scheme", "colours"), [(0, LIGHT), (1, DARK)])
def test_every_shade_can_be_read(scheme: int, colours: list[str]):
    """Contrast of at least 4.5 (WCAG AA), and each orange apart from its blue."""
    assert len(colours) == 2 * LEVELS + 1
    for number, colour in enumerate(colours):
        strong = abs(number - LEVELS) >= STRONG
        ink = INKS["--strong-ink" if strong else "--weak-ink"].split()[scheme]
        assert contrast(colour, ink) >= 4.5, (number, colour)
    for n in range(1, LEVELS + 1):  # what red-green blindness leaves: blue against yellow
        blue = [int(colours[LEVELS + side * n][5:7], 16) for side in (-1, 1)]
        red = [int(colours[LEVELS + side * n][1:3], 16) for side in (-1, 1)]
        assert blue[0] - red[0] < 0 < blue[1] - red[1]


def test_inks_are_those_of_the_page():
    page = as_page(credit(1))
    for name, inks in INKS.items():
        for ink in inks.split():
            assert f"{name}: {ink}" in page


def test_page_holds_all_texts_and_numbers_without_its_script():
    made = credit()
    page = as_page(made)
    bare = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", page, flags=re.S)
    assert "runavg: aggregator" in bare and "somebody" not in page
    assert page.count("<script>") == 1 and "<b>source" not in bare and "<i>hostile" not in bare
    numbers = re.findall(r'data-r="([^"]*)"', bare)
    expected = [
        made.scales[0].number(reward)
        for found in made.groups
        for entry in found.entries
        for view in entry.views
        for reward in view.rewards
    ]
    assert numbers == expected
    plain = html.unescape(re.sub(r"<u>[^<]*</u>|<[^>]*>", "", bare))
    assert plain.count("the good one") == 2 and "e\u0301\u0301" in plain and "\u202e" not in plain
    assert "⟨e2 82⟩" in bare and "&lt;/s&gt;" in bare and "U+202E" in bare and "↵" in bare


def focused(page: Page) -> str:
    return page.value("document.activeElement.getAttribute('aria-label')")


def shown(page: Page) -> list[str]:
    return page.value(
        "[...document.querySelectorAll('article:not([hidden]) h2')].map(h => h.textContent)"
    )


def choose(page: Page, name: str, value: str) -> None:
    """Sets a control as a person would, with its event."""
    field = f"document.getElementById('controls').elements['{name}']"
    target = "checked" if value in ("true", "false") else "value"
    page.value(f"{field}.{target} = {value if target == 'checked' else repr(value)}")
    page.value(f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


@needs_chromium
@pytest.mark.slow
def test_page_in_chromium(tmp_path: Path):
    path = tmp_path / "credit.html"
    path.write_text(as_page(credit()), encoding="utf-8")
    with browser() as page:
        for width, dark in product((390, 1440), (False, True)):
            page.open(path, width=width, dark=dark)
            wide = page.value("document.documentElement.scrollWidth")
            assert wide <= width, f"{wide} px wide at {width}"
            page.screenshot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png")
        _as_text(page)
        _hover(page)
        _keyboard(page)
        _choice(page)
        assert page.errors == []
        assert {url for url in page.requests if not url.startswith("data:")} == {path.as_uri()}


def _as_text(page: Page) -> None:
    assert page.value("document.querySelectorAll('main script, main img, h2 i').length") == 0
    texts = page.value("[...document.querySelectorAll('.tokens')].map(t => t.textContent)")
    assert any("<script>alert('x')</script> 👩\u200d👩\u200d👧" in text for text in texts)
    assert page.value("document.querySelector('article:last-child dd').dir") == "auto"


def _hover(page: Page) -> None:
    """The number of the token under the mouse, inside the window."""
    page.move(".tokens i:nth-of-type(2)")
    assert page.value("document.getElementById('tip').innerText") == (
        "␣good reward 3.00\nrank 1 of 4 tokens"
    )
    box = page.value("document.getElementById('tip').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0 and box["right"] <= 1440 and box["top"] >= 0
    page.move("h1")
    assert page.value("document.getElementById('tip').hidden") is True


def _keyboard(page: Page) -> None:
    """Tab reaches each text once, arrows each token; focus is visible and says the number."""
    stops = "document.querySelectorAll('.tokens i[tabindex=\"0\"]').length"
    assert page.value(stops) == page.value("document.querySelectorAll('.tokens').length") == 10
    page.value("document.querySelector('.tokens i').focus()")
    assert focused(page) == "the reward 2.00"
    page.key("ArrowRight")
    assert focused(page) == "␣good reward 3.00"
    assert page.value("document.getElementById('tip').innerText").startswith("␣good reward 3.00")
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.key("End")
    assert focused(page) == "</s> reward 1.00"
    page.key("ArrowRight")  # nothing after the last
    assert focused(page) == "</s> reward 1.00"
    page.key("Home")
    page.key("Tab")
    assert focused(page) == "the reward \u22122.00"  # the same text under the second run
    page.key("ArrowDown")
    assert focused(page) == "a reward 0.00"
    page.key("Escape")
    assert page.value("document.getElementById('tip').hidden") is True


def _choice(page: Page) -> None:
    assert shown(page) == ["right", "wrong", "<i>hostile</i>"]
    choose(page, "order", "wrong")
    assert shown(page) == ["wrong", "right", "<i>hostile</i>"]
    choose(page, "wrong", "true")
    assert shown(page) == ["wrong"]
    choose(page, "run", "1")  # the second run sees it the other way round
    assert shown(page) == ["right"]
    choose(page, "wrong", "false")
    choose(page, "find", "LIKED by")
    assert shown(page) == ["wrong"]
    assert page.value("document.querySelector('output').value") == "1 of 3 shown"
    choose(page, "find", "")
    choose(page, "order", "data")
    assert shown(page) == ["right", "wrong", "<i>hostile</i>"]
    choose(page, "spaces", "true")
    mark = "getComputedStyle(document.querySelectorAll('.tokens i')[1], '::before').content"
    assert page.value(mark) == '"␣"'
