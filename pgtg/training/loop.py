"""The one training loop: update, validate, keep the best, save, resume.

A method writes an objective, `(batch, window) -> Loss`, and a stream of accumulation windows,
`step -> what makes each micro-batch`. Everything random in a step is drawn from (seed key, step)
alone, and the saved state is weights + optimiser + a few numbers, so a killed training that is
started again ends with the same bits. Several processes (`distributed`) deal a window's
micro-batches out among them, and divide the weights where the launcher asks for it
(`models.backends.sharding`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pgtg.config import FitConfig
from pgtg.errors import DivergedError
from pgtg.models.language import evaluating
from pgtg.runs.folder import Artifact
from pgtg.runs.log import RunLog
from pgtg.runtime import distributed
from pgtg.runtime.signals import uninterrupted
from pgtg.training.state import load_state, optimizer_tensors, save_state, set_optimizer
from pgtg.training.update import Objective, Progress, Training, Where, Windows, update

Validate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class FitResult:
    """What a training left behind; the model itself holds the last weights."""

    steps: int
    best_step: int
    best_value: float
    # trained weights at the best validation; None if it is the last, or if keep="last"
    best: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    progress: Progress


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
    progress: Progress | None = None,
    ahead: bool = False,
    begin: Callable[[int], None] | None = None,
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
        progress: Rate, best value and patience to continue from, as `Progress.carried` gives them;
            fresh if None.
        ahead: Whether `windows` rests on the update's number alone, neither on weights nor torch's
            generators, and leaves nothing behind: an accelerator's next update is made early then.
        begin: Called in all processes before an update is made, again where a training is resumed
            there: makes, or finds in the folder, what several updates read (not with `ahead`).

    Raises:
        DivergedError: A loss or a gradient is not finite.
    """
    if distributed.count() > cfg.accumulate:
        log.warn(_idle(where, cfg))
    training, states = Training.begun(model, cfg, where), Artifact(folder / "state")
    if states.exists():
        load_state(states, training)
        log.say(f"{where.title}: resumed at update {training.progress.step} of {cfg.updates}")
    else:
        _carry_on(training, optimizer_state, progress)
    progress, training.ahead = training.progress, ahead

    def save() -> None:
        training.require_finite()
        save_state(states, inputs, training, log.position())

    with log.progress(where.title, cfg.updates) as bar:
        bar.advance(progress.step)
        while progress.step < cfg.updates and not progress.stopped:
            # a signal waits for the end of the update, then saves
            with uninterrupted(save, distributed.agreed_signal):
                if begin is not None:
                    begin(progress.step)
                values = update(training, windows, objective)
                if cfg.schedule == "linear":  # of trainings in one round: to 0 at their end
                    progress.lr = cfg.lr * (1 - progress.step / cfg.updates)
                    training.set_rate()
                log.metrics(where.prefix, where.round, where.offset + progress.step, values)
                if validate is not None and _due(progress.step, cfg.validate_every, cfg.updates):
                    _validate(training, validate, select, log)
                if _due(progress.step, cfg.checkpoint_every):
                    save()
                bar.advance(1, loss=values[f"{where.stage}/loss"])
    return _result(training)


def _carry_on(
    training: Training, optimizer_state: Mapping[str, Tensor] | None, progress: Progress | None
) -> None:
    """What continues from a former training."""
    if optimizer_state:
        set_optimizer(training, optimizer_state)
    if progress is not None:
        training.continue_from(progress)


def _result(training: Training) -> FitResult:
    training.require_finite()
    progress = training.progress
    best = None if progress.best_step == progress.step else training.best
    optimizer = optimizer_tensors(training)
    step, value = progress.best_step, progress.best_value
    return FitResult(progress.step, step, value, best, optimizer, progress)


def _due(step: int, every: int, last: int | None = None) -> bool:
    """Whether something is done at this step: at every `every`-th, and at the last."""
    return step == last or (every > 0 and step % every == 0)


def _idle(where: Where, cfg: FitConfig) -> str:
    count, size = distributed.count(), cfg.micro_batch * cfg.accumulate
    return (
        f"{where.prefix}: an update has accumulate={cfg.accumulate} micro-batches for {count} "
        f"processes, so some have nothing to do; the same update from smaller ones: "
        f"micro_batch={max(size // count, 1)} accumulate={count}"
    )


def _validate(training: Training, validate: Validate, select: str, log: RunLog) -> None:
    """Validate and log; keep the best weights; adapt rate and patience."""
    cfg, where, progress = training.cfg, training.where, training.progress
    with evaluating(training.model):
        # what stops a training and lowers its rate is the same in all processes, to the bit
        values = distributed.first(lambda found: found)(validate())
    log.metrics(where.prefix, where.round, where.offset + progress.step, values)
    value = values[select]
    if math.isnan(value):
        raise DivergedError(f"{training}: {select} is NaN")
    better = value < progress.best_value
    if better:
        progress.best_value, progress.best_step = value, progress.step
        if cfg.keep == "best":
            training.best = {name: p.detach().clone() for name, p in training.trained.items()}
    progress.bad_validations = 0 if better else progress.bad_validations + 1
    progress.plateau = 0 if better else progress.plateau + 1
    if cfg.schedule == "plateau" and progress.plateau > cfg.plateau_patience:
        progress.lr, progress.plateau = progress.lr * cfg.plateau_factor, 0
        training.set_rate()
    progress.stopped = 0 < cfg.patience <= progress.bad_validations
