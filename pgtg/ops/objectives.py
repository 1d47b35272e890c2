"""Objectives of policy improvement (stage 2), as pure functions of tensors.

Two families: reward-weighted MLE on given targets, and the policy gradient on the policy's own
samples. Each returns one value per token or per sequence, so that the caller can take the mean over
a whole accumulation window (docs/method.md, "Corrections to the reference", 11). No
function here knows a model.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgtg.ops.masking import masked_sum

PerToken = Float[Tensor, "N T"]
Mask = Bool[Tensor, "N T"]


def reward_to_go(rewards: PerToken, mask: Mask) -> PerToken:
    """R_t = sum_{t' >= t} r_t' over real tokens; 0 at padding."""
    real = rewards.where(mask, 0.0)
    return real.flip(-1).cumsum(-1).flip(-1).where(mask, 0.0)


def mle_weights(
    rewards: PerToken, mask: Mask, *, transform: str = "none", to_go: bool = False
) -> PerToken:
    """Token weights w_t = g(r_t) / sum_t' g(r_t'), which add up to 1 over each target.

    Args:
        rewards: Token rewards of the targets, without gradient, positive unless transform is exp.
        mask: Real tokens.
        transform: "none" for g(r) = r, "exp" for g(r) = exp(r).
        to_go: Use the reward-to-go instead of the token's own reward.

    Source: arXiv:2306.00398, Sec. 2.2, reward-weighted MLE; options of the released code.
    """
    value = reward_to_go(rewards, mask) if to_go else rewards
    if transform == "exp":  # shifted by the row's maximum: the same weights, no overflow
        peak = value.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
        value = (value - peak.where(peak.isfinite(), 0.0)).exp()
    value = value.where(mask, 0.0)
    total = value.sum(-1, keepdim=True)
    return torch.where(total > 0, value / total, torch.zeros_like(value))


def threshold_weights(margins: PerToken, mask: Mask, *, below: float = 0.0) -> PerToken:
    """w_t = 1/|y| where r_t is at least the threshold, else below/|y|: good tokens count the same.

    Args:
        margins: r_t less the threshold, without gradient.
        below: 0 leaves the others out; a negative weight is for `unlikelihood`.
    """
    return torch.where(margins >= 0, 1.0, below) * uniform_weights(mask)


def uniform_weights(mask: Mask) -> PerToken:
    """w_t = 1/|y|: plain MLE as a mean over each target's tokens."""
    return mask.float() / mask.sum(-1, keepdim=True).clamp(min=1)


def shuffled_weights(weights: PerToken, mask: Mask, seed: int) -> PerToken:
    """The same weights in a random order within each target: a control that keeps their spread."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(mask.shape, generator=generator).to(weights.device)
    # sorting by (padding last, noise) permutes the real tokens among themselves
    order = (noise + (~mask).float() * 2).argsort(-1)
    positions = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return (
        torch.zeros_like(weights).scatter(-1, positions, weights.gather(-1, order)).where(mask, 0.0)
    )


def effective_share(weights: PerToken, mask: Mask) -> float:
    """(sum v)^2 / (n sum v^2) over all n tokens, v_t = w_t |y|: 1 if all tokens of all targets
    count the same, 1/n if one token has all the weight; 0 if none has any."""
    lengths = mask.sum(-1, keepdim=True)
    counted = (weights * lengths)[mask]
    square = counted.square().sum() * counted.numel()
    return float(counted.sum().square() / square) if square > 0 else 0.0


def weighted_nll(log_probs: PerToken, weights: PerToken, mask: Mask) -> Float[Tensor, " N"]:
    """-sum_t w_t log pi(y_t | s_t) per target [nats]."""
    return -(weights * log_probs).where(mask, 0.0).sum(-1)


def unlikelihood(log_probs: PerToken, weights: PerToken, mask: Mask) -> Float[Tensor, " N"]:
    """-sum_t w_t log(1 - pi(y_t | s_t)) per target [nats], for w_t >= 0: y_t is made less likely.

    At least 0, whereas w log pi could be lowered without end. A token of probability above 1 - 1e-5
    has no gradient: its own would be without bound.

    Source: unlikelihood training, Welleck et al. 2020 (arXiv:1908.04319), its code for the bound.
    """
    others = -torch.expm1(log_probs)  # 1 - pi
    return -(weights * others.clamp(min=1e-5).log()).where(mask, 0.0).sum(-1)


def advantages(
    token_rewards: PerToken,
    evaluations: Float[Tensor, " N"],
    mask: Mask,
    group: Int[Tensor, " N"],
    *,
    baseline: str = "none",
    token_share: float = 1.0,
    to_go: bool = False,
) -> PerToken:
    """Advantage of each sampled token, from the token rewards and the sequence's evaluation.

    A_t = (1 - lambda) (E - b(E)) + lambda (R_t - b(R)), where R_t is the token reward or its
    reward-to-go, E the sequence's evaluation, and b the baseline. lambda = 0 is the sparse control:
    every token of a sequence has the sequence's advantage. lambda = 1 with baseline "none" is the
    paper's REINFORCE.

    Args:
        token_rewards: r_phi(s_t, a_t) without gradient.
        evaluations: One value per sequence, e.g. e / C or a judge's score, without gradient.
        mask: Real tokens.
        group: The source that each sequence continues, any labels.
        baseline: "none"; "batch": mean over all sequences (tokens for R); "group": for a sequence,
            the mean over the *other* sequences of its group (their tokens for R), so it is
            unbiased; 0 where a group has one sequence only. "loo_at_t": the same, but for R the
            others' mean at the token's own place t, where a sequence that has ended counts as 0.
        token_share: lambda in [0, 1].
        to_go: Reward-to-go in place of the token's own reward.

    Raises:
        ValueError: An unknown baseline.
    """
    value = reward_to_go(token_rewards, mask) if to_go else token_rewards.where(mask, 0.0)
    real = mask.to(value.dtype)
    if baseline == "none":
        of_sequence, of_token = torch.zeros_like(evaluations), torch.zeros_like(evaluations)
    elif baseline == "batch":
        of_sequence = evaluations.mean().expand_as(evaluations)
        of_token = (value.sum() / real.sum().clamp(min=1)).expand_as(evaluations)
    elif baseline in ("group", "loo_at_t"):
        others = (group[:, None] == group[None, :]) & ~torch.eye(
            len(group), dtype=torch.bool, device=group.device
        )
        weight = others.to(value)
        of_sequence = weight @ evaluations / weight.sum(-1).clamp(min=1)
        if baseline == "group":
            of_token = weight @ value.sum(-1) / (weight @ real.sum(-1)).clamp(min=1)
        else:
            of_token = weight @ value / weight.sum(-1, keepdim=True).clamp(min=1)
    else:
        raise ValueError(f"baseline {baseline!r}: known are none, batch, group, loo_at_t")
    sparse = (evaluations - of_sequence)[:, None]
    dense = value - (of_token if of_token.dim() > 1 else of_token[:, None])
    return ((1 - token_share) * sparse + token_share * dense).where(mask, 0.0)


def standardized(advantage: PerToken, mask: Mask, spread: float | None = None) -> PerToken:
    """Advantages with mean 0 over all real tokens, in units of `spread`; 0 if that is 0.

    Their scale, and with it the weight of the entropy bonus, no longer depends on the reward's.

    Args:
        spread: The unit, from a population that does not narrow with the policy. None: their own
            standard deviation, which calls any difference large once the policy's samples are
            nearly equal, and so drives a policy to collapse.
    """
    number = mask.sum().clamp(min=1)
    centred = (advantage - masked_sum(advantage, mask) / number).where(mask, 0.0)
    if spread is not None:
        return centred / spread if spread else torch.zeros_like(centred)
    unit = (centred.square().sum() / number).sqrt()
    return torch.where(unit > 0, centred / unit, torch.zeros_like(centred))


def reinforce(log_probs: PerToken, advantage: PerToken) -> PerToken:
    """-A_t log pi(a_t | s_t) per token; its gradient is the policy gradient's, negated."""
    return -advantage.detach() * log_probs


def kl_to_start(log_probs: PerToken, start_log_probs: PerToken) -> PerToken:
    """Per-token estimate of KL(pi || pi_start) [nats] on the policy's own samples.

    k3 = exp(d) - 1 - d with d = log pi_start - log pi, at least 0; its gradient is that of the
    estimate, not the exact score-function gradient (Schulman 2020, "Approximating KL divergence").
    """
    d = start_log_probs.detach() - log_probs
    return d.exp() - 1 - d
