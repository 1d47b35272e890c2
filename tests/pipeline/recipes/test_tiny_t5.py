"""The tiny T5's set-up: which weights its two trainings leave."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from pgtg.pipeline.recipes import tiny_t5
from pgtg.pipeline.run import session
from pgtg.pipeline.stages.start import start
from tests.support.tiny import _quiet, tiny  # noqa: F401 (a fixture)


def test_copying_is_learned_to_the_end_and_news_is_kept_at_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The held-out loss grows all the time, so its best weights are the first that it saw."""
    trained: list[str] = []
    kept: list[str] = []
    losses = itertools.count(1.0)
    fit, load_weights = tiny_t5.fit, tiny_t5.load_weights

    def fitted(*args: Any, **how: Any) -> Any:
        trained.append(how["where"].stage)
        return fit(*args, **how)

    def loaded(lm: Any, best: Any) -> None:
        kept.append(trained[-1])
        load_weights(lm, best)

    monkeypatch.setattr(tiny_t5, "fit", fitted)
    monkeypatch.setattr(tiny_t5, "load_weights", loaded)
    monkeypatch.setattr(tiny_t5, "token_nll", lambda *_: next(losses))
    cfg = tiny("policy.tiny_t5.copy_updates=3", "policy.tiny_t5.warm_start.validate_every=1")
    with session(cfg, tmp_path / "run", False) as ctx:
        start(ctx)
    assert (trained, kept) == (["copy", "warm_start"], ["warm_start"])
