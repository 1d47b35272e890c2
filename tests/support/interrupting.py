"""Runs that are ended in the middle, in this process, as Ctrl-C ends them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import RunConfig
from pgtg.pipeline.recipes import recipe_for
from pgtg.pipeline.run import train
from pgtg.pipeline.stages import start
from pgtg.training import loop
from tests.support.tiny import results


def stopped(
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    run: Callable[[], object],
    *,
    at: int,
    counts: Callable[..., bool] = lambda *_, **__: True,
    after: bool = False,
) -> bool:
    """Run, and end it at the `at`-th call of `place.name`; whether there were so many calls.

    Args:
        counts: Which calls count, by their arguments.
        after: Once that call has done its work, instead of before it.
    """
    original, calls = getattr(place, name), 0

    def stopping(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += counts(*args, **named)
        if calls == at and not after:
            raise KeyboardInterrupt
        found = original(*args, **named)
        if calls == at:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(start, "recipe_for", recipe_for)  # its trainings are counted as well
        patch.setattr(place, name, stopping)
        try:
            run()
        except KeyboardInterrupt:
            return True
    return False


def kills_until_the_end(
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    run: Callable[[], object],
    *,
    every: int,
) -> int:
    """Run, ended at every `every`-th call of `place.name`, over and over to the end; how often it
    was ended."""
    kills = 0
    while stopped(monkeypatch, place, name, run, at=every):
        kills += 1
    return kills


def stopped_and_resumed(
    cfg: RunConfig,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    *,
    counts: Callable[..., bool] = lambda *_, **__: True,
) -> None:
    """Ended once the `at`-th state of a training was saved, and resumed: the same bits as `whole`,
    which is made where it is not there."""
    if not (folder / "whole").is_dir():
        train(cfg, folder / "whole")
    run = lambda: train(cfg, folder / "again")  # noqa: E731
    assert stopped(monkeypatch, loop, "save_state", run, at=at, counts=counts, after=True)
    run()
    assert results(folder / "again") == results(folder / "whole")
