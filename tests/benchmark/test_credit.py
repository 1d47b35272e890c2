"""The benchmark on planted data: one word is always rejected, and marked as an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from typer.testing import CliRunner, Result

from pgtg.benchmark import folds
from pgtg.cli.main import app
from pgtg.runs.folder import load_tensors
from tests.support.tiny_exports import llama

GOOD = ("lovely", "neat", "solid", "superb")
FAST = [
    "data.validation_share=0.2",
    "policy.max_source_tokens=16",
    "policy.max_target_tokens=16",
    "reward.mlp_width=8",
    "reward.fit.updates=20",
    "reward.fit.lr=0.05",
    "reward.fit.validate_every=10",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory)


def planted(path: Path) -> Path:
    """Ten prompts, each with a pair and a completion whose errors are marked: "awful" always,
    "tired", which no pair knows, in one."""
    rows = []
    for n, noun in enumerate(["plot", "script", "pace", "cast", "humor"] * 2):
        prompt, good = f"the {noun} was {GOOD[n // 5]} and", GOOD[n % 4]
        text = f" was {good} and awful ,"
        spans = [[text.index("awful"), text.index("awful") + 5, "bad"]]
        if n == 0:
            text, spans = f"{text} tired", [*spans, [len(text) + 1, len(text) + 6, "worn"]]
        rows.append({"prompt": prompt, "completion": text, "spans": spans})
        texts = f" music was {good} .", " music was awful ."
        rows.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def measured(*words: str) -> Result:
    return CliRunner().invoke(app, ["benchmark", "credit", *words])


def found(result: Result, folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    assert result.exit_code == 0, result.output
    rows = json.loads((folder / "credit.json").read_text())["figures"]
    return {(row["errors"], row["row"], row["metric"]): row for row in rows}


@pytest.mark.slow
def test_planted_errors_are_found_from_rankings_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By two aggregators at once; what is there is not made again; in 80 columns."""
    folder, data = tmp_path / "run", planted(tmp_path / "data.jsonl")
    words = ["own", f"data.path={data}", f"policy.path={model}", f"run_dir={folder}", *FAST]
    learned_from: list[set[int]] = []
    compared = folds.compared

    def noted(texts: Any, questions: set[int], **how: Any) -> Any:
        learned_from.append(questions)
        return compared(texts, questions, **how)

    monkeypatch.setattr(folds, "compared", noted)
    result = measured(*words, "aggregator=avg,sum", "--folds", "2")
    figures = found(result, folder)
    for aggregator in ("avg", "sum"):
        for metric in ("auc", "auc_within_texts", "pairs"):
            assert figures["all errors", f"state_action {aggregator}", metric]["value"] > 0.7
    assert figures["bad", "state_action avg", "auc"]["value"] > 0.8
    assert figures["bad", "state_action avg", "auc"]["error_tokens"] == 10
    assert figures["worn", "length", "auc"]["error_tokens"] == 1
    assert figures["all errors", "length", "auc_within_texts"]["value"] == 0.5
    assert figures["bad", "log-probability", "auc"]["above_value"] == 0
    table = result.stdout.splitlines()
    assert max(map(len, table)) <= 80 and "state_action sum" in result.stdout
    # of each fold, questions to learn from and to validate with: five in all, never its own
    for learns, validates in zip(learned_from[::2], learned_from[1::2], strict=True):
        assert len(learns) == 4 and len(validates) == 1 and not learns & validates
    assert learned_from[0] | learned_from[1] | learned_from[2] | learned_from[3] == set(range(10))

    monkeypatch.setattr(folds, "fit", None)
    monkeypatch.setattr(folds, "read_texts", None)
    again = found(measured(*words, "--folds", "2"), folder)
    assert all(row == figures[key] for key, row in again.items())
    assert len(again) < len(figures)


def test_threads_read_what_one_reads(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Several parts each; torch computes with as many threads afterwards as before."""
    monkeypatch.setattr(folds, "PART", 3)
    data, before = planted(tmp_path / "data.jsonl"), torch.get_num_threads()
    made = list[dict[str, Any]]()
    try:
        for threads in (1, 3):
            folder = tmp_path / str(threads)
            words = ["own", f"data.path={data}", f"policy.path={model}", f"run_dir={folder}", *FAST]
            result = measured(*words, f"threads={threads}", "reward.fit.updates=1", "--folds", "2")
            assert torch.get_num_threads() == threads
            found(result, folder)
            parts = [folder / "texts" / f"{n:04d}" / folds.FILE for n in range(4)]
            kept = [load_tensors(part) for part in parts]
            made.append({name: torch.cat([part[name] for part in kept]) for name in kept[0]})
    finally:
        torch.set_num_threads(before)
    for name, values in made[0].items():
        assert_close(made[1][name], values, rtol=1e-5, atol=1e-5)


def test_a_whole_reward_model_is_learned_where_asked(model: Path, tmp_path: Path):
    folder, data = tmp_path / "run", planted(tmp_path / "data.jsonl")
    words = ["own", f"data.path={data}", f"policy.path={model}", f"run_dir={folder}", *FAST]
    words += ["reward.trained=all", "reward.layers=1", "reward.fit.updates=8", "--folds", "2"]
    figures = found(measured(*words), folder)
    assert figures["bad", "state_action avg", "auc"]["value"] > 0.7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=0,1"], "seed: rows may differ in reward.* and aggregator.* only"),
        (["reward.layers=1"], "give reward.trained=all"),
        (["--folds", "6"], "10 questions are too few for 6 folds"),
        (["run_dir={other}"], "holds a run of something else"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    model: Path, tmp_path: Path, words: list[str], said: str
):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("task: preferences\n")
    data, words = planted(tmp_path / "data.jsonl"), [word.format(other=other) for word in words]
    base = ["own", f"data.path={data}", f"policy.path={model}", f"run_dir={tmp_path / 'run'}"]
    result = measured(*base, *words)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split()), result.stderr
