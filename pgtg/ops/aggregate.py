"""Aggregators f: token rewards of a generation -> one sequence evaluation e (stage C).

Each is a pure function of (rewards [N, T], mask [N, T], beta, length-normalised?) -> [N]. The paper
multiplies all but `sum` by C, the mean length of the K generations of a source, so that evaluations
of different sources are of one size; `Aggregator.groups` does that. Left out: attention-like
learned aggregators; the paper has none, and their weights could hide which token earned the
preference.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgtg.config import AggregatorConfig
from pgtg.config.registry import AGGREGATORS
from pgtg.ops.masking import masked_mean

Rewards = Float[Tensor, "N T"]
Mask = Bool[Tensor, "N T"]


def avg(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """(1/T) sum_t r_t; the paper's choice for generations of unequal length."""
    return masked_mean(rewards, mask)


def total(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """sum_t r_t; the classical choice."""
    return rewards.where(mask, 0.0).sum(-1)


def soft_max(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """beta log sum_t exp(r_t / beta): soft maximum, length adds up to beta log T."""
    scaled = (rewards / temperature).masked_fill(~mask, -math.inf)
    value = temperature * scaled.logsumexp(-1)
    if length_normalized:  # log-mean-exp instead of the paper's log-sum-exp
        value = value - temperature * mask.sum(-1).clamp(min=1).to(value.dtype).log()
    return value.where(mask.any(-1), 0.0)


def soft_min(rewards: Rewards, mask: Mask, temperature: float, length_normalized: bool):
    """-beta log sum_t exp(-r_t / beta): soft minimum, length takes off up to beta log T."""
    return -soft_max(-rewards, mask, temperature, length_normalized)


Function = Callable[[Rewards, Mask, float, bool], Float[Tensor, " N"]]


@dataclass(frozen=True)
class Aggregator:
    """f with its options: what a run evaluates its generations with.

    Args:
        function: f itself.
        scaled: Multiply the evaluations of a group by its mean length C.
        temperature: beta of the soft minimum and maximum [reward units].
        length_normalized: Log-mean-exp instead of the paper's log-sum-exp in min and max.
    """

    function: Function
    scaled: bool = True
    temperature: float = 2.0
    length_normalized: bool = False

    @classmethod
    def of(cls, cfg: AggregatorConfig) -> "Aggregator":
        """The one that a config names."""
        spec = AGGREGATORS[cfg.name]
        return cls(spec.load(), spec.scaled, cfg.temperature, cfg.length_normalized)

    def __call__(self, rewards: Rewards, mask: Mask) -> Float[Tensor, " N"]:
        """f(r) of each of N generations, not multiplied by C."""
        return self.function(rewards, mask, self.temperature, self.length_normalized)

    def groups(
        self, rewards: Rewards, mask: Mask, groups: Int[Tensor, "G J"]
    ) -> Float[Tensor, "G J"]:
        """Sequence evaluations e of the candidates of each comparison group.

        e = C f(r) with C the mean length [tokens] over the group's candidates where f is `scaled`
        (avg, min, max); else e = f(r).

        Args:
            rewards: Token rewards of N generations; padding may hold anything.
            mask: Real tokens.
            groups: Rows into the N generations: J candidates in each of G groups; -1 where a group
                has fewer, whose evaluation means nothing.

        Source: arXiv:2306.00398, Sec. 2.1 (C).
        """
        rewards = rewards.float() if rewards.dtype in (torch.float16, torch.bfloat16) else rewards
        there = groups >= 0
        groups = groups.clamp(min=0)
        value = self(rewards, mask)[groups]
        if not self.scaled:
            return value
        lengths = mask.sum(-1)[groups].to(value.dtype).where(there, 0.0)
        return lengths.sum(-1, keepdim=True) / there.sum(-1, keepdim=True) * value

    def weights(self, rewards: Rewards, mask: Mask) -> Float[Tensor, "N T"]:
        """How much each token counts: f's gradient by its reward, scaled to sum 1 over a row."""
        rewards = rewards.detach().where(mask, 0.0).requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self(rewards, mask).sum(), rewards)
        return found / found.sum(-1, keepdim=True)

    def weights_of(self, rewards: Sequence[Sequence[float]]) -> list[np.ndarray]:
        """The same of rows of any lengths, in float64."""
        found = self.weights(*padded(rewards)).numpy()
        return [row[: len(own)] for row, own in zip(found, rewards, strict=True)]


def padded(rows: Sequence[Sequence[float]]) -> tuple[Float[Tensor, "N T"], Mask]:
    """Rows of numbers as one float64 tensor, padded at the right, and where they stand in it."""
    lengths = torch.tensor([len(row) for row in rows])
    values = torch.zeros(len(rows), int(lengths.max()), dtype=torch.float64)
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    values[mask] = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    return values, mask
