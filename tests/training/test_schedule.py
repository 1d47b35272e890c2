"""The alternation's segments, against hand arithmetic."""

import pytest

from pgtg.config import ScheduleConfig
from pgtg.errors import ConfigError
from pgtg.training.schedule import segments, updates_per_epoch


@pytest.mark.parametrize(
    ("unit", "total", "every", "until", "expected"),
    [
        # The paper: trainings at 0, 0.5, 1, 1.5 and 2 of 5 epochs, here of 100 updates.
        ("epochs", 5.0, 0.5, 2.0, [50, 50, 50, 50, 300]),
        # The paper's prompt task: before, then at 1000, ..., 6000 of 12,000.
        ("updates", 12000, 1000, 6000, [1000] * 6 + [6000]),
        ("updates", 10, 5, 10, [5, 5]),  # a training at the very end is left out
        ("updates", 10, 5, 0, [10]),  # only the one before the start
        ("updates", 10, 20, 10, [10]),
        ("updates", 7, 3, 7, [3, 3, 1]),
        ("epochs", 1.0, 0.1, 0.3, [10, 10, 10, 70]),  # 0.3 / 0.1 < 3 in floats
        ("epochs", 1.0, 0.001, 0.002, [100]),  # trainings within the same update are one
    ],
)
def test_segments(unit: str, total: float, every: float, until: float, expected: list[int]):
    assert segments(ScheduleConfig(unit, total, every, until), 100) == expected


def test_less_than_one_update_is_refused():
    with pytest.raises(ConfigError, match="less than one update"):
        segments(ScheduleConfig("epochs", 0.001, 0.5, 0.0), 100)


def test_updates_of_an_epoch_match_the_paper():
    """CNN/DailyMail and XSum at 8 x 4: 0.1 epoch is 898 and 638 updates, rounded up."""
    assert -(-updates_per_epoch(287_113, 8, 4) // 10) == 898
    assert -(-updates_per_epoch(204_045, 8, 4) // 10) == 638
