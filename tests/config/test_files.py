"""`--config FILE`: what it stands for, against the config that was written to it."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pgtg.config.compose import run_config
from pgtg.config.files import overrides_of
from pgtg.config.overrides import as_hydra
from pgtg.errors import ConfigError


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        pytest.param("summarize", [], marks=pytest.mark.slow),
        pytest.param(
            "summarize",
            ["method=mle", "seed=3", "improve.lr=1e-05", "sample.k=4"],
            marks=pytest.mark.slow,
        ),
        ("summarize", ["experiment=cnn_dm_t5_small", "policy.suffix=a, 'b' # c\n", "cache=off"]),
        pytest.param(
            "summarize",
            ["data=hub", "data.path=o/n", "experiment=none", "policy=t5_small"],
            marks=pytest.mark.slow,
        ),
        pytest.param("prompt", ["method=pgtg", "aggregator=max"], marks=pytest.mark.slow),
        ("preferences", ["experiment=preferences_example", "data.limit={train: 7}"]),
    ],
)
def test_a_runs_config_file_is_that_run(task: str, overrides: list[str], tmp_path: Path):
    file, run = tmp_path / "config.yaml", run_config(task, list(map(as_hydra, overrides)))
    file.write_text(yaml.safe_dump(asdict(run)))
    found = run_config(task, [as_hydra(text) for text in overrides_of(file, task)])
    assert asdict(found) == asdict(run)


def test_a_few_lines_do_and_the_command_line_comes_after(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("aggregator: max\nmethod: {name: mle}\nimprove:\n  lr: 1.0e-3\nseed: 2\n")
    found = overrides_of(file, "summarize")
    assert found == ["method=mle", 'aggregator="max"', "improve.lr=0.001", "seed=2"]
    run = run_config("summarize", [*map(as_hydra, found), "seed=5"])
    assert (run.seed, run.improve.lr, run.method.name, run.aggregator.name) == (
        5,
        1e-3,
        "mle",
        "max",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("- 1", "expected keys and values"),
        ("a: [", "not readable yaml"),
        ("task: prompt", "is of the task 'prompt': pgtg train prompt --config ..."),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(text: str | None, said: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        overrides_of(tmp_path / "c.yaml", "summarize")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_data_path_that_is_no_folder_may_be_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "rows").mkdir(parents=True)
    (tmp_path / "mine" / "rows" / "train.jsonl").write_text("")
    own = ["experiment=none", "policy=t5_small", "data=files", "evaluate.splits=[]"]
    for path, name in (("owner/name", "hub"), ("mine/rows", "files")):
        assert run_config("summarize", [*map(as_hydra, own), f"data.path={path}"]).data.name == name
    with pytest.raises(ConfigError, match="there is no file or folder"):
        run_config("summarize", [*map(as_hydra, own), "data.path=./owner/name"])
