"""The reward model's training: what it starts from, how it is checked, which weights it leaves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from pgtg.pipeline.stages import align as stage
from pgtg.training.update import Progress, Where
from tests.support.tiny import tiny


def test_a_later_round_goes_on_with_the_reward_model_of_the_round_before(
    monkeypatch: pytest.MonkeyPatch,
):
    """The first round and a compared head start from the start policy."""
    given: list[Any] = []

    class Seen(Exception):
        """Leaves the stage once it has asked for its model."""

    def asked(ctx: Any, before: Any, head: str) -> None:
        given.append(before)
        raise Seen

    monkeypatch.setattr(stage, "_reward_model", asked)
    monkeypatch.setattr(stage, "hash_of", lambda *_: "")
    monkeypatch.setattr(stage, "made_for", lambda *_: None)
    monkeypatch.setattr(stage, "is_fresh", lambda _: False)
    ctx = MagicMock(cfg=tiny())
    ctx.parents.return_value = []
    ctx.settings.return_value = {}
    ctx.made.return_value = False
    ctx.artifact.side_effect = lambda round, name, **_: MagicMock(place=(round, name))
    for round, head in ((0, ""), (2, ""), (2, "paper")):
        with pytest.raises(Seen):
            stage.align(ctx, round, head=head)
    assert given[0] is None and given[2] is None
    assert given[1].place == (1, "align")


def test_held_out_checks_read_the_model_in_eval_mode():
    """Whatever mode it is in; afterwards it is in that mode again."""
    model, modes = nn.Linear(1, 1).train(), []

    def evaluations(batch: Any) -> torch.Tensor:
        modes.append(model.training)
        return batch.preference

    check: Any = SimpleNamespace(preference=torch.tensor([[1.0, 2.0]]), margin=None)
    objective: Any = SimpleNamespace(model=model, evaluations=evaluations)
    found = stage.heldout_metrics(objective, [check, check])
    assert (modes, model.training) == ([False, False], True)
    assert found["align/heldout_pair_accuracy"] == 1.0


@pytest.mark.parametrize("keep", ["best", "last"])
def test_kept_weights_are_put_into_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
):
    """Trained in train mode; with keep=best the weights of the best validation are left."""
    model: Any = nn.Linear(1, 1, bias=False)
    best = {"weight": torch.tensor([[5.0]])}

    def fit(trained: nn.Module, *_: Any, **__: Any) -> Any:
        assert trained is model and model.training
        nn.init.constant_(model.weight, 7.0)
        return SimpleNamespace(best=best, best_step=1, steps=3, progress=Progress())

    check: Any = SimpleNamespace(batch="probe")
    monkeypatch.setattr(stage, "fit", fit)
    monkeypatch.setattr(stage, "heldout_metrics", lambda *_: {})
    monkeypatch.setattr(stage, "_say", lambda *_: None)
    ctx = MagicMock(cfg=tiny(f"reward.fit.keep={keep}"))
    comparing = stage.Comparing(lambda _: [lambda: check], lambda _: [check], True, lambda _: {}, 4)
    where = Where(0, "align", 0)
    metrics, probe = stage._train(ctx, model.eval(), comparing, tmp_path, "", where)
    assert model.weight.item() == {"best": 5.0, "last": 7.0}[keep]
    assert metrics["align/kept_update"] == {"best": 1, "last": 3}[keep]
    assert probe == "probe" and not model.training
