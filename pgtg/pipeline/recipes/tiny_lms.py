"""The embedded prompt world's models: a tiny masked LM judges, a tiny causal LM writes."""

from dataclasses import asdict
from typing import Any

from pgtg.config import classifier_of
from pgtg.pipeline.context import Context, quiet
from pgtg.pipeline.recipes.teaching import teach_truth, teach_words
from pgtg.runs.folder import Artifact
from pgtg.runs.log import RunLog


def depends_on(ctx: Context) -> dict[str, Any]:
    """All that the two models depend on apart from their code: the world's seed, not the run's."""
    judge = classifier_of(ctx.cfg)
    assert ctx.cfg.data.reviews is not None and judge is not None
    tiny = {"judge": judge.tiny, "policy": ctx.cfg.policy.tiny_lm}
    models = {name: None if cfg is None else asdict(cfg) for name, cfg in tiny.items()}
    return {"world": asdict(ctx.cfg.data.reviews), **models}


def make(ctx: Context, made: Artifact, key: str) -> None:
    """Train both on the generated world."""
    world, policy = ctx.cfg.data.reviews, ctx.cfg.policy.tiny_lm
    judge = classifier_of(ctx.cfg)
    assert world is not None and policy is not None  # config check
    assert judge is not None and judge.tiny is not None
    folder, log = made.working(key), RunLog(None, quiet=quiet())
    how: dict[str, Any] = {"inputs": key, "log": log, "device": ctx.device}
    metrics = teach_words(world, policy, world.seed, folder, **how)
    metrics |= teach_truth(world, judge.tiny, world.seed, folder, **how)
    made.commit(inputs=key, metrics=metrics)
