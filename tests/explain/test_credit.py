"""Ranks, misjudged pairs and scales: what needs no run."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgtg.config import AggregatorConfig
from pgtg.explain.credit import Group, Passage, evaluations, explained, misjudged, ranks, views
from pgtg.explain.shading import LEVELS, Scale, spelled
from pgtg.models import pieces
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.bounds import BOUNDS, WIDTHS
from pgtg.ops.ranking import pair_accuracy

AVG = Aggregator.of(AggregatorConfig("avg", 2.0, False))
SUM = Aggregator.of(AggregatorConfig("sum", 2.0, False))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_ranks_are_places_in_the_sorted_list(values: list[int]):
    assert ranks(values) == [sorted(values, reverse=True).index(v) + 1 for v in values]


@given(st.permutations(range(5)), st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_misjudged_pairs_are_those_that_pair_accuracy_lacks(values: list[int], scores: list[int]):
    wrong, pairs = misjudged(scores, values)
    expected = pair_accuracy(torch.tensor([values]).double(), torch.tensor([scores]).double())
    assert pairs == sum(a != b for a, b in itertools.combinations(scores, 2))
    if pairs:
        assert 1 - wrong / pairs == pytest.approx(expected)


def test_misjudged_without_a_judge_or_with_equal_evaluations():
    assert misjudged([None, None], [1.0, 2.0]) == (0, 0)
    assert misjudged([1.0, 2.0], [3.0, 3.0]) == (1, 1)


def test_evaluations_by_hand():
    """avg: mean length of the group (2) times each mean; sum: plain."""
    rows = [[1.0, 2.0, 3.0], [5.0]]
    assert evaluations(rows, AVG) == [4.0, 10.0]
    assert evaluations(rows, SUM) == [6.0, 5.0]


def test_explained_is_in_the_judges_order():
    group = Group("g", "", (), tuple(Passage(t, [1], s) for t, s in zip("abc", (1, 3, 3))))  # noqa: B905
    cut = [(t, [pieces.Piece(1, t, 0, 1)]) for t in "abc"]
    found = explained(group, [views(cut, [[2.0], [1.0], [0.0]], SUM)])
    assert [entry.views[0].text for entry in found.entries] == ["b", "c", "a"]
    assert [entry.score_rank for entry in found.entries] == [1, 1, 3]
    assert [entry.views[0].rank for entry in found.entries] == [2, 3, 1]
    assert found.wrong == (2,) and found.pairs == 2


def test_scale_levels():
    scale = Scale(0.0, 1.0, 2.0)
    levels = [scale.level(value) for value in (-9.0, 0.0, 0.5, 1.0, 1.5, 2.0, 9.0)]
    assert levels == [-LEVELS, -LEVELS, -3, 0, 3, LEVELS, LEVELS]
    flat = Scale.of([0.7, 0.7])
    assert flat.level(0.7) == 0 and flat.number(-0.7) == "\u22120.700"
    assert Scale.of([1.3131, 1.3132]).number(1.31312349) == "1.3131235"


def test_a_scale_that_spans_little_of_the_bound_says_so():
    """Below a tenth: sigmoid allows 1, softplus 1.3133, without a bound there is no whole."""
    assert "spans 9.0 % of what the bound allows" in Scale(0.5, 0.545, 0.59).note("sigmoid")
    assert Scale(0.5, 0.56, 0.62).note("sigmoid") == Scale(0.0, 0.0, 0.0).note("none") == ""
    assert "spans 9.1 %" in Scale(0.0, 0.06, 0.12).note("softplus")
    for name, bound in BOUNDS.items():
        if name in WIDTHS:
            low, high = bound(torch.tensor([-1e4, 1e4], dtype=torch.float64)).tolist()
            assert high - low == pytest.approx(WIDTHS[name], abs=1e-6)


def test_spelled_shows_all_of_a_token():
    assert spelled(" the\n\t") == "␣the↵⇥"
    assert spelled("\u0301") == "◌\u0301" and spelled("\u202e") == "⟨U+202E⟩"
