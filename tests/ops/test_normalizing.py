"""Lines against scipy's robust fit, normalised rewards against the numbers they were made from."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import huber

from pgtg.errors import DataError
from pgtg.ops.masking import pad
from pgtg.ops.normalizing import LEAST_SHARE, ByPlace, huber_line, places_of, robust_line

MEAN, SD, PLACES = (0.7, -0.2), (0.3, 0.1), 12


def lines_at(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.log(places)
    return MEAN[0] + MEAN[1] * at, SD[0] + SD[1] * at


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Two rewards at each place, m(p) ± s(p)/√2: their mean and sd are those of the lines."""
    places = np.arange(1, PLACES + 1)
    mean, sd = lines_at(places)
    rewards = np.concatenate([mean - sd / math.sqrt(2), mean + sd / math.sqrt(2)])
    return rewards, np.concatenate([places, places])


@given(st.integers(0, 2**32 - 1))
@example(13569)
@settings(max_examples=25, deadline=None)
def test_a_line_is_scipys_robust_fit(seed: int):
    """Weights are whole numbers here, so that a point can be given to scipy as often. What is
    compared is the loss: where few points lie within k its least place is flat."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(5, 40))
    x = np.log(np.arange(1, number + 1))
    y = rng.normal() + rng.normal() * x + rng.standard_t(1.5, number)
    weight = rng.integers(1, 6, number)
    k = float(rng.choice([0.1, 0.5, 2.0]))
    found = huber_line(x, y, weight, k)
    each_x, each_y = np.repeat(x, weight), np.repeat(y, weight)
    slope, intercept = np.polyfit(each_x, each_y, 1)
    expected = optimize.least_squares(
        lambda line: each_y - line[0] - line[1] * each_x,
        (intercept, slope),
        loss="huber",
        f_scale=k,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-12,
    )

    def loss(line: Sequence[float]) -> float:
        return (weight * huber(k, y - line[0] - line[1] * x)).sum()

    assert loss(found) <= loss(expected.x) * (1 + 1e-5)


def test_a_line_between_few_near_points_is_the_best_one():
    """Most points lie beyond k, where reweighting alone creeps: at the end the forces cancel."""
    rng = np.random.default_rng(13569)
    number = int(rng.integers(5, 40))
    x = np.log(np.arange(1, number + 1))
    y = rng.normal() + rng.normal() * x + rng.standard_t(1.5, number)
    weight = rng.integers(1, 6, number)
    intercept, slope = huber_line(x, y, weight, 0.1)
    force = weight * (y - intercept - slope * x).clip(-0.1, 0.1)
    assert abs(force.sum()) < 1e-12 and abs(force @ x) < 1e-12


def test_an_outlier_moves_a_line_no_further_than_a_bound():
    x = np.log(np.arange(1, 31))
    y = 2 - 0.5 * x + 0.01 * np.cos(7 * x)
    ends = list[tuple[float, float]]()
    for outlier in (10.0, 1e6):
        y[20] = outlier
        ends.append(robust_line(x, y, np.ones(30)))
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)
    assert ends[0] == pytest.approx((2, -0.5), abs=0.02)
    assert abs(huber_line(x, y, np.ones(30), 0.0)[0] - 2) > 1000  # least squares


def test_points_on_a_line_give_it():
    x = np.log(np.arange(1, 8))
    assert robust_line(x, 3 + 2 * x, np.arange(1, 8)) == pytest.approx((3, 2), abs=1e-12)


def test_planted_lines_are_found_and_taken_out():
    """By hand: rewards become ±1/√2 at each place, and what is drawn so has mean 0 and sd 1."""
    rewards, places = planted()
    found = ByPlace.fit(rewards, places)
    assert found.mean == pytest.approx(MEAN, abs=1e-9) and found.sd == pytest.approx(SD, abs=1e-9)
    assert found.longest == PLACES and found.least == pytest.approx(LEAST_SHARE * rewards.std())
    normal = found(torch.from_numpy(rewards), torch.from_numpy(places)).numpy()
    assert np.abs(normal) == pytest.approx(np.full(2 * PLACES, 1 / math.sqrt(2)), abs=1e-9)
    rng = np.random.default_rng(0)
    many = rng.integers(1, PLACES + 1, 20_000)
    mean, sd = lines_at(many)
    drawn = mean + sd * rng.normal(size=len(many))
    normal = ByPlace.fit(drawn, many)(torch.from_numpy(drawn), torch.from_numpy(many)).numpy()
    for place in range(1, PLACES + 1):
        own = normal[many == place]
        assert own.mean() == pytest.approx(0, abs=0.1) and own.std() == pytest.approx(1, abs=0.1)


def test_limits():
    """Later places are as the last one; sd does not go below a share of that of all rewards."""
    rewards, places = planted()
    found = ByPlace.fit(rewards, places)
    value = torch.tensor([0.2, 0.2, 0.2, 0.2])
    at = found(value, torch.tensor([PLACES, 10 * PLACES, 1, 0]))
    assert at[0] == at[1] and at[2] == at[3]
    narrow = ByPlace(found.mean, (0.3, -1.0), 0.05, 1000)
    expected = (0.2 - MEAN[0] - MEAN[1] * math.log(100)) / 0.05
    assert narrow(value, torch.tensor([100] * 4))[0] == pytest.approx(expected, rel=1e-5)
    assert narrow.is_sound() and not ByPlace(found.mean, (math.nan, 0), 0.05, 9).is_sound()


def test_rewards_without_spread_become_0_and_too_few_are_refused():
    places = np.repeat(np.arange(1, 4), 5)
    rewards = 0.5487 + np.float32(6e-8) * np.tile([0, 1, 0, -1, 0], 3)
    found = ByPlace.fit(rewards, places)(torch.from_numpy(rewards), torch.from_numpy(places))
    assert found.abs().max() < 1e-6
    with pytest.raises(DataError, match="two rewards at fewer than two places"):
        ByPlace.fit(np.array([0.1, 0.2, 0.3]), np.array([1, 1, 2]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_places_are_counted_from_1_wherever_the_padding_is(side: str):
    _, mask = pad([[7] * 3, [7]], side=side)
    assert [row[own].tolist() for row, own in zip(places_of(mask), mask, strict=True)] == [
        [1, 2, 3],
        [1],
    ]
