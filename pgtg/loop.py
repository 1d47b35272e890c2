"""The one training loop: accumulate, clip, step, validate, keep the best, save, resume.

A method writes an objective, `(batch, window) -> Loss`, and a stream of accumulation windows,
`step -> what makes each micro-batch`. Everything random in a step is drawn from (seed key, step)
alone, and the saved state is weights + optimiser + a few numbers, so a killed training that is
started again ends with the same bits. Several processes (`processes`) deal a window's micro-batches
out among them, and divide the weights where the launcher asks for it (`models.sharding`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pgtg import processes
from pgtg.config import FitConfig
from pgtg.errors import DivergedError
from pgtg.interrupt import uninterrupted
from pgtg.log import RunLog
from pgtg.models.language import evaluating, training_passes
from pgtg.models.sharding import is_divided, own_part, shard, whole_tensor
from pgtg.ops.sampling import derive_seed, seeded
from pgtg.states import (
    Progress,
    load_state,
    optimizer_tensors,
    save_state,
    set_optimizer,
)
from pgtg.store import Artifact
from pgtg.types import Loss, Window

T = TypeVar("T")
FIRST_SCALE, SCALE_GROWS_AFTER = 2.0**16, 2000  # of losses in fp16; updates until it is doubled
Validate = Callable[[], Mapping[str, float]]
Windows = Callable[[int], Sequence[Callable[[], Any]]]


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
    offset: int = 0  # updates in the rounds before: logged steps go on counting

    @property
    def prefix(self) -> str:
        return f"{self.stage}.{self.label}" if self.label else self.stage

    def seed_at(self, step: int, *more: int | str) -> int:
        return derive_seed(self.seed, self.stage, self.round, step, *more)


@dataclass(frozen=True)
class FitResult:
    """What a training left behind; the model itself holds the last weights."""

    steps: int
    best_step: int
    best_value: float
    best: dict[str, Tensor] | None  # trained weights at the best validation, None if it is the last
    optimizer: dict[str, Tensor]


def fit(
    model: nn.Module,
    windows: Windows,
    objective: Objective,
    cfg: FitConfig,
    *,
    where: Where,
    folder: Path,
    inputs: str,
    log: RunLog,
    validate: Validate | None = None,
    select: str = "",
    optimizer_state: Mapping[str, Tensor] | None = None,
) -> FitResult:
    """Train `model` in place for at most cfg.updates updates.

    Args:
        model: Its parameters that require gradients are trained.
        windows: What makes each micro-batch of an update, from the update's number alone.
        objective: What is minimised.
        cfg: Optimiser, length, validation and stopping.
        where: Names the training; the key of its random streams.
        folder: Working folder in which states for a resume are kept.
        inputs: Hash of all that this training depends on.
        log: Where metrics go.
        validate: Metrics on held-out data, called every cfg.validate_every updates and at the end.
        select: The metric of `validate` to minimise for "best", plateau and patience.
        optimizer_state: State to continue from, as in a former result; fresh if None.

    Raises:
        DivergedError: A loss or a gradient is not finite.
    """
    if processes.count() > cfg.accumulate:
        log.warn(_idle(where, cfg))
    shard(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(trained, cfg)
    states = Artifact(folder / "state")
    progress, best = _begun(states, model, trained, optimizer, optimizer_state, cfg, where, log)

    def save() -> None:
        _require_finite(trained, where, progress)
        save_state(states, inputs, trained, optimizer, progress, best, log.position())

    with log.progress(f"{where.prefix} round {where.round}", cfg.updates) as bar:
        bar.advance(progress.step)
        while progress.step < cfg.updates and not progress.stopped:
            # a signal waits for the end of the update, then saves
            with uninterrupted(save, processes.agreed_signal):
                with training_passes(
                    model, precision=cfg.precision, checkpointing=cfg.gradient_checkpointing
                ):
                    values = _update(windows, objective, trained, optimizer, cfg, where, progress)
                progress.step += 1
                log.metrics(where.prefix, where.round, where.offset + progress.step, values)
                last = progress.step == cfg.updates
                due = cfg.validate_every > 0 and progress.step % cfg.validate_every == 0
                if validate is not None and (last or due):
                    if _validated(model, validate, select, cfg, where, progress, log):
                        best = {name: p.detach().clone() for name, p in trained.items()}
                    for group in optimizer.param_groups:
                        group["lr"] = progress.lr
                if cfg.checkpoint_every > 0 and progress.step % cfg.checkpoint_every == 0:
                    save()
                bar.advance(1, loss=values[f"{where.stage}/loss"])
    _require_finite(trained, where, progress)
    if progress.best_step in (-1, progress.step):
        best = None
    state = optimizer_tensors(optimizer, trained)
    return FitResult(progress.step, progress.best_step, progress.best_value, best, state)


def _begun(
    states: Artifact,
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    optimizer_state: Mapping[str, Tensor] | None,
    cfg: FitConfig,
    where: Where,
    log: RunLog,
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Where a training goes on, and its best weights so far: as it was saved, or at its start."""
    if states.exists():
        progress, best = load_state(states, model, trained, optimizer)
        log.say(f"{where.prefix}: resumed at update {progress.step} of {cfg.updates}")
        return progress, best
    if optimizer_state:
        set_optimizer(optimizer, trained, optimizer_state)
    return Progress(lr=cfg.lr, loss_scale=FIRST_SCALE if cfg.precision == "fp16" else 1.0), None


def make_optimizer(trained: Mapping[str, nn.Parameter], cfg: FitConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the trained parameters, in PyTorch's fused form."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
    return kind(list(trained.values()), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)


def _update(
    windows: Windows,
    objective: Objective,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    cfg: FitConfig,
    where: Where,
    progress: Progress,
) -> dict[str, float]:
    """One optimiser step over one accumulation window; returns what to log."""
    batches: list[Any] = []
    parts = windows(progress.step)
    makes = processes.own(parts)
    counting = len(makes)
    if (
        processes.sharding() is not None and parts
    ):  # all make the same passes; fillers weigh nothing
        makes += [parts[0]] * (processes.most(parts) - counting)

    def counted(i: int) -> Window:
        batches.append(makes[i]())
        return objective.count(batches[i]) if i < counting else Window(0, 0)

    def backward(i: int) -> dict[str, float]:
        line = _backward(objective, batches[i], window, where, progress, filler=i >= counting)
        return line if i < counting else {}

    with seeded(where.seed_at(progress.step, *processes.key())):
        window = sum(_each(counted, len(makes)), Window(0, 0))
        found = _each(backward, len(makes))
    processes.add_up([p for p in trained.values() if not is_divided(p)])  # FSDP adds up the others
    values: dict[str, float] = {}
    for line in found:
        for name, value in line.items():
            values[f"{where.stage}/{name}"] = values.get(f"{where.stage}/{name}", 0.0) + value
    return values | _step(trained, optimizer, cfg, where, progress)


def _each(work: Callable[[int], T], size: int) -> list[T]:
    """What `work` returns for 0 to `size` in all processes. Where they make their passes together,
    an error in one is known to all before the next, so that none waits for a pass in vain."""
    if processes.sharding() is not None:
        return [found for i in range(size) for found in processes.everyone(partial(work, i))]
    everywhere = processes.everyone(lambda: [work(i) for i in range(size)])
    return [found for here in everywhere for found in here]


def _step(
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    cfg: FitConfig,
    where: Where,
    progress: Progress,
) -> dict[str, float]:
    """Clip and step; returns what to log.

    In fp16 losses are scaled up so that small gradients stay above 0. An update whose gradient
    overflows is left out, and the scale halved (dynamic loss scaling, Micikevicius et al. 2018).
    """
    scale, limit = progress.loss_scale, cfg.clip if cfg.clip > 0 else math.inf
    for parameter in trained.values() if scale != 1 else ():
        if parameter.grad is not None:
            parameter.grad.div_(scale)
    norm = whole_tensor(nn.utils.clip_grad_norm_(trained.values(), limit))
    logged = {f"{where.stage}/grad_norm": norm.item()} if norm.isfinite() else {}
    logged[f"{where.stage}/lr"] = progress.lr
    if cfg.precision == "fp16":
        logged[f"{where.stage}/loss_scale"] = scale
    if norm.isfinite():
        optimizer.step()
        progress.finite_updates += cfg.precision == "fp16"
        if progress.finite_updates == SCALE_GROWS_AFTER:
            progress.loss_scale, progress.finite_updates = 2 * scale, 0
    elif scale > 1:
        progress.loss_scale, progress.finite_updates = scale / 2, 0
    else:
        raise DivergedError(
            f"{where.prefix} round {where.round} update {progress.step}: the gradient's norm is "
            f"{norm.item()}; the last saved state stays. Try a lower learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    return logged


def _backward(
    objective: Objective,
    batch: Any,
    window: Window,
    where: Where,
    progress: Progress,
    *,
    filler: bool = False,
) -> dict[str, float]:
    """Add one micro-batch's gradient (a filler's: zeros); returns its part of what to log."""
    loss = objective(batch, window)
    if loss.value.requires_grad:
        (loss.value * (0.0 if filler else progress.loss_scale)).backward()
    if not loss.value.isfinite():
        raise DivergedError(
            f"{where.prefix} round {where.round} update {progress.step}: the loss is "
            f"{loss.value.item()} ({dict(loss.metrics)}); the last saved state stays. "
            "Try a lower learning rate or a smaller clip"
        )
    return {"loss": loss.value.item(), **loss.metrics}


def _idle(where: Where, cfg: FitConfig) -> str:
    count, size = processes.count(), cfg.micro_batch * cfg.accumulate
    return (
        f"{where.prefix}: an update has accumulate={cfg.accumulate} micro-batches for {count} "
        f"processes, so some have nothing to do; the same update from smaller ones: "
        f"micro_batch={max(size // count, 1)} accumulate={count}"
    )


def _require_finite(trained: Mapping[str, nn.Parameter], where: Where, progress: Progress) -> None:
    """Weights that are NaN or infinite are neither saved nor handed on."""

    def require() -> None:
        for name, parameter in trained.items():
            if not own_part(parameter).isfinite().all():
                raise DivergedError(
                    f"{where.prefix} round {where.round} update {progress.step}: the weights "
                    f"{name} are not finite; the last saved state stays. Try a lower learning rate"
                )

    processes.everyone(require)


def _validated(
    model: nn.Module,
    validate: Validate,
    select: str,
    cfg: FitConfig,
    where: Where,
    progress: Progress,
    log: RunLog,
) -> bool:
    """Validate, log, and adapt rate and patience. True if this is the best so far."""
    with evaluating(model):
        # what stops a training and lowers its rate is the same in all processes, to the bit
        values = processes.first(lambda found: found)(validate())
    log.metrics(where.prefix, where.round, where.offset + progress.step, values)
    value = values[select]
    if math.isnan(value):
        raise DivergedError(
            f"{where.prefix} round {where.round} update {progress.step}: {select} is NaN"
        )
    better = value < progress.best_value
    if better:
        progress.best_value, progress.best_step = value, progress.step
    progress.bad_validations = 0 if better else progress.bad_validations + 1
    progress.plateau = 0 if better else progress.plateau + 1
    if cfg.schedule == "plateau" and progress.plateau > cfg.plateau_patience:
        progress.lr, progress.plateau = progress.lr * cfg.plateau_factor, 0
    progress.stopped = 0 < cfg.patience <= progress.bad_validations
    return better
