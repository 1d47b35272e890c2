"""Aggregators f: token rewards of a generation -> one sequence evaluation e (stage C).

Each is a pure function of (rewards [N, T], mask [N, T]) -> [N]. The paper multiplies all but `sum`
by C, the mean length of the K generations of a source, so that evaluations of different sources are
of one size; `evaluate_groups` does that. Left out: attention-like learned aggregators; the paper
has none, and their weights could hide which token earned the preference.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgtg.ops.masking import masked_mean

Rewards = Float[Tensor, "N T"]
Mask = Bool[Tensor, "N T"]


def aggregate_avg(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """(1/T) sum_t r_t; the paper's choice for generations of unequal length."""
    return masked_mean(rewards, mask)


def aggregate_sum(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """sum_t r_t; the classical choice."""
    return rewards.where(mask, 0.0).sum(-1)


def aggregate_max(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """beta log sum_t exp(r_t / beta): soft maximum, length adds up to beta log T."""
    scaled = (rewards / temperature).masked_fill(~mask, -math.inf)
    value = temperature * scaled.logsumexp(-1)
    if length_normalized:  # log-mean-exp instead of the paper's log-sum-exp
        value = value - temperature * mask.sum(-1).clamp(min=1).to(value.dtype).log()
    return value.where(mask.any(-1), 0.0)


def aggregate_min(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """-beta log sum_t exp(-r_t / beta): soft minimum, length takes off up to beta log T."""
    return -aggregate_max(-rewards, mask, temperature, length_normalized)


Aggregator = Callable[[Rewards, Mask, float, bool], Float[Tensor, " N"]]
AGGREGATORS: dict[str, Aggregator] = {
    "avg": aggregate_avg,
    "sum": aggregate_sum,
    "max": aggregate_max,
    "min": aggregate_min,
}


def evaluate_groups(
    name: str,
    rewards: Rewards,
    mask: Mask,
    groups: Int[Tensor, "G J"],
    *,
    temperature: float = 2.0,
    length_normalized: bool = False,
) -> Float[Tensor, "G J"]:
    """Sequence evaluations e of the candidates of each comparison group.

    e = C f(r) for avg, min and max with C the mean length [tokens] over the group's candidates;
    e = f(r) for sum.

    Args:
        name: Key of AGGREGATORS.
        rewards: Token rewards of N generations; padding may hold anything.
        mask: Real tokens.
        groups: Rows into the N generations: J candidates in each of G groups.
        temperature: beta of the soft minimum and maximum [reward units].
        length_normalized: Log-mean-exp instead of the paper's log-sum-exp in min and max.

    Source: arXiv:2306.00398, Sec. 2.1 (C).
    """
    rewards = rewards.float() if rewards.dtype in (torch.float16, torch.bfloat16) else rewards
    value = AGGREGATORS[name](rewards, mask, temperature, length_normalized)[groups]
    if name == "sum":
        return value
    mean_length = mask.sum(-1)[groups].to(value.dtype).mean(-1, keepdim=True)
    return mean_length * value
