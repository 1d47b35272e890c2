"""What a training that goes on later needs: weights, optimiser, and a few numbers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgtg.models.sharding import gathered, like
from pgtg.store import Artifact, load_tensors, save_tensors


@dataclass
class Progress:
    """The numbers beside weights and optimiser that a resumed training needs."""

    step: int = 0
    best_step: int = -1
    best_value: float = math.inf
    bad_validations: int = 0  # since the best
    plateau: int = 0  # validations without progress since the last cut of the rate
    lr: float = 0.0
    stopped: bool = False
    loss_scale: float = 1.0  # of fp16's losses
    finite_updates: int = 0  # since the scale changed


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put trained weights, by parameter name, back into a model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(like(value, parameters[name]))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, named <parameter>|<slot>; `gathered`."""
    return gathered(
        {
            f"{name}|{slot}": value
            for name, parameter in trained.items()
            for slot, value in optimizer.state.get(parameter, {}).items()
        }
    )


def set_optimizer(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    for key, value in tensors.items():
        name, slot = key.rsplit("|", 1)
        optimizer.state[trained[name]][slot] = like(value.clone(), trained[name])


def save_state(
    states: Artifact,
    inputs: str,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: Mapping[str, Tensor] | None,
    position: int,
) -> None:
    folder = states.working(inputs, fresh=True)
    save_tensors(folder / "weights.safetensors", gathered(trained))
    save_tensors(folder / "optimizer.safetensors", optimizer_tensors(optimizer, trained))
    if best is not None:
        save_tensors(folder / "best.safetensors", gathered(best))
    numbers = asdict(progress) | {"best_value": repr(progress.best_value)}  # repr: JSON has no inf
    states.commit(inputs=inputs, metrics={}, position=position, progress=numbers)


def load_state(
    states: Artifact,
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[Progress, dict[str, Tensor] | None]:
    states.verify()
    numbers: dict[str, Any] = dict(states.manifest()["extra"]["progress"])
    numbers["best_value"] = float(numbers["best_value"])
    progress = Progress(**numbers)
    load_weights(model, load_tensors(states.file("weights.safetensors")))
    set_optimizer(optimizer, trained, load_tensors(states.file("optimizer.safetensors")))
    for group in optimizer.param_groups:
        group["lr"] = progress.lr
    best = states.file("best.safetensors")
    return progress, load_tensors(best) if best.is_file() else None
