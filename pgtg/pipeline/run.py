"""The alternation: a plain loop over the stages. `pgtg train` runs it; each stage runs alone too.

    start -> for each round: sample -> align -> score -> aggregate -> improve  -> evaluation

Every stage writes artifacts that name what they were made from, and returns at once where they are
there already. So resuming is running again, and single-stage commands are the same functions.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgtg.config import RunConfig
from pgtg.config.registry import TASKS
from pgtg.data.splits import counts_line, repeated_between, unread_line
from pgtg.errors import ConfigError, PgtgError
from pgtg.methods import method_of
from pgtg.methods.method import STAGES
from pgtg.pipeline.context import Context, opened, quiet, usable_device
from pgtg.pipeline.evaluate import evaluate_run
from pgtg.pipeline.findings import places, reward_table, show_diagnostics
from pgtg.pipeline.stages.aggregate import aggregate
from pgtg.pipeline.stages.align import align
from pgtg.pipeline.stages.diagnose import diagnose
from pgtg.pipeline.stages.improve import improve, kept_policy
from pgtg.pipeline.stages.lines import lines
from pgtg.pipeline.stages.match import match
from pgtg.pipeline.stages.sample import sample
from pgtg.pipeline.stages.score import score
from pgtg.pipeline.stages.start import start
from pgtg.runs.folder import RunFolder, provenance, write_json
from pgtg.runs.log import ENDED, RunLog, tracker
from pgtg.runtime import distributed
from pgtg.runtime.signals import Interrupted
from pgtg.tasks import open_task


def sample_round(ctx: Context, round: int) -> None:
    """(A) Generations with the judge's scores."""
    for control in lines(ctx, "sample"):
        sample(ctx, round, control=control)


def align_round(ctx: Context, round: int) -> None:
    """(D) The reward model; in round 0 those of the compared heads; those of the controls."""
    for control in lines(ctx, "align"):
        for head in [""] if control else ctx.heads(round):
            align(ctx, round, head=head, control=control)
    made = ctx.artifact(round, "align")
    if made.exists():
        ctx.folder.publish("reward", made.file("reward"), round=round)


def score_round(ctx: Context, round: int) -> None:
    """(B) Token rewards."""
    for head in ctx.heads(round):
        score(ctx, round, head=head)


def aggregate_round(ctx: Context, round: int) -> None:
    """(C) Sequence evaluations, held against judge and baselines."""
    for head in ctx.heads(round):
        aggregate(ctx, round, head=head)


def improve_round(ctx: Context, round: int) -> None:
    """The policy, and those of the controls; the best so far is published."""
    for control in lines(ctx, "improve"):
        improve(ctx, round, control=control)
    for control in ctx.cfg.method.alongside if TASKS[ctx.cfg.task].equal_budgets else ():
        match(ctx, round, control)
    method = method_of(ctx.cfg)
    if method.trainer is not None:
        kept, folder, _ = kept_policy(ctx, round + 1)
        ctx.folder.publish(method.published, folder, round=kept)
    elif method.search is not None:
        ctx.folder.publish(method.published, ctx.artifact(round, "improve").path, control="")
    if ctx.cfg.keep_rounds == "last":
        _tidy(ctx, round)


ROUNDS: dict[str, Callable[[Context, int], None]] = {
    "sample": sample_round,
    "align": align_round,
    "score": score_round,
    "aggregate": aggregate_round,
    "improve": improve_round,
}


def train(
    cfg: RunConfig,
    run_dir: Path,
    *,
    force: bool = False,
    page: Callable[[Path], Path] | None = None,
) -> dict[str, float]:
    """Run, or resume, the whole alternation and its evaluation.

    Args:
        cfg: A checked config.
        run_dir: The run's folder, new or of an unfinished run.
        force: Resume although the config differs from the folder's.
        page: Makes a page of the run's token rewards for its tracker, and says where it lies.

    Returns:
        Final metrics of the trained policy, by name.

    Raises:
        ConfigError: The folder's run has another config, and `force` is off.
        PgtgError: Any of the stages' errors.
    """
    with session(cfg, run_dir, force) as ctx:
        start(ctx)
        for number in range(len(ctx.task.segments())):
            for name in stages_of(cfg):
                ROUNDS[name](ctx, number)
        return finish(ctx, page)


def stages_of(cfg: RunConfig) -> list[str]:
    """The stages that the method or one of its controls runs, in their order."""
    run = [method_of(cfg, control).stages for control in ("", *cfg.method.alongside)]
    return [name for name in STAGES if any(name in stages for stages in run)]


def run_stage(
    cfg: RunConfig, run_dir: Path, stage: str, *, round: int | None = None, force: bool = False
) -> None:
    """Run one stage on the run folder: for the round asked for, else the first that lacks it.

    Raises:
        ConfigError: There is no such round, or the method does not use the stage.
        ArtifactError: An earlier stage's result is missing; names the command that makes it.
    """
    if stage not in stages_of(cfg):
        raise ConfigError(f"method={cfg.method.name} has nothing to {stage}")
    with session(cfg, run_dir, force) as ctx:
        start(ctx)
        rounds = len(ctx.task.segments())
        if round is not None and not 0 <= round < rounds:
            raise ConfigError(f"--round {round}: this schedule has rounds 0 to {rounds - 1}")
        missing = [i for i in range(rounds) if not ctx.artifact(i, stage).exists()]
        if round is None and not missing:
            ctx.log.say(f"{stage}: done in all {rounds} rounds; delete a round's folder to redo it")
            return
        number = missing[0] if round is None else round
        ctx.cursor[:] = [ctx.log.position()]
        ROUNDS[stage](ctx, number)
        artifact = ctx.artifact(number, stage)
        found = artifact.manifest()["metrics"]
        rows = [[name, value] for name, value in found.items()]
        ctx.log.table(f"{stage} round {number}: {artifact.path}", ["metric", "value"], rows)


def finish(ctx: Context, page: Callable[[Path], Path] | None = None) -> dict[str, float]:
    """Evaluate every policy of the run, print the tables, write and return the final figures."""
    final: dict[str, float] = {}
    learned = "aggregate" in method_of(ctx.cfg).stages
    if learned:
        final |= reward_table(ctx, len(ctx.task.segments()))
        if ctx.cfg.evaluate.diagnose:
            show_diagnostics(ctx.log, diagnose(ctx))
    final |= evaluate_run(ctx)
    places(ctx)
    if learned and page is not None and ctx.cfg.logger.name != "none":
        _show_credit(ctx, page)
    write_json(ctx.folder.path / "summary.json", final)
    ctx.log.summary(final)
    return final


@distributed.first
def _show_credit(ctx: Context, page: Callable[[Path], Path]) -> None:
    """The token-credit page of the run, for its tracker; a page that cannot be made is said."""
    try:
        ctx.log.page("token_credit", page(ctx.folder.path))
    except PgtgError as error:
        ctx.log.warn(f"no token-credit page: {error}")


def _tidy(ctx: Context, round: int) -> None:
    """keep_rounds=last: drop earlier rounds' weights that neither resume nor result will read."""
    for control in lines(ctx, "improve"):
        if method_of(ctx.cfg, control).trainer is None:
            continue
        kept = kept_policy(ctx, round + 1, control)[0]
        for earlier in range(round):
            artifact = ctx.artifact(earlier, "improve", control=control)
            weights = [n for n in artifact.manifest()["files"] if n.endswith(".safetensors")]
            artifact.drop(n for n in weights if earlier != kept or n.startswith("optimizer"))
    for control in lines(ctx, "align"):
        for earlier in range(round):
            artifact = ctx.artifact(earlier, "align", control=control)
            artifact.drop(n for n in artifact.manifest()["files"] if n.endswith(".safetensors"))


@contextlib.contextmanager
def session(cfg: RunConfig, run_dir: Path, force: bool) -> Iterator[Context]:
    """The run folder, locked and healed, its log cut back to the last commit, with its context."""
    folder = RunFolder(run_dir)
    config = asdict(cfg) | {"run_dir": None}
    usable_device(cfg)  # else nothing is written
    # the task with its judge first: if what it needs is missing, nothing is written
    with open_task(cfg, run_dir) as task, contextlib.ExitStack() as held:
        task.read()  # and if its data cannot be used, neither
        _begin(folder, config, force, held, distributed.count())
        if distributed.is_first():
            log = RunLog(run_dir, tracker=tracker(cfg.logger, folder.path, config), quiet=quiet())
        else:
            log = RunLog(None, mute=True)
        code = 1
        try:
            log.say(f"run folder {run_dir}")
            if distributed.count() > 1:
                divided = ", weights divided in training" if distributed.sharding() else ""
                log.say(f"{distributed.count()} processes{divided}")
            log.rewind(folder.last_position())
            task.keep_in(folder, log)
            ctx = opened(cfg, folder, log, task)
            _report_data(ctx)
            yield ctx
            if task.judge is not None:
                task.judge.tell()
            log.say(f"run folder {run_dir}")
            log.note(ENDED)
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
            raise
        except PgtgError as error:
            code, error.begun = error.exit_code, True
            raise
        finally:
            log.close(code)


@distributed.first
def _begin(
    folder: RunFolder,
    config: Mapping[str, Any],
    force: bool,
    held: contextlib.ExitStack,
    count: int,
) -> None:
    """Lock the run folder for as long as `held` is open, and create or heal it."""
    held.enter_context(folder.lock())
    if folder.exists():
        folder.open()
        _same_config(folder, config, force)
    else:
        about = provenance(sys.argv, config["seed"]) | {"processes": count}
        folder.create(config, about).open()


def _report_data(ctx: Context) -> None:
    """Say and keep what became of the rows of the splits, and which texts stand in several."""
    if ctx.task.about:
        ctx.log.say(ctx.task.about)
    for counts in ctx.task.counts.values():
        ctx.log.say(counts_line(counts))
    if unread := unread_line(ctx.task.counts.values()):
        ctx.log.warn(unread)
    for line in [*repeated_between(ctx.task.seen), *ctx.task.remarks]:
        ctx.log.warn(line)
    found = {split: asdict(counts) for split, counts in ctx.task.counts.items()}
    write_json(ctx.folder.path / "data.json", found)


def _same_config(folder: RunFolder, config: Mapping[str, Any], force: bool) -> None:
    """Refuse another config than the folder's; if forced, drop half-done work of the old one.

    Raises:
        ConfigError: With a line for each key that differs.
    """
    changes = folder.config_diff(config)
    if changes and not force:
        raise ConfigError(
            f"{folder.path} was begun with another config; give its own, or --force to resume:",
            *changes,
        )
    if changes:
        for artifact in folder.artifacts():
            if ".partial" in str(artifact.path.relative_to(folder.path)):
                artifact.remove()
        folder.reset_config(config)
