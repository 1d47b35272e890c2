"""Token rewards without what their place in a text explains: (r - m(p)) / s(p).

p = 1, 2, … is a token's place in its completion. Mean and standard deviation of the rewards at p
are lines in ln p, fitted by Huber regression to what the rewards of held-out samples are at each
place: m(p) = m_0 + m_1 ln p, s(p) = s_0 + s_1 ln p.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.errors import DataError

TUNING = 1.345  # residuals above so many standard deviations count less: 95 % efficient if normal
MAD_TO_SD = 1.4826  # of normal residuals
ROUNDING = 1e-6  # of float32, relative
LEAST_SHARE = 0.1  # of the sd of all rewards, below which s(p) does not go
ITERATIONS = 1000


@dataclass(frozen=True)
class ByPlace:
    """A fitted normaliser.

    Args:
        mean: (m_0, m_1).
        sd: (s_0, s_1).
        least: s(p) is at least this.
        longest: The last place of the fit; later ones are normalised as it is.
    """

    mean: tuple[float, float]
    sd: tuple[float, float]
    least: float
    longest: int

    @classmethod
    def fit(cls, rewards: Float[np.ndarray, " N"], places: Int[np.ndarray, " N"]) -> Self:
        """Of the rewards of N tokens at their places; a place with one of them says nothing of sd.

        Rewards that are all the same, but for float32's rounding, become 0: no scale is made up.

        Raises:
            DataError: Fewer than two places have two rewards.
        """
        found, place, number = np.unique(places, return_inverse=True, return_counts=True)
        mean = np.bincount(place, rewards) / number
        sd = np.sqrt(np.bincount(place, (rewards - mean[place]) ** 2) / np.maximum(number - 1, 1))
        known = number > 1
        if known.sum() < 2:
            raise DataError(
                "reward.normalize: held-out samples have two rewards at fewer than two places; "
                "raise sample.heldout_sources"
            )
        spread = float(np.std(rewards))
        if spread <= ROUNDING * float(np.abs(rewards).max()):
            return cls((float(rewards.mean()), 0.0), (1.0, 0.0), 1.0, int(found[-1]))
        at = np.log(found)
        line = robust_line(at, mean, number)
        of_sd = robust_line(at[known], sd[known], number[known])
        return cls(line, of_sd, LEAST_SHARE * spread, int(found[-1]))

    def __call__(
        self, rewards: Float[Tensor, "*N T"], places: Int[Tensor, "*N T"]
    ) -> Float[Tensor, "*N T"]:
        """The rewards at these places, normalised."""
        at = places.clamp(1, self.longest).to(rewards.dtype).log()
        mean = self.mean[0] + self.mean[1] * at
        return (rewards - mean) / (self.sd[0] + self.sd[1] * at).clamp(min=self.least)

    def is_sound(self) -> bool:
        """Whether the numbers, perhaps a stranger's, can be what a fit gives."""
        numbers = [*self.mean, *self.sd, self.least]
        return all(map(math.isfinite, numbers)) and self.least > 0 and self.longest >= 1


def robust_line(
    x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], weight: Float[np.ndarray, " N"]
) -> tuple[float, float]:
    """`huber_line` that bends at `TUNING` times the residuals' sd, told by the weighted median of
    their sizes around the line of (nearly) least absolute residuals, which no outlier moves."""
    around = np.abs(y - _weighted_median(y, weight))
    least = huber_line(x, y, weight, 1e-3 * _weighted_median(around, weight))
    sizes = np.abs(y - least[0] - least[1] * x)
    return huber_line(x, y, weight, TUNING * MAD_TO_SD * _weighted_median(sizes, weight))


def huber_line(
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    weight: Float[np.ndarray, " N"],
    k: float,
) -> tuple[float, float]:
    """Intercept and slope a, b that minimise sum_n w_n rho(y_n - a - b x_n).

    Args:
        k: rho(u) is u^2/2 up to |u| = k, and k (|u| - k/2) above; 0: all of it is (least squares).

    Source: Huber 1964; by iteratively reweighted least squares, with longer steps and Newton's.
    """

    def loss(line: tuple[float, float]) -> float:
        size = np.abs(y - line[0] - line[1] * x)
        return float(weight @ np.where(size <= k, size**2 / 2, k * (size - k / 2)))

    line = _least_squares(x, y, weight)
    for _ in range(ITERATIONS if k > 0 else 0):
        sizes = np.abs(y - line[0] - line[1] * x)
        before, line = line, _least_squares(x, y, weight * k / np.maximum(sizes, k))
        line = min([line, *_newton(line, x, y, weight, k), *_further(before, line)], key=loss)
        if np.allclose(before, line, rtol=1e-12, atol=1e-15):
            break
    return line


def _newton(
    line: tuple[float, float], x: np.ndarray, y: np.ndarray, weight: np.ndarray, k: float
) -> list[tuple[float, float]]:
    """Newton's step on the loss of `huber_line`, whole, halved, ...: reweighting alone creeps where
    few points lie within k. None where these do not fix a line (`_further` helps there)."""
    rest = y - line[0] - line[1] * x
    inside, pull = weight * (np.abs(rest) <= k), weight * rest.clip(-k, k)
    total, first, second = inside.sum(), inside @ x, inside @ x**2
    spread = total * second - first**2
    if spread <= 1e-12 * total * second:
        return []
    up, along = pull.sum(), pull @ x
    step = float(second * up - first * along), float(total * along - first * up)
    step = step[0] / float(spread), step[1] / float(spread)
    return [(line[0] + step[0] * 0.5**n, line[1] + step[1] * 0.5**n) for n in range(6)]


def _further(before: tuple[float, float], line: tuple[float, float]) -> list[tuple[float, float]]:
    """2, 4, 8, ... of the step from `before` to the line."""
    step = line[0] - before[0], line[1] - before[1]
    return [(before[0] + step[0] * 2**n, before[1] + step[1] * 2**n) for n in range(1, 20)]


def _least_squares(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    share = weight / weight.sum()
    x_mean, y_mean = share @ x, share @ y
    slope = (share * (x - x_mean)) @ (y - y_mean) / (share @ (x - x_mean) ** 2)
    return float(y_mean - slope * x_mean), float(slope)


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    below = weight[order].cumsum()
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def places_of(mask: Tensor) -> Int[Tensor, "N T"]:
    """Places 1, 2, … of real tokens, in rows padded on any side; 0 or the last one at padding."""
    return torch.cumsum(mask, -1)
