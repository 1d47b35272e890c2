"""Every file under conf/: it composes, its keys are commented, and its names are the code's."""

import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml

from pgtg.config import RunConfig, known_keys
from pgtg.config.checks import CHOICES, choices
from pgtg.config.compose import composed, run_config
from pgtg.config.groups import CONF, SECTIONS, groups, option_files
from pgtg.config.registry import METHODS

FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = groups()
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in option_files(group)]


def task_of(override: str) -> str:
    """A task whose runs may choose the option."""
    group, _, name = override.partition("=")
    if group == "experiment":
        content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
        return content.get("task", "prompt")
    return "prompt" if group == "dataset" else "summarize"


def together() -> list[tuple[str, ...]]:
    """All options but experiments, few at a time: of each group the first, the second, ..."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for option in OPTIONS:
        if not option.startswith("experiment="):
            kinds.setdefault((task_of(option), option.partition("=")[0]), []).append(option)
    tasks = {task for task, _ in kinds}
    columns = [
        zip_longest(*(options for (its, _), options in kinds.items() if its == task))
        for task in sorted(tasks)
    ]
    return [tuple(filter(None, one)) for column in columns for one in column]


@pytest.mark.slow  # experiments are read by tests of their own as well
@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith("experiment=")])
def test_every_experiment_composes(option: str):
    compose(option)


@pytest.mark.parametrize("overrides", together(), ids=",".join)
def test_every_option_composes(overrides: tuple[str, ...]):
    compose(*overrides)


def compose(*overrides: str) -> None:
    cfg, problems, _ = composed(task_of(overrides[0]), overrides)
    assert problems == [] and set(cfg) == set(RunConfig.__dataclass_fields__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_has_a_title_and_every_key_a_comment(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    titles = [line for line in lines[:2] if line.startswith("# ") and "@package" not in line]
    assert titles
    if path.parent == CONF:
        lines = lines[: lines.index("hydra:")]
    bare = [line for line in lines if _holds_value(line) and "#" not in line]
    assert bare == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_no_key_stands_where_it_means_nothing(path: Path):
    assert not re.findall(r".*# .*\b(?:not used|only for)\b.*", path.read_text(encoding="utf-8"))


def _holds_value(line: str) -> bool:
    key, colon, value = line.partition(":")
    return bool(colon) and bool(value.strip()) and not key.lstrip().startswith(("-", "#"))


def test_the_base_gives_every_key_a_value():
    """A key of the schema that no file names would be reported as missing by every run."""
    for task, experiment in (("summarize", "quickstart"), ("prompt", "reviews")):
        for name in ("null", experiment):
            assert isinstance(run_config(task, [f"experiment={name}"]), RunConfig)


def test_no_file_names_what_the_schema_does_not_know():
    known = set(known_keys())
    for group in GROUPS:
        for path in option_files(group):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            prefix = "" if group == "experiment" else f"{SECTIONS.get(group, group)}."
            assert {prefix + key for key in content if key != "defaults"} <= known


@pytest.mark.parametrize("group", ["aggregator", "judge", "method", "logger"])
def test_option_files_are_the_names_of_the_config(group: str):
    files = {path.stem for path in option_files(group)} - {"tiny_classifier"}  # a `classifier`
    named = {yaml.safe_load(path.read_text())["name"] for path in option_files(group)}
    known = choices().get(f"{group}.name") or {s.name for s in METHODS.specs if s.alone}
    assert files == named == set(known)


def test_names_of_the_config_are_the_tables_of_the_code():
    from pgtg.metrics.sentences import SPLITTERS
    from pgtg.models.reward import BOUNDS

    tables = {"metrics.sentence_splitter": SPLITTERS, "reward.bound": BOUNDS}
    assert {key: set(table) for key, table in tables.items()} == {
        key: set(CHOICES[key]) for key in tables
    }


@pytest.mark.slow
def test_an_installed_wheel_composes_from_any_folder(tmp_path: Path):
    """Builds the wheel, installs it into a folder of its own, and composes from elsewhere."""
    wheel, site, elsewhere = (tmp_path / name for name in ("wheel", "site", "elsewhere"))
    elsewhere.mkdir()
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheel), str(CONF.parent)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    (file,) = wheel.glob("*.whl")
    install = ["-m", "pip", "install", "--no-deps", "--target", str(site), str(file)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    code = (
        "from pgtg.config.compose import run_config; from pgtg.config.groups import CONF;"
        "print(run_config('summarize', ['experiment=xsum_t5_base']).name, CONF)"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=env, check=True, capture_output=True
    )
    assert done.stdout.decode().split() == ["xsum_t5_base", str(site / "pgtg" / "conf")]
