"""Means, intervals and tests: against scipy, enumeration and hand arithmetic; their error rates."""

import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from pgtg.ops.statistics import (
    SAME,
    Comparison,
    answer,
    compare,
    corrected,
    holm,
    sign_flip,
    summarize,
    t_test,
)
from tests.support.cases import some


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


def test_sign_flip_tells_p_values_apart_that_no_resample_reaches():
    """Else the smallest p of a large family could never survive its correction."""
    differences = np.random.default_rng(1).normal(1.0, 1, 200)
    _, p = map(float, stats.ttest_1samp(differences, 0.0))
    assert sign_flip(differences, resamples=999) == pytest.approx(p) and p < 1e-20


def test_t_test_is_scipys_own_and_knows_differences_without_noise():
    differences = np.random.default_rng(5).normal(1.0, 2, 4).tolist()
    _, p = stats.ttest_1samp(differences, 0.0)
    assert t_test(differences) == pytest.approx(p)
    assert (t_test([2.0, 2.0, 2.0]), t_test([0.0, 0.0]), t_test([2.0])) == (0.0, 1.0, None)


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.0, 5.0, 0.0], [3.0]])
def test_nothing_to_flip_is_no_finding(differences: list[float]):
    assert sign_flip(np.array(differences)) == 1.0


def test_holm_by_hand():
    """.01 x 3; .03 x 2 = .06; .04 x 1, but never below the one before: .06. And capped at 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03], families=2) == pytest.approx([0.06, 0.12, 0.12])


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
    # seeds: differences 3 and 1, mean 2, sd sqrt(2), half width 12.7062 (t of 1 degree) x 1
    assert found.seeds_low == pytest.approx(2 - 12.7062, abs=1e-4)
    assert found.seeds_high == pytest.approx(2 + 12.7062, abs=1e-4)
    assert found.p_seeds == pytest.approx(1 - 2 * math.atan(2) / math.pi)  # Cauchy
    assert compare({"a": np.zeros(3)}, {"b": np.zeros(3)}) is None


def scores(rng: np.random.Generator, seeds: int, shift: float) -> dict[str, np.ndarray]:
    """Seeds of one system on examples whose difficulty all systems share (given by `rng`)."""
    return {str(seed): rng.normal(60 + shift, 10, 80) for seed in range(seeds)}


def test_folds_have_examples_of_their_own():
    """All examples are tested, none is averaged; each seed gives the mean of its own."""
    ours = {"0": np.array([1.0, 4.0, math.nan]), "1": np.array([2.0, 9.0]), "2": np.array([5.0])}
    theirs = {name: np.ones_like(values) for name, values in ours.items()}
    found = compare(ours, theirs, apart=True)
    assert found is not None
    differences = [0.0, 3.0, 1.0, 8.0, 4.0]
    assert (found.seeds, found.examples, found.seeds_above) == (3, 5, 3)
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.p == sign_flip(np.array(differences))
    assert found.p_seeds == pytest.approx(cast(Any, stats.ttest_1samp([1.5, 4.5, 4.0], 0)).pvalue)
    assert compare({"0": np.array([math.nan])}, {"0": np.ones(1)}, apart=True) is None


def test_planted_difference_is_found():
    rng = np.random.default_rng(2)
    found = compare(scores(rng, 3, 4.0), scores(rng, 3, 0.0), resamples=999)
    assert found is not None and found.p < 0.01 and found.low > 0


def verdict(seeds: int, p: float, p_seeds: float | None) -> str:
    """Of one comparison with a positive difference that stands alone."""
    one = Comparison(seeds, 9, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, p, p_seeds, seeds)
    return corrected([one])[0].verdict


def test_a_verdict_needs_both_tests_and_three_seeds():
    assert verdict(3, 0.01, 0.04) == "higher"
    assert verdict(3, 0.01, 0.06) == verdict(3, 0.06, 0.01) == SAME
    assert verdict(2, 0.01, 0.9) == verdict(1, 0.01, None) == "on these texts: higher"
    assert verdict(1, 0.06, None) == f"on these texts: {SAME}"


def sweep(rng: np.random.Generator, seeds: int, seed_sd: float, shift: float) -> list[Comparison]:
    """Four rows against a baseline on three metrics: one method under five names, with `shift`
    points more for the first row. A seed moves all examples of a training together [points]."""
    found = []
    for _ in range(3):  # metrics
        difficulty = rng.normal(0, 15, 300)

        def system(more: float = 0.0) -> dict[str, np.ndarray]:
            return {
                str(s): difficulty + rng.normal(more, 6, 300) + rng.normal(0, seed_sd)  # noqa: B023
                for s in range(seeds)
            }

        baseline = system()
        for more in (shift, 0.0, 0.0, 0.0):
            found.append(compare(system(more), baseline, resamples=199))
    return corrected([one for one in found if one is not None])


def cries(seeds: int, simulations: int, seed_sd: float, shift: float = 0.0) -> float:
    """Share of sweeps in which any comparison gets a verdict."""
    rng = np.random.default_rng(3)
    found = (sweep(rng, seeds, seed_sd, shift) for _ in range(simulations))
    return sum(any(one.verdict != SAME for one in family) for family in found) / simulations


def always(*_: object, **__: object) -> float:
    """In the place of a test over texts that finds a difference wherever it is asked."""
    return 0.0


@pytest.mark.parametrize("seed_sd", some([0.0, 0.5, 1.0], 0.5))
def test_null_sweep_seldom_gets_a_verdict(monkeypatch: pytest.MonkeyPatch, seed_sd: float):
    """At most 6 % of sweeps however lucky their seeds, even if all texts say that rows differ."""
    monkeypatch.setattr("pgtg.ops.statistics.sign_flip", always)
    assert cries(3, 200, seed_sd) <= 0.06


def test_planted_difference_gets_a_verdict_over_five_seeds():
    assert cries(5, 10, 0.5, shift=12.0) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed_sd", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seeds", [3, 5])
def test_null_sweeps_at_more_simulations(
    monkeypatch: pytest.MonkeyPatch, seeds: int, seed_sd: float
):
    """3000 of each: a binomial sd of 0.4 points. The same seeds tested over texts alone, as
    before, get a verdict in most sweeps."""
    monkeypatch.setattr("pgtg.ops.statistics.sign_flip", always)
    assert cries(seeds, 3000, seed_sd) <= 0.06


def test_what_is_excluded_is_the_least_margin_of_two_one_sided_tests():
    """At that margin scipy's two one-sided tests, over seeds and over examples, just reject."""
    rng = np.random.default_rng(3)
    scores = {str(seed): rng.normal(0.1, 1, 40) + rng.normal(0, 0.2) for seed in range(5)}
    found = compare(scores, {seed: np.zeros(40) for seed in scores}, resamples=99)
    assert found is not None
    pairs = np.stack([*scores.values()])
    for level in (0.05, 0.01):
        margin = found.bound(level)
        assert margin is not None

        def worst(margin: float) -> float:
            """The largest p of the four tests."""
            return max(
                float(cast(Any, stats.ttest_1samp)(values, side * margin, alternative=way).pvalue)
                for values in (pairs.mean(0), pairs.mean(1))
                for side, way in ((-1, "greater"), (1, "less"))
            )

        assert worst(margin) == pytest.approx(level) and worst(margin * 1.01) < level
    (alone,), (both, _) = corrected([found]), corrected([found, found])
    assert alone.excluded == found.bound(0.05) and both.excluded == found.bound(0.025)


def test_below_three_seeds_nothing_is_excluded():
    two = {seed: np.arange(9.0) for seed in ("0", "1")}
    found = compare(two, {seed: np.zeros(9) for seed in two}, resamples=99)
    assert found is not None and corrected([found])[0].excluded is None


def test_turned_is_the_comparison_the_other_way_round():
    rng = np.random.default_rng(4)
    a, b = ({str(s): rng.normal(0, 1, 20) for s in range(3)} for _ in range(2))
    one, other = compare(a, b, resamples=99), compare(b, a, resamples=99)
    assert one is not None and other is not None
    assert one.turned().__dict__ == pytest.approx(
        {**other.__dict__, "p": one.p, "p_holm": one.p_holm}, nan_ok=True
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["better", "better"], "yes"),
        (["better", SAME], "in part"),
        (["worse", SAME], "no, the reverse"),
        ([SAME], "not shown"),
    ],
)
def test_a_question_is_answered_by_all_its_columns(words: list[str], said: str):
    assert answer(words) == said
