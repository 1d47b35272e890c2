"""Soft Q-learning on whole sequences: losses, reward shaping, target network (RLPrompt).

A language model's logits are the values Q of its next tokens, V = logsumexp Q is the value of a
state, and A = Q - V = log pi. The reward comes with the last token. All losses hold a value network
against a target network, and are 0 where both are soft-optimal.

Source: Guo et al. 2021 (arXiv:2106.07704); Deng et al. 2022 (arXiv:2205.12548) and its released
code, whose names for the losses these are.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Q = Float[Tensor, "N T V"]


def soft_q_loss(
    values: Q,
    target: Q,
    actions: Int[Tensor, "N T"],
    rewards: Float[Tensor, " N"],
    mask: Bool[Tensor, "N T"],
    *,
    variant: str,
    coefficient: float | None = None,
    prior: Float[Tensor, "N T"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over tokens, mean over sequences; of two losses the mean.

    Args:
        values: Q of all words before each token.
        target: The target network's; it is the caller who keeps gradients from it.
        rewards: Of each sequence, at its last real token.
        mask: Real tokens, which come first.
        variant: "v1": (Q_t - V'_t+1)^2, at the end (Q_T - r)^2. "v2": (A_t - [V'_t+1 - V'_t])^2, at
            the end (A_T - [r - V'_T])^2. "v3": (sum of A from t on - [r - V'_t])^2. "v0":
            (V - V')^2. Names with an r have the same loss with both networks' parts exchanged.
        coefficient: Share of a loss, the rest is its exchanged one's; None: no exchanged ones.
        prior: log-probability of each token under a start policy, which is taken from A: the
            optimum is then the start policy times e^r instead of e^r alone.
    """
    given = actions, rewards, mask, prior
    own = [_LOSSES[name] for name in variant.split("_") if not name.endswith("r")]
    exchanged = any(name.endswith("r") for name in variant.split("_")) and coefficient is not None
    parts = []
    for loss in own:
        value = loss(values, target, *given)
        if exchanged:
            assert coefficient is not None
            value = coefficient * value + (1 - coefficient) * loss(target, values, *given)
        parts.append(value.where(mask, 0.0).sum(-1).mean())
    return torch.stack(parts).mean()


def shaped(
    rewards: Float[Tensor, " N"], shaping: Sequence[float], *, standardize: bool
) -> Float[Tensor, " N"]:
    """Rewards standardised over the N (with their number), then mapped linearly.

    Args:
        shaping: (a, b, c, d): a becomes c, and b becomes d.
    """
    if standardize:
        spread = rewards.std(unbiased=False) + 1e-4
        rewards = (rewards - rewards.mean()) / spread
    low, high, new_low, new_high = shaping
    return (rewards - low) / (high - low) * (new_high - new_low) + new_low


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move a target network's weights towards those of the network in training, by a share.

    Weights that both share stay as they are.
    """
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        if old is not new:
            old.mul_(1 - rate).add_(new, alpha=rate)


def _advantage(values: Q, actions: Tensor, prior: Tensor | None) -> Float[Tensor, "N T"]:
    own = values.gather(-1, actions[..., None]).squeeze(-1) - values.logsumexp(-1)
    return own if prior is None else own - prior


def _last(mask: Tensor) -> Bool[Tensor, "N T"]:
    """The last real token of each row."""
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    return mask & ~following


def _next(states: Float[Tensor, "N T"], rewards: Tensor, mask: Tensor) -> Float[Tensor, "N T"]:
    """The value of the state after each token, which after the last one is the reward."""
    following = torch.cat([states[:, 1:], states[:, :1]], 1)
    return torch.where(_last(mask), rewards[:, None], following)


def _v0(values: Q, target: Q, actions: Tensor, rewards: Tensor, mask: Tensor, prior: Tensor | None):
    return (values.logsumexp(-1) - target.logsumexp(-1)) ** 2


def _v1(values: Q, target: Q, actions: Tensor, rewards: Tensor, mask: Tensor, prior: Tensor | None):
    own = values.gather(-1, actions[..., None]).squeeze(-1)
    own = own if prior is None else own - prior
    return (own - _next(target.logsumexp(-1), rewards, mask)) ** 2


def _v2(values: Q, target: Q, actions: Tensor, rewards: Tensor, mask: Tensor, prior: Tensor | None):
    states = target.logsumexp(-1)
    gained = _next(states, rewards, mask) - states
    return (_advantage(values, actions, prior) - gained) ** 2


def _v3(values: Q, target: Q, actions: Tensor, rewards: Tensor, mask: Tensor, prior: Tensor | None):
    advantage = _advantage(values, actions, prior).where(mask, 0.0)
    to_go = advantage.flip(-1).cumsum(-1).flip(-1)
    return (to_go - (rewards[:, None] - target.logsumexp(-1))) ** 2


_LOSSES: Mapping[str, Callable[..., Tensor]] = {"v0": _v0, "v1": _v1, "v2": _v2, "v3": _v3}
