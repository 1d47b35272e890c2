"""Objectives of improvement: weights, the policy gradient's expectation, accumulation."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from pgtg.config import AggregatorConfig, MethodConfig
from pgtg.methods import mle, pgtg
from pgtg.methods.method import Method
from pgtg.methods.objective import Improvement, Sampled, SupervisedBatch, sampled_log_probs
from pgtg.methods.options import WeightedMLE
from pgtg.models.batch import token_batch
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, RewardModel
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.masking import pad
from pgtg.ops.objectives import (
    advantages,
    effective_share,
    kl_to_start,
    mle_weights,
    reinforce,
    reward_to_go,
    shuffled_weights,
    threshold_weights,
    uniform_weights,
    unlikelihood,
    weighted_nll,
)
from pgtg.pipeline.stages.align import GroupBatch, PlackettLuce

rows_of_rewards = st.lists(
    st.lists(st.floats(0.01, 2), min_size=1, max_size=5), min_size=1, max_size=4
)
OPTIONS = WeightedMLE.of(MethodConfig("pgtg"))


def weigh(method: Method) -> Callable[..., Tensor]:
    """How a supervised method weighs tokens."""
    assert method.weigh is not None
    return method.weigh


def rectangle(rows: list[list[float]], fill: float = math.nan, side: str = "right"):
    _, mask = pad([[1] * len(row) for row in rows], side=side)
    values = torch.full(mask.shape, fill, dtype=torch.double)
    values[mask] = torch.tensor([x for row in rows for x in row], dtype=torch.double)
    return values, mask


@pytest.mark.parametrize("to_go", [False, True])
@pytest.mark.parametrize("transform", ["none", "exp"])
@settings(max_examples=15, derandomize=True, deadline=None)
@given(rows_of_rewards, st.sampled_from(["left", "right"]))
def test_weights_by_hand(transform: str, to_go: bool, rows: list[list[float]], side: str):
    """g(r) over its sum in plain Python; NaN stands in the padding."""
    rewards, mask = rectangle(rows, side=side)
    expected = []
    for row in rows:
        value = [sum(row[t:]) for t in range(len(row))] if to_go else row
        value = [math.exp(x) for x in value] if transform == "exp" else value
        expected += [x / sum(value) for x in value]
    weights = mle_weights(rewards, mask, transform=transform, to_go=to_go)
    assert_close(weights[mask], torch.tensor(expected, dtype=torch.double), rtol=1e-9, atol=0)
    assert (weights[~mask] == 0).all()


def test_exponential_weights_of_large_rewards_do_not_overflow():
    weights = mle_weights(torch.tensor([[1000.0, 999.0]]), torch.ones(1, 2).bool(), transform="exp")
    assert_close(weights, torch.tensor([[1.0, 0.0]]).lerp(torch.tensor([[0.0, 1.0]]), 0.268941))


def test_equal_rewards_are_plain_mle():
    mask = rectangle([[1.0] * 3, [1.0]])[1]
    assert_close(mle_weights(torch.full(mask.shape, 0.4), mask), uniform_weights(mask))
    weights = weigh(mle.METHOD)(None, mask, OPTIONS, 0)
    assert torch.equal(weights, uniform_weights(mask))
    assert weights.sum(-1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_shuffled_weights_are_a_permutation_within_each_target(side: str):
    rows = [[float(10 * i + t) for t in range(n)] for i, n in enumerate([1, 4, 9, 9])]
    weights, mask = rectangle(rows, fill=-1.0, side=side)
    shuffled = shuffled_weights(weights, mask, seed=5)
    for row, line, keep in zip(rows, shuffled, mask, strict=True):
        assert sorted(line[keep].tolist()) == row
    assert (shuffled[~mask] == 0).all()
    assert not torch.equal(shuffled[mask], weights[mask])
    assert torch.equal(shuffled, shuffled_weights(weights, mask, seed=5))
    assert not torch.equal(shuffled, shuffled_weights(weights, mask, seed=6))


def test_shuffling_has_no_favourite_place():
    """The largest of 4 weights lands on each place in about a quarter of 2000 targets."""
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(2000, 4).contiguous()
    share = shuffled_weights(weights, torch.ones(2000, 4).bool(), seed=0).mean(0)
    assert_close(share, torch.full((4,), 0.25), rtol=0, atol=0.04)  # four standard errors


def test_the_shuffled_control_permutes_the_method_s_weights():
    rewards, mask = rectangle([[0.1, 0.5, 0.9, 0.3, 0.7]])
    weights = weigh(pgtg.METHOD)(rewards, mask, OPTIONS, 1)
    control = weigh(pgtg.SHUFFLED)(rewards, mask, OPTIONS, 1)
    assert_close(control.sort().values, weights.sort().values)
    assert not torch.equal(control, weights)


def test_tokens_from_the_threshold_on_count_the_same():
    """1/|y| or below/|y| in plain Python; a reward at the threshold is good."""
    rows = [[0.4, 0.5, 0.6], [0.2], [0.5, 0.1]]
    margins, mask = rectangle(rows, side="left")
    for below in (0.0, -0.25):
        expected = [(1.0 if x >= 0.5 else below) / len(row) for row in rows for x in row]
        found = threshold_weights(margins - 0.5, mask, below=below)
        assert found[mask].tolist() == pytest.approx(expected) and (found[~mask] == 0).all()


def test_unlikelihood_is_minus_log_of_all_other_tokens():
    """Brute force over a vocabulary of 5, its gradient by finite differences; bounded near 1."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    tokens, mask = torch.tensor([[1, 2, 0], [4, 4, 0]]), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    weights = torch.rand(2, 3, dtype=torch.double)

    def loss(logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        return unlikelihood(log_probs, weights, mask)

    others = torch.ones(2, 3, 5).bool().scatter(-1, tokens[..., None], False)
    expected = -(logits.softmax(-1) * others).sum(-1).log() * weights
    assert_close(loss(logits), expected.where(mask, 0.0).sum(-1))
    assert torch.autograd.gradcheck(loss, (logits,))
    certain = torch.zeros(1, 1, requires_grad=True)
    unlikelihood(certain, torch.ones(1, 1), torch.ones(1, 1).bool()).sum().backward()
    assert certain.grad is not None and certain.grad.item() == 0


def test_weighted_nll_ignores_padding_even_in_its_gradient():
    log_probs, mask = rectangle([[-1.0, -2.0], [-3.0]])
    log_probs.requires_grad_()
    weights = torch.tensor([[0.25, 0.75], [1.0, 9.0]], dtype=torch.double)
    loss = weighted_nll(log_probs, weights, mask)
    assert_close(loss.detach(), torch.tensor([0.25 + 1.5, 3.0], dtype=torch.double))
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert_close(gradient, -weights.where(mask, 0.0))


def test_reward_to_go():
    rewards, mask = rectangle([[1.0, 2.0, 4.0], [3.0]])
    found = reward_to_go(rewards, mask)
    assert found.tolist() == [[7.0, 6.0, 4.0], [3.0, 0.0, 0.0]]


# The policy gradient on a toy policy, by enumeration -------------------------------------------

V, END = 3, 0  # tokens; token 0 ends a sequence, otherwise it has two tokens
SEQUENCES = [(END,)] + [(a, b) for a in range(1, V) for b in range(V)]


def toy():
    """Policy logits (first token, and second given the first) and token rewards of the states."""
    generator = torch.Generator().manual_seed(7)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    return values(V + V * V), values(V), values(V, V)


def log_probs_of(theta: Tensor) -> tuple[Tensor, Tensor]:
    """log pi of each token of each of the 7 sequences [7, 2], 0 at padding, and the mask."""
    first, second = theta[:V].log_softmax(-1), theta[V:].view(V, V).log_softmax(-1)
    zero = torch.zeros((), dtype=torch.double)
    rows = [
        torch.stack([first[s[0]], second[s[0], s[1]] if len(s) == 2 else zero]) for s in SEQUENCES
    ]
    return torch.stack(rows), torch.tensor([[True, len(s) == 2] for s in SEQUENCES])


def rewards_of(first: Tensor, second: Tensor) -> Tensor:
    rows = [[first[s[0]], second[s[0], s[1]] if len(s) == 2 else 0.0] for s in SEQUENCES]
    return torch.tensor(rows, dtype=torch.double)


def finite_differences(objective, theta: Tensor, step: float = 1e-5) -> Tensor:
    moves = step * torch.eye(len(theta), dtype=torch.double)
    values = [(objective(theta + m) - objective(theta - m)) / (2 * step) for m in moves]
    return torch.stack(values)


def expected_estimate(theta: Tensor, rewards: Tensor, count: int, **options) -> Tensor:
    """E of (1/count) sum_k sum_t A_t grad log pi over all tuples of `count` samples, exactly.

    Each tuple is its own batch and one group.
    """
    theta = theta.clone().requires_grad_()
    log_probs, mask = log_probs_of(theta)
    loss = torch.zeros((), dtype=torch.double)
    for members in itertools.product(range(len(SEQUENCES)), repeat=count):
        rows = list(members)
        chosen = rewards[rows]
        advantage = advantages(
            chosen, chosen.sum(-1), mask[rows], torch.zeros(count, dtype=torch.long), **options
        )
        probability = log_probs[rows].sum().exp().detach()
        loss = loss + probability * reinforce(log_probs[rows], advantage).sum() / count
    return -torch.autograd.grad(loss, theta)[0]


def true_gradient(theta: Tensor, rewards: Tensor) -> Tensor:
    """Of the mean sum of rewards of a sample, by finite differences of the enumerated mean."""

    def objective(at: Tensor) -> Tensor:
        return (log_probs_of(at)[0].sum(-1).exp() * rewards.sum(-1)).sum()

    return finite_differences(objective, theta)


DENSE: dict[str, Any] = {"token_share": 1.0, "to_go": True}
SPARSE: dict[str, Any] = {"token_share": 0.0}
MIXED: dict[str, Any] = {"token_share": 0.3, "to_go": True}


@pytest.mark.parametrize("options", [DENSE, SPARSE, MIXED], ids=["dense", "sparse", "mixed"])
@pytest.mark.parametrize(
    ("baseline", "count"), [("none", 1), ("none", 2), ("group", 2), ("loo_at_t", 2)]
)
def test_policy_gradient_is_unbiased(baseline: str, count: int, options: dict):
    """Without a baseline, and with the mean of the other samples of the group."""
    theta, first, second = toy()
    rewards = rewards_of(first, second)
    found = expected_estimate(theta, rewards, count, baseline=baseline, **options)
    # central differences of a smooth function: error about step^2
    assert_close(found, true_gradient(theta, rewards), rtol=1e-7, atol=1e-8)


def test_batch_baseline_is_biased_by_one_over_n():
    """Own value in the mean: the sparse estimate is (1 - 1/N) of the true gradient, exactly."""
    theta, first, second = toy()
    rewards = rewards_of(first, second)
    truth = true_gradient(theta, rewards)
    for count in (2, 3):
        found = expected_estimate(theta, rewards, count, baseline="batch", **SPARSE)
        assert_close(found, (1 - 1 / count) * truth, rtol=1e-7, atol=1e-8)


def test_own_token_reward_gives_the_gradient_with_states_held_fixed():
    """Without reward-to-go a token answers only for its own reward (the paper's REINFORCE)."""
    theta, first, second = toy()
    rewards = rewards_of(first, second)
    reached = theta[:V].softmax(-1)

    def objective(at: Tensor) -> Tensor:
        own = at[:V].softmax(-1) @ first
        later = (at[V:].view(V, V).softmax(-1) * second).sum(-1)
        return own + reached[1:] @ later[1:]

    found = expected_estimate(theta, rewards, 1, baseline="none", token_share=1.0, to_go=False)
    assert_close(found, finite_differences(objective, theta), rtol=1e-7, atol=1e-8)


def test_sparse_advantage_is_constant_over_a_sequence_s_tokens():
    rewards, mask = rectangle([[0.1, 0.5, 0.9], [0.3], [0.2, 0.4]])
    evaluations = torch.tensor([3.0, 1.0, 2.0], dtype=torch.double)
    group = torch.tensor([4, 4, 9])
    expected = {"none": [3.0, 1.0, 2.0], "batch": [1.0, -1.0, 0.0], "group": [2.0, -2.0, 2.0]}
    for baseline, values in expected.items():
        found = advantages(rewards, evaluations, mask, group, baseline=baseline, token_share=0.0)
        assert_close(found, torch.tensor(values, dtype=torch.double)[:, None] * mask)


def test_dense_advantage_by_hand():
    """Token means: all (1+2+3+6)/4 = 3; of the others in the group; 0 for a group of one."""
    rewards, mask = rectangle([[1.0, 2.0], [3.0], [6.0]])
    unused, group = torch.zeros(3, dtype=torch.double), torch.tensor([1, 1, 2])
    batch = advantages(rewards, unused, mask, group, baseline="batch")
    assert batch.tolist() == [[-2.0, -1.0], [0.0, 0.0], [3.0, 0.0]]
    others = advantages(rewards, unused, mask, group, baseline="group")
    assert others.tolist() == [[-2.0, -1.0], [1.5, 0.0], [6.0, 0.0]]
    at_t = advantages(rewards, unused, mask, group, baseline="loo_at_t")
    assert at_t.tolist() == [[-2.0, 2.0], [2.0, 0.0], [6.0, 0.0]]  # the second row has ended
    with pytest.raises(ValueError, match="known are none, batch, group, loo_at_t"):
        advantages(rewards, unused, mask, group, baseline="mean")


def test_kl_estimate_is_unbiased_and_never_negative():
    """Enumerated mean of k3 under pi equals the exact KL [nats]; 0 for equal policies."""
    generator = torch.Generator().manual_seed(2)
    p, q = torch.randn(2, 6, generator=generator, dtype=torch.double).log_softmax(-1)
    found = kl_to_start(p[:, None], q[:, None])
    assert (found >= 0).all()
    assert_close((p.exp() * found.squeeze(-1)).sum(), (p.exp() * (p - q)).sum())
    assert (kl_to_start(p[:, None], p[:, None]) == 0).all()


# Batch x accumulation: the gradient of one batch is the sum of its micro-batches' -----------------

SOURCES = [[5, 6, 7], [8], [9, 4, 3, 2], [7, 7]]
TARGETS = [[3, 4, 1], [9, 9, 9, 9, 1], [2], [6, 5]]


def tiny_lm(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=12, n_positions=16, n_embd=8, n_layer=1, n_head=2, initializer_range=0.4
    )
    return LanguageModel(GPT2LMHeadModel(config).double().eval())


def supervised(rows: list[int], sampled: list[int]) -> SupervisedBatch:
    """Some of the four targets, and some of four samples, with weights that depend on the row."""
    batch = token_batch([SOURCES[r] for r in rows], [TARGETS[r] for r in rows], range(len(rows)))
    rewards = (batch.tokens + 1.0).double()
    own = token_batch(
        [SOURCES[r] for r in sampled], [TARGETS[r][::-1] for r in sampled], range(len(sampled))
    )
    advantage = (own.tokens - 5.0).double()
    start = sampled_log_probs(tiny_lm(9), own, Decoding(False, 8, top_k=6)).detach()
    return SupervisedBatch(batch, mle_weights(rewards, batch.mask), Sampled(own, advantage, start))


def gradients(model: nn.Module, objective, batches: list) -> tuple[Tensor, dict[str, float]]:
    """Of the losses summed over micro-batches with the counts of the whole window; metrics too."""
    window, metrics = objective.count(batches[0]), {}
    for batch in batches[1:]:
        window = window + objective.count(batch)
    model.zero_grad()
    for batch in batches:
        loss = objective(batch, window)
        loss.value.backward()
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(grads), metrics


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[0, 1, 2], [3]], [[3, 1], [0, 2]]])
def test_improvement_accumulates(parts: list[list[int]]):
    """Weighted MLE, entropy, policy gradient and KL over targets of unequal length."""
    options = replace(OPTIONS, entropy=0.3, reinforce=0.7, kl=0.2)
    policy = tiny_lm()
    objective = Improvement(policy, options, Decoding(False, 8, top_k=6))
    whole, metrics = gradients(policy, objective, [supervised([0, 1, 2, 3], [0, 1, 2, 3])])
    summed, added = gradients(policy, objective, [supervised(p, p) for p in parts])
    # float64 weights, float32 logits in the losses
    assert_close(summed, whole, rtol=1e-4, atol=1e-6)
    assert added == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert whole.abs().max() > 1e-2


def test_the_kl_term_is_a_mean_over_sampled_tokens_and_has_a_gradient():
    """kl = 0.2 adds 0.7 x 0.2 x mean k3 to the value; without it the gradient is another."""
    policy, batch = tiny_lm(), supervised([0, 1, 2, 3], [1, 2])
    values, grads = {}, {}
    for kl in (0.0, 0.2):
        options = replace(OPTIONS, entropy=0.0, reinforce=0.7, kl=kl)
        objective = Improvement(policy, options, Decoding(False, 8, top_k=6))
        values[kl] = objective(batch, objective.count(batch)).value.item()
        grads[kl], _ = gradients(policy, objective, [batch])
    sampled = batch.sampled
    assert sampled is not None and sampled.start_log_probs is not None
    own = sampled_log_probs(policy, sampled.batch, Decoding(False, 8, top_k=6)).detach()
    k3 = kl_to_start(own, sampled.start_log_probs)[sampled.batch.mask].mean().item()
    assert k3 > 0.01
    assert values[0.2] - values[0.0] == pytest.approx(0.7 * 0.2 * k3, rel=1e-4)
    assert (grads[0.2] - grads[0.0]).abs().max() > 1e-3


def test_improvement_by_hand():
    """The value is the formula, with means over targets, target tokens and sampled tokens."""
    options = replace(OPTIONS, entropy=0.3, reinforce=0.7)
    policy, batch = tiny_lm(), supervised([0, 1, 2, 3], [1, 2])
    assert batch.sampled is not None
    batch = SupervisedBatch(
        batch.batch, batch.weights, Sampled(batch.sampled.batch, batch.sampled.advantage, None)
    )
    objective = Improvement(policy, options, Decoding(False, 8, top_k=6))
    found = objective(batch, objective.count(batch)).value.item()
    nll, entropies, gradient = [], [], []
    for row in range(4):
        log_pi = plain_log_softmax(policy, SOURCES[row], TARGETS[row])
        weight = torch.tensor(TARGETS[row]) + 1.0
        own = log_pi[range(len(TARGETS[row])), TARGETS[row]]
        nll.append(-(weight / weight.sum() * own).sum().item())
        entropies += (-(log_pi.exp() * log_pi).sum(-1)).tolist()
    for row in (1, 2):
        tokens = TARGETS[row][::-1]
        log_pi = plain_log_softmax(policy, SOURCES[row], tokens)
        for line, token in zip(log_pi, tokens, strict=True):
            kept = line.topk(6)
            restricted = token in kept.indices.tolist()
            value = line[token] - (kept.values.logsumexp(0) if restricted else 0.0)
            gradient.append(-(token - 5.0) * value.item())
    expected = sum(nll) / 4 - 0.3 * sum(entropies) / 11 + 0.7 * sum(gradient) / 6
    assert found == pytest.approx(expected, rel=1e-5)


def plain_log_softmax(policy: LanguageModel, source: list[int], tokens: list[int]) -> Tensor:
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([source + tokens])).logits[0]
    return logits[len(source) - 1 : -1].log_softmax(-1)


def test_plackett_luce_accumulates():
    """Groups of three candidates each, split over micro-batches."""
    torch.manual_seed(3)
    model = RewardModel(tiny_lm(), HeadSpec("paper", "softplus", 8))
    for p in model.head.parameters():
        nn.init.normal_(p, std=0.5)
    objective = PlackettLuce(model, Aggregator.of(AggregatorConfig("avg", 2.0, False)))
    candidates = [[TARGETS[(g + j) % 4] for j in range(3)] for g in range(4)]
    scores = torch.randn(4, 3)

    def groups(rows: list[int]) -> GroupBatch:
        tokens = [tokens for r in rows for tokens in candidates[r]]
        origin = [i for i in range(len(rows)) for _ in range(3)]
        batch = token_batch([SOURCES[r] for r in rows], tokens, origin)
        return GroupBatch(batch, torch.arange(3 * len(rows)).view(-1, 3), scores[rows])

    whole, metrics = gradients(model, objective, [groups([0, 1, 2, 3])])
    for parts in ([[0], [1], [2], [3]], [[2, 0, 1], [3]]):
        summed, added = gradients(model, objective, [groups(p) for p in parts])
        assert_close(summed, whole, rtol=1e-4, atol=1e-6)
        assert added == pytest.approx(metrics)
    assert whole.abs().max() > 1e-2


def test_the_weights_of_both_terms_add_up():
    """m x MLE + c x policy gradient; with m = 0 the targets are not even read."""
    policy, batch = tiny_lm(), supervised([0, 1, 2, 3], [1, 2])
    grads = {}
    for m, c in ((1.0, 0.0), (0.0, 0.7), (2.0, 0.7)):
        options = replace(OPTIONS, entropy=0.3, mle=m, reinforce=c, kl=0.2)
        own = batch if c else replace(batch, sampled=None)
        objective = Improvement(policy, options, Decoding(False, 8, top_k=6))
        grads[m], metrics = gradients(policy, objective, [own])
        assert ("weighted_nll" in metrics) is (m > 0)
    assert_close(grads[2.0], 2 * grads[1.0] + grads[0.0], rtol=1e-4, atol=1e-6)


def test_the_effective_share_is_that_of_equal_weights():
    """All the same: 1; one of two equal targets alone, or half of each one's tokens: 1/2."""
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    uniform = uniform_weights(mask)
    assert effective_share(uniform, mask) == pytest.approx(1)
    pair = torch.ones(2, 4, dtype=torch.bool)
    assert effective_share(torch.tensor([[0.25] * 4, [0.0] * 4]), pair) == pytest.approx(0.5)
    assert effective_share(torch.tensor([[0.5, 0.5, 0, 0]] * 2), pair) == pytest.approx(0.5)
    assert effective_share(torch.zeros(2, 4), pair) == 0
