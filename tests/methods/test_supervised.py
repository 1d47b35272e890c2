"""Each control against its definition, on the targets of a tiny run with the head `logprob`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError, DataError
from pgtg.methods import method_of
from pgtg.methods.method import Improving, Shared
from pgtg.methods.objective import SupervisedBatch
from pgtg.models.reward import load_reward_model
from pgtg.ops.bounds import softplus_bound
from pgtg.ops.objectives import mle_weights
from pgtg.ops.sampling import log_probability
from pgtg.pipeline.context import Context
from pgtg.pipeline.run import session
from pgtg.pipeline.stages.align import align, untrained_reward_model
from tests.support.finished import finished_run
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)

CFG = tiny(*SHORT, "reward.head=logprob", "method.filter_share=0.25", "data.newswire.noise=0.9")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(CFG, tmp_path_factory, "sample", "align")


@pytest.fixture
def ctx(aligned: Path) -> Iterator[Context]:
    with session(CFG, aligned, True) as ctx:
        yield ctx


def trainer(ctx: Context, name: str) -> Any:
    """The control's trainer for the first round, guided as the stage would."""
    method = method_of(ctx.cfg, name)
    lm, codec = ctx.load_start()
    model = None
    if method.needs_reward:
        model = load_reward_model(ctx.artifact(0, "align").file("reward")).eval()
    elif method.untrained_reward:
        model = untrained_reward_model(ctx).eval()
    if model is not None:
        model.requires_grad_(False)
    folder, targets = ctx.artifact(0, "improve", control=name), ctx.artifact(9, name or "own")
    given = Improving(ctx, lm, codec, model, [], folder.working("x"), 0, 2, Shared(targets, "x"))
    assert method.trainer is not None
    return method.trainer(method, given)


def batches(guide: Any) -> list[SupervisedBatch]:
    return [make() for step in range(2) for make in guide.window(step)]


def test_the_untrained_reward_is_the_start_policys_log_probability(ctx: Context):
    """r = bound(log pi_0 + 1): the same order, and its raw output affine in it."""
    start = ctx.load_start()[0]
    for batch in batches(trainer(ctx, "untrained")):
        real = batch.batch.mask
        expected = log_probability(start.logits(batch.batch).float(), batch.batch.tokens)
        raw = untrained_reward_model(ctx).eval().raw(batch.batch)
        assert torch.allclose(raw[real], expected[real] + 1, atol=1e-6)
        weights = mle_weights(softplus_bound(expected + 1), real)
        assert torch.allclose(batch.weights[real], weights[real], atol=1e-6)


def test_the_oracle_weighs_right_tokens_alone_and_all_the_same(ctx: Context):
    flawed = 0
    guide = trainer(ctx, "oracle")
    examples = [part for step in range(2) for part in guide.targets.window(step)]
    for part, batch in zip(examples, batches(guide), strict=True):
        for example, weights, mask in zip(part, batch.weights, batch.batch.mask, strict=True):
            labels = [*example.truth.target_labels, "end"]
            right = [label not in ("wrong", "boilerplate") for label in labels]
            flawed += right.count(False)
            assert weights[mask].tolist() == pytest.approx([w / sum(right) for w in right])
    assert flawed


def test_the_oracle_refuses_what_has_no_planted_truth():
    data = ("data=files", "data.path=.", "policy=t5_small", "experiment=none")
    with pytest.raises(ConfigError, match="'oracle' reads planted truth"):
        run_config("summarize", [*data, "method.controls=[oracle]"])
    plain, planted = run_config("summarize", data), run_config("summarize", [])
    assert {*planted.method.controls} - {*plain.method.controls} == {"oracle"}  # type: ignore[misc]


@pytest.mark.parametrize("given", [False, True])
def test_tokens_and_sequences_are_told_apart_by_a_threshold(ctx: Context, given: bool):
    """Against all rewards of the round's targets: 1/|y| from the threshold on, else nothing; a
    sequence by its mean reward, of which the threshold is the mean."""
    guide = trainer(ctx, "")
    level = float(np.mean([guide.rewards(row).mean() for row in guide.used])) if given else None
    method = replace(ctx.cfg.method, weights="threshold", threshold=level)  # type: ignore[call-arg]
    ctx = replace(ctx, cfg=replace(ctx.cfg, method=method))
    for name in ("", "sequence"):
        guide = trainer(ctx, name)
        rows = {row: guide.rewards(row).astype(float) for row in guide.used.tolist()}
        mean = np.concatenate([*rows.values()]).mean()
        if name:
            mean = np.mean([own.mean() for own in rows.values()])
        at = mean if level is None else level
        examples = [part for step in range(2) for part in guide.targets.window(step)]
        kept = []
        for part, batch in zip(examples, batches(guide), strict=True):
            for row, weights, mask in zip(part.rows, batch.weights, batch.batch.mask, strict=True):
                own = rows[int(row)]
                good = np.full(len(own), own.mean()) >= at if name else own >= at
                kept += good.tolist()
                assert weights[mask].tolist() == pytest.approx((good / len(own)).tolist())
        assert 0 < np.mean(kept) < 1
    assert trainer(ctx, "").measured()["improve/below_threshold"] == pytest.approx(
        np.mean(np.concatenate([*rows.values()]) < (at if level else guide.level)), abs=1e-6
    )


def test_a_threshold_that_no_token_reaches_is_one_line(ctx: Context):
    method = replace(ctx.cfg.method, weights="threshold", threshold=9.0)  # type: ignore[call-arg]
    with pytest.raises(DataError, match=r"method.threshold=9: no token .* the highest is"):
        trainer(replace(ctx, cfg=replace(ctx.cfg, method=method)), "")


def test_sequence_spreads_each_targets_evaluation_evenly(ctx: Context):
    """avg: the mean token reward, over its mean among the round's targets."""
    guide = trainer(ctx, "sequence")
    means = {row: float(guide.rewards(row).mean()) for row in guide.used.tolist()}
    overall = sum(means.values()) / len(means)
    examples = [part for step in range(2) for part in guide.targets.window(step)]
    for part, batch in zip(examples, batches(guide), strict=True):
        for row, weights, mask in zip(part.rows, batch.weights, batch.batch.mask, strict=True):
            expected = means[int(row)] / overall / int(mask.sum())
            assert weights[mask].tolist() == pytest.approx([expected] * int(mask.sum()))


def test_filter_draws_full_batches_of_the_best_evaluated(ctx: Context):
    guide = trainer(ctx, "filter")
    means = np.array([guide.rewards(row).mean() for row in range(40)])
    best = {*np.argsort(-means)[:10].tolist()}  # a quarter of 40
    seen = [part.rows for step in range(2) for part in guide.targets.window(step, guide.among)]
    assert {*guide.among.tolist()} == best and all({*rows.tolist()} <= best for rows in seen)
    assert all(len(rows) == 4 for rows in seen) and len({*np.concatenate(seen)}) == 8
    for batch in batches(guide):
        lengths = batch.batch.mask.sum(-1, keepdim=True)
        assert torch.equal(batch.weights, batch.batch.mask / lengths)


def test_shuffled_scores_learn_from_the_main_lines_samples_with_other_scores(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
):
    """The same generations, a permutation of the scores, and a reward model of its own."""
    pools = []

    def seen(ctx, pool, samples, round):
        pools.append(pool)
        raise KeyboardInterrupt

    ctx.cursor[:] = [ctx.log.position()]  # what is there stays
    monkeypatch.setattr("pgtg.pipeline.stages.align._of_samples", seen)
    for control in ("shuffled_scores", ""):
        made = ctx.artifact(0, "align", control=control)
        if made.exists():
            made.remove()
        with pytest.raises(KeyboardInterrupt):
            align(ctx, 0, control=control)
    other, own = pools
    assert other.texts == own.texts
    assert other.scores != own.scores and sorted(other.scores) == sorted(own.scores)
