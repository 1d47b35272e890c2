"""Evaluation of a run's systems, computed once and kept in the run folder; and `pgtg eval`."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pgtg.config import OWNED, RunConfig, classifier_of
from pgtg.config.compose import completed, run_config
from pgtg.config.inputs import portable
from pgtg.config.registry import TASKS
from pgtg.data.splits import counts_line
from pgtg.errors import ConfigError, PgtgError
from pgtg.methods.published import published
from pgtg.models.compatibility import check_models
from pgtg.pipeline.context import Context, opened, quiet
from pgtg.pipeline.evaluation import evaluation_of
from pgtg.pipeline.evaluation.system import Evaluation, Results, System
from pgtg.pipeline.reuse import parent_files, rewardless, share, start_models
from pgtg.runs.folder import (
    Artifact,
    RunFolder,
    content_hash,
    flat,
    hash_of,
    write_json,
    write_jsonl,
)
from pgtg.runs.log import RunLog
from pgtg.tasks import open_task

# sections and keys that `pgtg eval` of a run folder reads: data, decoding, texts, and where it runs
READ = ("data", "metrics", "evaluate", "sample", "device", "tf32", "deterministic", "threads")
READ += ("cache", "data_seed", "policy.prefix", "policy.suffix", "policy.target_prefix")
READ += ("policy.max_source_tokens", "policy.max_target_tokens", "policy.dtype")
READ += ("policy.frozen_cache",)


def evaluate_run(ctx: Context) -> dict[str, float]:
    """Evaluate every system of a finished run on every split, and print the tables.

    Returns:
        The method's own figures, by split/decoding/column.
    """
    evaluation = evaluation_of(ctx.cfg)
    final: dict[str, float] = {}
    shown: list[str] = []
    for split in ctx.cfg.evaluate.splits:
        if (why := evaluation.unavailable(ctx, split)) is not None:
            ctx.log.warn(f"{split} is n/a: {why}")
            continue
        systems = evaluation.systems(ctx)
        results = {system.name: evaluated(ctx, evaluation, system, split) for system in systems}
        rows = _rows(ctx, split)
        kept = {name: found | rows for name, found in results.items()}
        write_json(ctx.folder.path / "eval" / f"results_{split}.json", kept)
        title = f"{ctx.cfg.name} seed {ctx.cfg.seed}: {split}"
        evaluation.show(ctx, title, split, results)
        shown.append(split)
        for decoding, found in results[ctx.cfg.method.name]["decodings"].items():
            final |= {f"{split}/{decoding}/{k}": v for k, v in found["mean"].items()}
    evaluation.verdicts(ctx, shown)
    return final


def _rows(ctx: Context, split: str) -> dict[str, Any]:
    """What became of the rows of the split that results are of, for the results file."""
    counts = ctx.task.counts
    found = counts.get(split) or counts.get({"validation": "dev"}.get(split, split))
    return {} if found is None else {"rows": asdict(found)}


def evaluated(ctx: Context, evaluation: Evaluation, system: System, split: str) -> Results:
    """Results of one system on one split, made once; `samples_<decoding>.jsonl` next to them."""
    artifact = ctx.folder.artifact("eval", split, system.name)
    part = dict(evaluation.depends_on(ctx))
    inputs = hash_of(system.parents, part | {"split": split, "system": system.name})
    if not ctx.made(artifact, inputs):
        share(
            ctx,
            artifact,
            inputs=inputs,
            stage=f"eval.{system.name}.{split}",
            round=0,
            depends=lambda: _depends(ctx, evaluation, system, split),
            make=lambda: _make(ctx, evaluation, system, split, artifact, inputs),
        )
    return artifact.manifest()["extra"]["results"]


def _depends(
    ctx: Context, evaluation: Evaluation, system: System, split: str
) -> dict[str, Any] | None:
    """What a system's results depend on; None if a reward model had a hand in its policy."""
    models = start_models(ctx)
    if models is None or not (system.policy is None or rewardless(ctx, system.control)):
        return None
    rounds = range(len(ctx.task.segments()))
    policies = [ctx.artifact(i, "improve", control=system.control) for i in rounds]
    if system.policy is None:
        policies = []
    return {
        "models": models,
        "parents": parent_files([*system.parents, *policies]),
        "system": [system.name, system.control],
        "keep_rounds": ctx.cfg.keep_rounds,  # policies of earlier rounds may be gone
        "config": portable(evaluation.depends_on(ctx)),
        "data": ctx.task.contents(split),
        "split": split,
    }


def _make(
    ctx: Context,
    evaluation: Evaluation,
    system: System,
    split: str,
    artifact: Artifact,
    inputs: str,
) -> None:
    working = artifact.working(inputs)
    results, samples = evaluation.results(ctx, system, split)
    for decoding, rows in samples.items():
        write_jsonl(working / f"samples_{decoding}.jsonl", rows)
    write_json(working / "results.json", results)
    flat = {
        f"eval/{decoding}_{name}": value
        for decoding, found in results["decodings"].items()
        for name, value in found["mean"].items()
    }
    ctx.log.metrics(f"eval.{system.name}.{split}", 0, 0, flat)
    artifact.commit(inputs=inputs, metrics=flat, position=ctx.committed(), results=results)


def evaluate_saved(
    path: Path,
    *,
    split: str,
    metrics: list[str] | None,
    overrides: list[str],
    cfg: RunConfig | None,
    config_dir: Path | None = None,
) -> dict[str, Any]:
    """`pgtg eval`: the policy of a run folder, or a plain Transformers folder (then with `cfg`).

    Raises:
        ArtifactError: The run has no trained policy yet.
        ConfigError: An override changes what is not read, or a classifier is not named.
    """
    run, log = RunFolder(path), RunLog(None, quiet=quiet())
    whole: dict[str, Any] = {}
    if cfg is None:
        run.open()
        saved = run.runnable_config()
        task = str(saved.get("task"))
        whole, added = completed(task, saved)
        cfg = run_config(task, overrides, saved=whole, config_dir=config_dir)
        if overrides:
            _require_effect(run_config(task, saved=whole), cfg)
        if added:
            log.warn(
                f"{path}: config.yaml is of another version of pgtg; keys that it lacks have "
                f"today's defaults ({len(added)}): {', '.join(added)}"
            )
        artifact = published(cfg, run)
        policy, parents, out = artifact.path, [artifact], run.path / "eval"
    else:
        classifier = classifier_of(cfg)
        if classifier is not None and classifier.path is None:
            raise ConfigError(
                f"judge.classifier.path: {path} is no run folder, so it has no classifier of a "
                "run's set-up: give judge=classifier judge.classifier.path=<model>, and the data "
                "of the task by dataset=..., or a run folder"
            )
        for line in check_models(cfg, fetch=False, evaluated=True):
            log.warn(line)
        policy, parents, out = path, [], None
    if metrics:
        if "targets" not in TASKS[cfg.task].gives:
            raise ConfigError(f"--metrics: a {cfg.task} run has no texts to compare; leave it out")
        cfg = replace(cfg, metrics=replace(cfg.metrics, names=metrics))
    evaluation = evaluation_of(cfg)
    with open_task(cfg, path, judged=False) as task:
        ctx = opened(cfg, run, log, task)
        results, samples = evaluation.results(ctx, System("policy", policy, parents), split)
        results |= _rows(ctx, split)
        for counts in task.counts.values():
            log.say(counts_line(counts))
    whose = cfg.method.name if out is not None else "policy"
    evaluation.show(ctx, f"{path} on {_data(cfg)}, {split}", split, {whose: results})
    if out is not None:
        _keep(run, out, _name(cfg, whole, split), results, samples, log)
    return results


def _require_effect(saved: RunConfig, cfg: RunConfig) -> None:
    """Refuse overrides of what made the run's policy: it is evaluated as it is.

    Raises:
        ConfigError: With the keys that would change nothing.
    """
    before, after = flat(asdict(saved)), flat(asdict(cfg))
    read = READ + TASKS[cfg.task].evaluated
    read += ("seed",) if "sample" in cfg.evaluate.decodings else ()
    lost = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    # another method's own options differ in being there at all
    lost = [k for k in lost if (k in before and k in after) or k.split(".")[0] not in OWNED]
    lost = [key for key in lost if key not in read and key.split(".")[0] not in read]
    if lost:
        raise ConfigError(
            f"{', '.join(lost)}: pgtg eval reads the run's trained policy as it is, so this would "
            "change nothing; leave it out, or evaluate another run or model folder"
        )


def _data(cfg: RunConfig) -> str:
    """Which data an evaluation reads, in a few words."""
    where = [cfg.data.name, cfg.data.path, cfg.data.subset]
    return " ".join(part for part in where if part)


def _name(cfg: RunConfig, saved: Mapping[str, Any], split: str) -> str:
    """Of the files that keep an evaluation: `policy_<split>`, with a hash where its config is not
    the run's, so that neither takes the other's place."""
    changed = {
        key: part
        for key in ("data", "metrics", "evaluate", "sample", "policy", "data_seed")
        if (part := asdict(cfg)[key]) != saved.get(key)
    }
    return f"policy_{split}" + (f"-{content_hash(changed)[:8]}" if changed else "")


def _keep(
    run: RunFolder,
    out: Path,
    name: str,
    results: dict[str, Any],
    samples: dict[str, Any],
    log: RunLog,
) -> None:
    """Write an evaluation into the run's folder, if that can be written."""
    try:
        with run.lock():
            out.mkdir(exist_ok=True)
            write_json(out / f"{name}.json", results)
            for decoding, rows in samples.items():
                write_jsonl(out / f"{name}_{decoding}.jsonl", rows)
    except (PgtgError, OSError) as error:
        log.warn(f"not kept: {error}")
        return
    log.say(f"written to {out / name}.json")
