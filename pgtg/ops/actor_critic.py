"""Proximal policy optimisation with a critic: advantages, losses, the KL coefficient, open tokens.

Rows are generations, columns their tokens; an episode is a generation, and ends with its last
token, whether that is an end token or the longest length was reached.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgtg.ops.masking import masked_sum

PerToken = Float[Tensor, "N T"]
Mask = Bool[Tensor, "N T"]

NORM_FLOOR = 1e-8  # added to a standard deviation
STEP, FARTHEST = 0.1, 0.2  # of the KL coefficient: by at most 2 % an iteration


def adapted_coefficient(coefficient: float, mean_kl: float, target: float | None) -> float:
    """beta (1 + 0.1 clip(KL / target - 1, +-0.2)); as it was without a target.

    Args:
        coefficient: beta, what a nat of log-ratio to the start policy costs.
        mean_kl: Mean over all sampled tokens of log pi - log pi_start [nats].
        target: The mean that is aimed at [nats a token], above 0.

    Source: arXiv:1909.08593, Sec. 2.2, with the constants of RL4LMs (arXiv:2210.01241).
    """
    if target is None:
        return coefficient
    error = min(max(mean_kl / target - 1, -FARTHEST), FARTHEST)
    return coefficient * (1 + STEP * error)


def token_rewards(
    log_ratio: PerToken,
    scores: Float[Tensor, " N"],
    mask: Mask,
    *,
    coefficient: float,
    dense: PerToken | None = None,
) -> PerToken:
    """r_t = dense_t - beta (log pi - log pi_start)_t, and + score at the last token.

    Args:
        log_ratio: log pi(a_t|s_t) - log pi_start(a_t|s_t) of the policy that sampled [nats].
        scores: One for each generation; 0 where rewards are dense.
        mask: Real tokens; right-padded.
        coefficient: beta.
        dense: A reward of each token's own; None: 0.
    """
    rewards = -coefficient * log_ratio
    if dense is not None:
        rewards = rewards + dense
    ends = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    return (rewards + scores[:, None].to(rewards) * ends).where(mask, 0.0)


def standardized_rewards(rewards: PerToken, mask: Mask) -> PerToken:
    """(r - mean) / (population sd + 1e-8) over all real tokens; RL4LMs' option."""
    number = mask.sum().clamp(min=1)
    centred = (rewards - masked_sum(rewards, mask) / number).where(mask, 0.0)
    return centred / ((centred.square().sum() / number).sqrt() + NORM_FLOOR)


def generalized_advantages(
    rewards: PerToken,
    values: PerToken,
    mask: Mask,
    *,
    gamma: float,
    gae_lambda: float,
    after: Float[Tensor, " N"] | None = None,
) -> tuple[PerToken, PerToken]:
    """A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, and A + V.

    Args:
        rewards: r_t.
        values: V(s_t), of the state before token t.
        mask: Real tokens; right-padded.
        gamma: Discount, in [0, 1].
        gae_lambda: lambda in [0, 1].
        after: V of the state after the last token; None: 0, since the episode has ended.

    Returns:
        Advantages and returns, 0 on padding.

    Source: arXiv:1506.02438, Eq. 16.
    """
    ahead = rewards.new_zeros(len(rewards)) if after is None else after.to(rewards)
    advantage, found = torch.zeros_like(ahead), torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        real = mask[:, t]
        delta = rewards[:, t] + gamma * ahead - values[:, t]
        advantage = torch.where(real, delta + gamma * gae_lambda * advantage, advantage)
        ahead = torch.where(real, values[:, t], ahead)
        found[:, t] = advantage.where(real, 0.0)
    return found, (found + values).where(mask, 0.0)


def whitened(advantage: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """(A - mean) / (sample sd + 1e-8) over a minibatch's tokens; centred alone if there is one."""
    centred = advantage - advantage.mean()
    return centred if len(centred) < 2 else centred / (centred.std() + NORM_FLOOR)


def value_error(
    values: PerToken,
    old_values: PerToken,
    returns: PerToken,
    *,
    clip: float | None = None,
    replaced: bool = False,
) -> PerToken:
    """(return - V)^2 of each token.

    Args:
        values: V(s_t) as it is now.
        old_values: As it was when the episodes were sampled, without gradient.
        returns: What it is to be, without gradient.
        clip: How far V may move from the old one: the larger of both errors counts; None: any far.
        replaced: The clipped V in the place of V, whatever the errors (RL4LMs).
    """
    error = (returns - values) ** 2
    if clip is None:
        return error
    bounded = (returns - old_values - (values - old_values).clamp(-clip, clip)) ** 2
    return bounded if replaced else torch.maximum(error, bounded)


def nucleus(
    logits: Float[Tensor, "*N V"], top_p: float, least: int, special: Int[Tensor, " S"]
) -> Bool[Tensor, "*N V"]:
    """The tokens that a mask policy leaves open: its likeliest, until they hold `top_p`.

    Args:
        logits: Of the mask policy.
        top_p: Mass that is to be exceeded; the token that does so is open too.
        least: Tokens that are open at least.
        special: Tokens that always are.

    Source: NLPO, arXiv:2210.01241, Sec. 4.2; the released code.
    """
    ordered, index = logits.float().sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    kept = before <= top_p
    kept[..., :least] = True
    found = torch.zeros_like(kept).scatter(-1, index, kept)
    found[..., special] = True
    return found


def log_ratio_rewards(
    dpo: PerToken, start: PerToken, mask: Mask, *, scale: float, clip: float | None
) -> PerToken:
    """c (log pi_DPO - log pi_start) of each token, clipped at +-c0: what DPO has learned a token is
    worth. Source: RTO, arXiv:2404.18922, Eq. 4.6, and its released code.
    """
    found = scale * (dpo - start)
    return (found if clip is None else found.clamp(-clip, clip)).where(mask, 0.0)
