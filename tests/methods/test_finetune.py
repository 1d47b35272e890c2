"""Few-shot fine-tuning in the runner: counts, what is kept, resume to the bit, another device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pgtg.config import RunConfig
from pgtg.judges.candidate import read_found
from pgtg.methods import finetune
from pgtg.methods.finetune import ClassLoss, TextBatch
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.run import train
from pgtg.runs.folder import RunFolder, read_jsonl
from pgtg.tasks import open_task
from pgtg.types import Window
from tests.support.cases import some
from tests.support.finished import finished_run
from tests.support.interrupting import kills_until_the_end
from tests.support.sim_device import NAME
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import contents
from tests.support.tiny_prompt import tiny_prompt

RESULTS = ("rounds", "found", "eval/test", "eval/results_test.json", "metrics.jsonl", "start")
OWN = ["method=finetune", "method.updates=6", "method.batch=4", "method.check_every=2"]
OWN += ["method.trainable_layers=1", "method.lr=0.01", "prompt.baselines=[manual]"]
OWN += ["improve.keep=best", "prompt.validation_prompts=1", "improve.checkpoint_every=1"]


def config(*overrides: str) -> RunConfig:
    return tiny_prompt(*OWN, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(config(), tmp_path_factory)


def test_the_loss_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])

    class Model:
        def logits(self, rows: Any, *, vocabulary: bool) -> torch.Tensor:
            assert vocabulary
            return logits

    model: Any = Model()
    loss = ClassLoss(model, True)(TextBatch([], [1, 0]), Window(4, 9))  # half of a window
    expected = -(logits.log_softmax(-1)[0, 1] + logits.log_softmax(-1)[1, 0]) / 4
    torch.testing.assert_close(loss.value, expected)
    assert loss.metrics["train_accuracy"] == 25.0


@pytest.mark.parametrize("kind", some(["head", "prompt"], "prompt"))
def test_what_was_trained_is_evaluated_and_counted(
    kind: str, finished: Path, tmp_path_factory: pytest.TempPathFactory
):
    cfg = config() if kind == "head" else config("method.kind=prompt")
    run = finished if kind == "head" else finished_run(cfg, tmp_path_factory)
    found = json.loads((run / "eval" / "results_test.json").read_text())
    search = found["finetune"]["search"]
    assert search["judged_by_split"] == {"train": 0, "dev": 3}
    assert search["gradient_sequences"] == 3 * (4 + 2)
    (row,) = read_jsonl(run / "eval/test/finetune/samples_candidates.jsonl")
    best = RunFolder(run).artifact("rounds", "00", "improve").manifest()["metrics"]
    assert row["dev_accuracy"] == best["improve/best_heldout_score"]  # the best check's weights
    (kept,) = read_found(run / "found")
    with open_task(cfg, run) as task:
        assert task.search is not None
        (values,) = task.search.answers([kept], "test")
        labels = [example.label for example in task.search.labelled("test") or []]
    right = sum(int(g) == label for g, label in zip(values.argmax(-1), labels, strict=True))
    assert row["test_accuracy"] == pytest.approx(100 * right / len(labels))
    again = evaluate_saved(run, split="test", metrics=None, overrides=[], cfg=None)
    assert again["decodings"] == found["finetune"]["decodings"]


@pytest.mark.slow
def test_killed_at_any_update_it_ends_with_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = lambda: train(config(), tmp_path / "killed")  # noqa: E731
    kills = kills_until_the_end(monkeypatch, finetune.FineTuneTrainer, "window", run, every=3)
    assert kills >= 2
    assert contents(tmp_path / "killed", *RESULTS) == contents(finished, *RESULTS)


def test_a_run_has_the_cpus_numbers(finished: Path, tmp_path: Path):
    train(config(f"device={NAME}"), tmp_path / "run")
    losses = [
        [row["improve/loss"] for row in read_jsonl(path / "metrics.jsonl") if "improve/loss" in row]
        for path in (finished, tmp_path / "run")
    ]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-2)
