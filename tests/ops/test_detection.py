"""AUC and average precision of tokens, against sums over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtg.ops.detection import (
    Estimate,
    Marked,
    auc,
    auc_within_texts,
    average_precision,
    draws,
    quantiles,
    share_right,
)

QUESTIONS = 4
NUMBERS = st.integers(0, 2**32 - 1)


def tokens(seed: int, *, texts: int = 2) -> tuple[Marked, np.ndarray, np.ndarray]:
    """Tokens with ties, the text of each and a stratum of each."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2, 30))
    question = np.sort(rng.integers(0, QUESTIONS, number))
    text = question * texts + rng.integers(0, texts, number)
    order = rng.permutation(number)
    value = rng.integers(0, 6, number) / 4
    marked = Marked(value[order], (rng.random(number) < 0.4)[order], question[order])
    return marked, text[order], rng.integers(0, 3, number)


def copies(marked: Marked, taken: np.ndarray) -> list[tuple[int, int]]:
    """Each token as often as its question was taken: its place, and which copy it is."""
    return [(i, n) for i, q in enumerate(marked.question) for n in range(taken[q])]


def by_pairs(marked: Marked, pairs: list[tuple[int, int]]) -> float:
    """The definition: over pairs of an error and another token."""
    value = marked.value
    won = [float(value[i] < value[j]) + 0.5 * float(value[i] == value[j]) for i, j in pairs]
    return float(np.mean(won)) if won else float("nan")


@given(NUMBERS)
@settings(max_examples=40, deadline=None)
def test_auc_is_a_share_of_pairs_on_every_draw(seed: int):
    marked, _, stratum = tokens(seed)
    taken = draws(QUESTIONS, resamples=3, seed=seed)
    found, within = auc(marked, taken), auc(marked, taken, stratum)
    for row, one in enumerate(taken):
        there = [i for i, _ in copies(marked, one)]
        errors = [i for i in there if marked.error[i]]
        others = [j for j in there if not marked.error[j]]
        pairs = [(i, j) for i in errors for j in others]
        assert found[row] == pytest.approx(by_pairs(marked, pairs), nan_ok=True)
        same = [(i, j) for i, j in pairs if stratum[i] == stratum[j]]
        assert within[row] == pytest.approx(by_pairs(marked, same), nan_ok=True)


@given(NUMBERS)
@settings(max_examples=40, deadline=None)
def test_auc_within_texts_compares_tokens_of_one_copy_of_a_text(seed: int):
    marked, text, _ = tokens(seed)
    taken = draws(QUESTIONS, resamples=3, seed=seed)
    found = auc_within_texts(marked, taken, text)
    for row, one in enumerate(taken):
        there = copies(marked, one)
        pairs = [
            (i, j)
            for i, n in there
            for j, m in there
            if n == m and text[i] == text[j] and marked.error[i] and not marked.error[j]
        ]
        assert found[row] == pytest.approx(by_pairs(marked, pairs), nan_ok=True)


@given(NUMBERS)
@settings(max_examples=40, deadline=None)
def test_average_precision_is_a_mean_over_errors(seed: int):
    marked, _, _ = tokens(seed)
    taken = draws(QUESTIONS, resamples=3, seed=seed)
    found = average_precision(marked, taken)
    for row, one in enumerate(taken):
        there = np.array([i for i, _ in copies(marked, one)], int)
        value, error = marked.value[there], marked.error[there]
        shares = [error[value <= own].mean() for own in value[error]]
        assert found[row] == pytest.approx(np.mean(shares) if shares else np.nan, nan_ok=True)


def test_draws_take_as_many_questions_as_there_are():
    taken = draws(50, resamples=200, seed=3)
    assert taken.shape == (201, 50) and (taken[0] == 1).all() and (taken.sum(1) == 50).all()
    assert (taken == draws(50, resamples=200, seed=3)).all()
    assert taken[1:].var() == pytest.approx(1.0, abs=0.1)  # of a Poisson variable, nearly


def test_the_interval_is_of_draws_that_say_something():
    found = Estimate.of(np.array([0.5, *np.linspace(0, 1, 41), np.nan]))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.025, 0.975))
    assert np.isnan(Estimate.of(np.array([np.nan, np.nan])).low)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """95 %, of 150 worlds with 30 questions whose tokens go together; binomial sd 1.8 %."""
    rng, inside = np.random.default_rng(0), 0
    for world in range(150):
        question = np.repeat(np.arange(30), 4)
        shift = rng.normal(size=30)[question]
        error = rng.random(120) < 0.5
        value = shift + rng.normal(size=120)  # says nothing of errors
        found = Estimate.of(
            auc(Marked(value, error, question), draws(30, resamples=200, seed=world))
        )
        inside += found.low <= 0.5 <= found.high
    assert 0.89 <= inside / 150 <= 1.0


def test_pairs_of_questions_are_added_up():
    won, pairs = np.array([1.0, 0.5, 0.0]), np.array([2.0, 1.0, 0.0])
    taken = np.array([[1, 1, 1], [0, 2, 1], [0, 0, 3]])
    assert share_right(won, pairs, taken)[:2] == pytest.approx([0.5, 0.5])
    assert np.isnan(share_right(won, pairs, taken)[2])


def test_quantiles_are_of_one_size():
    values = np.random.default_rng(0).normal(size=1000)
    found = quantiles(values)
    assert np.bincount(found).tolist() == [100] * 10
    assert (np.diff(found[np.argsort(values)]) >= 0).all()
    assert (quantiles(np.ones(5)) == 0).all()
