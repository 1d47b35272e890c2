"""A training under way, and its update: accumulate, clip, step.

A window's micro-batches are dealt out among the processes; their gradients are added up, since a
loss is a mean over the whole window. Everything random is drawn from (seed key, step) alone.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pgtg.config import FitConfig
from pgtg.errors import DivergedError
from pgtg.models.backends.sharding import is_divided, own_part, shard, whole_tensor
from pgtg.models.language import training_passes
from pgtg.ops.sampling import derive_seed, seeded
from pgtg.runtime import distributed
from pgtg.types import Loss, Window

T = TypeVar("T")
CLIP_MARGIN = 1e-5  # torch divides by the norm and a little more than this
FIRST_SCALE, SCALE_GROWS_AFTER = 2.0**16, 2000  # of losses in fp16; updates until it is doubled
Line = Mapping[str, Tensor | float]  # what to log of a micro-batch
Windows = Callable[[int], Sequence[Callable[[], Any]]]  # an update's number -> micro-batch makers


class Objective(Protocol):
    """What a method minimises. `count` is asked for every micro-batch of a window first."""

    def count(self, batch: Any) -> Window: ...

    def __call__(self, batch: Any, window: Window) -> Loss: ...


@dataclass(frozen=True)
class Where:
    """Whose training this is: names its log lines, its random streams and its progress bar."""

    seed: int
    stage: str
    round: int
    label: str = ""  # a control's or a compared head's name, or "" for the main line
    offset: int = 0  # updates in the rounds before: logged steps count on from there
    about: str = ""  # what it is, in words that a newcomer knows; "" for its stage and round

    @property
    def prefix(self) -> str:
        return f"{self.stage}.{self.label}" if self.label else self.stage

    @property
    def title(self) -> str:
        """Of its bar, and of what is said of it."""
        return self.about or f"{self.prefix} round {self.round}"

    def seed_at(self, step: int, *more: int | str) -> int:
        return derive_seed(self.seed, self.stage, self.round, step, *more)


@dataclass
class Progress:
    """The numbers, apart from weights and optimiser, that a resumed training needs."""

    step: int = 0
    best_step: int = -1  # 0 or less: in a training before this one, if there is a best value
    best_value: float = math.inf
    bad_validations: int = 0  # since the best
    plateau: int = 0  # validations without progress since the last cut of the rate
    lr: float = 0.0
    stopped: bool = False
    loss_scale: float = 1.0  # of fp16's losses
    finite_updates: int = 0  # since the scale changed
    texts: int = 0  # read with gradients, each as often as it was

    def carried(self) -> "Progress":
        """What the next training of the same weights continues from: steps, texts count again."""
        return replace(self, step=0, best_step=self.best_step - self.step, texts=0)


@dataclass
class Training:
    """A model in training: what its updates read and change."""

    model: nn.Module
    cfg: FitConfig
    where: Where
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    progress: Progress
    best: dict[str, Tensor] | None = None  # weights at the best validation so far, if kept
    ahead: bool = False  # whether batches depend on their update's number alone, not on weights
    prepared: tuple[int, Sequence[Callable[[], Any]]] | None = None  # an update's, made early

    @classmethod
    def begun(cls, model: nn.Module, cfg: FitConfig, where: Where) -> "Training":
        """At its start: Adam or AdamW over the parameters that require gradients."""
        shard(model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
        values, decay = list(trained.values()), cfg.weight_decay
        optimizer = kind(values, lr=cfg.lr, weight_decay=decay, fused=True)
        scale = FIRST_SCALE if cfg.precision == "fp16" else 1.0
        return cls(model, cfg, where, trained, optimizer, Progress(lr=cfg.lr, loss_scale=scale))

    def __str__(self) -> str:
        return f"{self.where.prefix} round {self.where.round} update {self.progress.step}"

    def continue_from(self, progress: Progress) -> None:
        """Take the numbers of a former training of the same weights."""
        self.progress = replace(progress)
        self.set_rate()

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.trained.values() if p.grad is not None]

    def set_rate(self) -> None:
        """The optimiser's learning rate, from the progress."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.progress.lr

    def require_finite(self) -> None:
        """Weights that are NaN or infinite are neither saved nor handed on.

        Raises:
            DivergedError: There are such.
        """

        def require() -> None:
            for name, parameter in self.trained.items():
                if not own_part(parameter).isfinite().all():
                    raise DivergedError(
                        f"{self}: the weights {name} are not finite; the last saved state stays. "
                        "Try a lower learning rate"
                    )

        distributed.everyone(require)


def update(training: Training, windows: Windows, objective: Objective) -> dict[str, float]:
    """One optimiser step over one accumulation window; returns what to log.

    Losses, metrics and gradient norm are fetched from the device together, once an update: after
    its last backward pass and before the weights change.

    Raises:
        DivergedError: A loss or the gradient is not finite.
    """
    where, progress, cfg = training.where, training.progress, training.cfg
    passes = training_passes(
        training.model, precision=cfg.precision, checkpointing=cfg.gradient_checkpointing
    )
    with passes, seeded(where.seed_at(progress.step, *distributed.key())):
        window, lines = _accumulate(training, _parts(training, windows), objective)
    norm = _gradient_norm(training)
    whole_norm = whole_tensor(norm)
    _prepare(training, windows)  # while the device still computes
    found = distributed.everyone(lambda: _fetched(training, whole_norm, lines))
    values: dict[str, float] = {}
    for line in (line for _, lines in found for line in lines):
        for name, value in line.items():
            values[f"{where.stage}/{name}"] = values.get(f"{where.stage}/{name}", 0.0) + value
    if window.places:
        values[f"{where.stage}/padding"] = window.padding
    values |= _step(training, norm, found[0][0])
    progress.step += 1
    progress.texts += window.texts or window.sequences
    return values


def _parts(training: Training, windows: Windows) -> Sequence[Callable[[], Any]]:
    """What makes, or hands out, the micro-batches of the update that is due."""
    prepared, training.prepared = training.prepared, None
    if prepared is not None and prepared[0] == training.progress.step:
        return prepared[1]
    return windows(training.progress.step)


def _prepare(training: Training, windows: Windows) -> None:
    """Make this process's micro-batches of the next update, on accelerators.

    An error is left to that update, which makes them again and raises it there: this one's weights
    and its saved state are as they would be without.
    """
    step, device = training.progress.step + 1, next(iter(training.trained.values())).device
    if not training.ahead or device.type == "cpu" or step >= training.cfg.updates:
        return
    try:
        parts = list(windows(step))
        for place in distributed.own(range(len(parts))):
            batch = parts[place]()
            parts[place] = partial(_same, batch)
    except Exception:
        return
    training.prepared = step, parts


def _same(batch: Any) -> Any:
    return batch


def _accumulate(
    training: Training, parts: Sequence[Callable[[], Any]], objective: Objective
) -> tuple[Window, list[Line]]:
    """Gradients of this process's micro-batches. Returns the whole window's counts, and what to
    log of each micro-batch, still on the device."""
    makes, batches, lines = distributed.own(parts), [], []
    own = len(makes)
    if distributed.sharding() is not None:  # all make the same passes; a filler's weigh nothing
        makes += [*parts[:1]] * (distributed.most(parts) - own)

    def counted(i: int) -> Window:
        batches.append(makes[i]())
        return objective.count(batches[i]) if i < own else Window(0, 0)

    def backward(i: int) -> None:
        loss = objective(batches[i], window)
        if loss.value.requires_grad:
            (loss.value * (training.progress.loss_scale if i < own else 0.0)).backward()
        if i < own:
            lines.append({"loss": loss.value.detach(), **loss.metrics})

    window = sum(_each(counted, len(makes)), Window(0, 0))
    _each(backward, len(makes))
    return window, lines


def _each(work: Callable[[int], T], size: int) -> list[T]:
    """What `work` returns for 0 to `size`, in all processes. Where they make their passes together,
    an error in one is known to all before the next, so that none waits for a pass in vain."""
    if distributed.sharding() is not None:
        return [found for i in range(size) for found in distributed.everyone(partial(work, i))]
    everywhere = distributed.everyone(lambda: [work(i) for i in range(size)])
    return [found for here in everywhere for found in here]


def _gradient_norm(training: Training) -> Tensor:
    """Norm of the gradient over all processes and parameters, the scale of fp16's losses removed;
    on the device, and divided where weights are."""
    # FSDP adds up what it has divided
    distributed.add_up([p for p in training.trained.values() if not is_divided(p)])
    gradients = training.gradients()
    scale = training.progress.loss_scale
    for gradient in gradients if scale != 1 else ():
        gradient.div_(scale)
    if not gradients:
        return torch.zeros((), device=next(iter(training.trained.values())).device)
    return nn.utils.get_total_norm(gradients)


def _fetched(
    training: Training, norm: Tensor, lines: Sequence[Line]
) -> tuple[float, list[dict[str, float]]]:
    """The norm, and what to log of each micro-batch, as numbers: the one wait of an update.

    Raises:
        DivergedError: A loss is not finite.
    """
    everything: list[Line] = [{"norm": norm}, *lines]
    tensors = [v.detach() for line in everything for v in line.values() if isinstance(v, Tensor)]
    widest = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    numbers: Iterator[float] = iter(torch.stack([t.to(widest) for t in tensors]).tolist())
    found = [
        {
            name: next(numbers) if isinstance(value, Tensor) else value
            for name, value in line.items()
        }
        for line in everything
    ]
    for line in found[1:]:
        if not math.isfinite(line["loss"]):
            metrics = {name: value for name, value in line.items() if name != "loss"}
            raise DivergedError(
                f"{training}: the loss is {line['loss']} ({metrics}); the last "
                "saved state stays. Try a lower learning rate or a smaller clip"
            )
    return found[0]["norm"], found[1:]


def _step(training: Training, norm: Tensor, found: float) -> dict[str, float]:
    """Clip and step; returns what to log.

    In fp16 losses are scaled up so that small gradients stay above 0. An update whose gradient
    overflows is left out, and the scale halved (dynamic loss scaling, Micikevicius et al. 2018).

    Args:
        norm: The gradient's norm, on the device.
        found: The same as a number.
    """
    trained, progress, cfg = training.trained, training.progress, training.cfg
    stage, optimizer, scale = training.where.stage, training.optimizer, progress.loss_scale
    logged = {f"{stage}/grad_norm": found} if math.isfinite(found) else {}
    logged[f"{stage}/lr"] = progress.lr
    if cfg.precision == "fp16":
        logged[f"{stage}/loss_scale"] = scale
    if math.isfinite(found):
        if 0 < cfg.clip < found + CLIP_MARGIN:  # else clipping would multiply by 1
            nn.utils.clip_grads_with_norm_(trained.values(), cfg.clip, norm)
        optimizer.step()
        progress.finite_updates += cfg.precision == "fp16"
        if progress.finite_updates == SCALE_GROWS_AFTER:
            progress.loss_scale, progress.finite_updates = 2 * scale, 0
    elif scale > 1:
        progress.loss_scale, progress.finite_updates = scale / 2, 0
    else:
        raise DivergedError(
            f"{training}: the gradient's norm is {found}; the last saved state stays. "
            "Try a lower learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    return logged
