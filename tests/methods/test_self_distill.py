"""Self-distillation: advantages by hand, what is left out, and policies that read no hints."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError
from pgtg.methods import method_of, self_distill
from pgtg.methods.method import Improving
from pgtg.methods.objective import sampled_log_probs
from pgtg.models.batch import token_batch
from pgtg.pipeline.context import Context
from pgtg.pipeline.run import session, train
from tests.support.finished import finished_run
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, _quiet, results, tiny  # noqa: F401 (a fixture)

WORDS = ("method=self_distill", "method.hint='{winner} {source}'")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny(*SHORT, "method=dpo"), tmp_path_factory, "sample")


@pytest.fixture
def ctx(sampled: Path) -> Iterator[Context]:
    with session(tiny(*SHORT, "method=dpo"), sampled, True) as ctx:
        yield ctx


def trainer(ctx: Context) -> Any:
    method = tiny(*SHORT, *WORDS).method
    ctx = replace(ctx, cfg=replace(ctx.cfg, method=method))
    lm, codec = ctx.load_start()
    own = method_of(ctx.cfg)
    assert own.trainer is not None
    samples = [ctx.artifact(0, "sample")]
    return own.trainer(own, Improving(ctx, lm, codec, None, samples, Path(), 0, 2))


@pytest.fixture
def any_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_distill, "LEAST", -math.inf)


def test_a_policy_that_reads_no_hints_is_refused(ctx: Context):
    """The tiny T5 was never shown one; it is said before anything is trained."""
    with pytest.raises(ConfigError, match="self_distill: this policy reads no hints"):
        trainer(ctx)


def test_advantages_by_hand(ctx: Context, any_policy: None):
    made = trainer(ctx)
    pool, sources = made.pool, ctx.task.targets
    assert sources is not None
    texts = {e.id: e.source for e in sources.examples("train")}  # type: ignore[attr-defined]
    learned = {row for own in made.groups.groups.tolist() for row in own if row >= 0}
    seen = 0
    for own in pool.members:
        scores = {row: pool.scores[row] for row in own}
        top = max(scores.values())
        winner = next(row for row in own if scores[row] == top)
        others = [row for row in own if pool.tokens[row] != pool.tokens[winner]]
        if len({*scores.values()}) == 1:
            assert not learned & {*own}  # tied: nothing to learn
            continue
        assert learned & {*own} == {*others}
        hint = f"{pool.texts[winner]} {texts[pool.source_ids[pool.origin[winner]]]}"
        pair = [made.codec.encode_source(hint)[0], pool.sources[pool.origin[winner]]]
        tokens = [pool.tokens[row] for row in others]
        with torch.no_grad():
            told, before = (
                sampled_log_probs(
                    made.lm, batch := token_batch([ids], tokens, [0] * len(others)), ctx.sampling()
                )
                for ids in pair
            )
        gain = told - before
        share = sum(score == top for score in scores.values()) / len(own)
        expected = math.sqrt(share * (1 - share)) * (gain - gain[batch.mask].mean())
        for row, line in zip(others, expected, strict=True):
            found = torch.from_numpy(made.advantages[row])
            assert_close(found, line[: len(found)], rtol=1e-3, atol=1e-4)
            seen += 1
    assert seen > 3


def test_in_a_batch_each_token_has_its_own(ctx: Context, any_policy: None):
    made = trainer(ctx)
    batch = made.window(0)[0]()
    assert batch.advantage.shape == batch.batch.mask.shape
    loss = made.objective(batch, made.objective.count(batch))
    mask = batch.batch.mask
    means = batch.advantage.where(mask, 0.0).sum(-1) / mask.sum(-1)
    assert loss.value.item() == pytest.approx(-means.mean().item(), abs=1e-5)  # ratios are 1
    assert loss.metrics["clipped"] == 0


def test_a_run(tmp_path: Path, any_policy: None):
    final = train(tiny(*SHORT, *WORDS, "evaluate.decodings=[greedy]"), tmp_path / "run")
    assert "test/greedy/rouge1" in final


def test_what_a_hint_needs_is_said():
    with pytest.raises(ConfigError, match=r"method\.hint: found 'x', expected \{winner\}"):
        run_config("summarize", ["method=self_distill", "method.hint=x"])
