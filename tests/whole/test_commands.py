"""Every command that a message, the help, a config file or a page names is one that there is."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgtg.cli.listing import show
from pgtg.cli.main import app
from pgtg.config.groups import groups
from pgtg.config.registry import TASKS
from pgtg.config.schema import known_keys

ROOT = Path(__file__).parents[2]
SAID = re.compile(r"(?<![\w./-])pgtg ([a-z]+[^`;:()\n]*)")
PROSE = ("needs", "that", "writes", "reads")  # "pgtg reads no such file" names no command
OF_FOLDERS = ("run_dir", "sweep_dir")
WITH_TASK = ("train", "sample", "score", "aggregate", "align", "improve")


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """A module's texts but for docstrings, X where a value is put in; none without a command."""
    text = file.read_text(encoding="utf-8")
    if not re.search(r"pgtg [a-z{]", text):
        return
    nodes = list(ast.walk(ast.parse(text)))
    skipped: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped |= {id(value) for value in node.values}
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@cache
def named() -> list[tuple[str, str]]:
    """Where a command is named, and the words after `pgtg`."""
    return list(_named())


def _named() -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / "pgtg").rglob("*.py")):
        for line, text in strings(file):
            for found in SAID.findall(text):
                parts = ("policy", "preferences") if found.startswith("export X") else ("",)
                for part in parts:  # one text for two commands
                    yield (
                        f"{file.relative_to(ROOT)}:{line}",
                        found.replace("export X", f"export {part}"),
                    )
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for found in re.findall(r"`pgtg ([^`]*)`", line):
                yield f"{file.relative_to(ROOT)}:{number}", found
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for found in re.findall(r"^pgtg (.*)$", block, re.MULTILINE):
                yield page.name, found


def words_of(text: str) -> list[str]:
    """A command's words, without the comment behind it and the end of a sentence."""
    text = text.replace("'", "") if text.count("'") % 2 else text
    text = re.split(r"\s#\s", text)[0].replace("$", "").replace(" ...", " X").replace("…", "X")
    text = re.sub(r"--plugin \S+", "", text)  # a file that is not here
    return shlex.split(text.strip().rstrip(".,"))


def test_every_command_that_is_named_is_taken():
    """Each is run with -h behind it, which stops after its flags are read."""
    checked = set[str]()
    for where, text in named():
        words = words_of(text)
        if words[0] in PROSE or (said := " ".join(words)) in checked:
            continue
        checked.add(said)
        result = CliRunner().invoke(app, [*words, "-h"])
        assert result.exit_code == 0, f"{where}: pgtg {said}: {result.output}"
    assert len(checked) > 100


def test_keys_and_tasks_of_the_commands_are_known():
    sections = {".".join(key.split(".")[:n]) for key in known_keys() for n in range(1, 9)}
    known = {*sections, *groups(), *OF_FOLDERS}
    for where, text in named():
        words = words_of(text)
        if words[0] in WITH_TASK and len(words) > 1:
            given = words[1] in (*TASKS, "titles") or words[1].isupper() or words[1][0] == "-"
            assert given, f"{where}: pgtg {text}"
        for key in re.findall(r"(?<![\w./=-])([a-z][\w.]*)=", " ".join(words)):
            # method's own options are checked by the method, and hydra's by Hydra
            fine = key in known or key.split(".")[0] in ("method", "hydra", "data", "judge")
            assert fine, f"{where}: {key} in pgtg {text}"


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            found[0]
            for _, text in named()
            if (found := re.findall(r"^ls ([a-z.]+)(?=$| says)", text.strip()))
        }
    ),
)
def test_what_is_to_be_listed_is_listed(name: str, capsys: pytest.CaptureFixture[str]):
    show(name)
    assert capsys.readouterr().out.strip()
