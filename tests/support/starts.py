"""Starts of tiny runs that are made once: further runs of the same recipe and config copy them.

For tests that neither patch nor count anything while the start is made.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pgtg.config import RunConfig
from pgtg.pipeline.context import Context
from pgtg.pipeline.recipes import Recipe, recipe_for
from pgtg.pipeline.stages import start
from pgtg.runs.artifacts import Artifact


@contextmanager
def shared_starts(factory: pytest.TempPathFactory) -> Iterator[None]:
    """Within, a run's start is copied from the first run of this process that made the same."""
    kept = factory.getbasetemp() / "starts"

    def shared(cfg: RunConfig) -> Recipe | None:
        recipe = recipe_for(cfg)
        return None if recipe is None else replace(recipe, make=_copying(recipe, kept))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "recipe_for", shared)
        yield


def _copying(recipe: Recipe, kept: Path):
    def make(ctx: Context, made: Artifact, key: str) -> None:
        own = kept / f"{key}-{ctx.device}"
        if own.is_dir():
            shutil.copytree(own, made.path)
            return
        recipe.make(ctx, made, key)
        shutil.copytree(made.path, own)

    return make


@pytest.fixture(autouse=True)
def _shared_starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with shared_starts(tmp_path_factory):
        yield
