"""Means with intervals over seeds, and paired tests over examples. Pure functions of arrays.

Two questions, two answers. *Over seeds*: how much do replicates differ? mean, sd, t-interval, n =
number of seeds. *Over examples*: do two systems differ on this test set? The score of each example
is averaged over the seeds that both have, and the signs of the differences are flipped at random.
The second holds for the seeds at hand: a lucky seed moves all examples together, so a small p with
few seeds, or with seeds that disagree, says little about the next seed. Both stand in the tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 4999
LEVEL = 0.95
ALPHA = 0.05
CELLS = 2**22  # random signs held in memory at a time


@dataclass(frozen=True)
class Summary:
    """Mean over seeds; sd (ddof 1) and the ends of the t-interval are None with one seed."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A row minus the baseline, over the seeds and examples that both have."""

    seeds: int
    examples: int
    difference: float  # mean over examples and seeds, in the metric's unit
    low: float  # t-interval of it over examples
    high: float
    effect: float  # mean / sd of the examples' differences (Cohen's d_z)
    p: float  # sign-flip permutation test, two-sided
    seeds_above: int  # seeds in which the row's mean is above the baseline's
    p_holm: float = math.nan

    @property
    def verdict(self) -> str:
        if not self.p_holm < ALPHA:
            return "no difference shown"
        return "higher" if self.difference > 0 else "lower"


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sd (ddof 1) and t-interval of one value per seed."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Summary(n, mean, None, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def compare(
    ours: Mapping[str, np.ndarray],
    baseline: Mapping[str, np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison | None:
    """Paired test of two systems on the same examples. None where they share no seed.

    Args:
        ours: Scores [examples] by seed, examples in one order everywhere.
        baseline: The same of the baseline.
        resamples: Random sign patterns; all of them where there are fewer.
        seed: Of the random signs.

    Raises:
        ValueError: The numbers of examples differ.
    """
    common = [name for name in ours if name in baseline]
    if not common:
        return None
    pairs = np.stack([ours[name] - baseline[name] for name in common])  # [seeds, examples]
    differences = pairs.mean(0)
    n, mean = len(differences), float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else 0.0
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n) if n > 1 else 0.0
    return Comparison(
        seeds=len(common),
        examples=n,
        difference=mean,
        low=mean - half,
        high=mean + half,
        effect=mean / sd if sd > 0 else 0.0,
        p=sign_flip(differences, resamples=resamples, seed=seed),
        seeds_above=int((pairs.mean(1) > 0).sum()),
    )


def sign_flip(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of mean 0, by scipy's permutation test of one sample (signs flipped)."""
    moving = differences[differences != 0.0]  # flipping a zero changes nothing
    if len(moving) < 2:  # every pattern is as far from 0 as this one
        return 1.0
    result = stats.permutation_test(
        (moving,),
        np.sum,  # orders the patterns as the mean does
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, CELLS // len(moving)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: at most this chance of any false finding in the family."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
