"""pgtg's training, update by update."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from pgtg.config import FitConfig, MethodConfig
from pgtg.methods.options import WeightedMLE
from pgtg.training.update import Objective, Training, Where, update


def fit_config(optimizer: str = "adam") -> FitConfig:
    return FitConfig(
        updates=1,
        micro_batch=1,
        accumulate=1,
        optimizer=optimizer,
        lr=5e-5,
        weight_decay=0.0,
        clip=5.0,
        schedule="constant",
        plateau_factor=0.8,
        plateau_patience=2,
        validate_every=0,
        patience=0,
        keep="last",
        checkpoint_every=0,
        precision="no",
        gradient_checkpointing=False,
    )


def method_config(entropy: float = 0.0) -> WeightedMLE:
    return replace(WeightedMLE.of(MethodConfig("pgtg")), entropy=entropy)


class Trained:
    """The training loop's update of one model, its optimiser kept between calls."""

    def __init__(
        self, model: nn.Module, objective: Objective, stage: str, optimizer: str = "adam"
    ) -> None:
        self.objective = objective
        self.training = Training.begun(model, fit_config(optimizer), Where(0, stage, 0))

    def update(self, batch: Callable[[int], Any]) -> None:
        """One update on the batch that is made from the number of updates before."""
        update(self.training, lambda step: [partial(batch, step)], self.objective)
