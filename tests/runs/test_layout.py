"""What is made of text and tables: whole words on a terminal, all of it elsewhere."""

import io
import sys
from pathlib import Path

import pytest

from pgtg.runs.console import QuietConsole
from pgtg.runs.layout import WIDE, aligned, counted, fitted, folded, listed, tabled
from tests.support.terminal import drawn
from tests.support.terminal import shown as on_screen

LINE = "improve pgtg round 0: 60 updates; meteor_stem of greedy text on held-out sources 97.97"
PATH = "/a/folder/with/a/name/that/is/longer/than/forty/columns/all/told"
COLUMNS = ["policy", "NLL", "gain %", "best of all", "a prompt"]
CELLS = [
    ["start log-probability", "2.93", "-42", "100.00", "'honestly viewer total grade'"],
    ["pgtg", "0.98", "93", "7.22", "''"],
]


class Stream(io.StringIO):
    """What is written to a terminal, or to something else."""

    def __init__(self, *, terminal: bool):
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv(WIDE, raising=False)


def told(text: str, *, terminal: bool = True, prose: bool = True) -> list[str]:
    out = Stream(terminal=terminal)
    QuietConsole(file=out, color_system=None).tell(text, prose=prose)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_prose_is_broken_at_spaces(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = told(LINE)
    assert max(map(len, lines)) <= width and len(lines) == -(-len(LINE) // (width - 8))
    assert " ".join(line.strip() for line in lines) == LINE
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_path_stays_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = told(f"run folder {PATH} is there")
    assert any(line.strip() == PATH for line in lines)


def test_tables_and_files_get_text_as_it_is():
    assert told(LINE * 2, prose=False) == [LINE * 2]
    assert told(LINE * 2, terminal=False) == [LINE * 2]
    assert told("short\n\nlines") == ["short", "", "lines"]
    assert folded(f"  {LINE}", Stream(terminal=True)).startswith("  improve")


@pytest.mark.parametrize("width", range(21, 90))
def test_a_table_fits_and_no_word_or_number_is_cut(width: int):
    head, body, left_out = fitted(COLUMNS, CELLS, width, first=("best of all", "a prompt"))
    lines = [*head.split("\n"), *body.split("\n")]
    assert max(map(len, lines)) <= width
    said = " ".join(lines).split()
    kept = [i for i, name in enumerate(COLUMNS) if name not in left_out]
    expected = [word for row in (COLUMNS, *CELLS) for i in kept for word in row[i].split()]
    assert sorted(said) == sorted(expected)
    assert 0 in kept and (width < 28 or 3 in kept)  # the first, then what is asked for


def test_a_wide_table_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    stream = Stream(terminal=True)
    monkeypatch.setenv("COLUMNS", "40")
    assert "left out: best of all, a prompt" in tabled(COLUMNS, CELLS, stream).replace("\n  ", " ")
    monkeypatch.setenv(WIDE, "1")
    assert tabled(COLUMNS, CELLS, stream) == aligned(COLUMNS, CELLS)
    monkeypatch.delenv(WIDE)
    assert tabled(COLUMNS, CELLS, Stream(terminal=False)) == aligned(COLUMNS, CELLS)


def test_a_name_and_what_is_said_of_it(monkeypatch: pytest.MonkeyPatch):
    rows = [("one", LINE), ("another", "short")]
    lines = listed(rows, Stream(terminal=True)).split("\n")
    assert lines[0].startswith("one      improve") and lines[1].startswith(" " * 9)
    assert lines[-1] == "another  short" and max(map(len, lines)) <= 80
    monkeypatch.setenv("COLUMNS", "30")
    narrow = listed(rows, Stream(terminal=True)).split("\n")
    assert narrow[0] == "one" and max(map(len, narrow)) <= 30
    plain = listed(rows, Stream(terminal=False)).split("\n")
    assert plain == [f"one      {LINE}", "another  short"]


def test_one_is_one():
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_the_terminals_own_width_is_asked_where_nothing_names_one(tmp_path: Path):
    code = f"import sys; from pgtg.runs.layout import folded; print(folded({LINE!r}, sys.stdout))"
    for env in ({}, {"TERM": "dumb"}):
        found = on_screen([sys.executable, "-c", code], 50, env=env)
        assert found.code == 0 and found.wide == [] and len(found.lines) == 3, found.text


def test_the_screen_of_the_tests_shows_what_was_drawn_over():
    lines, wide = drawn("bar 1\r\x1b[2Kbar of one hundred\r\n\x1b[1A\r\x1b[2Kdone\x1b[0m\r\n", 8)
    assert lines == ["done", ""] and wide == ["bar of one hundred"]
