"""(2) Improve: train the policy with the guidance of the round's reward model.

What it trains on is the method's business: a stream of batches and an objective (`methods/`). A
method that trains nothing searches instead (`stages.search`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgtg.methods import method_of
from pgtg.methods.method import Improving, Shared, Trainer
from pgtg.models.reward import load_reward_model
from pgtg.pipeline.context import Context
from pgtg.pipeline.reuse import (
    parent_files,
    pretrained,
    rewardless,
    share,
    shared_settings,
    start_models,
)
from pgtg.pipeline.stages.align import (
    fit_normalizer,
    random_reward_model,
    untrained_reward_model,
)
from pgtg.pipeline.stages.lines import made_for
from pgtg.pipeline.stages.match import updates_of
from pgtg.pipeline.stages.search import run_search
from pgtg.runs.folder import Artifact, hash_of, load_tensors, save_tensors
from pgtg.tasks.task import described, examples_hash
from pgtg.training.loop import FitResult, fit
from pgtg.training.state import load_weights, progress_numbers, progress_of
from pgtg.training.update import Where


def improve(ctx: Context, round: int, *, control: str = "") -> Artifact:
    """Train the policy for the round's segment of updates.

    Args:
        round: Its reward model guides; the policy of the round before is trained on.
        control: Train this control's policy instead of the method's.
    """
    method = method_of(ctx.cfg, control)
    artifact = ctx.artifact(round, "improve", control=control)
    parents = ctx.parents(round, control)
    aligned, samples = None, []
    if method.needs_samples:
        replayed = ctx.cfg.reward.replay if method.needs_reward else 0
        rounds = range(max(round - replayed, 0), round + 1)
        samples = [ctx.need(made_for(ctx, i, "sample", control), "sample") for i in rounds]
    if method.needs_reward:
        aligned = ctx.need(made_for(ctx, round, "align", control), "align")
    parents += [*samples, *([aligned] if aligned else [])]
    if _fits_normalizer(ctx, control) and not samples:
        parents.append(ctx.need(made_for(ctx, round, "sample", control), "sample"))
    planned = ctx.task.segments()[round]
    updates = updates_of(ctx, round, control, planned)
    part = ctx.settings("improve" if rewardless(ctx, control) else "guided")
    part |= {"round": round, "control": control}
    own = {} if updates == planned else {"updates": updates}
    inputs = hash_of(parents, part | own)
    if not ctx.made(artifact, inputs):
        share(
            ctx,
            artifact,
            inputs=inputs,
            stage=f"improve.{control}" if control else "improve",
            round=round,
            depends=lambda: _depends(ctx, round, control, parents, own),
            make=lambda: _make(ctx, artifact, inputs, round, control, aligned, samples, updates),
        )
    return artifact


def _fits_normalizer(ctx: Context, control: str) -> bool:
    """Whether a line's reward model, which is not trained, gets a normaliser of its own."""
    method = method_of(ctx.cfg, control)
    return ctx.cfg.reward.normalize != "none" and (method.random_reward or method.untrained_reward)


def _depends(
    ctx: Context,
    round: int,
    control: str,
    parents: Sequence[Artifact],
    own: Mapping[str, int],
) -> dict[str, Any] | None:
    """What the policy of a line without a reward model depends on; None for other lines."""
    models = start_models(ctx) if rewardless(ctx, control) else None
    if models is None:
        return None
    return dict(own) | {
        "models": models,
        "parents": parent_files(parents),
        "line": control,
        "config": shared_settings(ctx, "improve"),
        "data": [ctx.task.contents("train"), examples_hash(ctx.task.heldout())],
        "judge": described(ctx.task),
        "read": [pretrained(path, None) for path in ctx.cfg.method.models],
    }


def _make(
    ctx: Context,
    artifact: Artifact,
    inputs: str,
    round: int,
    control: str,
    aligned: Artifact | None,
    samples: Sequence[Artifact],
    length: int,
) -> None:
    method, updates = method_of(ctx.cfg, control), ctx.task.segments()
    working = artifact.working(inputs)
    if method.search is not None:
        metrics = run_search(ctx, method.search(ctx), working, inputs, control)
        artifact.commit(
            inputs=inputs, metrics=metrics, position=ctx.committed(), round=round, control=control
        )
        return
    assert method.trainer is not None
    lm, codec = ctx.load_policy(round, control)
    model = None
    if aligned is not None:
        model = load_reward_model(aligned.file("reward")).to(ctx.device)
    elif method.random_reward:
        model = random_reward_model(ctx)
    elif method.untrained_reward:
        model = untrained_reward_model(ctx)
    ctx.choose_trained(lm)
    if model is not None:
        model.eval().requires_grad_(False)
        ctx.to_read(*model.language_models)
        if _fits_normalizer(ctx, control):
            fit_normalizer(ctx, model, made_for(ctx, round, "sample", control))
        model.normalizing = True
    first = sum(updates[:round])
    targets = _targets(ctx, round, control, aligned, length)
    before = ctx.artifact(round - 1, "improve", control=control) if round else None
    given = Improving(ctx, lm, codec, model, samples, working, first, length, targets, before)
    trainer = method.trainer(method, given)
    result, metrics = _train(ctx, trainer, round, control, inputs, updates, working)
    trainer.save(working / "policy")
    trainer.keep(working)
    if result.best is not None and ctx.cfg.improve.keep == "best":
        load_weights(trainer.module, result.best)
        trainer.save(working / "best")
    save_tensors(working / "optimizer.safetensors", result.optimizer)
    artifact.commit(
        inputs=inputs,
        metrics=metrics,
        position=ctx.committed(),
        round=round,
        control=control,
        progress=progress_numbers(result.progress),
    )


def _targets(
    ctx: Context, round: int, control: str, aligned: Artifact | None, updates: int
) -> Shared:
    """The token rewards of the round's targets.

    Lines that use one reward model for the same targets share them: they stand next to it.
    """
    method = method_of(ctx.cfg, control)
    own = aligned is None or "align" in method.stages or method.all_targets
    artifact = ctx.artifact(round, "targets", control=control if own else "")
    parents = [*ctx.parents(0), *([aligned] if aligned else [])]
    part = ctx.settings("targets") | {"round": round, "updates": updates}
    part |= {"all": True} if method.all_targets else {}
    return Shared(artifact, hash_of(parents, part), ctx.cursor[0])


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


def _train(
    ctx: Context,
    trainer: Trainer,
    round: int,
    control: str,
    inputs: str,
    updates: Sequence[int],
    working: Path,
) -> tuple[FitResult, dict[str, float]]:
    """The round's segment of one policy training: optimiser, learning rate, best value and patience
    continue from the round before."""
    optimizer = progress = None
    if round > 0:
        before = ctx.artifact(round - 1, "improve", control=control)
        optimizer = load_tensors(before.file("optimizer.safetensors"))
        progress = progress_of(before.manifest()["extra"]["progress"]).carried()
    offset, title = sum(updates[:round]), f"improve {control or ctx.cfg.method.name} round {round}"
    trainer.module.train()
    result = fit(
        trainer.module,
        trainer.window,
        trainer.objective,
        trainer.fit_config(),
        where=Where(ctx.cfg.seed, "improve", round, control, offset, title),
        folder=working,
        inputs=inputs,
        log=ctx.log,
        validate=trainer.validate if trainer.validates else None,
        select="improve/negative_heldout_score",
        optimizer_state=optimizer,
        progress=progress,
        ahead=trainer.ahead,
        begin=trainer.begin,
    )
    Artifact(working / "state").remove()
    trainer.module.eval()
    metrics: dict[str, float] = {
        "improve/updates": result.steps,
        "improve/trained_texts": result.progress.texts,
    }
    said = ""
    if trainer.validates:
        metrics["improve/best_heldout_score"] = -result.best_value
        metrics["improve/best_update"] = offset + result.best_step
        said = f"; {trainer.heldout} {-result.best_value:.2f} (best, at update "
        said += f"{offset + result.best_step})"
    metrics["improve/examples_cut"] = trainer.cut
    metrics |= trainer.judged_prompts(result.steps)
    metrics |= trainer.measured()
    label = control or ctx.cfg.method.name
    if trainer.cut:
        ctx.log.warn(
            f"improve {label} round {round}: {trainer.cut} examples were cut to "
            f"policy.max_source_tokens={ctx.cfg.policy.max_source_tokens} or "
            f"policy.max_target_tokens={ctx.cfg.policy.max_target_tokens}"
        )
    if not result.steps:
        said += "; stopped in an earlier round by improve.patience"
    tell = ctx.log.note if control and not said else ctx.log.say
    tell(f"improve {label} round {round}: {result.steps} updates{said}")
    return result, metrics
