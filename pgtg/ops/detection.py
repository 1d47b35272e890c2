"""How well a value of tokens tells those under an error from the others; the lower, the likelier.

Tokens of one question are not independent of each other, so intervals are over questions: each
draw takes as many questions as there are, with replacement, and all tokens of each. Draws are
weights, how often each question was taken; the first draw is the data as they are.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

LEVEL = 0.95
RESAMPLES = 1000
CACHED = 2**17  # numbers that stay in the processor's cache


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
    runs = _Runs.of(tokens, text)
    before = np.append(0, (runs.other >= 0).cumsum())
    first, last = before[runs.stratum]
    won, pairs = (
        np.bincount(runs.error, counts, minlength=taken.shape[1])
        for counts in (last - before[runs.equal].mean(0), last - first)
    )
    return _share(taken @ won, taken @ pairs)


def average_precision(tokens: Marked, taken: Int[np.ndarray, "R Q"]) -> Float[np.ndarray, " R"]:
    """Mean over the tokens under an error of the share of such tokens among all that are at least
    as suspect. By chance it is their share of all tokens."""
    order = np.argsort(tokens.value, kind="stable")
    value, error, question = (x[order] for x in (tokens.value, tokens.error, tokens.question))
    places, suspected = np.flatnonzero(error), value[error]
    # the last token, and the last error, that is as suspect as each error
    last = np.searchsorted(value, suspected, side="right") - 1
    last_error = np.searchsorted(suspected, suspected, side="right") - 1
    weights, found = taken.astype(np.float32), list[np.ndarray]()  # counts below 2^24 are exact
    size = max(1, CACHED // max(1, len(order)))
    for start in range(0, len(weights), size):
        drawn = weights[start : start + size].take(question, axis=1)
        precision = drawn.cumsum(1).take(last, axis=1)
        drawn = drawn.take(places, axis=1)
        np.maximum(precision, 1, out=precision)
        np.divide(drawn.cumsum(1).take(last_error, axis=1), precision, out=precision)
        found.append(_share(np.einsum("re,re->r", drawn, precision), drawn.sum(1)))
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
    runs = _Runs.of(tokens, stratum)
    rows, first = np.unique(runs.error, return_index=True)
    won, pairs = np.zeros((questions, questions)), np.zeros((questions, questions))
    width = max(1, CACHED // (len(runs.other) + 1)) if len(rows) else questions
    for start in range(0, questions if len(rows) else 0, width):
        columns = np.arange(start, min(start + width, questions))
        before = np.zeros((len(columns), len(runs.other) + 1), np.int32)
        np.cumsum(runs.other == columns[:, None], axis=1, dtype=np.int32, out=before[:, 1:])
        low, last, equal, above = (
            np.add.reduceat(before.take(places, axis=1), first, axis=1, dtype=float).T
            for places in (*runs.stratum, *runs.equal)
        )
        won[rows[:, None], columns] = last - (equal + above) / 2
        pairs[rows[:, None], columns] = last - low
    return won, pairs


@dataclass(frozen=True)
class _Runs:
    """Tokens in the order of their strata and values, errors by question.

    Args:
        other: The question of each token that is under no error; -1 where it is under one.
        error: The question of each error.
        equal: Where the tokens that are equal to each error begin and end.
        stratum: Where the tokens of its stratum begin and end.
    """

    other: Int[np.ndarray, " N"]
    error: Int[np.ndarray, " E"]
    equal: Int[np.ndarray, "2 E"]
    stratum: Int[np.ndarray, "2 E"]

    @classmethod
    def of(cls, tokens: Marked, stratum: Int[np.ndarray, " N"]) -> Self:
        order = np.lexsort((tokens.value, stratum))
        strata, value, error, question = (
            x[order] for x in (stratum, tokens.value, tokens.error, tokens.question)
        )
        own = np.flatnonzero(error)
        own = own[np.argsort(question[own], kind="stable")]
        bounds = list[np.ndarray]()
        for keys in ((strata, value), (strata,)):
            ends = np.append(_starts(*keys), len(order))
            run = np.searchsorted(ends, own, side="right")
            bounds.append(np.stack([ends[run - 1], ends[run]]))
        return cls(np.where(error, -1, question), question[own], *bounds)


def _starts(*keys: np.ndarray) -> Int[np.ndarray, " K"]:
    """Where runs of equal keys begin."""
    changes = [key[1:] != key[:-1] for key in keys]
    return np.flatnonzero(np.concatenate([[True], np.logical_or.reduce(changes)]))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
