"""How well a value of tokens tells those under an error from the others; the lower, the likelier.

Tokens of one question are not independent of each other, so intervals are over questions: each
draw takes as many questions as there are, with replacement, and all tokens of each. Draws are
weights, how often each question was taken; the first draw is the data as they are.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

LEVEL = 0.95
RESAMPLES = 1000
CELLS = 2**22  # numbers that are held in memory at a time
CACHED = 2**17  # weights that stay in the processor's cache


@dataclass(frozen=True)
class Estimate:
    """A figure of the data and the ends of its interval; NaN where there is nothing to count."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, drawn: Float[np.ndarray, " R"]) -> "Estimate":
        """Of a figure on each draw: percentiles of all but the first, which is the data."""
        rest = drawn[1:][~np.isnan(drawn[1:])]
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(rest, [tail, 1 - tail]) if len(rest) else (np.nan, np.nan)
        return cls(float(drawn[0]), float(low), float(high))


def draws(questions: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Int[np.ndarray, "R Q"]:
    """How often each question is taken in each draw; once each in the first."""
    rng = np.random.default_rng(seed)
    taken = rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples)
    return np.concatenate([np.ones((1, questions), int), taken])


@dataclass(frozen=True)
class Marked:
    """N tokens with a value each, lower where an error is suspected.

    Args:
        value: Of each token.
        error: Whether it is under an error.
        question: Its question, a column of the draws.
    """

    value: Float[np.ndarray, " N"]
    error: Bool[np.ndarray, " N"]
    question: Int[np.ndarray, " N"]


def auc(
    tokens: Marked, taken: Int[np.ndarray, "R Q"], stratum: Int[np.ndarray, " N"] | None = None
) -> Float[np.ndarray, " R"]:
    """Probability [0, 1] that a token under an error has a lower value than one that is not.

    Equal values count one half. Within strata, only tokens of one stratum are compared: strata
    count by their pairs.
    """
    strata = np.zeros(len(tokens.value), int) if stratum is None else stratum
    weights = taken.astype(float)
    won, pairs = (
        np.einsum("rq,rq->r", weights @ part, weights)
        for part in _between_questions(tokens, strata, taken.shape[1])
    )
    return _share(won, pairs)


def auc_within_texts(
    tokens: Marked, taken: Int[np.ndarray, "R Q"], text: Int[np.ndarray, " N"]
) -> Float[np.ndarray, " R"]:
    """The same of two tokens of one text; texts count by their pairs.

    Args:
        text: The text that each token is of; all tokens of a text are of one question.
    """
    won, pairs = _between_questions(tokens, text, taken.shape[1])
    return _share(taken @ won.diagonal(), taken @ pairs.diagonal())


def average_precision(tokens: Marked, taken: Int[np.ndarray, "R Q"]) -> Float[np.ndarray, " R"]:
    """Mean over the tokens under an error of the share of such tokens among all that are at least
    as suspect. By chance it is their share of all tokens."""
    order = np.argsort(tokens.value, kind="stable")
    value, error, question = (x[order] for x in (tokens.value, tokens.error, tokens.question))
    # the last token that is as suspect as each error
    last = np.searchsorted(value, value[error], side="right") - 1
    weights, found = taken.astype(np.float32), list[np.ndarray]()  # counts below 2^24 are exact
    size = max(1, CACHED // max(1, len(order)))
    for start in range(0, len(weights), size):
        drawn = weights[start : start + size][:, question]
        suspects = drawn.cumsum(1)[:, last]
        drawn = drawn[:, error]
        errors = drawn.cumsum(1)[:, np.searchsorted(value[error], value[error], side="right") - 1]
        precision = errors / np.maximum(suspects, 1)
        found.append(_share((drawn * precision).sum(1), drawn.sum(1)))
    return np.concatenate(found)


def share_right(
    won: Float[np.ndarray, " Q"], pairs: Float[np.ndarray, " Q"], taken: Int[np.ndarray, "R Q"]
) -> Float[np.ndarray, " R"]:
    """Pairs that are ordered right, of all pairs of the questions that were taken."""
    return _share(taken @ won, taken @ pairs)


def quantiles(values: Float[np.ndarray, " N"], strata: int = 10) -> Int[np.ndarray, " N"]:
    """The stratum of each value, of so many of about one size."""
    edges = np.quantile(values, np.linspace(0, 1, strata + 1)[1:-1])
    return np.searchsorted(edges, values, side="left")


def _between_questions(
    tokens: Marked, stratum: Int[np.ndarray, " N"], questions: int
) -> tuple[Float[np.ndarray, "Q Q"], Float[np.ndarray, "Q Q"]]:
    """Of the errors of each question (rows) and the other tokens of each (columns), in one stratum:
    how often the error's value is the lower one, and how many pairs there are.

    With them the AUC of any draw is a ratio of two quadratic forms.
    """
    order = np.lexsort((tokens.value, stratum))
    strata, value, error = (x[order] for x in (stratum, tokens.value, tokens.error))
    question = tokens.question[order]
    ends = np.append(_starts(strata, value), len(order))  # runs of equal tokens
    run = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    limits = np.append(_starts(strata), len(order))
    place = np.repeat(np.arange(len(limits) - 1), np.diff(limits))
    by_question = np.flatnonzero(error)
    by_question = by_question[np.argsort(question[by_question], kind="stable")]
    rows, first = np.unique(question[by_question], return_index=True)
    won, pairs = np.zeros((questions, questions)), np.zeros((questions, questions))
    width = max(1, CELLS // (len(order) + 1)) if len(rows) else questions
    for start in range(0, questions if len(rows) else 0, width):
        columns = np.arange(start, min(start + width, questions))
        others = (question[:, None] == columns) & ~error[:, None]
        before = np.concatenate([np.zeros((1, len(columns))), others.cumsum(0)])
        own = by_question
        last, low = before[limits[place[own] + 1]], before[limits[place[own]]]
        equal = (before[ends[run[own]]] + before[ends[run[own] + 1]]) / 2
        won[rows[:, None], columns] = np.add.reduceat(last - equal, first)
        pairs[rows[:, None], columns] = np.add.reduceat(last - low, first)
    return won, pairs


def _starts(*keys: np.ndarray) -> Int[np.ndarray, " K"]:
    """Where runs of equal keys begin."""
    changes = [key[1:] != key[:-1] for key in keys]
    return np.flatnonzero(np.concatenate([[True], np.logical_or.reduce(changes)]))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
