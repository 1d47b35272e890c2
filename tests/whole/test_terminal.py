"""What everybody types first, in a terminal of 80, 60 and 40 columns: nothing cut or too wide."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.cases import some
from tests.support.terminal import Shown, shown
from tests.support.tiny import TINY
from tests.support.tiny_preferences import EXAMPLE, TINY_PREFERENCES
from tests.support.tiny_prompt import TINY_PROMPT
from tests.support.tmux import Tmux

ROOT = Path(__file__).parents[2]
PGTG = [sys.executable, "-m", "pgtg"]
WIDTHS = (80, 60, 40)
SETTINGS = {"summarize": TINY, "prompt": TINY_PROMPT, "preferences": TINY_PREFERENCES}
FIRST = [  # what comes at once, right or wrong
    "",
    "--version",
    "-h",
    "help sample.k",
    "train",
    "train -h",
    "benchmark credit -h",
    "export tokens -h",
    "ls",
    "ls methods",
    "ls aggregator",
    "train sumarize",
    "train summarize aggregator=mx",
    "train summarize sample.kk=3",
    "train summarize data.path=nowhere experiment=none policy.path=nowhere",
]
# of README and quickstart, but for lines about data and folders that only their reader has
TYPED = re.compile(r"^pgtg ((?:train|eval|report|explain|doctor|ls).*?)(?:  +#.*)?$", re.MULTILINE)


def on_screen(command: Sequence[str], columns: int, where: Path, **env: str) -> Shown:
    own = {"PGTG_CACHE": str(where / "cache"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    found = shown([*PGTG, *command], columns, cwd=where, env={**own, **env})
    print(f"$ pgtg {' '.join(command)}   [{columns} columns]\n{found.text}")  # to be read
    assert found.wide == [], f"wider than {columns}"
    # cut by rich or click: a word with an ellipsis behind it
    assert not re.search(r"\w…|\w\.\.\.$", found.text, re.MULTILINE), found.text
    assert "Traceback" not in found.text and "unexpected" not in found.text
    return found


@pytest.mark.parametrize("columns", some(WIDTHS, min(WIDTHS)))
@pytest.mark.parametrize(
    "command", some(["ls methods", "train -h", "train summarize aggregator=mx"], "ls methods")
)
def test_lists_help_and_mistakes(command: str, columns: int, tmp_path: Path):
    on_screen(command.split(), columns, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("columns", WIDTHS)
def test_what_is_typed_first(columns: int, tmp_path: Path):
    for command in FIRST:
        found = on_screen(command.split(), columns, tmp_path)
        assert found.code in (0, 2)


def typed() -> Iterator[list[str]]:
    """Commands of README and quickstart, a tiny world in the quickstart's place, so that each takes
    seconds; `run` is a finished run, and sweeps come before what reads them."""
    pages = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
    lines = [line for page in pages for line in TYPED.findall(page.read_text(encoding="utf-8"))]
    assert len(lines) >= 15
    swept = False
    for line in lines:
        words = line.replace("data.path=…", f"data.path={EXAMPLE}").split()
        if words[-1] == "\\" or "policy.path=…" in line:
            continue
        words = [re.sub(r"outputs/\S*multirun/\S*", "sweep", word) for word in words]
        words = [re.sub(r"outputs/\S*", "run", word) for word in words]
        if words[0] == "train":
            own = SETTINGS[words[1]]
            if "run_dir=run" not in words:
                words += ["sweep_dir=sweep"] if "-m" in words else []
                swept |= "-m" in words
                free = [v for v in own if v.split("=")[0] not in " ".join(words)]
                words = [*words[:2], *free, *words[2:]]
        if swept or "sweep" not in words:
            yield words
    yield ["ls", "sweep"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("columns", WIDTHS)
def test_commands_of_the_front_page_and_the_quickstart(columns: int, tmp_path: Path):
    on_screen(["train", "summarize", *TINY, "run_dir=run"], columns, tmp_path)
    for words in typed():
        assert on_screen(words, columns, tmp_path).code == 0, words


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_the_same_in_a_real_terminal(tmp_path: Path):
    """Of 80 x 24: nothing that the terminal had to break, but for a path alone on its line."""
    env = {"PGTG_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with Tmux(tmp_path, 80, env) as terminal:
        for words in (["train", "summarize", *TINY, "run_dir=run"], *typed()):
            code, lines = terminal.type(shlex.join([*PGTG, *words]))
            print("\n".join(lines))  # to be read
            wide = [line for line in lines[1:] if len(line) > 80 and " " in line.strip()]
            assert code == 0 and wide == [], words


@pytest.mark.slow
def test_without_a_terminal_without_colours_and_on_a_dumb_one(tmp_path: Path):
    run = ["train", "summarize", *TINY, "run_dir=run"]
    on_screen(run, 80, tmp_path)
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        for command in (["explain", "run", "--n", "1"], ["eval", "run"], ["ls"], ["report", "run"]):
            found = on_screen(command, 60, tmp_path, **env)
            colours = re.findall(r"\x1b\[[\d;]*m", found.raw)
            assert found.code == 0
            assert not any(re.search(r"[34][0-8](;|m)", one) for one in colours), command
            if "TERM" in env:
                assert "\x1b" not in found.raw, command
    piped = subprocess.run(
        [*PGTG, "eval", "run"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "\x1b" not in piped.stdout + piped.stderr and "…" not in piped.stdout
