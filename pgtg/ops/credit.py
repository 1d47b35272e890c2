"""How credit is spread over tokens and sequences: measures of aggregators and evaluations.

Pure functions of plain numbers; none knows a model.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

BINS = 10  # of the calibration


def effective_tokens(weights: np.ndarray) -> float:
    """exp(H(w)) [tokens]: as many tokens of equal weight are as spread out as these."""
    positive = weights[weights > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def within_correlation(sources: Sequence[str], a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's r of what is left of a and b after each source's own mean; NaN if constant."""
    left, right = _centred(sources, a), _centred(sources, b)
    scale = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum() / scale) if scale > 0 else float("nan")


def calibration_error(
    sources: Sequence[str], evaluations: Sequence[float], scores: Sequence[float]
) -> float:
    """Expected calibration error [0, 1] of P(i above j) = sigmoid(e_i - e_j), pairs of a source.

    Each strictly ordered pair counts once, from the side that the evaluations favour, in ten equal
    bins of [0.5, 1]: mean over pairs of |share right in its bin - mean probability in its bin|.
    """
    chance, right = [], []
    for start, stop in _spans(sources):
        e, s = np.asarray(evaluations[start:stop]), np.asarray(scores[start:stop])
        i, j = np.triu_indices(len(e), 1)
        i, j = i[s[i] != s[j]], j[s[i] != s[j]]
        gap = e[i] - e[j]
        chance.append(1 / (1 + np.exp(-np.abs(gap).clip(max=500))))
        right.append(np.where(gap == 0, 0.5, (gap > 0) == (s[i] > s[j])))
    p, hit = np.concatenate(chance), np.concatenate(right).astype(float)
    if len(p) == 0:
        return float("nan")
    bins = np.minimum(((p - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [abs((hit[bins == k] - p[bins == k]).sum()) for k in range(BINS)]
    return float(sum(gaps) / len(p))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN if a side is constant or shorter than 2."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def spread(weights: Sequence[np.ndarray]) -> dict[str, float]:
    """Means over sequences of the aggregator's effective tokens and its top token's share.

    Args:
        weights: How much each token of a sequence counts (`Aggregator.weights`); empty ones are
            left out.
    """
    weights = [row for row in weights if len(row)]
    return {
        "effective_tokens": float(np.mean([effective_tokens(w) for w in weights])),
        "top_token_share": float(np.mean([w.max() for w in weights])),
    }


def relations(
    sources: Sequence[str],
    lengths: Sequence[float],
    evaluations: Sequence[float],
    scores: Sequence[float],
) -> dict[str, float]:
    """How evaluations and the judge go with length, and the calibration; without NaN."""
    found = {
        "evaluation_length_correlation": within_correlation(sources, evaluations, lengths),
        "judge_length_correlation": within_correlation(sources, scores, lengths),
        "calibration_error": calibration_error(sources, evaluations, scores),
    }
    return {name: value for name, value in found.items() if not np.isnan(value)}


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _centred(sources: Sequence[str], values: Sequence[float]) -> np.ndarray:
    out = np.asarray(values, float).copy()
    for start, stop in _spans(sources):
        out[start:stop] -= out[start:stop].mean()
    return out


def _spans(sources: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of rows with one source; a source's generations stand together."""
    spans, start = [], 0
    for _, members in groupby(sources):
        stop = start + sum(1 for _ in members)
        spans.append((start, stop))
        start = stop
    return spans
