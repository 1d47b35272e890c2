"""Equal budgets: a control of the prompt search spends as many judged prompts as the method.

Lines differ in what they have judged in addition to the round's samples: prompts for the updates
and checks of a reward model, validations of a policy. What a control has had judged less than the
method up to the end of a round, it spends on further prompts of its own policy (the start policy if
it trains none), judged on the training examples. They are candidates of its search like all others.
"""

from collections.abc import Sequence

from pgtg.judges.record import Record, write_judged
from pgtg.methods import method_of
from pgtg.methods.fresh import BLOCK, Key, draw, is_fresh, judge, prompt_task, validations
from pgtg.pipeline.context import Context
from pgtg.runs.folder import Artifact, hash_of

SPENDING = ("sample", "align", "improve", "match")  # stages that have prompts judged
SUFFIX = "_judged_prompts"


def judged_prompts(
    ctx: Context, round: int, control: str, stages: Sequence[str] = SPENDING
) -> dict[str, int]:
    """Prompts that a line had judged in a round, by split: each as often as it was asked for."""
    found = {"train": 0, "dev": 0}
    for stage in stages:
        artifact = ctx.artifact(round, stage, control=control)
        for name, value in (artifact.manifest()["metrics"] if artifact.exists() else {}).items():
            own = name.removeprefix(f"{stage}/")
            if own.endswith(SUFFIX):
                found[own.removesuffix(SUFFIX)] += int(value)
            elif stage == "sample" and own.endswith("_generations"):  # of "train" and "heldout"
                found["train"] += int(value)
    return found


def match(ctx: Context, round: int, control: str) -> Artifact | None:
    """Spend what a control has left of the method's budget; None if nothing is left."""
    artifact = ctx.artifact(round, "match", control=control)
    rounds = range(round + 1)
    whole = sum(sum(judged_prompts(ctx, i, "").values()) for i in rounds)
    own = sum(sum(judged_prompts(ctx, i, control).values()) for i in rounds)
    own -= judged_prompts(ctx, round, control, ["match"])["train"]  # made before, if it is there
    left, trained = whole - own, "improve" in method_of(ctx.cfg, control).stages
    if left <= 0:
        if left < 0 and round + 1 == len(ctx.task.segments()):
            ctx.log.say(f"{control}: {-left} prompts more than {ctx.cfg.method.name} were judged")
        return None
    parents = ctx.parents(round + 1 if trained else 0, control)
    part = ctx.settings("match") | {"round": round}
    inputs = hash_of(parents, part | {"control": control, "prompts": left})
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    lm, codec = ctx.load_policy(round + 1, control) if trained else ctx.load_start()
    ctx.to_decode(lm)
    record = Record(working / "judged.train", 1, ctx.cfg.sample.max_new_tokens)
    size = BLOCK * prompt_task(ctx).options.pool
    with ctx.log.progress(f"match.{control} round {round}", left) as bar:
        for start in range(0, left, size):
            steps = range(start, min(start + size, left))
            if record.made < steps.stop:
                keys: list[Key] = [(ctx.cfg.seed, "match", round, i) for i in steps]
                tokens, _ = draw(ctx, lm, codec, 1, keys)
                scores = judge(ctx, codec, tokens, "train")
                record.put(start, tokens, scores.mean(-1, dtype="float64"))
            bar.advance(len(steps))
    metrics = write_judged(working, {"train": record}, {"train": left}, "match")
    return artifact.commit(
        inputs=inputs, metrics=metrics, position=ctx.committed(), round=round, control=control
    )


def updates_of(ctx: Context, round: int, control: str, planned: int) -> int:
    """Policy updates of a line in a round.

    A control whose updates are on prompts of their own that the judge scores (`sparse` with
    prompt.fresh) makes as many as the method's judged prompts of this round allow, its own
    validations counted.
    """
    if not (control and method_of(ctx.cfg, control).judges_updates and is_fresh(ctx)):
        return planned
    options, fit = prompt_task(ctx).options, ctx.cfg.improve
    for stage in method_of(ctx.cfg).stages:
        ctx.need(ctx.artifact(round, stage), stage)
    sampled = judged_prompts(ctx, round, control, ["sample"])["train"]
    budget = sum(judged_prompts(ctx, round, "").values()) - sampled
    updates = max(budget // options.pool, 1)
    validated = options.validation_prompts
    while updates > 1 and updates * options.pool + validations(updates, fit) * validated > budget:
        updates -= 1
    return updates
