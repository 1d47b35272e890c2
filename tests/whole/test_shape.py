"""The shape of the code: functions fit on a screen."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 60  # lines of code


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of each function: without its docstring, comments and empty lines."""
    text = path.read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            said = range(first.lineno, (first.end_lineno or 0) + 1) if first else range(0)
            own = range(node.lineno, (node.end_lineno or 0) + 1)
            code = [lines[i - 1] for i in own if i not in said]
            yield node.name, sum(bool(line) and not line.startswith("#") for line in code)


@pytest.mark.parametrize("room", ["pgtg", "tests", "benchmarks", "docs"])
def test_no_function_is_longer_than_a_screen(room: str):
    long = [
        f"{path.relative_to(ROOT)}: {name}: {count} lines"
        for path in sorted((ROOT / room).rglob("*.py"))
        for name, count in functions(path)
        if count > LONGEST
    ]
    assert long == []


def test_what_counts_as_a_line(tmp_path: Path):
    text = 'def f():\n    """Says.\n\n    More.\n    """\n\n    # why\n    x = 1\n\n    return x\n'
    (tmp_path / "file.py").write_text(text)
    assert dict(functions(tmp_path / "file.py")) == {"f": 3}
