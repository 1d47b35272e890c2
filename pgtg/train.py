"""The alternation: a plain loop over the stages. `pgtg train` runs it; each stage runs alone as well.

    start -> for each round: sample -> align -> score -> aggregate -> improve (and its controls) -> eval

Every stage writes an artifact that names what it was made from, and returns at once when it is there
already. So resuming is running again, and the single-stage commands are the same functions.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgtg.config import RunConfig
from pgtg.errors import ConfigError, PgtgError
from pgtg.evaluate import compare, evaluate, show
from pgtg.interrupt import Interrupted
from pgtg.log import RunLog, tracker
from pgtg.methods import METHODS
from pgtg.metrics import build_metrics
from pgtg.stages.aggregate import aggregate
from pgtg.stages.align import align
from pgtg.stages.context import Context, opened, quiet
from pgtg.stages.improve import improve
from pgtg.stages.sample import sample
from pgtg.stages.score import score
from pgtg.stages.start import start
from pgtg.store import Artifact, RunFolder, provenance, read_jsonl, write_json

STAGES = {
    "sample": sample,
    "align": align,
    "score": score,
    "aggregate": aggregate,
    "improve": improve,
}


def train(cfg: RunConfig, run_dir: Path, *, force: bool = False) -> dict[str, float]:
    """Run, or go on with, the whole alternation and its evaluation.

    Args:
        cfg: A checked config.
        run_dir: The run's folder, new or of an unfinished run.
        force: Go on although the config differs from the folder's.

    Returns:
        Final metrics of the trained policy, by name.

    Raises:
        ConfigError: The folder's run has another config, and `force` is off.
        PgtgError: Any of the stages' errors.
    """
    with _session(cfg, run_dir, force) as ctx:
        start(ctx)
        rounds = len(ctx.task.segments())
        if METHODS[cfg.method.name].needs_reward:
            for number in range(rounds):
                learn_reward(ctx, number)
                advance(ctx, number)
        else:
            for number in range(rounds):
                advance(ctx, number)
        return finish(ctx, rounds)


def learn_reward(ctx: Context, round: int) -> None:
    """Stage 1 of a round: sample, learn the token reward, hold it against judge and rulers."""
    sample(ctx, round)
    heads = ["", *(h for h in ctx.cfg.reward.compare_heads if h != ctx.cfg.reward.head)]
    for head in heads if round == 0 else [""]:
        align(ctx, round, head=head)
        score(ctx, round, head=head)
        aggregate(ctx, round, head=head)
    ctx.folder.publish("reward", ctx.artifact(round, "align").file("reward"), round=round)


def advance(ctx: Context, round: int) -> None:
    """Stage 2 of a round, for the method and its controls; then publish and tidy up."""
    improve(ctx, round)
    for control in ctx.cfg.method.controls:
        improve(ctx, round, control=control)
    kept, folder, _ = kept_policy(ctx, round + 1)
    ctx.folder.publish("policy", folder, round=kept)
    if ctx.cfg.keep_rounds == "last":
        _drop_weights(ctx, round - 1)


def kept_policy(ctx: Context, rounds: int, control: str = "") -> tuple[int, Path, Artifact]:
    """Round, folder and artifact of the policy to keep among the first `rounds` rounds.

    improve.keep: "best" by the judge's score of greedy text on held-out sources, or "last".
    """
    made = [ctx.artifact(i, "improve", control=control) for i in range(rounds)]
    best = rounds - 1
    if ctx.cfg.improve.keep == "best":
        values = [a.manifest()["metrics"]["improve/best_heldout_score"] for a in made]
        best = values.index(max(values))
        if made[best].file("best").is_dir():
            return best, made[best].file("best"), made[best]
    return best, made[best].file("policy"), made[best]


def _drop_weights(ctx: Context, round: int) -> None:
    """With keep_rounds=last: artifacts of an earlier round that neither a resume nor a result needs."""
    if round < 0:
        return
    for control in ("", *ctx.cfg.method.controls):
        artifact = ctx.artifact(round, "improve", control=control)
        kept = {kept_policy(ctx, round + 2, control)[0]}
        if artifact.exists() and round not in kept:
            ctx.log.say(f"keep_rounds=last: {artifact.path} stays, its optimiser state goes")


def finish(ctx: Context, rounds: int) -> dict[str, float]:
    """Evaluate every policy of the run, write results_<split>.json, print the tables."""
    metrics = build_metrics(ctx.cfg.metrics)
    final: dict[str, float] = {}
    method = ctx.cfg.method.name
    for split in ctx.cfg.evaluate.splits:
        results: dict[str, dict[str, Any]] = {}
        if ctx.cfg.evaluate.start_policy:
            results["start"] = evaluate(ctx, "start", split, None, ctx.parents(0), metrics)
        for name in ("", *ctx.cfg.method.controls):
            _, folder, artifact = kept_policy(ctx, rounds, name)
            label = name or method
            results[label] = evaluate(ctx, label, split, folder, [artifact], metrics)
        write_json(ctx.folder.path / "eval" / f"results_{split}.json", results)
        show(ctx.log, f"{ctx.cfg.name} seed {ctx.cfg.seed}: {split}", results, metrics[1])
        _verdicts(ctx, split)
        for decoding, found in results[method]["decodings"].items():
            final |= {f"{split}/{decoding}/{k}": v for k, v in found["mean"].items()}
    if METHODS[method].needs_reward:
        final |= reward_table(ctx, rounds)
    ctx.log.summary(final)
    write_json(ctx.folder.path / "summary.json", final)
    return final


def _verdicts(ctx: Context, split: str) -> None:
    """Say where the method helps, and where it does not, against its controls."""
    method = ctx.cfg.method.name
    for control in ctx.cfg.method.controls:
        for decoding in ctx.cfg.evaluate.decodings:
            ours, other = (
                [
                    row["scores"]
                    for row in read_jsonl(
                        ctx.folder.artifact("eval", split, name).file(f"samples_{decoding}.jsonl")
                    )
                ]
                for name in (method, control)
            )
            said = []
            for column in ours[0]:
                if column not in ("tokens", "boilerplate", "rouge1", "rouge2", "rougeL"):
                    pair = ([row[column] for row in rows] for rows in (ours, other))
                    mean, half, verdict = compare(*pair)
                    said.append(f"{column} {mean:+.2f} ± {half:.2f} ({verdict})")
            ctx.log.say(f"{split}, {decoding}: {method} minus {control}: " + "; ".join(said))


def reward_table(ctx: Context, rounds: int) -> dict[str, float]:
    """The token rewards' worth beside the rulers: pairs on held-out sources, planted tokens."""
    heads = ["", *(h for h in ctx.cfg.reward.compare_heads if h != ctx.cfg.reward.head)]
    rows, last = [], {}
    for number, head in [(0, h) for h in heads] + [(i, "") for i in range(1, rounds)]:
        artifact = ctx.artifact(number, "aggregate", head=head)
        if not artifact.exists():
            continue
        found = artifact.manifest()["metrics"]
        name = head or ctx.cfg.reward.head
        rows.append([f"{name} head, round {number}", *_columns(found, "heldout_pair_accuracy", "")])
        if not head:
            last = found
            rulers = [
                [
                    "log-probability of the start policy",
                    *_columns(found, "heldout_log_prob_wins", "log_prob_"),
                ],
                ["longer wins", *_columns(found, "heldout_longer_wins", None)],
            ]
            rows += [[f"  ruler, round {number}: {row[0]}", *row[1:]] for row in rulers]
    columns = ["token reward", "pairs %", "AUC boilerplate", "AUC facts", "within", "within"]
    ctx.log.table(
        "token rewards on held-out sources: pairs ordered as the judge does; AUC of planted tokens "
        "(within = in strata of equal log-probability)",
        columns,
        [["chance", 50.0, 0.5, 0.5, 0.5, 0.5], *rows],
    )
    return {f"reward/{key.removeprefix('aggregate/')}": value for key, value in last.items()}


def _columns(found: Mapping[str, float], pairs: str, prefix: str | None) -> list[float | None]:
    """Pairs, then the AUCs of a reward (prefix "") or of the log-probability ruler."""
    aucs = []
    for name in ("auc_boilerplate", "auc_facts", "auc_boilerplate_within", "auc_facts_within"):
        key = f"aggregate/targets_{prefix}{name}"
        aucs.append(round(found[key], 3) if prefix is not None and key in found else None)
    value = found.get(f"aggregate/{pairs}")
    return [None if value is None else round(100 * value, 1), *aucs]


def run_stage(
    cfg: RunConfig, run_dir: Path, stage: str, *, round: int | None = None, force: bool = False
) -> None:
    """Run one stage on the run folder: for the round asked for, else the first that lacks it.

    Raises:
        ConfigError: There is no such round, or the method does not use the stage.
        ArtifactError: An earlier stage's result is missing; names the command that makes it.
    """
    with _session(cfg, run_dir, force) as ctx:
        start(ctx)
        rounds = len(ctx.task.segments())
        if stage != "improve" and not METHODS[cfg.method.name].needs_reward:
            raise ConfigError(f"method={cfg.method.name} uses no reward model: nothing to {stage}")
        if round is not None and not 0 <= round < rounds:
            raise ConfigError(f"--round {round}: this schedule has rounds 0 to {rounds - 1}")
        missing = [i for i in range(rounds) if not ctx.artifact(i, stage).exists()]
        if round is None and not missing:
            ctx.log.say(
                f"{stage}: all {rounds} rounds are there already; --round N makes one again"
            )
            return
        number = missing[0] if round is None else round
        artifact = STAGES[stage](ctx, number)
        if stage == "improve":
            advance(ctx, number)
        ctx.log.say(f"{stage} round {number}: {artifact.path}")
        for name, value in artifact.manifest()["metrics"].items():
            ctx.log.say(f"  {name} {value:.4g}")


@contextlib.contextmanager
def _session(cfg: RunConfig, run_dir: Path, force: bool) -> Iterator[Context]:
    """The run folder, locked and healed, its log cut back to the last commit, and the models' device.

    The judge and the run's data are checked before anything is written.
    """
    folder = RunFolder(run_dir)
    config = asdict(cfg) | {"run_dir": None}
    with folder.lock():
        fresh = not folder.exists()
        if fresh:
            folder.create(config, provenance(sys.argv, cfg.seed))
        folder.open()
        if not fresh:
            _same_config(folder, config, force)
        log = RunLog(run_dir, tracker=tracker(cfg.logger, folder.path, config), quiet=quiet())
        code = 1
        try:
            log.say(f"run folder {run_dir}")
            log.rewind(folder.last_position())
            with opened(cfg, folder, log) as ctx:
                yield ctx
            log.say(f"done: {run_dir}")
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
            raise
        except PgtgError as error:
            code = error.exit_code
            raise
        finally:
            log.close(code)


def _same_config(folder: RunFolder, config: Mapping[str, Any], force: bool) -> None:
    """Refuse another config than the folder's; with `force`, drop what no longer fits it."""
    changes = folder.config_diff(config)
    if not changes:
        return
    if not force:
        raise ConfigError(
            f"{folder.path} was begun with another config; --force goes on with the new one:",
            *changes,
        )
    folder.reset_config(config)
