"""The start: models that a run makes in its set-up. Pretrained ones are loaded where they lie."""

from pathlib import Path

import torch

from pgtg.pipeline.context import Context
from pgtg.pipeline.recipes import Recipe, recipe_for
from pgtg.pipeline.reuse import taken_seconds, use, whole
from pgtg.runs.cache import CachedArtifact
from pgtg.runs.folder import Artifact, cached, content_hash, link_or_copy
from pgtg.runtime.distributed import first


@first
def start(ctx: Context) -> None:
    """Make sure that the run has the models it starts from."""
    recipe = recipe_for(ctx.cfg)
    if recipe is None:
        return
    here = ctx.start_artifact()
    key = content_hash(
        {
            "recipe": [recipe.name, recipe.version],
            "threads": torch.get_num_threads(),  # sums depend on it in the last bits
            "torch": torch.__version__,
        }
        | dict(recipe.depends_on(ctx))
    )
    if ctx.made(here, key):
        return
    if ctx.cfg.cache == "off":
        _make(ctx, recipe, ctx.folder.artifact("warm_start"), here, key)
        return
    made = cached(Path(ctx.cfg.cache), "warm_start", key)
    with use(ctx, made, alone=True) as usable:
        if usable or made.exists():
            _make(ctx, recipe, made, here, key)
            return
    _make(ctx, recipe, ctx.folder.artifact("warm_start"), here, key)


def _make(ctx: Context, recipe: Recipe, made: Artifact, here: Artifact, key: str) -> None:
    """Make the models at `made` unless they are there, and put them into the run."""
    manifest = whole(ctx, made)
    if manifest is not None:
        cost = taken_seconds(manifest["extra"].get("seconds"))
        ctx.log.say(f"start: {recipe.about}: taken from the cache ({made.path.name[:8]})")
    else:
        ctx.log.say(f"start: {recipe.about} (about a minute; cached for later runs)")
        recipe.make(ctx, made, key)
        manifest = made.verify()
        cost = {"seconds": manifest["extra"]["seconds"]}
    if isinstance(made, CachedArtifact):
        made.used()
    working = here.working(key, fresh=True)
    for name in manifest["files"]:
        copy = working / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(made.file(name), copy)
    metrics = manifest["metrics"]
    ctx.log.metrics("start", 0, 0, metrics)
    here.commit(inputs=key, metrics=metrics, position=ctx.committed(), **cost)
