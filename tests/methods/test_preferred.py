"""Methods that learn from the judged generations themselves: what they read, and their updates."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pgtg.config import RunConfig
from pgtg.config.compose import run_config
from pgtg.errors import ConfigError, DataError
from pgtg.methods import method_of
from pgtg.methods.method import Improving
from pgtg.methods.objective import sampled_log_probs
from pgtg.ops.preferences import leave_one_out
from pgtg.ops.sampling import log_probability
from pgtg.pipeline.context import Context
from pgtg.pipeline.run import session, train
from pgtg.types import Window
from tests.support.finished import finished_run
from tests.support.interrupting import stopped_and_resumed
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, _quiet, results, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_preferences import tiny_preferences

NAMES = ("best_of_k", "dpo", "simpo", "tdpo", "grpo", "rloo")


def config(name: str, *more: str) -> RunConfig:
    return tiny(*SHORT, f"method={name}", *more)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(config("dpo"), tmp_path_factory, "sample")


@pytest.fixture
def ctx(sampled: Path) -> Iterator[Context]:
    with session(config("dpo"), sampled, True) as ctx:
        yield ctx


def trainer(ctx: Context, name: str, **options: Any) -> Any:
    """A method's, as the stage makes it; its own options are those of its yaml."""
    method = method_of(ctx.cfg, name)
    found = {**vars(run_config("summarize", [f"method={name}"]).method), **options}
    own = type(run_config("summarize", [f"method={name}"]).method)(**found)
    ctx = replace(ctx, cfg=replace(ctx.cfg, method=own))
    lm, codec = ctx.load_start()
    samples = [ctx.artifact(0, "sample")]
    assert method.trainer is not None
    return method.trainer(method, Improving(ctx, lm, codec, None, samples, Path(), 0, 2))


def first(made: Any) -> tuple[Any, Window]:
    """The first update's one micro-batch, and its counts."""
    (make,) = made.window(0)
    batch = make()
    return batch, made.objective.count(batch)


@pytest.mark.slow
def test_pairs_are_the_best_and_the_worst_or_all_that_are_told_apart(ctx: Context):
    two, every = trainer(ctx, "dpo"), trainer(ctx, "dpo", pairs="all")
    pool = two.pool
    expected, best = set(), set()
    for own in pool.members:
        scores = {row: pool.scores[row] for row in own}
        told = {(i, j) for i, j in itertools.permutations(own, 2) if scores[i] > scores[j]}
        expected |= told
        if told:
            top, low = max(scores.values()), min(scores.values())
            first_top = next(row for row in own if scores[row] == top)
            last_low = [row for row in own if scores[row] == low][-1]
            best.add((first_top, last_low))
    assert len(best) > 2
    assert {tuple(pair) for pair in every.groups.groups.tolist()} == expected
    assert {tuple(pair) for pair in two.groups.groups.tolist()} == best


def test_texts_of_a_pair_are_read_as_the_policy_wrote_them(ctx: Context):
    made = trainer(ctx, "dpo")
    batch, window = first(made)
    texts = batch.batch
    assert window.sequences == len(texts.tokens) // 2 == len(texts.source)
    assert texts.origin.tolist() == [i // 2 for i in range(len(texts.tokens))]
    rows = [row for pair in made.groups.groups.tolist() for row in pair]
    known = {tuple(made.pool.tokens[row]): made.pool.origin[row] for row in rows}
    lengths, sources = texts.mask.sum(-1).tolist(), texts.source_mask.sum(-1).tolist()
    for n, (tokens, length) in enumerate(zip(texts.tokens.tolist(), lengths, strict=True)):
        place = texts.origin[n]
        source = texts.source[place][: sources[place]].tolist()
        assert source == made.pool.sources[known[tuple(tokens[:length])]]


@pytest.mark.slow
def test_at_the_start_policy_no_text_is_preferred(ctx: Context):
    """log 2 a pair; IPO (1 / 2 beta)^2; TDPO as DPO, since there is no divergence."""
    for name, options, expected in [
        ("dpo", {}, math.log(2)),
        ("dpo", {"loss": "ipo"}, 25.0),
        ("tdpo", {}, math.log(2)),
        ("tdpo", {"alpha": None}, math.log(2)),
    ]:
        made = trainer(ctx, name, **options)
        found = made.objective(*first(made))
        assert found.value.item() == pytest.approx(expected, rel=1e-4)


def test_simpo_by_hand(ctx: Context):
    made = trainer(ctx, "simpo")
    batch, window = first(made)
    texts = batch.batch
    log_probs = log_probability(made.lm.logits(texts).float(), texts.tokens)
    means = [row[keep].mean() for row, keep in zip(log_probs, texts.mask, strict=True)]
    z = [2.0 * (means[i] - means[i + 1]) - 1.0 for i in range(0, len(means), 2)]
    expected = sum(math.log1p(math.exp(-value.item())) for value in z) / len(z)
    assert made.objective(batch, window).value.item() == pytest.approx(expected, rel=1e-5)


def test_best_of_k_learns_each_sources_best_text(ctx: Context):
    made = trainer(ctx, "best_of_k")
    for own, rows in zip(made.groups.groups.tolist(), made.pool.members, strict=False):
        assert len(own) == 1
        group = next(rows for rows in made.pool.members if own[0] in rows)
        assert made.pool.scores[own[0]] == max(made.pool.scores[row] for row in group)
    batch, _ = first(made)
    lengths = batch.batch.mask.sum(-1, keepdim=True)
    assert torch.equal(batch.weights, batch.batch.mask / lengths)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_the_first_gradient_of_a_group_is_reinforces(ctx: Context, name: str):
    """The policy is the one that sampled, so ratios are 1 and nothing is clipped."""
    made = trainer(ctx, name)
    batch, window = first(made)
    found = made.objective(batch, window)
    assert found.metrics["clipped"] == 0
    found.value.backward()
    own = [p.grad.clone() for p in made.lm.parameters() if p.grad is not None]
    made.lm.zero_grad()
    mask = batch.batch.mask
    weight = batch.advantage[:, None] / (mask.sum(-1, keepdim=True) if name == "grpo" else 1)
    log_probs = sampled_log_probs(made.lm, batch.batch, ctx.sampling())
    assert_close(log_probs.detach().where(mask, 0.0), batch.sampled, rtol=1e-4, atol=1e-5)
    expected = -(weight * log_probs).where(mask, 0.0).sum() / len(mask)
    expected.backward()
    others = [p.grad for p in made.lm.parameters() if p.grad is not None]
    for one, other in zip(own, others, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_rloo_takes_the_divergence_from_the_score(ctx: Context):
    """In the first round the policy that sampled is the start: nothing is taken."""
    plain, priced = trainer(ctx, "rloo"), trainer(ctx, "rloo", kl=0.5)
    assert_close(first(plain)[0].advantage, first(priced)[0].advantage, rtol=1e-4, atol=1e-4)
    priced.start = [values - 0.1 for values in priced.start]  # the policy is 0.1 nats above it
    batch, _ = first(priced)
    lengths = batch.batch.mask.sum(-1).double()
    group = batch.batch.origin
    extra = leave_one_out(-0.5 * 0.1 * lengths, group).float()
    assert_close(batch.advantage, first(plain)[0].advantage + extra, rtol=1e-3, atol=1e-4)


def test_where_all_texts_are_tied_there_is_nothing_to_learn(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
):
    from pgtg.methods import preferred

    read = preferred.read_generations
    monkeypatch.setattr(
        preferred,
        "read_generations",
        lambda *which: replace(found := read(*which), scores=[1.0] * len(found.scores)),
    )
    with pytest.raises(DataError, match="dpo: no source has two texts that are told apart"):
        trainer(ctx, "dpo")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_has_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two rounds; stopped in the second one's training."""
    few = ["method.controls=[]", "evaluate.splits=[]", "evaluate.start_policy=false"]
    cfg = tiny(f"method={name}", *few)
    # after 10 + 2 of the start policy, 2 of the first round, 1 of the second
    stopped_and_resumed(cfg, tmp_path, monkeypatch, 14)


@pytest.mark.slow
def test_pairs_of_ones_own_are_learned_from(tmp_path: Path):
    """`pgtg train preferences method=dpo`: no reward model is made, chosen texts are the better."""
    cfg = tiny_preferences("method=dpo", "schedule.total=2", "schedule.retrain_until=0")
    final = train(cfg, tmp_path / "run")
    assert any("chosen_log_prob" in name for name in final)
    assert not (tmp_path / "run/rounds/00/align").exists()


def test_what_they_need_is_said():
    with pytest.raises(ConfigError, match="grpo"):
        run_config("preferences", ["method=grpo", "data.path=/tmp"])
    with pytest.raises(ConfigError, match="dpo"):
        run_config("prompt", ["method=dpo"])
    assert [*replace(run_config("summarize", ["method=dpo"]).method, beta=0.0).problems()] == [
        "beta: found 0.0, expected above 0"
    ]
    assert [*replace(run_config("summarize", ["method=grpo"]).method, clip=1.0).problems()] == [
        "clip: found 1.0, expected between 0 and 1"
    ]


def test_as_a_control_a_method_has_the_options_of_its_yaml():
    for name in NAMES:
        own = run_config("summarize", [f"method={name}"]).method
        kind: Any = type(own)
        of_another = kind.of(run_config("summarize", ["method=mle"]).method)
        values = {key: value for key, value in vars(own).items() if key in kind.NEUTRAL}
        assert values == {key: getattr(of_another, key) for key in values} == dict(kind.NEUTRAL)
