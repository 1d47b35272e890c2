"""Forms of a report: any text stays text in Markdown, LaTeX, CSV and HTML; the page in Chromium."""

import csv
import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from pgtg.report.forms import as_latex, cell, latex, markdown, markdown_table, one_line
from pgtg.report.page import as_page
from pgtg.report.plots import as_svg, binned, figures
from pgtg.report.poster import poster
from pgtg.report.tables import Table, tables
from pgtg.report.write import report
from pgtg.runs.folder import read_json
from tests.support.browser import browser, needs_chromium
from tests.support.report_runs import add_round, make_run

HOSTILE = [
    "<script>document.title='hacked'</script>",
    "</title></style><img src=http://example.invalid/x onerror=alert(1)>",
    "emoji \U0001f600\U0001f468‍\U0001f469‍\U0001f467 and é combining",
    "שלום עולם مرحبا right to left ‮override",
    "50% & 3_4 #1 $x$ {a} ^~ \\textbf{b} \\input{/etc/passwd}",
    "a | b `c` *d* [e](http://example.invalid) \r\nnew line",
    "=cmd('calc')",
    "]]> <!-- &amp; &#60;b&#62; \x00\x1b[31m",
]


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on runs whose config, metric and control names are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    for number, text in enumerate(HOSTILE):
        value = text.replace("\x00", "").replace("\x1b", "")  # yaml holds no control characters
        for seed in range(2 if number == 0 else 1):
            scores = {
                "rougeLsum": rng.normal(50 + number, 4, 12).tolist(),
                "<b>$m_1$</b>": rng.random(12).tolist(),
            }
            run = make_run(
                folder / "runs" / f"{number}-{seed}",
                {"pgtg": scores, "uniform": scores},
                seed=seed,
                name="<i>name</i>",
                data__path=value,
            )
            for place in (0, 1):
                add_round(run, place, seed=10 * number + seed)
    report([folder / "runs"], folder / "out")
    return folder / "out"


class Texts(html.parser.HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.cells: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), (tag, name)

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_hostile_text_is_text_in_the_page(hostile_report: Path):
    page = (hostile_report / "report.html").read_text(encoding="utf-8")
    found = Texts(page)
    assert not {"script", "img", "iframe", "object"} & set(found.tags)
    assert all(link.startswith("#") or link == "data:," for link in found.links), found.links
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    urls = set(re.findall(r"url\(#([^)]*)\)", page))
    assert urls and urls <= set(found.ids)
    told = "".join(found.cells)
    for text in HOSTILE[:-1]:
        assert one_line(text) in told


def test_figures_are_whole_xml_with_the_label_as_text(hostile_report: Path):
    plots = hostile_report / "plots"
    assert "\u202e" not in "".join(path.read_text("utf-8") for path in plots.glob("*.svg"))
    for path in plots.glob("*.svg"):
        tree = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert not [node for node in tree.iter() if node.tag.endswith("script")]
    names = {path.name for path in (hostile_report / "plots").iterdir()}
    assert "means_greedy_rougeLsum.png" in names and "means_greedy_-b-m_1-b-.svg" in names


def test_markdown_rows_keep_their_number_of_cells(hostile_report: Path):
    text = (hostile_report / "report.md").read_text(encoding="utf-8")
    assert "<" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1


def test_one_line_shows_what_would_steer_a_terminal_or_turn_the_text():
    assert one_line("a\nb\x1b[31m\u202eabc\ud800 שלום") == r"a b\x1b[31m\u202eabc\ud800 שלום"


def test_markdown_escapes_by_hand():
    assert markdown("a|b_*c* <i> [x](y) `k`") == r"a\|b\_\*c\* &lt;i&gt; \[x\](y) \`k\`"
    table = Table("t", "t", ["a|b", "n"], [["x\ny", "1"]], marked=frozenset({0}))
    assert markdown_table(table).splitlines() == [
        "| a\\|b | n |",
        "| --- | ---: |",
        "| *x y* | *1* |",
    ]


def unlatex(text: str) -> str:
    """The text that LaTeX would set."""
    back = {
        r"\textbackslash{}": "\\",
        r"\textasciicircum{}": "^",
        r"\textasciitilde{}": "~",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        r"\textbar{}": "|",
        r"\textquotedbl{}": '"',
        "{[}": "[",
        "{]}": "]",
        **{f"\\{char}": char for char in "{}$&#%_"},
    }
    pattern = "|".join(re.escape(name) for name in sorted(back, key=len, reverse=True))
    return re.sub(pattern, lambda match: back[match[0]], text)


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_sets_the_text_itself(text: str):
    escaped = latex(text)
    assert unlatex(escaped) == one_line(text)
    left = re.sub(r"\\text[a-z]+\{\}|\\[{}$&#%_]|\{\[\}|\{\]\}", "", escaped)
    assert not set(left) & set("\\{}$&#%_^~<>|")


def test_latex_table_is_booktabs_with_as_many_columns():
    table = Table("a b", "50 %", ["row", "x_1"], [["a & b", "1"]], "note")
    text = as_latex([table], "x")
    assert r"\begin{tabular}{lr}" in text and r"\toprule" in text and r"\bottomrule" in text
    assert r"row & x\_1 \\" in text and r"a \& b & 1 \\" in text
    assert text.count("{") == text.count("}")


def test_csv_is_read_back_and_no_cell_is_a_formula(hostile_report: Path):
    text = (hostile_report / "report.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["metric"] for row in rows} == {"rougeLsum", "<b>$m_1$</b>"}
    assert cell("=1+1") == "'=1+1" and cell("pgtg") == "pgtg"
    assert not [v for row in rows for v in row.values() if v and v[0] in "=@"]


def test_json_keeps_labels_as_they_are(hostile_report: Path):
    labels = {row["label"] for row in read_json(hostile_report / "report.json")["rows"]}
    assert any("<script>" in label for label in labels)


def test_binned_by_hand():
    x, y = np.array([1.0, 1, 2, 2]), np.array([0.0, 2, 4, 8])
    middle, mean, low, high = binned(x, y, bins=2)
    assert (middle, mean) == ([1.0, 2.0], [1.0, 6.0])
    assert (low, high) == ([0.5, 5.0], [1.5, 7.0])
    assert binned(np.array([3.0, 3.0]), np.array([1.0, 2.0]))[0] == [3.0]


def test_figures_leave_no_global_state(tmp_path: Path):
    import matplotlib as mpl

    from pgtg.report.build import build, load

    run = make_run(tmp_path / "run", {"pgtg": {"m": [1.0, 2.0]}})
    before = dict(mpl.rcParams)
    for _, figure in figures(build(*load([run], None))).values():
        as_svg(figure)
    assert dict(mpl.rcParams) == before


def test_page_without_runs_of_a_task_still_has_the_published_table():
    page = as_page("poster", [], poster([]), {})
    assert page.count('<tr class="published">') == 21
    assert "no run of this task was given" in page


def test_tables_of_one_run_name_it(tmp_path: Path):
    from pgtg.report.build import build, load

    run = make_run(tmp_path / "run", {"pgtg": {"m": [1.0, 2.0]}})
    made = tables(build(*load([run], None)))
    assert [table.name for table in made] == ["results_greedy", "costs", "runs"]
    assert made[0].rows == [["pgtg", "1", "1.50"]]


@needs_chromium
@pytest.mark.slow
def test_page_in_chromium(hostile_report: Path, tmp_path: Path):
    """Phone and desk, light and dark: no error, no request, no sideways scrolling, all as text."""
    path = hostile_report / "report.html"
    with browser() as page:
        for width in (390, 1440):
            for dark in (False, True):
                page.open(path, width=width, dark=dark)
                wide = page.value("document.documentElement.scrollWidth")
                assert wide <= width, f"{wide} px wide at {width}"
                ink = page.value("getComputedStyle(document.body).color")
                assert ink == ("rgb(232, 233, 234)" if dark else "rgb(26, 27, 28)")
                page.screenshot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png")
        assert page.value("document.title").startswith("<i>name</i>")
        assert page.value("document.querySelectorAll('script, img, b, i').length") == 0
        assert page.value("document.querySelectorAll('figure svg').length") >= 5
        assert page.value(
            "[...document.querySelectorAll('svg text')].some(t => t.textContent"
            ".includes('<script>'))"
        )
        assert page.pdf().startswith(b"%PDF")
        assert page.errors == []
        assert {url for url in page.requests if not url.startswith("data:")} == {path.as_uri()}
