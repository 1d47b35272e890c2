"""When the reward model is trained again, and how long the policy trains in between."""

from itertools import pairwise

from pgtg.config import ScheduleConfig
from pgtg.errors import ConfigError

TOLERANCE = 1e-9  # 0.1 * 3 counts as 0.3


def segments(schedule: ScheduleConfig, epoch_updates: int) -> list[int]:
    """Policy updates after each reward training.

    The reward model is trained before the policy starts and then every `retrain_every` up to and
    including `retrain_until`, but never at the very end, where nothing would use it. With the
    paper's 5 epochs, every 0.5 until 2.0: trainings at 0, 0.5, 1, 1.5 and 2 epochs, so segments of
    0.5, 0.5, 0.5, 0.5 and 3 epochs.

    Args:
        schedule: The three numbers and their unit.
        epoch_updates: Updates in one pass over the training split; not used with unit "updates".

    Returns:
        One number per round, each at least 1; their sum is the length of policy training [updates].

    Raises:
        ConfigError: The length is less than one update.

    Source: arXiv:2306.00398, Sec. 2.3; the released code's `reward_retrain_period`.
    """
    updates = epoch_updates if schedule.unit == "epochs" else 1
    total = round(schedule.total * updates)
    if total < 1:
        raise ConfigError(
            f"schedule.total={schedule.total} {schedule.unit} is less than one update"
        )
    last = int(schedule.retrain_until / schedule.retrain_every + TOLERANCE)
    starts = {round(i * schedule.retrain_every * updates) for i in range(last + 1)}
    marks = [*sorted(start for start in starts if start < total), total]
    return [end - start for start, end in pairwise(marks)]


def updates_per_epoch(examples: int, micro_batch: int, accumulate: int) -> int:
    """Optimiser steps in one pass: the last, smaller window counts as one."""
    return -(-examples // (micro_batch * accumulate))
