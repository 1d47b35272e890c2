"""Figures of planted values, against sums over pairs of tokens."""

import itertools

import numpy as np
import pytest

from pgtg.benchmark.figures import ALL, LOGPROB, METRICS, Row, figures, pairs_right, table
from pgtg.benchmark.texts import Group, Text, Texts
from pgtg.data.pairs import Ranking
from pgtg.data.spans import Span
from pgtg.models.pieces import Piece


def letters(question: int, text: str, *spans: Span) -> Text:
    """A token for each letter, and one that ends the text."""
    pieces = [Piece(n, c, n, n + 1) for n, c in enumerate(text)]
    pieces.append(Piece(9, "</s>", len(text), len(text)))
    return Text(question, text, list(range(len(pieces))), tuple(pieces), spans)


TEXTS = Texts(
    [[1], [2]],
    [
        letters(0, "abcd", (0, 2, "x"), (1, 3, "y")),
        letters(0, "ab", (0, 1, "x")),
        letters(1, "abc"),
        Text(1, "b", [0, 1], letters(1, "b").pieces, None),
    ],
    [
        Group(0, (0, 1), Ranking("0", "p", ("", ""), (1.0, 0.0))),
        Group(1, (2, 3), Ranking("1", "q", ("", ""), (0.0, 0.0), ((1, 0),))),
    ],
    (0, 0),
)
# per letter; the last value of each is the end token's, which is not shown
VALUES = [[0.1, 0.7, 0.3, 0.9, -9], [0.3, 0.2, -9], [0.8, 0.3, 0.5, -9], [0.0, -9]]
LABELS = {
    ALL: ([0.1, 0.7, 0.3, 0.3], [0.9, 0.2, 0.8, 0.3, 0.5]),
    "x": ([0.1, 0.7, 0.3], [0.9, 0.2, 0.8, 0.3, 0.5]),
    "y": ([0.7, 0.3], [0.9, 0.2, 0.8, 0.3, 0.5]),
}


def test_figures_are_shares_of_pairs_by_label():
    values = [np.array(own) for own in VALUES]
    flat = [np.zeros(len(own)) for own in VALUES]
    rows = [Row("found", values, np.array([2.0, 1.0, 1.0, 1.0])), Row(LOGPROB, flat, np.zeros(4))]
    found = figures(TEXTS, rows, seed=0)
    of = {(one.errors, one.row, one.metric): one for one in found}
    for label, (errors, others) in LABELS.items():
        one = of[label, "found", "auc"]
        assert (one.error_tokens, one.tokens) == (len(errors), len(errors) + len(others))
        won = [(e < o) + (e == o) / 2 for e, o in itertools.product(errors, others)]
        assert one.estimate.value == pytest.approx(np.mean(won))
        assert one.above.value == pytest.approx(np.mean(won) - 0.5)
        strata = of[label, "found", "auc_within_strata"]  # one stratum: log-probs are equal
        assert strata.estimate.value == pytest.approx(np.mean(won))
        every = [*errors, *others]
        precision = [sum(o <= e for o in errors) / sum(o <= e for o in every) for e in errors]
        assert of[label, "found", "average_precision"].estimate.value == pytest.approx(
            np.mean(precision)
        )
    assert of[ALL, "found", "pairs"].estimate.value == 0.75  # one right, one tied
    assert ("x", "found", "pairs") not in of

    columns, lines = table(found)
    assert columns == ["%", *METRICS.values()]
    assert [line[0] for line in lines if not line[0].startswith(" ")] == [
        "all errors (4)",
        "x (3)",
        "y (2)",
    ]
    assert lines[0][-2:] == ["44.4", "50"]  # what chance gives: the share of errors


def test_pairs_are_by_scores_or_as_they_were_compared():
    won, pairs = pairs_right(TEXTS, np.array([0.0, 1.0, 0.0, 1.0]))
    assert won.tolist() == [0.0, 1.0] and pairs.tolist() == [1.0, 1.0]
