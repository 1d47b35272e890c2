"""The lines of a run: its own, and one for each control, each from the same start."""

from collections.abc import Iterator

from pgtg.methods import method_of
from pgtg.pipeline.context import Context
from pgtg.runs.folder import Artifact


def lines(ctx: Context, stage: str) -> Iterator[str]:
    """The lines that run a stage: "" is the run's own, then its controls."""
    for control in ("", *ctx.cfg.method.alongside):
        if stage in method_of(ctx.cfg, control).stages:
            yield control


def made_for(ctx: Context, round: int, stage: str, control: str) -> Artifact:
    """A stage's result that a line uses: its own, or the main line's where it makes none."""
    own = stage in method_of(ctx.cfg, control).stages
    return ctx.artifact(round, stage, control=control if own else "")
