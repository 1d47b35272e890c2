"""What stages hand on: to the trainer, to the loop, to the judge and into the means."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from torch import nn

from pgtg.methods import prompt as trainers
from pgtg.pipeline.evaluation import prompt as evaluation
from pgtg.pipeline.stages import improve as stage
from tests.support.tiny import tiny


class Seen(Exception):
    """Leaves a stage with what it handed on."""


def seen(*args: Any, **kwargs: Any) -> Any:
    raise Seen(args, kwargs)


def test_the_reward_model_guides_in_eval_mode_and_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model.language_models = []
    method = SimpleNamespace(
        trainer=lambda method, given: seen(given),
        random_reward=False,
        untrained_reward=False,
        search=None,
    )
    monkeypatch.setattr(stage, "method_of", lambda *_: method)
    monkeypatch.setattr(stage, "load_reward_model", lambda _: model)
    monkeypatch.setattr(stage, "_targets", lambda *_: (None, ""))
    artifact: Any = SimpleNamespace(working=lambda _: tmp_path, file=lambda name: tmp_path / name)
    ctx = MagicMock(device="cpu")
    ctx.task.segments.return_value = [1]
    ctx.load_policy.return_value = (nn.Linear(1, 1), None)
    with pytest.raises(Seen) as found:
        stage._make(ctx, artifact, "", 0, "", artifact, [], 1)
    given = found.value.args[0][0]
    assert given.model is model and not any(part.training for part in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_later_round_goes_on_with_the_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """State and progress of the round before; the first has none. It is trained in train mode."""
    state, progress = {"step": 3}, SimpleNamespace(carried=lambda: "carried")
    asked: list[int] = []
    before = SimpleNamespace(
        file=lambda name: name, manifest=lambda: {"extra": {"progress": "numbers"}}
    )
    ctx: Any = SimpleNamespace(
        cfg=tiny(), log=None, artifact=lambda round, *_, **__: asked.append(round) or before
    )
    monkeypatch.setattr(stage, "load_tensors", {"optimizer.safetensors": state}.__getitem__)
    monkeypatch.setattr(stage, "progress_of", {"numbers": progress}.__getitem__)
    monkeypatch.setattr(stage, "fit", seen)
    trainer = MagicMock(validates=False, module=nn.Linear(1, 1).eval())
    for round, expected in ((0, (None, None)), (2, (state, "carried"))):
        with pytest.raises(Seen) as found:
            stage._train(ctx, trainer, round, "", "", [1, 1, 1], tmp_path)
        given = found.value.args[1]
        assert (given["optimizer_state"], given["progress"]) == expected
        assert found.value.args[0][0].training
    assert asked == [1]


def test_the_policy_is_validated_on_dev(monkeypatch: pytest.MonkeyPatch):
    trainer = object.__new__(trainers.PromptTrainer)
    values = {"dev": np.array([[1.0, 3.0]]), "train": np.array([[50.0]])}
    options = SimpleNamespace(validation_prompts=1)
    trainer.task = SimpleNamespace(  # type: ignore[assignment]
        options=options, prompts=lambda ids, texts: ids, gaps=lambda _, split: values[split]
    )
    trainer.ctx = SimpleNamespace(cfg=SimpleNamespace(seed=0))  # type: ignore[assignment]
    codec = SimpleNamespace(decode=str)
    trainer.given = SimpleNamespace(lm=None, codec=codec)  # type: ignore[assignment]
    monkeypatch.setattr(trainers, "draw", lambda *_: ([[5]], None))
    assert trainer.validate() == {"improve/negative_heldout_score": -2.0}


def test_the_top_figures_are_means_over_as_many_prompts(monkeypatch: pytest.MonkeyPatch):
    scores = [4.0, 1.0, 1.0, 9.0]  # in the order of the dev split; the last is not of the top
    task: Any = SimpleNamespace(
        labelled=lambda _: [1],
        answers=lambda candidates, split: np.array([scores[one] for one in candidates]),
    )
    asked: Any = SimpleNamespace(add=lambda *_: None)
    about = evaluation.PromptEvaluation.__new__(evaluation.PromptEvaluation)
    about.options = SimpleNamespace(tested=4, top=3)  # type: ignore[assignment]
    monkeypatch.setattr(evaluation, "_own", lambda rows: [])
    monkeypatch.setattr(evaluation, "_of", lambda *_: {})
    monkeypatch.setattr(evaluation, "_means", lambda t, one, s: {"accuracy": one, "score": -one})
    for found, mean in ((4, 2.0), (1, 4.0)):  # a search that ends with one choice is compared
        ranked: Any = [(i, {"text": ""}) for i in range(found)]
        results: dict[str, Any] = {"decodings": {}}
        about._test(task, ranked, "test", results, asked)
        assert results["decodings"]["top"] == {
            "decoding": {"prompts": 3},
            "prompts": min(found, 3),
            "mean": {"accuracy": mean, "score": -mean},
        }
