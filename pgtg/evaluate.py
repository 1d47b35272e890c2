"""Evaluation of a run's systems, computed once and kept in the run folder; and `pgtg eval`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pgtg.compose import completed, run_config
from pgtg.config import RunConfig
from pgtg.context import Context, opened, quiet
from pgtg.errors import ArtifactError
from pgtg.evaluation import EVALUATIONS
from pgtg.evaluation.system import Evaluation, Results, System
from pgtg.log import RunLog
from pgtg.shared import parent_files, rewardless, share, start_models
from pgtg.store import Artifact, RunFolder, hash_of, write_json, write_jsonl
from pgtg.tasks import open_task


def evaluate_run(ctx: Context) -> dict[str, float]:
    """Evaluate every system of a finished run on every split, and print the tables.

    Returns:
        The method's own figures, by split/decoding/column.
    """
    evaluation = EVALUATIONS[ctx.cfg.task](ctx.cfg)
    final: dict[str, float] = {}
    for split in ctx.cfg.evaluate.splits:
        systems = evaluation.systems(ctx)
        results = {system.name: evaluated(ctx, evaluation, system, split) for system in systems}
        write_json(ctx.folder.path / "eval" / f"results_{split}.json", results)
        title = f"{ctx.cfg.name} seed {ctx.cfg.seed}: {split}"
        evaluation.show(ctx, title, split, results)
        evaluation.verdicts(ctx, split)
        for decoding, found in results[ctx.cfg.method.name]["decodings"].items():
            final |= {f"{split}/{decoding}/{k}": v for k, v in found["mean"].items()}
    return final


def evaluated(ctx: Context, evaluation: Evaluation, system: System, split: str) -> Results:
    """Results of one system on one split, made once; `samples_<decoding>.jsonl` beside them."""
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
    part = dict(evaluation.depends_on(ctx))
    part["data"].pop("path")
    return {
        "models": models,
        "parents": parent_files([*system.parents, *policies]),
        "system": [system.name, system.control],
        "keep_rounds": ctx.cfg.keep_rounds,  # policies of earlier rounds may be gone
        "config": part | {"data_seed": ctx.cfg.data_seed},
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
) -> dict[str, Any]:
    """`pgtg eval`: the policy of a run folder, or a plain Transformers folder (then with `cfg`).

    Raises:
        ArtifactError: The run has no trained policy yet.
    """
    run, log = RunFolder(path), RunLog(None, quiet=quiet())
    if cfg is None:
        run.open()
        saved = run.config()
        task = str(saved.get("task"))
        whole, added = completed(task, saved)
        cfg = run_config(task, overrides, saved=whole)
        if added:
            log.warn(
                f"{path}: config.yaml is of another version of pgtg; keys that it lacks have "
                f"today's defaults ({len(added)}): {', '.join(added)}"
            )
        artifact = run.artifact("policy")
        if not artifact.exists():
            raise ArtifactError(f"{path} holds no trained policy yet: `pgtg train` finishes it")
        artifact.verify()
        policy, out = artifact.path, run.path / "eval"
    else:
        policy, out = path, None
    if metrics:
        cfg = replace(cfg, metrics=replace(cfg.metrics, names=metrics))
    evaluation = EVALUATIONS[cfg.task](cfg)
    with open_task(cfg, path, judged=False) as task:
        ctx = opened(cfg, run, log, task)
        results, samples = evaluation.results(ctx, System("policy", policy), split)
    if out is not None:
        with run.lock():
            out.mkdir(exist_ok=True)
            write_json(out / f"policy_{split}.json", results)
            for decoding, rows in samples.items():
                write_jsonl(out / f"policy_{split}_{decoding}.jsonl", rows)
        log.say(f"written to {out}")
    evaluation.show(ctx, f"{path} on {split}", split, {"policy": results})
    return results
