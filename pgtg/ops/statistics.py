"""Means with intervals over seeds, and paired tests over seeds and over examples. Pure functions.

Two questions, two answers. *Over seeds*: would another seed show the same difference? Each seed
gives one difference (its mean over the examples); Student's t over them. *Over examples*: do two
systems differ on these texts? The score of each example is averaged over the seeds that both have,
and the signs of the differences are flipped at random. A lucky seed moves all examples together, so
the second alone finds differences between two trainings of one method. A verdict asks both; with
fewer than three seeds there is none, only what holds on these texts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

RESAMPLES = 4999
LEVEL = 0.95
ALPHA = 0.05
SEEDS = 3  # below so many common seeds there is no verdict
SAME = "no difference shown"
# columns whose low values are good: negative log-likelihoods of clean texts, not of planted flaws
LOWER_IS_BETTER = ("nll", "nll_facts", "nll_end", "nll_content")
REFERENCES = "references"  # the decoding that is none: given texts are read
# columns with no good end
UNDIRECTED = ("tokens", "ended", "kl_to_start", "boilerplate", "errors_log_prob")
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
    seeds_low: float | None  # t-interval of it over seeds; None with one seed
    seeds_high: float | None
    effect: float  # mean / sd of the examples' differences (Cohen's d_z)
    p: float  # sign-flip permutation test over examples, two-sided
    p_seeds: float | None  # t-test over seeds, two-sided; None with one seed
    seeds_above: int  # seeds in which the row's mean is above the baseline's
    p_holm: float = math.nan  # of `decisive`, corrected
    excluded: float | None = None  # differences further from 0, by two one-sided tests, corrected

    @property
    def decisive(self) -> float:
        """The p that decides: the larger one, since a verdict needs both tests; over examples alone
        where seeds are too few."""
        if self.p_seeds is None or self.seeds < SEEDS:
            return self.p
        return max(self.p, self.p_seeds)

    @property
    def verdict(self) -> str:
        said = SAME
        if self.p_holm < ALPHA:
            said = "higher" if self.difference > 0 else "lower"
        return said if self.seeds >= SEEDS else f"on these texts: {said}"

    def turned(self) -> "Comparison":
        """The baseline minus the row (seeds that are equal in both count as above)."""
        above = self.seeds - self.seeds_above
        ends: dict[str, float] = {"low": -self.high, "high": -self.low, "effect": -self.effect}
        if self.seeds_low is not None and self.seeds_high is not None:
            ends |= {"seeds_low": -self.seeds_high, "seeds_high": -self.seeds_low}
        return replace(self, difference=-self.difference, seeds_above=above, **ends)

    def bound(self, level: float) -> float | None:
        """The least margin of equivalence [the metric's unit]: by two one-sided t-tests at this
        level, over seeds as well as over examples, the difference is nearer to 0 than that.
        None below three seeds.

        Source: Schuirmann (1987). With a tested difference of mean d and half interval h of level
        `LEVEL`, it is |d| + h t(1 - level) / t((1 + LEVEL) / 2), the larger one of the two tests.
        """
        if self.seeds < SEEDS or self.seeds_high is None:
            return None
        parts = [(self.high, self.examples), (self.seeds_high, self.seeds)]
        return max(
            abs(self.difference) + (high - self.difference) * _one_sided(n, level)
            for high, n in parts
        )


def _one_sided(n: int, level: float) -> float:
    """What turns a half interval of n values into that of a one-sided test."""
    if n < 2:
        return 0.0
    return float(stats.t.ppf(1 - level, n - 1) / stats.t.ppf((1 + LEVEL) / 2, n - 1))


def word_of(found: Comparison, column: str) -> str:
    """Whether a difference is better or worse in this column, or not shown."""
    if not found.p_holm < ALPHA:
        return SAME
    return "better" if (found.difference > 0) != (column in LOWER_IS_BETTER) else "worse"


def answer(words: Sequence[str]) -> str:
    """Of the question whether one is better than the other, from the words on its columns."""
    if {*words} == {"better"}:
        return "yes"
    if "better" in words:
        return "in part"
    return "no, the reverse" if "worse" in words else "not shown"


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
    apart: bool = False,
) -> Comparison | None:
    """Paired test of two systems on the same examples. None where they share no seed, or nothing
    that has a score everywhere.

    Args:
        ours: Scores [examples] by seed, examples in one order everywhere; NaN where there is none.
        baseline: The same of the baseline.
        resamples: Random sign patterns; all of them where there are fewer.
        seed: Of the random signs.
        apart: Each seed has examples of its own, as folds have: none is averaged over seeds.

    Raises:
        ValueError: The numbers of examples differ.
    """
    common = [name for name in ours if name in baseline]
    if not common:
        return None
    pairs = [ours[name] - baseline[name] for name in common]  # [examples] of each seed
    if apart:
        pairs = [own[~np.isnan(own)] for own in pairs]
        differences = np.concatenate(pairs)
    else:
        pairs = np.stack(pairs)
        pairs = pairs[:, ~np.isnan(pairs).any(0)]
        differences = pairs.mean(0)
    if not all(map(len, pairs)):
        return None
    n, mean = len(differences), float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else 0.0
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n) if n > 1 else 0.0
    by_seed = [float(own.mean()) for own in pairs]
    over_seeds = summarize(by_seed)
    return Comparison(
        seeds=len(common),
        examples=n,
        difference=mean,
        low=mean - half,
        high=mean + half,
        seeds_low=over_seeds.low,
        seeds_high=over_seeds.high,
        effect=mean / sd if sd > 0 else 0.0,
        p=sign_flip(differences, resamples=resamples, seed=seed),
        p_seeds=t_test(by_seed),
        seeds_above=sum(value > 0 for value in by_seed),
    )


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of mean 0, by Student's t; None of a single value.

    Differences that are all the same number are noise-free: p is 0, or 1 where that number is 0.
    """
    found = summarize(differences)
    if found.sd is None:
        return None
    if found.sd == 0:
        return float(found.mean == 0)
    t = found.mean / (found.sd / math.sqrt(found.n))
    return float(2 * stats.t.sf(abs(t), found.n - 1))


def sign_flip(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of mean 0, by scipy's permutation test of one sample (signs flipped).

    Where no random pattern is as far from 0 as the differences are, the permutation test only says
    that p is at most two in resamples + 1. That is too coarse for a correction over many
    comparisons, so there Student's t says how far below it is.
    """
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
    p, floor = float(result.pvalue), 2 / (resamples + 1)
    if p > floor or 2 ** len(moving) <= resamples:  # few patterns: all were tried, p is exact
        return p
    return min(p, t_test(differences.tolist()) or 0.0)


def holm(p_values: Sequence[float], families: int = 1) -> list[float]:
    """Holm's step-down correction: at most this chance of any false finding in the family.

    Args:
        families: Number of such families that share the chance, each with an equal part.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, families * (len(p_values) - rank) * p_values[i]))
        found[i] = largest
    return found


def corrected(comparisons: Sequence[Comparison], families: int = 1) -> list[Comparison]:
    """The same with `p_holm`, over all of them as one family, and with what is `excluded` (by
    Bonferroni's correction: a bound has no order)."""
    p_values = holm([found.decisive for found in comparisons], families)
    level = ALPHA / max(families * len(comparisons), 1)
    return [
        replace(found, p_holm=p, excluded=found.bound(level))
        for found, p in zip(comparisons, p_values, strict=True)
    ]
