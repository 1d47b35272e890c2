"""`pgtg export preferences`: what a run's judge said comes back as rankings."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pgtg.cli.main import app
from pgtg.config import RunConfig
from pgtg.config.compose import run_config
from pgtg.data.generations import read_generations
from pgtg.export.preferences import rankings
from pgtg.runs.files import read_json, read_jsonl
from pgtg.runs.folder import RunFolder
from pgtg.tasks import task_of
from pgtg.tasks.preferences import PreferencesTask
from pgtg.types import Generations
from tests.support.finished import finished_run
from tests.support.tiny import _quiet, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_preferences import tiny_preferences
from tests.support.tiny_prompt import tiny_prompt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny(), tmp_path_factory)


def said(*words: object) -> Any:
    return CliRunner().invoke(app, ["export", "preferences", *map(str, words)])


def test_rankings_come_back_as_the_judge_gave_them(run: Path, tmp_path: Path):
    """Of both rounds, by the task that they are for; but for rows in which nothing is preferred."""
    out = tmp_path / "preferences"
    assert said(run, "--out", out).exit_code == 0
    own = [f"data.path={out}", "policy=pretrained", "policy.path=someone/model"]
    task = PreferencesTask(run_config("preferences", own))
    folder, sampled = RunFolder(run), task_of(tiny(), run)
    for part, split in (("train", "train"), ("heldout", "validation")):
        expected, lines = [], 0
        for round in (0, 1):
            found = read_generations(folder.artifact("rounds", f"{round:02d}", "sample"), part)
            prompts = {one.id: one.source for one in sampled.to_sample(round)[part]}
            for name, members in zip(found.source_ids, found.members, strict=True):
                pairs = [(found.texts[i], found.scores[i]) for i in members if found.texts[i]]
                lines += 1
                expected += (
                    [(prompts[name], pairs)] if len({score for _, score in pairs}) > 1 else []
                )
        read = [
            (one.prompt, [*zip(one.completions, one.scores, strict=True)])
            for one in task.rankings(split)
        ]
        assert len(read_jsonl(out / f"{split}.jsonl")) == lines
        assert len(read) > 3 and read == expected
    about = read_json(out / "pgtg_preferences.json")["run"]
    assert about["judge"] == "rouge1" and about["rounds"] == [0, 1]


def test_what_was_not_judged_is_null_and_what_is_empty_is_left_out():
    texts, scores = ["a", "", "b", "c"], [1.0, 0.0, math.nan, 2.0]
    groups = torch.tensor([[0, 1, 2], [3, -1, -1]])
    made = Generations(["x", "y"], [[1], [2]], [0, 0, 0, 1], [[1]] * 4, texts, scores, groups)
    assert [*rankings(made, {"x": "X", "y": "Y"})] == [
        {"prompt": "X", "completions": ["a", "b"], "scores": [1.0, None]},
        {"prompt": "Y", "completions": ["c"], "scores": [2.0]},
    ]


@pytest.mark.parametrize(
    ("cfg", "line"),
    [
        (tiny_preferences(), "its preferences were given; they are in data.path already"),
        (tiny_prompt(), "its judge prefers prompts to each other, not completions of one"),
        (tiny(), "holds no judged generations yet"),
    ],
)
def test_a_run_without_judged_completions_is_one_line(tmp_path: Path, cfg: RunConfig, line: str):
    with RunFolder(tmp_path / "run").lock() as folder:
        folder.create(asdict(cfg), {})
    found = said(tmp_path / "run", "--out", tmp_path / "out")
    assert found.exit_code == 2 and line in found.output and not (tmp_path / "out").exists()
