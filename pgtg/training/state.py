"""What a training that is resumed needs: weights, optimiser, and a few numbers."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pgtg.models.backends.sharding import gathered, like
from pgtg.runs.folder import Artifact, load_tensors, save_tensors
from pgtg.training.update import Progress, Training


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put trained weights, by parameter name, back into a model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(like(value, parameters[name]))


def optimizer_tensors(training: Training) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, named <parameter>|<slot>; `gathered`."""
    states = training.optimizer.state
    return gathered(
        {
            f"{name}|{slot}": value
            for name, parameter in training.trained.items()
            for slot, value in states.get(parameter, {}).items()
        }
    )


def set_optimizer(training: Training, tensors: Mapping[str, Tensor]) -> None:
    """Put the optimiser's state back, each tensor (Adam's step too) on its parameter's device: a
    fused optimiser takes nothing from another device."""
    for key, value in tensors.items():
        name, slot = key.rsplit("|", 1)
        parameter = training.trained[name]
        training.optimizer.state[parameter][slot] = like(
            value.to(parameter.device, copy=True), parameter
        )


def progress_numbers(progress: Progress) -> dict[str, Any]:
    """A training's numbers as JSON takes them."""
    return asdict(progress) | {"best_value": repr(progress.best_value)}  # JSON has no inf


def progress_of(numbers: Mapping[str, Any]) -> Progress:
    """The numbers that `progress_numbers` wrote."""
    return Progress(**{**numbers, "best_value": float(numbers["best_value"])})


def save_state(states: Artifact, inputs: str, training: Training, position: int) -> None:
    """Commit what a resume needs. Of several processes all come here; the first one writes."""
    folder = states.working(inputs, fresh=True)
    save_tensors(folder / "weights.safetensors", gathered(training.trained))
    save_tensors(folder / "optimizer.safetensors", optimizer_tensors(training))
    if training.best is not None:
        save_tensors(folder / "best.safetensors", gathered(training.best))
    numbers = progress_numbers(training.progress)
    states.commit(inputs=inputs, metrics={}, position=position, progress=numbers)


def load_state(states: Artifact, training: Training) -> None:
    """Bring a training to where it was saved."""
    states.verify()
    training.continue_from(progress_of(states.manifest()["extra"]["progress"]))
    load_weights(training.model, load_tensors(states.file("weights.safetensors")))
    set_optimizer(training, load_tensors(states.file("optimizer.safetensors")))
    best = states.file("best.safetensors")
    training.best = load_tensors(best) if best.is_file() else None
