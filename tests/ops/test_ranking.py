"""Plackett–Luce and the ranking measures, against their definitions."""

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from pgtg.ops.ranking import (
    EXACT,
    auc,
    calibration_error,
    informative,
    kendall_tau,
    pair_accuracy,
    pair_margins,
    plackett_luce_nll,
    stratified_auc,
    tied_nll,
    top1_accuracy,
)

numbers = st.floats(-30, 30, allow_nan=False, width=32)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_nll_is_the_product_of_draws_without_replacement(order: tuple[int, ...]):
    """Exact on all 24 rankings of 4 candidates, against the definition [nats]."""
    evaluations, preference = torch.tensor([0.3, -1.2, 2.0, 0.0]), torch.zeros(4)
    preference[list(order)] = torch.tensor([4.0, 3.0, 2.0, 1.0])  # order[0] is the best
    draws = [evaluations[order[i]] - evaluations[list(order[i:])].logsumexp(0) for i in range(4)]
    loss = plackett_luce_nll(evaluations[None], preference[None])
    assert_close(loss, -torch.stack(draws).sum()[None], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("j", [2, 3, 5])
def test_likelihoods_of_all_orders_add_up_to_one(j: int):
    orders = torch.tensor(list(itertools.permutations(range(j)))).double()
    evaluations = torch.linspace(-2, 1, j, dtype=torch.double).expand(len(orders), j)
    assert_close(plackett_luce_nll(evaluations, orders).neg().exp().sum().item(), 1.0)


def test_a_wide_spread_in_the_right_order_costs_nothing():
    """[30, 15, 0] in the right order is 0 (the reference's 1e-10 makes 6.98 of it)."""
    right = plackett_luce_nll(torch.tensor([[30.0, 15.0, 0.0]]), torch.tensor([[3.0, 2.0, 1.0]]))
    wrong = plackett_luce_nll(torch.tensor([[30.0, 15.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    assert right.item() == pytest.approx(0.0, abs=1e-6)
    assert wrong.item() == pytest.approx(45.0, abs=1e-5)  # 30 at the first draw, 15 at the second


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_gradient_equals_finite_differences(scale: float):
    torch.manual_seed(0)
    evaluations = (scale * torch.randn(3, 4, dtype=torch.double)).requires_grad_()
    preference = torch.randn(3, 4, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda e: plackett_luce_nll(e, preference), (evaluations,))


def test_gradient_is_finite_at_extreme_evaluations():
    evaluations = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    plackett_luce_nll(evaluations, torch.tensor([[3.0, 2.0, 1.0]])).sum().backward()
    assert evaluations.grad is not None and evaluations.grad.isfinite().all()


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=6), numbers, st.randoms(use_true_random=False))
def test_shift_order_and_scale_do_not_matter(values: list[float], shift: float, rng: random.Random):
    """A constant on e, the candidates' order and a monotone map of the scores change nothing."""
    evaluations = torch.tensor([values], dtype=torch.double)
    ranks = list(range(len(values)))
    rng.shuffle(ranks)
    preference = torch.tensor([ranks], dtype=torch.double)
    loss = plackett_luce_nll(evaluations, preference)
    places = list(ranks)
    rng.shuffle(places)
    moved = plackett_luce_nll(evaluations[:, places] + shift, (preference / 3).exp()[:, places])
    assert_close(moved, loss, rtol=1e-9, atol=1e-9)
    assert loss.item() >= -1e-12


@pytest.mark.parametrize(
    ("evaluations", "preference"), [([[1.0]], [[1.0]]), ([[1.0, 2.0]], [[1.0, math.inf]])]
)
def test_too_few_candidates_or_a_score_that_is_no_number(evaluations, preference):
    with pytest.raises(ValueError, match="2 candidates"):
        plackett_luce_nll(torch.tensor(evaluations), torch.tensor(preference))


def brute_tied_nll(evaluations: Tensor, preference: Tensor) -> Tensor:
    """-log of the mean probability of the orders that agree with the scores, one by one."""
    places, total, number = range(len(evaluations)), torch.zeros((), dtype=evaluations.dtype), 0
    for order in itertools.permutations(places):
        if all(preference[a] >= preference[b] for a, b in itertools.pairwise(order)):
            draws = [
                evaluations[order[i]] - evaluations[list(order[i:])].logsumexp(0) for i in places
            ]
            total, number = total + torch.stack(draws).sum().exp(), number + 1
    return -(total / number).log()


@pytest.mark.parametrize("j", [2, 3, 4, 5, 6])
def test_ties_average_the_likelihood_over_all_orders_that_they_allow(j: int):
    """Every pattern of ties of up to six candidates that few scores make, in one batch."""
    torch.manual_seed(j)
    preference = torch.randint(0, 3, (40, j)).double()
    evaluations = 3 * torch.randn(40, j, dtype=torch.double)
    brute = torch.stack([brute_tied_nll(*row) for row in zip(evaluations, preference, strict=True)])
    assert_close(plackett_luce_nll(evaluations, preference), brute, rtol=1e-9, atol=1e-9)


def test_the_gradient_under_ties_equals_finite_differences():
    torch.manual_seed(0)
    evaluations = torch.randn(8, 5, dtype=torch.double).requires_grad_()
    preference = torch.randint(0, 3, (8, 5)).double()
    assert torch.autograd.gradcheck(lambda e: plackett_luce_nll(e, preference), (evaluations,))
    wide = torch.tensor([[-1e4, 0.0, 1e4, 3.0]], requires_grad=True)
    plackett_luce_nll(wide, torch.tensor([[3.0, 3.0, 1.0, 1.0]])).sum().backward()
    assert wide.grad is not None and wide.grad.isfinite().all()


def test_groups_without_ties_are_not_moved_by_those_with_ties():
    """To the bit: the same groups next to others whose scores tie."""
    torch.manual_seed(0)
    evaluations, preference = torch.randn(32, 5), torch.rand(32, 5)
    alone = plackett_luce_nll(evaluations, preference)
    preference[::4, 1] = preference[::4, 0]
    together = plackett_luce_nll(evaluations, preference)
    untied = torch.arange(32) % 4 != 0
    assert torch.equal(together[untied], alone[untied]) and not torch.equal(together, alone)


def test_two_candidates_are_bradley_terry_and_a_tie_of_all_says_nothing():
    evaluations = torch.tensor([[0.7, -1.1], [2.0, 5.0]], requires_grad=True)
    found = plackett_luce_nll(evaluations, torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    expected = -functional.logsigmoid(torch.tensor([1.8, 3.0]))
    assert_close(found, expected)
    tied = plackett_luce_nll(evaluations, torch.ones(2, 2))
    assert_close(tied, torch.full((2,), math.log(2)))
    (gradient,) = torch.autograd.grad(tied.sum(), evaluations)
    assert gradient.tolist() == [[0, 0], [0, 0]]


def test_the_order_of_tied_candidates_does_not_matter():
    evaluations = torch.tensor([[0.3, -1.2, 2.0, 0.1]])
    loss = plackett_luce_nll(evaluations, torch.tensor([[1.0, 5.0, 5.0, 0.0]]))
    moved = plackett_luce_nll(evaluations[:, [2, 1, 3, 0]], torch.tensor([[5.0, 5.0, 0.0, 1.0]]))
    assert_close(loss, moved)


@pytest.mark.parametrize("size", [EXACT, EXACT + 1])
def test_many_ties_are_exact_or_efrons(size: int):
    """Both are exact for equal evaluations (any one order has the mean's likelihood); Efron's sum
    by hand for others. The candidates stand before one more, and after another."""
    equal = torch.cat(
        [torch.tensor([1.5]), torch.full((size,), 0.2), torch.tensor([-0.4])]
    ).double()
    preference = torch.tensor([9.0, *[5.0] * size, 1.0])
    in_one_order = plackett_luce_nll(equal[None], -torch.arange(size + 2.0)[None])
    assert_close(plackett_luce_nll(equal[None], preference[None]), in_one_order)
    tied, rest = torch.linspace(-1, 1, size).double(), torch.tensor(0.3).double()
    efron = -tied.sum()
    for drawn in range(size):
        efron = efron + (rest.exp() + (1 - drawn / size) * tied.exp().sum()).log()
    found = tied_nll(tied[None], rest[None]).squeeze()
    assert (abs(found - efron) < 1e-9) == (size > EXACT) and abs(found - efron) < 0.1 * efron


def test_pair_and_top1_accuracy_and_tau_against_brute_force():
    """Small integers, so that ties are frequent on both sides."""
    torch.manual_seed(1)
    evaluations, preference = torch.randint(0, 4, (50, 4)) * 1.0, torch.randint(0, 3, (50, 4)) * 1.0
    hits, pairs, best, groups = 0.0, 0, 0, 0
    for e, p in zip(evaluations.tolist(), preference.tolist(), strict=True):
        for i, j in itertools.permutations(range(4), 2):
            if p[i] > p[j]:
                pairs += 1
                hits += 1.0 if e[i] > e[j] else 0.5 if e[i] == e[j] else 0.0
        if len(set(p)) > 1:
            groups += 1
            best += p[max(range(4), key=e.__getitem__)] == max(p)
    assert pair_accuracy(evaluations, preference) == pytest.approx(hits / pairs)
    assert kendall_tau(evaluations, preference) == pytest.approx(2 * hits / pairs - 1)
    assert top1_accuracy(evaluations, preference) == pytest.approx(best / groups)
    assert informative(preference).sum().item() == groups


def test_all_equal_scores_say_nothing():
    evaluations, tied = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 3.0]])
    assert math.isnan(pair_accuracy(evaluations, tied))
    assert math.isnan(top1_accuracy(evaluations, tied))
    assert informative(tied).tolist() == [False]


def brute_auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    return sum(wins) / len(wins)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(*[st.lists(st.integers(-3, 3), min_size=1, max_size=9)] * 2)
def test_auc_counts_pairs_with_half_for_ties(positive: list[int], negative: list[int]):
    found = auc(torch.tensor(positive).float(), torch.tensor(negative).float())
    assert found == pytest.approx(brute_auc(positive, negative))


def test_stratified_auc_against_brute_force_within_strata():
    """Two strata of a nuisance that moves both value and label: within each, 3 of 4 pairs."""
    positive, negative = torch.tensor([1.0, 3.0, 11.0, 13.0]), torch.tensor([0.0, 2.0, 10.0, 12.0])
    nuisance = torch.tensor([0.0, 0.0, 1.0, 1.0])
    found = stratified_auc(positive, negative, nuisance, nuisance, strata=2)
    assert found == pytest.approx(3 / 4)
    # a value that only copies the nuisance separates nothing once that is held fixed
    p, q = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert auc(p, q) > 0.7
    assert stratified_auc(p, q, p, q, strata=2) == pytest.approx(0.5)
    # strata of unequal size are weighted by their pairs: (4 * 1 + 1 * 0) / 5
    p, q = torch.tensor([5.0, 5.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    at_p, at_q = torch.tensor([0.0, 0.0, 9.0]), torch.tensor([0.0, 0.0, 9.0])
    assert stratified_auc(p, q, at_p, at_q, strata=2) == pytest.approx(4 / 5)


def test_an_empty_side_has_no_auc():
    empty, some = torch.empty(0), torch.ones(2)
    assert math.isnan(auc(empty, some))
    assert math.isnan(stratified_auc(some, empty, some, empty))


def linear_extensions(preference: Sequence[float]) -> list[tuple[int, ...]]:
    """All orders, best first, that the scores of the present candidates allow."""
    present = [i for i, score in enumerate(preference) if not math.isnan(score)]
    return [
        order
        for order in itertools.permutations(present)
        if all(preference[a] >= preference[b] for a, b in itertools.pairwise(order))
    ]


NAN = math.nan


@pytest.mark.parametrize(
    "preference",
    [
        [3.0, NAN, 1.0, 2.0],
        [NAN, 1.0, NAN, 2.0],
        [2.0, 2.0, NAN, 1.0],  # a tie above
        [1.0, NAN, 2.0, 1.0],  # a tie at the end: the likelihood of the best one alone
        [5.0, 1.0, 1.0, 1.0],
        [NAN, 1.0, 1.0, NAN],
    ],
)
def test_candidates_that_are_not_there_are_left_out(preference: list[float]):
    """Against the mean over all orders, each the product of its draws."""
    evaluations = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.double)
    orders = linear_extensions(preference)
    chances = [
        math.prod(
            (evaluations[order[i]] - evaluations[list(order[i:])].logsumexp(0)).exp().item()
            for i in range(len(order))
        )
        for order in orders
    ]
    expected = -math.log(sum(chances) / len(chances))
    scores = torch.tensor([preference], dtype=torch.double)
    for odd in (0.0, 1e4, -1e4, NAN, math.inf):
        given = torch.where(scores[0].isnan(), odd, evaluations)[None].requires_grad_()
        loss = plackett_luce_nll(given, scores)
        assert loss.item() == pytest.approx(expected, rel=1e-9)
        (gradient,) = torch.autograd.grad(loss.sum(), given)
        assert gradient.isfinite().all() and not gradient[scores.isnan()].any()
    assert torch.autograd.gradcheck(
        lambda e: plackett_luce_nll(e, scores), (evaluations[None].clone().requires_grad_(),)
    )


def test_absent_candidates_change_no_bit_of_other_groups():
    torch.manual_seed(0)
    evaluations, preference = torch.randn(6, 4), torch.randint(0, 3, (6, 4)).float()
    alone = plackett_luce_nll(evaluations, preference)
    padded = torch.cat([preference, torch.full((6, 2), NAN)], -1)
    wider = plackett_luce_nll(torch.cat([evaluations, torch.randn(6, 2)], -1), padded)
    assert torch.equal(alone, wider)


def test_a_margin_is_trls():
    """-log sigmoid(e_chosen - e_rejected - margin), either one first."""
    evaluations = torch.tensor([[1.0, 0.2], [0.1, 0.4], [0.0, 3.0]])
    preference = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    margin = torch.tensor([0.5, 0.0, 2.0])
    better = torch.tensor([0.8, -0.3, 3.0])
    expected = -functional.logsigmoid(better - margin)
    assert_close(plackett_luce_nll(evaluations, preference, margin), expected)
    wide = torch.cat([preference, torch.full((3, 1), NAN)], -1)
    assert_close(
        plackett_luce_nll(torch.cat([evaluations, margin[:, None]], -1), wide, margin), expected
    )
    with pytest.raises(ValueError, match="between two candidates"):
        plackett_luce_nll(torch.zeros(1, 3), torch.tensor([[3.0, 2.0, 1.0]]), torch.ones(1))


def test_measures_leave_out_who_is_not_there():
    evaluations = torch.tensor([[3.0, 9.0, 1.0], [1.0, 2.0, 0.0], [0.0, 0.0, NAN]])
    preference = torch.tensor([[2.0, NAN, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, NAN]])
    assert informative(preference).tolist() == [True, True, False]
    assert pair_accuracy(evaluations, preference) == pytest.approx(2 / 4)
    assert top1_accuracy(evaluations, preference) == pytest.approx(1 / 2)
    assert math.isnan(pair_accuracy(evaluations.clone().fill_(NAN), preference))


def test_margins_are_those_of_the_ordered_pairs():
    evaluations = torch.tensor([[1.0, 4.0, 2.0], [0.5, 0.5, NAN]])
    preference = torch.tensor([[3.0, 2.0, 2.0], [1.0, 2.0, NAN]])
    found = pair_margins(evaluations, preference)
    assert sorted(found.tolist()) == [-3.0, -1.0, 0.0]


def test_calibration_is_the_gap_between_confidence_and_share_right():
    """Ten pairs of confidence 0.8, of which eight are right: none; all wrong: 0.8."""
    eight = math.log(4.0)
    right = torch.tensor([eight] * 8 + [-eight] * 2)
    assert calibration_error(right) == pytest.approx(0.0, abs=1e-7)
    assert calibration_error(-right.abs()) == pytest.approx(0.8)
    mixed = torch.cat([right, torch.tensor([math.log(19.0)] * 10)])  # 0.95, all right: 0.05 off
    assert calibration_error(mixed) == pytest.approx(0.025)
    assert math.isnan(calibration_error(torch.tensor([])))
