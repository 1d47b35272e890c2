"""`--dry-run --probe`: how long a run would take, from a short run of the same config.

The short run is made of the run's own stages on its own data and device, in a folder that is
deleted again. A unit of each stage (a sampled text, an update, a checked or evaluated text) is
timed in its steady state; the whole is that times the number of units.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgtg.config import MethodConfig, RunConfig
from pgtg.config.registry import TASKS, resolve
from pgtg.methods.options import Sparse
from pgtg.pipeline.plan.work import Work
from pgtg.runs.log import RunLog

if TYPE_CHECKING:
    from pgtg.pipeline.context import Context

SAMPLED = "sample train round 0"  # the bar of the short run's generations
UPDATES = 4  # of each training in the short run
SET_UP = 8  # times as many in the set-up, whose models are small


@dataclass(frozen=True)
class Part:
    """A part of a run's time: so many units at so many seconds each."""

    name: str
    units: float
    seconds: float

    @property
    def total(self) -> float:
        return self.units * self.seconds


class Stopwatch(RunLog):
    """A silent log that notes when each update and each validation was logged, and each part of a
    bar was finished."""

    def __init__(self) -> None:
        super().__init__(None, mute=True)
        self.marks: dict[str, list[float]] = {}

    def metrics(self, stage: str, round: int, step: int, values: Mapping[str, float]) -> None:
        update = f"{stage.split('.')[0]}/loss" in values
        self._mark(stage if update else f"{stage} validated")

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Any]:
        self._mark(title)
        yield _Ticks(lambda: self._mark(title))

    def _mark(self, name: str) -> None:
        self.marks.setdefault(name, []).append(time.perf_counter())

    def step(self, name: str) -> float:
        """Median seconds from one mark of that name to the next; the first step warms up."""
        marks = self.marks[name]
        steps = [after - before for before, after in pairwise(marks[1:])]
        return statistics.median(steps or [marks[-1] - marks[0]])

    def validation(self, stage: str) -> float:
        """Seconds from the last update to what validating it gave; 0 where nothing is validated."""
        found = self.marks.get(f"{stage} validated")
        return found[0] - self.marks[stage][-1] if found else 0.0


@dataclass(frozen=True)
class _Ticks:
    """A bar of which only the time counts."""

    tick: Callable[[], None]

    def advance(self, n: int = 1, **shown: Any) -> None:
        self.tick()


def probe(
    cfg: RunConfig,
    *,
    updates: int = UPDATES,
    folder: Path | None = None,
    sizes: Mapping[str, int | None] | None = None,
) -> list[Part]:
    """The parts of a run's time.

    Args:
        cfg: A checked config, whose models and data are on this machine.
        updates: Of each training in the short run; more are more exact.
        folder: Where its files lie meanwhile; None for the system's place for such.
        sizes: Examples of each split of the whole run; None for those of the data.

    Raises:
        PgtgError: As the run itself would.
    """
    from pgtg.pipeline.context import opened
    from pgtg.runs.folder import RunFolder
    from pgtg.tasks import open_task

    short = shortened(cfg, updates)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pgtg-probe-") as place:
        run = RunFolder(Path(place) / "run")
        with open_task(short, run.path) as task, run.lock():
            run.create(asdict(short) | {"run_dir": None}, {})
            watch = Stopwatch()
            ctx = opened(short, run, watch, task)
            task.read()
            return _parts(_units(cfg, sizes), ctx, watch, _timed(ctx))


def text_of(parts: Sequence[Part]) -> str:
    """The parts and their sum, as the plan's row."""
    shown = ", ".join(f"{part.name} {show_time(part.total)}" for part in parts)
    return f"about {show_time(sum(part.total for part in parts))}: {shown}"


def show_time(seconds: float) -> str:
    """Seconds as people say them: "40 s", "12 min", "3.2 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shortened(cfg: RunConfig, updates: int) -> RunConfig:
    """The same run with few units of each kind: one round, no controls, two chunks of samples."""
    s, fit = cfg.sample, cfg.reward.fit
    window = max(fit.micro_batch * fit.accumulate, 4)
    sources = min(s.sources if cfg.prompt is None else cfg.prompt.first, 2 * window)
    held = min(s.heldout_sources, window)
    policy, few = cfg.policy, SET_UP * updates
    if policy.tiny_t5 is not None:
        tiny = policy.tiny_t5
        warm = replace(tiny.warm_start, updates=min(few, tiny.warm_start.updates), validate_every=0)
        copies = min(few, tiny.copy_updates)
        policy = replace(policy, tiny_t5=replace(tiny, copy_updates=copies, warm_start=warm))
    return replace(
        cfg,
        policy=policy,
        cache="off" if policy.tiny_lm is None else cfg.cache,
        sample=replace(s, sources=sources, heldout_sources=held, chunk=max(sources // 3, 1)),
        reward=replace(
            cfg.reward, compare_heads=[], fit=replace(fit, updates=updates, validate_every=0)
        ),
        improve=replace(cfg.improve, validate_every=0),
        method=_few(cfg.method, updates),
        schedule=replace(
            cfg.schedule, unit="updates", total=float(updates), retrain_every=1e9, retrain_until=0.0
        ),
        prompt=cfg.prompt
        and replace(
            cfg.prompt,
            first=sources,
            candidates=2,
            tested=1,
            top=1,
            baselines=[],
            validation_prompts=min(cfg.prompt.validation_prompts, 4),
        ),
        evaluate=replace(
            cfg.evaluate,
            examples=window,
            splits=cfg.evaluate.splits[:1],
            start_policy=False,
            diagnose=0,
        ),
        logger=replace(cfg.logger, name="none"),
    )


def _few(method: MethodConfig, updates: int) -> MethodConfig:
    alone = replace(method, controls=[])
    return replace(alone, sparse_updates=updates) if isinstance(alone, Sparse) else alone


def _timed(ctx: "Context") -> dict[str, float]:
    """Seconds of each stage of the short run."""
    from pgtg.pipeline.evaluate import evaluated
    from pgtg.pipeline.evaluation import evaluation_of
    from pgtg.pipeline.run import ROUNDS, stages_of
    from pgtg.pipeline.stages.start import start

    seconds: dict[str, float] = {}

    def clocked(name: str, work: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - begin

    clocked("set-up", lambda: start(ctx))
    for stage in stages_of(ctx.cfg):
        clocked(stage, partial(ROUNDS[stage], ctx, 0))
    evaluation, split = evaluation_of(ctx.cfg), ctx.cfg.evaluate.splits[:1]
    if split:
        own = evaluation.systems(ctx)[0]
        clocked("evaluation", lambda: evaluated(ctx, evaluation, own, split[0]))
    return seconds


def _units(cfg: RunConfig, sizes: Mapping[str, int | None] | None = None) -> Work:
    return resolve(TASKS[cfg.task].plan).work(cfg, sizes)


def _parts(
    work: Work, ctx: "Context", watch: Stopwatch, seconds: Mapping[str, float]
) -> list[Part]:
    """The short run's seconds a unit, times the units of the whole run."""
    short, small = ctx.cfg, _units(ctx.cfg)
    found = [Part("set-up", work.set_up / small.set_up, seconds["set-up"])]
    if SAMPLED in watch.marks:
        found.append(Part("sample", work.sampled, watch.step(SAMPLED) / short.sample.chunk))
    elif "sample" in seconds:  # of stored preferences, which are read and cut
        found.append(Part("read preferences", 1, seconds["sample"]))
    for stage, updates, checks in (
        ("align", work.reward_updates, work.reward_checks / max(small.reward_checks, 1)),
        ("improve", work.policy_updates, work.policy_checks / max(small.policy_checks, 1)),
    ):
        if stage in watch.marks:
            found.append(Part(stage, updates, watch.step(stage)))
            validated = watch.validation(stage)
            found.append(Part(f"{stage} validations", checks, validated))
    scored = seconds.get("score", 0.0) + seconds.get("aggregate", 0.0)
    if scored:
        found.append(Part("score", work.scored / max(small.scored, 1), scored))
    if "evaluation" in seconds:
        texts = work.evaluated / max(small.evaluated, 1)
        found.append(Part("evaluation", texts, seconds["evaluation"]))
    return found
