"""Losses on pairs and the policy gradient of groups, against released functions and by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from pgtg.ops.preferences import (
    clipped_surrogate,
    dpo,
    group_normalized,
    ipo,
    leave_one_out,
    simpo,
    sums_of_rows,
    tdpo,
)
from pgtg.ops.sampling import log_probability
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import TIGHT, cases, tensor

SMALL: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-9}


def losses_of(case: dict[str, Any], logits: Tensor) -> Tensor:
    """[3] losses of three pairs from [2, 3, T, V] logits: better texts, then the others."""
    start, mask = tensor(case["reference_logits"]), torch.tensor(case["mask"]).bool()
    tokens, beta, kind = torch.tensor(case["tokens"]), case["beta"], case["kind"]
    own, others = (log_probability(each, tokens) for each in (logits, start))
    if kind == "simpo":
        means = own.where(mask, 0.0).sum(-1) / mask.sum(-1)
        return simpo(*means, beta=beta, gamma=case["gamma_over_beta"] * beta)
    ratios = (own - others).where(mask, 0.0).sum(-1)
    if kind == "dpo":
        return dpo(*ratios, beta=beta, smoothing=case["label_smoothing"])
    if kind == "ipo":
        return ipo(*ratios, beta=beta)
    start = start.log_softmax(-1)
    kl = (start.exp() * (start - logits.log_softmax(-1))).sum(-1).where(mask, 0.0).sum(-1)
    return tdpo(*ratios, *kl, beta=beta, alpha=None if kind == "tdpo1" else case["alpha"])


@pytest.mark.parametrize("case", cases("preference_losses", RIVALS), ids=lambda c: c["kind"])
def test_losses_on_pairs_and_their_gradients(case: dict[str, Any]):
    logits = tensor(case["logits"]).requires_grad_()
    losses = losses_of(case, logits)
    assert_close(losses.mean(), tensor(case["loss"]), **TIGHT)
    if "per_pair" in case:
        assert_close(losses, tensor(case["per_pair"]), **TIGHT)
    losses.mean().backward()
    assert logits.grad is not None
    assert_close(logits.grad, tensor(case["grad_logits"]), rtol=1e-5, atol=1e-8)


ESTIMATORS = {"rloo": leave_one_out, "group_norm": group_normalized}


@pytest.mark.parametrize(
    "case", [c for c in cases("group_advantages", RIVALS) if c["estimator"] in ESTIMATORS]
)
def test_advantages_of_groups(case: dict[str, Any]):
    scores, size = tensor(case["scores"]), case["group_size"]
    group = torch.arange(len(scores)) // size
    found = ESTIMATORS[case["estimator"]](scores, group)
    mask = torch.tensor(case["mask"]).bool()
    assert_close(found[:, None].where(mask, 0.0), tensor(case["advantages"]), **SMALL)


def test_advantages_of_unequal_groups_by_hand():
    """Groups 7 (three), 2 (two) and 5 (one), mixed; all scores of group 2 are equal."""
    scores, group = tensor([1.0, 4.0, 3.0, 4.0, 8.0, 9.0]), torch.tensor([7, 2, 7, 2, 7, 5])
    expected = tensor([1 - 5.5, 0.0, 3 - 4.5, 0.0, 8 - 2.0, 9.0])
    found = leave_one_out(scores, group)
    assert_close(found[:5], expected[:5])
    assert found[5] == 0.0
    spread = tensor([1.0, 3.0, 8.0]).std()
    expected = tensor([-3.0, 0.0, -1.0, 0.0, 4.0, 0.0]) / spread
    assert_close(group_normalized(scores, group), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("case", cases("clipped_losses_masked", RIVALS))
def test_the_clipped_surrogate_and_its_gradient(case: dict[str, Any]):
    log_probs = tensor(case["log_prob"]).requires_grad_()
    mask = torch.tensor(case["mask"]).bool()
    old, advantage = tensor(case["old_log_prob"]), tensor(case["advantages"])
    found = clipped_surrogate(log_probs, old, advantage, mask, clip=case["clip"])
    if case["mean"] == "tokens":
        loss = found.sum() / mask.sum()
    else:
        loss = (sums_of_rows(found, mask) / mask.sum(-1)).mean()
    assert_close(loss, tensor(case["policy_loss"]), **TIGHT)
    loss.backward()
    assert log_probs.grad is not None
    assert_close(log_probs.grad, tensor(case["grad_log_prob"]), rtol=1e-5, atol=1e-9)


def test_a_whole_sequence_has_one_ratio():
    log_probs, old = tensor([[-1.0, -2.0, 9.9]]), tensor([[-1.1, -1.8, 0.0]])
    mask, advantage = torch.tensor([[True, True, False]]), tensor([[2.0, 2.0, 2.0]])
    found = clipped_surrogate(log_probs, old, advantage, mask, clip=0.05, whole=True)
    ratio = tensor(0.1 - 0.2).exp()  # below 1 - clip: the smaller of both is taken
    assert_close(found, tensor([[-2 * ratio, -2 * ratio, 0.0]]))
    found = clipped_surrogate(log_probs, old, -advantage, mask, clip=0.05, whole=True)
    assert_close(found, tensor([[1.9, 1.9, 0.0]]))  # clipped: no gradient


def test_without_a_difference_a_pair_costs_log_two():
    zero = torch.zeros(2)
    assert_close(dpo(zero, zero, beta=0.3, smoothing=0.2), -logsigmoid(zero))
    assert_close(tdpo(zero, zero, zero, zero, beta=0.3), -logsigmoid(zero))
