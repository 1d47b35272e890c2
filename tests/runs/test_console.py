"""What the console makes of text: whole words on a terminal, the text itself elsewhere."""

import io

import pytest

from pgtg.runs.console import QuietConsole

LINE = "improve pgtg round 0: 60 updates; meteor_stem of greedy text on held-out sources 97.97"
PATH = "/a/folder/with/a/name/that/is/longer/than/forty/columns/all/told"


def told(text: str, width: int, *, terminal: bool = True, prose: bool = True) -> list[str]:
    out = io.StringIO()
    console = QuietConsole(file=out, width=width, force_terminal=terminal, color_system=None)
    console.tell(text, prose=prose)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_prose_is_broken_at_spaces(width: int):
    lines = told(LINE, width)
    assert max(map(len, lines)) <= width and len(lines) == -(-len(LINE) // (width - 8))
    assert " ".join(line.strip() for line in lines) == LINE
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_path_stays_whole():
    lines = told(f"run folder {PATH} is there", 40)
    assert any(line.strip() == PATH for line in lines)


def test_tables_and_files_get_text_as_it_is():
    assert told(LINE, 40, prose=False) == [LINE]
    assert told(LINE, 40, terminal=False) == [LINE]
    assert told("short\n\nlines", 40) == ["short", "", "lines"]
