"""PPO's parts against released functions, by hand, and where the optimum is known."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pgtg.ops.actor_critic import (
    adapted_coefficient,
    generalized_advantages,
    log_ratio_rewards,
    nucleus,
    standardized_rewards,
    token_rewards,
    value_error,
    whitened,
)
from pgtg.ops.masking import masked_mean, masked_sum, pad
from pgtg.ops.objectives import kl_to_start
from pgtg.ops.preferences import clipped_surrogate
from pgtg.ops.sampling import entropy, log_probability
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases, tensor

CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-6}  # the releases compute in float32


def rows(values: list[float], starts: list[int]) -> tuple[Tensor, Tensor]:
    """Flat values of episodes one after another as padded rows, with the mask."""
    places = [t for t, begins in enumerate(starts) if begins] + [len(starts)]
    parts = [values[i:j] for i, j in itertools.pairwise(places)]
    mask = pad([[0] * len(part) for part in parts])[1]
    found = torch.zeros(mask.shape, dtype=torch.float64)
    found[mask] = tensor(values)
    return found, mask


@pytest.mark.parametrize("case", cases("kl_controller", RIVALS))
def test_the_kl_coefficient(case: dict[str, Any]):
    coefficient = case["coeff"]
    for mean, expected in zip(case["mean_kl"], case["coeff_after"], strict=True):
        coefficient = adapted_coefficient(coefficient, mean, case["target_kl"])
        assert coefficient == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("case", cases("gae", RIVALS))
def test_advantages_and_returns(case: dict[str, Any]):
    rewards, mask = rows(case["rewards"], case["episode_start"])
    values, _ = rows(case["values"], case["episode_start"])
    after = torch.zeros(len(mask), dtype=torch.float64)
    after[-1] = 0.0 if case["last_is_end"] else case["next_value"]
    how: dict[str, Any] = {"gamma": case["gamma"], "gae_lambda": case["gae_lambda"]}
    advantages, returns = generalized_advantages(rewards, values, mask, after=after, **how)
    assert_close(advantages[mask], tensor(case["advantages"]), **CLOSE)
    assert_close(returns[mask], tensor(case["returns"]), **CLOSE)


def test_advantages_by_hand():
    """Two tokens and one: delta = (1 + 0.5 * 4 - 2, 3 - 4), A_0 = 1 + 0.5 * 0.5 * -1."""
    rewards, values = tensor([[1, 3], [5, 99]]), tensor([[2, 4], [1, 99]])
    mask = torch.tensor([[True, True], [True, False]])
    found = generalized_advantages(rewards, values, mask, gamma=0.5, gae_lambda=0.5)
    assert_close(found[0], tensor([[0.75, -1], [4, 0]]))
    assert_close(found[1], tensor([[2.75, 3], [5, 0]]))


def test_with_lambda_1_returns_are_discounted_sums():
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 3, 6, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 1, 4])[:, None]
    _, returns = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=1.0)
    for row, length in enumerate([6, 1, 4]):
        for t in range(length):
            own = sum(0.9 ** (u - t) * rewards[row, u].item() for u in range(t, length))
            assert returns[row, t].item() == pytest.approx(own)


@pytest.mark.parametrize("case", cases("ppo_rollout", RIVALS))
def test_rewards_and_advantages_of_rollouts(case: dict[str, Any]):
    """A buffer that ends within an episode: its next value stands for what comes."""
    episodes = case["episodes"]
    own, mask = rows_of([e["log_prob"] for e in episodes])
    start, values = (rows_of([e[name] for e in episodes])[0] for name in ("ref_log_prob", "values"))
    scores = tensor([e["task_reward"] for e in episodes])
    ratio = (own - start).where(mask, 0.0)
    rewards = token_rewards(ratio, scores, mask, coefficient=case["kl_coeff"])
    mean_kl = (masked_sum(ratio, mask) / mask.sum()).item()
    assert mean_kl == pytest.approx(case["mean_kl"], rel=2e-5)
    after_it = adapted_coefficient(case["kl_coeff"], mean_kl, case["target_kl"])
    assert after_it == pytest.approx(case["kl_coeff_after"], rel=2e-5)
    before = mask.sum(-1).cumsum(-1) - mask.sum(-1)
    place = before[:, None] + mask.cumsum(-1) - 1  # of each token in the buffer
    kept = mask & (place < case["buffer"])
    if case["normalize_rewards"]:
        rewards = standardized_rewards(rewards, kept)
    assert_close(rewards[kept], tensor(case["rewards"]), **CLOSE)
    after = torch.zeros(len(mask), dtype=torch.float64)
    for row, (here, real) in enumerate(zip(kept, mask, strict=True)):
        if 0 < here.sum() < real.sum():
            after[row] = values[row, int(here.sum())]
    how: dict[str, Any] = {"gamma": case["gamma"], "gae_lambda": case["gae_lambda"]}
    advantages, returns = generalized_advantages(rewards, values, kept, after=after, **how)
    assert_close(advantages[kept], tensor(case["advantages"]), **CLOSE)
    assert_close(returns[kept], tensor(case["returns"]), **CLOSE)


def rows_of(parts: list[list[float]]) -> tuple[Tensor, Tensor]:
    return rows(
        [value for part in parts for value in part],
        [int(t == 0) for part in parts for t in range(len(part))],
    )


@pytest.mark.parametrize("case", cases("ppo_loss", RIVALS))
def test_the_loss_of_a_minibatch_and_its_gradients(case: dict[str, Any]):
    names = ("log_prob", "values", "entropy")
    log_prob, values, entropies = (tensor(case[name]).requires_grad_() for name in names)
    old, advantage = tensor(case["old_log_prob"]), tensor(case["advantages"])
    if case["normalize_advantage"]:
        advantage = whitened(advantage)
    real, clip = torch.ones(1, len(old)).bool(), case["clip_range"]
    policy = clipped_surrogate(log_prob[None], old[None], advantage[None], real, clip=clip).mean()
    error = value_error(
        values[None],
        tensor(case["old_values"])[None],
        tensor(case["returns"])[None],
        clip=case["clip_range_vf"],
        replaced=True,
    ).mean()
    loss = policy + case["vf_coef"] * error - case["ent_coef"] * entropies.mean()
    assert_close(policy.detach(), tensor(case["policy_loss"]), **CLOSE)
    assert_close(error.detach(), tensor(case["value_loss"]), **CLOSE)
    assert_close(loss.detach(), tensor(case["loss"]), **CLOSE)
    assert_close(kl_to_start(old, log_prob).mean().detach(), tensor(case["approx_kl"]), **CLOSE)
    moved = ((log_prob - old).exp() - 1).abs() > clip
    assert moved.double().mean().item() == pytest.approx(case["clip_fraction"])
    loss.backward()
    if case["max_grad_norm"] is not None:
        torch.nn.utils.clip_grad_norm_([log_prob, values, entropies], case["max_grad_norm"])
    for name, given in zip(names, (log_prob, values, entropies), strict=True):
        assert_close(given.grad, tensor(case[f"grad_{name}"]), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", cases("clipped_losses_masked", RIVALS))
def test_the_value_loss_in_its_maximum_form(case: dict[str, Any]):
    mask, values = torch.tensor(case["mask"]).bool(), tensor(case["values"]).requires_grad_()
    old, returns = tensor(case["old_values"]), tensor(case["returns"])
    found = value_error(values, old, returns, clip=case["value_clip"])
    mean = masked_sum(found, mask) / mask.sum()
    if case["mean"] != "tokens":
        mean = masked_mean(found, mask).mean()
    (mean / 2).backward()
    assert_close(mean.detach() / 2, tensor(case["value_loss"]), **CLOSE)
    assert_close(values.grad, tensor(case["grad_values"]), **CLOSE)


@pytest.mark.parametrize("case", cases("nlpo_mask", RIVALS))
def test_which_tokens_a_mask_policy_leaves_open(case: dict[str, Any]):
    """The release keeps one more than it says in its class for encoder-decoders."""
    least, top_p = case["min_tokens_to_keep"], case["top"]
    if case["kind"] == "learned_top_p":
        least += 1 if least > 1 else 0
    elif case["kind"] == "learned_top_k":
        least, top_p = case["top"], -1.0
    special = torch.tensor(case["special_ids"])
    found = nucleus(tensor(case["mask_policy_logits"]), top_p, least, special)
    assert torch.equal(found, torch.tensor(case["open"]).bool())


@pytest.mark.parametrize("case", cases("nlpo_masked_distribution", RIVALS))
def test_a_masked_distribution_is_renormalised(case: dict[str, Any]):
    logits, actions = tensor(case["logits"]), torch.tensor(case["actions"])
    masked = logits.masked_fill(~torch.tensor(case["open"]).bool(), -math.inf)
    assert_close(log_probability(masked, actions), tensor(case["log_prob"]), **CLOSE)
    assert_close(entropy(masked), tensor(case["entropy"]), **CLOSE)
    # the release's own are those of the whole softmax
    assert_close(log_probability(logits, actions), tensor(case["log_prob_released"]), **CLOSE)


@pytest.mark.parametrize("case", cases("rto_rewards", RIVALS))
def test_token_rewards_of_a_log_ratio(case: dict[str, Any]):
    mask = torch.tensor(case["mask"]).bool()
    dpo, start, own = (tensor(case[f"{name}_log_prob"]) for name in ("dpo", "reference", "policy"))
    dense = log_ratio_rewards(dpo, start, mask, scale=case["scale"], clip=case["clip"])
    assert_close(dense, tensor(case["token_reward"]), **CLOSE)
    scores = tensor(case["scores"])
    rewards = token_rewards(own - start, scores, mask, coefficient=case["kl_coeff"], dense=dense)
    assert_close(rewards, tensor(case["rewards"]), **CLOSE)
    values = tensor(case["values"])
    how: dict[str, Any] = {"gamma": case["gamma"], "gae_lambda": case["gae_lambda"]}
    advantages, returns = generalized_advantages(rewards, values, mask, **how)
    assert_close(advantages, tensor(case["advantages"]), **CLOSE)
    assert_close(returns, tensor(case["returns"]), **CLOSE)


def test_a_minibatch_of_one_token_is_centred():
    assert whitened(tensor([3.0])).tolist() == [0.0]
    assert_close(whitened(tensor([1.0, 3.0])), tensor([-1.0, 1.0]) / math.sqrt(2))


def test_top_p_1_leaves_all_tokens_open():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7)
    assert nucleus(logits, 1.0, 0, torch.tensor([], dtype=torch.long)).all()


def test_a_bandit_ends_at_its_optimum():
    """One token, so PPO's fixed point is pi ~ pi_start exp(r / beta), whatever the critic says."""
    torch.manual_seed(0)
    size, beta = 5, 0.5
    reward, start = torch.rand(size, dtype=torch.float64), torch.randn(size).double().log_softmax(0)
    best = (start + reward / beta).log_softmax(0)
    logits = start.clone().requires_grad_()
    value = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits, value], lr=0.5)
    mask, actions = torch.ones(size, 1).bool(), torch.arange(size)
    for _ in range(300):
        old = logits.detach().log_softmax(0)  # all actions at their probabilities: no noise
        kept = value.detach().expand(size, 1)
        rewards = token_rewards((old - start)[:, None], reward, mask, coefficient=beta)
        how: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 0.95}
        advantage, returns = generalized_advantages(rewards, kept, mask, **how)
        for _ in range(4):
            own = logits.log_softmax(0)[actions][:, None]
            loss = clipped_surrogate(own, old[:, None], advantage, mask, clip=0.2)
            loss = loss + 0.5 * value_error(value.expand(size, 1), kept, returns)
            optimizer.zero_grad()
            (loss * old.exp()[:, None]).sum().backward()
            optimizer.step()
    assert_close(logits.log_softmax(0).exp().detach(), best.exp(), rtol=0.0, atol=1e-3)
    optimum = (best.exp() * (reward - beta * (best - start))).sum()
    assert value.item() == pytest.approx(optimum.item(), abs=1e-2)
