"""The start: models that a run makes in its set-up. Pretrained ones are loaded where they lie."""

from pathlib import Path

import torch

from pgtg.context import Context
from pgtg.recipes import recipe_for
from pgtg.store import cached, content_hash


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
        made = ctx.folder.artifact("warm_start")
    else:
        made = cached(Path(ctx.cfg.cache).expanduser(), "warm_start", key)
    if made.exists():
        ctx.log.say(f"start: {recipe.name} taken from {made.path}")
    else:
        ctx.log.say(f"start: {recipe.name} (about a minute; cached for later runs)")
        recipe.make(ctx, made, key)
    manifest = made.verify()
    working = here.working(key)
    for name in manifest["files"]:
        copy = working / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(made.file(name).read_bytes())
    metrics = manifest["metrics"]
    ctx.log.metrics("start", 0, 0, metrics)
    here.commit(inputs=key, metrics=metrics, position=ctx.committed())
