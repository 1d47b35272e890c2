"""`pgtg ls`, and what `pgtg train` says without a task."""

from dataclasses import fields
from pathlib import Path

import pytest

from pgtg.cli.listing import explain, show
from pgtg.config.groups import LISTS
from pgtg.config.registry import TASKS
from pgtg.config.schema import AggregatorConfig
from pgtg.errors import ArtifactError, ConfigError
from tests.cli.test_main import pgtg


@pytest.mark.parametrize("name", ["aggregator", "method", "judge", "reward.head", "task", "policy"])
def test_a_group_is_known_by_the_configs_own_name(name: str, capsys: pytest.CaptureFixture[str]):
    plural = next(
        key for key, own in LISTS.items() if own == name or (name, key) == ("task", "tasks")
    )
    show(plural)
    expected = capsys.readouterr().out
    show(name)
    assert capsys.readouterr().out == expected != ""


def test_a_key_and_a_section_say_type_values_and_comment(capsys: pytest.CaptureFixture[str]):
    show("improve.lr")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("improve.lr = ") and lines[1].startswith("    learning rate")
    assert lines[1].endswith("[a number]") and len(lines) == 2
    show("keys")
    everything = capsys.readouterr().out
    assert lines[0] in everything
    for field in fields(AggregatorConfig):
        assert f"\naggregator.{field.name}" in f"\n{everything}"


def test_a_name_of_the_config_comes_before_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As `pgtg export reward … --out reward` makes one."""
    monkeypatch.chdir(tmp_path)
    Path("reward").mkdir()
    explain("reward")
    assert "\nreward.head = " in capsys.readouterr().out
    show("reward")
    assert "\nsame " in capsys.readouterr().out
    with pytest.raises(ArtifactError, match="no sweep's folder"):
        show("./reward")


def test_a_name_that_nothing_has_is_refused():
    with pytest.raises(ConfigError, match=r"no group 'improve\.lrs'; did you mean 'improve\.lr'"):
        show("improve.lrs")


@pytest.mark.parametrize("command", ["train", "sample", "align"])
def test_a_command_without_its_task_lists_them(command: str):
    said = pgtg(command, code=2).stderr
    assert f"pgtg {command} needs a task: {', '.join(TASKS)}" in said and said.count("\n") == 1
