"""Means, intervals and tests: against scipy, enumeration and hand arithmetic; their error rates."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pgtg.report.statistics import compare, holm, sign_flip, summarize


def test_interval_of_three_seeds_by_hand():
    """1, 2, 3: mean 2, sd 1, half width 4.302653 / sqrt(3) = 2.484138 (t of 2 degrees, table)."""
    found = summarize([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-5)


def test_interval_is_scipys_own():
    values = np.random.default_rng(0).normal(80, 3, 5).tolist()
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = summarize(values)
    assert found.low == pytest.approx(interval.low) and found.high == pytest.approx(interval.high)


def test_one_seed_has_a_mean_and_nothing_else():
    found = summarize([71.5])
    assert (found.mean, found.sd, found.low, found.high) == (71.5, None, None, None)


def test_sign_flip_of_few_examples_is_exact():
    """Share of all 2^n sign patterns whose sum is at least as far from 0, by enumeration."""
    differences = np.array([0.4, 1.9, -0.3, 1.1, 0.7, 2.0])
    sums = [abs(np.dot(s, differences)) for s in itertools.product((1, -1), repeat=6)]
    expected = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
    assert sign_flip(differences, resamples=9999) == pytest.approx(expected)


def test_sign_flip_agrees_with_the_t_test_on_many_normal_differences():
    differences = np.random.default_rng(1).normal(0.12, 1, 400)
    _, p = stats.ttest_1samp(differences, 0.0)
    assert sign_flip(differences, resamples=4999) == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.0, 5.0, 0.0], [3.0]])
def test_nothing_to_flip_is_no_finding(differences: list[float]):
    assert sign_flip(np.array(differences)) == 1.0


def test_holm_by_hand():
    """.01 x 3; .03 x 2 = .06; .04 x 1, but never below the one before: .06. And capped at 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_compare_by_hand():
    """Seeds a and b are common; differences over their mean are 1, 2, 3, so d_z = 2 / 1."""
    ours = {"a": np.array([2.0, 3.0, 4.0]), "b": np.array([1.0, 2.0, 3.0]), "c": np.zeros(3)}
    theirs = {"a": np.array([0.0, 0.0, 0.0]), "b": np.array([1.0, 1.0, 1.0]), "d": np.ones(3)}
    found = compare(ours, theirs)
    assert found is not None
    assert (found.seeds, found.examples, found.seeds_above) == (2, 3, 2)
    assert found.difference == pytest.approx(2.0) and found.effect == pytest.approx(2.0)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-5)
    assert found.p == pytest.approx(0.25)  # of 8 patterns, all plus and all minus
    assert compare({"a": np.zeros(3)}, {"b": np.zeros(3)}) is None


def scores(rng: np.random.Generator, seeds: int, shift: float) -> dict[str, np.ndarray]:
    """Seeds of one system on examples whose difficulty all systems share (given by `rng`)."""
    return {str(seed): rng.normal(60 + shift, 10, 80) for seed in range(seeds)}


def test_planted_difference_is_found():
    rng = np.random.default_rng(2)
    found = compare(scores(rng, 3, 4.0), scores(rng, 3, 0.0), resamples=999)
    assert found is not None and found.p < 0.01 and found.low > 0


def rejections(seeds: int, simulations: int, seed_effect: float = 0.0) -> float:
    """Share of null sweeps (one method under two names) that are called different at 5 %."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(simulations):
        difficulty = rng.normal(0, 15, 60)

        def system() -> dict[str, np.ndarray]:
            return {
                str(s): difficulty + rng.normal(0, 10, 60) + rng.normal(0, seed_effect)  # noqa: B023
                for s in range(seeds)
            }

        found = compare(system(), system(), resamples=199)
        assert found is not None
        hits += holm([found.p])[0] <= 0.05
    return hits / simulations


def test_null_sweep_is_called_significant_in_about_five_percent():
    """400 simulations: 5 % with a binomial sd of 1.1 points; the bounds are three sd."""
    assert 0.017 <= rejections(3, 400) <= 0.083


@pytest.mark.slow
def test_null_sweep_at_more_simulations_and_with_lucky_seeds():
    """3000 simulations: sd 0.4 points. Where a seed moves all examples together, the test over
    examples finds it: that is why tables also say in how many seeds a row is above."""
    assert math.isclose(rejections(3, 3000), 0.05, abs_tol=0.012)
    assert rejections(3, 500, seed_effect=4.0) > 0.2
