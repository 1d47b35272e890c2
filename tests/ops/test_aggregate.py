"""Aggregators against their formulas written out by hand, and their invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pgtg.config import AggregatorConfig
from pgtg.config.registry import AGGREGATORS
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.bounds import BOUNDS, sigmoid_bound, softplus_bound
from pgtg.ops.masking import pad

NAMES = sorted(AGGREGATORS)
BETA = 0.7


def evaluate_groups(
    name: str,
    rewards: torch.Tensor,
    mask: torch.Tensor,
    groups: torch.Tensor,
    *,
    temperature: float = 2.0,
    length_normalized: bool = False,
) -> torch.Tensor:
    cfg = AggregatorConfig(name, temperature, length_normalized)
    return Aggregator.of(cfg).groups(rewards, mask, groups)


def by_hand(name: str, rewards: list[list[float]], normalized: bool) -> list[float]:
    """Evaluations of one group from the paper's formulas, in plain Python."""
    c = sum(map(len, rewards)) / len(rewards)
    values = []
    for r in rewards:
        share = len(r) if normalized else 1
        soft_max = BETA * math.log(sum(math.exp(x / BETA) for x in r) / share)
        soft_min = -BETA * math.log(sum(math.exp(-x / BETA) for x in r) / share)
        formula = {"avg": c * sum(r) / len(r), "sum": sum(r), "max": c * soft_max}
        values.append((formula | {"min": c * soft_min})[name])
    return values


def rectangle(rows: list[list[float]], fill: float = 0.0, side: str = "right"):
    """Rewards and mask of one group, with `fill` in the padding."""
    _, mask = pad([[1] * len(row) for row in rows], side=side)
    rewards = torch.full(mask.shape, fill, dtype=torch.double)
    rewards[mask] = torch.tensor([x for row in rows for x in row], dtype=torch.double)
    return rewards, mask


rows_of_rewards = st.lists(
    st.lists(st.floats(-3, 3, allow_nan=False), min_size=1, max_size=5), min_size=2, max_size=4
)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, derandomize=True, deadline=None)
@given(rows_of_rewards)
def test_formulas(name: str, normalized: bool, rows: list[list[float]]):
    """Right- and left-padded, with NaN in the padding, equal to the formulas in plain Python."""
    expected = torch.tensor([by_hand(name, rows, normalized)], dtype=torch.double)
    for side in ("right", "left"):
        rewards, mask = rectangle(rows, math.nan, side)
        groups = torch.arange(len(rows))[None]
        found = evaluate_groups(
            name, rewards, mask, groups, temperature=BETA, length_normalized=normalized
        )
        assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_candidates_in_any_order(name: str):
    """C belongs to the group, not to the batch; a generation may stand in several groups."""
    rows = [[0.1], [0.5, 0.2, 0.9], [1.0, 0.3], [0.4] * 5]
    rewards, mask = rectangle(rows)
    groups = torch.tensor([[3, 0, 1], [1, 2, 3]])
    found = evaluate_groups(name, rewards, mask, groups, temperature=BETA)
    for line, members in zip(found, groups.tolist(), strict=True):
        expected = by_hand(name, [rows[m] for m in members], False)
        assert_close(line, torch.tensor(expected, dtype=torch.double))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_finite_differences_and_is_zero_at_padding(name: str):
    rewards, mask = rectangle([[0.1], [0.5, 0.2, 0.9], [1.0, 0.3]])
    rewards.requires_grad_()
    groups = torch.tensor([[2, 0, 1]])
    assert torch.autograd.gradcheck(lambda r: evaluate_groups(name, r, mask, groups), (rewards,))
    evaluate_groups(name, rewards, mask, groups).sum().backward()
    assert rewards.grad is not None
    assert (rewards.grad[~mask] == 0).all() and (rewards.grad[mask] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_generation_without_tokens_is_finite(name: str):
    rewards, mask = torch.ones(2, 3, requires_grad=True), torch.tensor([[True] * 3, [False] * 3])
    found = evaluate_groups(name, rewards, mask, torch.tensor([[0, 1]]))
    found.sum().backward()
    assert found[0, 1].item() == 0.0
    assert rewards.grad is not None and rewards.grad.isfinite().all()


@pytest.mark.parametrize("name", ["max", "min"])
def test_length_alone_moves_only_the_form_that_is_not_normalised(name: str):
    """Equal rewards of 1 over 2 and 8 tokens: C 1 when normalised; log T off or on otherwise."""
    rewards, mask = rectangle([[1.0] * 2, [1.0] * 8])
    groups = torch.tensor([[0, 1]])
    level = evaluate_groups(name, rewards, mask, groups, length_normalized=True)
    assert_close(level, torch.full((1, 2), 5.0, dtype=torch.double))
    short, long = evaluate_groups(name, rewards, mask, groups, temperature=2.0)[0].tolist()
    sign = 1 if name == "max" else -1
    assert long - short == pytest.approx(sign * 5 * 2 * math.log(4))


@pytest.mark.parametrize(("name", "limit"), [("max", max), ("min", min)])
def test_small_temperature_is_the_hard_extreme(name: str, limit):
    rewards, mask = rectangle([[0.2, 0.9, 0.5]])
    found = evaluate_groups(name, rewards, mask, torch.tensor([[0]]), temperature=1e-3)
    assert found.item() == pytest.approx(3 * limit(0.2, 0.9, 0.5), abs=1e-6)


def test_half_precision_rewards_are_aggregated_in_float32():
    rewards, mask = torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(2, 4, dtype=torch.bool)
    assert evaluate_groups("avg", rewards, mask, torch.tensor([[0, 1]])).dtype == torch.float32


def test_bounds():
    """Range, monotony, the value at 0 by hand, and gradients against finite differences."""
    z = torch.linspace(-30, 30, 601, dtype=torch.double)
    low = -math.log(math.expm1(1.0))  # y at z where softplus(1 - z) = 1 is 0; used below
    at_zero = math.log1p(math.exp(1 - math.log1p(math.exp(1))))
    assert softplus_bound(torch.zeros(1)).item() == pytest.approx(at_zero, rel=1e-6)
    assert at_zero == pytest.approx(0.5487, abs=1e-4)
    where_y_is_zero = torch.tensor([1.0 + low], dtype=torch.double)
    assert softplus_bound(where_y_is_zero).item() == pytest.approx(math.log(2), rel=1e-6)
    assert sigmoid_bound(torch.tensor([math.log(3)])).item() == pytest.approx(0.75)
    for name, ceiling in (("softplus", math.log1p(math.e)), ("sigmoid", 1.0)):
        r = BOUNDS[name](z)
        assert (r.diff() > 0).all() and r.min() > 0 and r.max() <= ceiling + 1e-8
        assert torch.autograd.gradcheck(BOUNDS[name], (z[::60].clone().requires_grad_(),))


@pytest.mark.parametrize("normalized", [False, True])
def test_weights_by_hand(normalized: bool):
    """avg and sum: equal shares; max: softmax(r / beta), min: softmax(-r / beta); rows add to 1."""
    rewards, mask = rectangle([[0.0, BETA * math.log(3)], [0.4], [0.1, 0.7, 0.2]], math.nan)
    expected = {
        "avg": ([0.5, 0.5], [1 / 3] * 3),
        "sum": ([0.5, 0.5], [1 / 3] * 3),
        "max": ([0.25, 0.75], _softmax([0.1, 0.7, 0.2])),
        "min": ([0.75, 0.25], _softmax([-0.1, -0.7, -0.2])),
    }
    for name, (first, last) in expected.items():
        weigh = Aggregator.of(AggregatorConfig(name, BETA, normalized)).weights
        with torch.inference_mode(False), torch.no_grad():
            found = weigh(rewards, mask)
        assert found[0].tolist() == pytest.approx([*first, 0.0])
        assert found[1].tolist() == pytest.approx([1.0, 0.0, 0.0])
        assert found[2].tolist() == pytest.approx(last)


def _softmax(values: list[float]) -> list[float]:
    shares = [math.exp(value / BETA) for value in values]
    return [share / sum(shares) for share in shares]


@pytest.mark.parametrize("name", ["avg", "sum", "min", "max"])
def test_a_group_of_fewer_is_as_if_alone(name: str):
    """-1 in a group: C is the mean length of those that are there; their values stay."""
    torch.manual_seed(0)
    f = Aggregator.of(AggregatorConfig(name, 2.0, False))
    rewards, mask = torch.randn(5, 4), torch.arange(4) < torch.tensor([4, 1, 3, 2, 4])[:, None]
    found = f.groups(rewards, mask, torch.tensor([[0, 1, 2], [3, 4, -1]]))
    assert torch.equal(found[1, :2], f.groups(rewards, mask, torch.tensor([[3, 4]]))[0])
    assert torch.equal(found[:1], f.groups(rewards, mask, torch.tensor([[0, 1, 2]])))
