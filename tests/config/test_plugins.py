"""Own files that add methods, judges, aggregators: only where the command line asks for them."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from pgtg.cli.listing import names
from pgtg.cli.main import app
from pgtg.config import TextJudgeConfig, plugins
from pgtg.config.compose import run_config
from pgtg.config.groups import CONF
from pgtg.config.registry import JUDGES, TASKS, Registry, installed
from pgtg.config.sources import register
from pgtg.errors import ConfigError
from tests.support.forking import Forked
from tests.support.tiny import TINY


class Said(NamedTuple):
    """What a call wrote."""

    stdout: str
    stderr: str


OWN = '''
"""Shorter is better; the median reward; plain MLE with one option of its own."""

from dataclasses import dataclass

from pgtg.config.registry import AggregatorSpec, JudgeSpec, MethodSpec
from pgtg.config.schema import MethodConfig


@dataclass
class Options(MethodConfig):
    power: float = 2.0

    def problems(self):
        if self.power <= 0:
            yield f"power: found {self.power}, expected above 0"


def short(splitter, tokenizer):
    from pgtg.judges import TextJudge

    return TextJudge("short", lambda text, references: 50.0 / (1 + len(text)), {})


def median(rewards, mask, temperature, length_normalized):
    return rewards.where(mask, float("nan")).nanmedian(-1).values.nan_to_num()


SPECS = [
    JudgeSpec("short", "the shortest text", short),
    AggregatorSpec("median", "C x median of the token rewards", median),
    MethodSpec(
        "mine", "as mle", "pgtg.methods.mle:METHOD", frozenset({"targets"}), options=Options
    ),
]
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def pgtg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """A call in a process of its own, which no other test's plugins have reached."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path, code: int = 0) -> Said:
        child = Forked([*map(str, words)], tmp_path / "err", stdout=tmp_path / "out")
        _, stderr = child.communicate(60)
        assert child.returncode == code, stderr
        return Said((tmp_path / "out").read_text(), stderr)

    return call


@pytest.mark.slow
def test_a_plugins_things_are_as_ours(pgtg: Callable[..., Said], plugin: Path, tmp_path: Path):
    """A whole run with a judge in a process of its own, resumed, and explained."""
    few = [word for word in TINY if not word.startswith(("judge", "evaluate"))]
    chosen = ["judge=short", "judge.workers=1", "aggregator=median", "evaluate.splits=[]"]
    chosen += ["schedule.total=2", "schedule.retrain_until=0", "evaluate.diagnose=0"]
    run = f"run_dir={tmp_path / 'run'}"
    own, lacking = ["--plugin", plugin], "run: this run was made with --plugin own.py: give"
    pgtg("train", "summarize", *few, *chosen, run, *own)
    assert "name: median" in (tmp_path / "run" / "config.yaml").read_text()
    assert f"{lacking} that file again\n" in pgtg("train", "summarize", run, code=2).stderr
    assert lacking in pgtg("explain", tmp_path / "run", code=2).stderr
    pgtg("train", "summarize", run, *own)
    pgtg("explain", tmp_path / "run", *own)


@pytest.mark.slow
def test_a_plugins_names_are_listed_checked_and_refused_without_it(
    pgtg: Callable[..., Said], plugin: Path, tmp_path: Path
):
    listed = pgtg("ls", "methods", "--plugin", plugin).stdout
    assert "mine" in listed and "as mle (summarize, preferences; needs targets)" in listed
    call = ["train", "summarize", "method=mine", "--dry-run"]
    bad = pgtg(*call, "method.power=0", "--plugin", plugin, code=2)
    assert bad.stderr == "error: method.power: found 0.0, expected above 0\n"
    gone = pgtg(*call, code=2).stderr
    assert "there is no method 'mine'" in gone
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_plugins_judge_and_settings_are_shown(pgtg: Callable[..., Said], plugin: Path):
    listed = pgtg("ls", "judges", "--plugin", plugin).stdout
    assert "short  " in listed and "the shortest text" in listed
    shown = pgtg("train", "summarize", "method=mine", "--cfg", "job", "--plugin", plugin)
    assert "  name: mine\n  controls: []\n  power: 2.0\n" in shown.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no file"),
        ("SPECS = [", "SyntaxError"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("", "no list SPECS"),
        ("SPECS = [1]", "1 is no spec"),
        (OWN.replace('"short", "the', '"meteor", "the'), "has a 'meteor', but there is one"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(plugins.FILES, "")
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    call = ["ls", "judges", "--plugin", str(tmp_path / "bad.py")]
    result = CliRunner().invoke(app, call, prog_name="pgtg")
    assert result.exit_code == 2 and result.stderr.startswith("error: ")
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_neither_config_nor_run_folder_names_code():
    """There is no key for it, in any config file or schema."""
    text = "".join(path.read_text() for path in CONF.rglob("*.yaml"))
    assert "plugin" not in text
    with pytest.raises(ConfigError, match="there is no such key"):
        run_config("summarize", ["plugin=own.py"])


PACKAGE = """
from pgtg.config.registry import JudgeSpec

def short(splitter, tokenizer): ...

SPECS = JudgeSpec("short", "the shortest text", short)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package whose entry points name a judge."""
    about = tmp_path / "site" / "mine-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pgtg.judges]\nshort = mine_of_test:SPECS\n")
    (about.parent / "mine_of_test.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(about.parent))
    monkeypatch.delitem(sys.modules, "mine_of_test", raising=False)
    installed.cache_clear()
    yield about.parent
    installed.cache_clear()


def fresh_judges(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry as it is in a new process; others see it too."""
    new = Registry(JUDGES.key, JUDGES.kind, JUDGES.home, JUDGES.points)
    monkeypatch.setattr(JUDGES, "_own", new._own)
    monkeypatch.setattr(JUDGES, "_others", new._others)
    return JUDGES


def test_an_installed_packages_judge_is_as_ours(package: Path, monkeypatch: pytest.MonkeyPatch):
    judges = fresh_judges(monkeypatch)
    register()  # the first to ask
    assert [spec.name for spec in judges.others] == ["short"]
    cfg = run_config("summarize", ["judge=short", "judge.workers=3"])
    assert cfg.judge == TextJudgeConfig("short", 3, "as_given")
    assert names("judges")["short"] == "the shortest text"


def test_an_entry_point_that_fails_is_one_line(package: Path, monkeypatch: pytest.MonkeyPatch):
    (package / "mine_of_test.py").write_text("raise RuntimeError('no such device')")
    judges = fresh_judges(monkeypatch)
    said = "the entry point short = mine_of_test:SPECS of pgtg.judges: RuntimeError: no such device"
    with pytest.raises(ConfigError, match=re.escape(said)):
        judges.about()


def test_a_plugins_task_has_its_yaml_in_the_own_config_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = replace(TASKS["summarize"], name="titles", about="titles of texts")
    monkeypatch.setattr(TASKS, "_others", [spec])
    with pytest.raises(ConfigError, match=r"give --config-dir with the folder of its titles\.yaml"):
        run_config("titles")
    text = (CONF / "summarize.yaml").read_text().replace("task: summarize", "task: titles")
    text = text.replace("- experiment: quickstart", "- experiment: none")
    (tmp_path / "titles.yaml").write_text(text)
    assert run_config("titles", config_dir=tmp_path).task == "titles"
