"""`ops` against numbers of the reference's formulas, computed elsewhere in float64.

Where they come from: `tests/data/copy_goldens.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pgtg.config.registry import AGGREGATORS
from pgtg.ops.bounds import softplus_bound
from pgtg.ops.objectives import mle_weights, reinforce, weighted_nll
from pgtg.ops.ranking import plackett_luce_nll
from pgtg.ops.sampling import entropy, log_probability
from tests.data.copy_goldens import GOLDENS
from tests.ops.test_aggregate import evaluate_groups

TIGHT: dict[str, Any] = {"rtol": 1e-5, "atol": 0.0}


def cases(kind: str, path: Path = GOLDENS) -> list[dict[str, Any]]:
    """The cases of one formula, inputs and outputs together."""
    return json.loads(path.read_text(encoding="utf-8"))[kind]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@pytest.mark.parametrize("case", cases("aggregate"))
def test_aggregators(case: dict[str, Any], name: str):
    """Sequence evaluations with the paper's C, for all four aggregators."""
    b, k, _ = case["shape_BKT"]
    groups = torch.arange(b * k).view(b, k)
    mask = torch.tensor(case["mask"]).bool()
    found = evaluate_groups(
        name, tensor(case["token_rewards"]), mask, groups, temperature=case["temperature"]
    )
    assert_close(found, tensor(case[name]), **TIGHT)


@pytest.mark.parametrize("case", cases("plackett_luce"))
def test_plackett_luce(case: dict[str, Any]):
    """Loss and gradient; 1e-4 since the reference adds 1e-10 inside the logarithm."""
    evaluations = tensor(case["evaluations"]).requires_grad_()
    loss = plackett_luce_nll(evaluations, tensor(case["preference_scores"])).mean()
    loss.backward()
    assert_close(loss.detach(), tensor(case["loss"]), rtol=1e-4, atol=0.0)
    # the same 1e-10 moves the gradient (entries up to 0.4) by up to 1.3e-6 where e^e_i is small
    assert_close(evaluations.grad, tensor(case["grad"]), rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("case", cases("bounded_reward_softplus"))
def test_bounded_reward(case: dict[str, Any]):
    """The softplus bound over [-12, 12] and random inputs."""
    assert_close(softplus_bound(tensor(case["logits"])), tensor(case["rewards"]), **TIGHT)


@pytest.mark.parametrize("case", cases("reward_weighted_mle"))
def test_reward_weighted_mle(case: dict[str, Any]):
    """Weights, loss, and loss with reward-to-go weights."""
    labels = torch.tensor(case["labels"])
    mask, rewards = labels >= 0, tensor(case["token_rewards"])
    log_probs = log_probability(tensor(case["logits"]), labels.clamp(min=0))
    weights = mle_weights(rewards, mask)
    assert_close(weights, tensor(case["weights"]), **TIGHT)
    assert_close(weighted_nll(log_probs, weights, mask).mean(), tensor(case["loss"]), **TIGHT)
    to_go = weighted_nll(log_probs, mle_weights(rewards, mask, to_go=True), mask).mean()
    assert_close(to_go, tensor(case["loss_reward_to_go_weights"]), **TIGHT)


@pytest.mark.parametrize("case", cases("reinforce_max_entropy"))
def test_reinforce_and_entropy(case: dict[str, Any]):
    """Means over real tokens of the policy-gradient loss and of the negative entropy [nats]."""
    mask, logits = torch.tensor(case["mask"]).bool(), tensor(case["logits"])
    log_probs = log_probability(logits, torch.tensor(case["actions"]))
    loss = reinforce(log_probs, tensor(case["token_rewards"]))[mask].mean()
    negative_entropy = -entropy(logits)[mask].mean()
    assert_close(loss, tensor(case["reinforce_loss"]), **TIGHT)
    assert_close(negative_entropy, tensor(case["negative_entropy"]), **TIGHT)
    assert_close(loss + case["alpha"] * negative_entropy, tensor(case["total"]), **TIGHT)
