"""Objectives on preferences: losses on pairs of texts, and the clipped policy gradient of groups.

All take log-probabilities [nats] that were summed or averaged by the caller, one a text, and give a
loss a pair, or a token. Sequences are texts with their end token.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

PerPair = Float[Tensor, " P"]
PerToken = Float[Tensor, "N T"]
Mask = Bool[Tensor, "N T"]

NORM_FLOOR = 1e-9  # added to a group's standard deviation


def dpo(better: PerPair, worse: PerPair, *, beta: float, smoothing: float = 0.0) -> PerPair:
    """-(1 - eps) log sigma(z) - eps log sigma(-z), z = beta (h_w - h_l).

    Args:
        better: h_w = log pi(y_w|x) - log pi_start(y_w|x), whole texts.
        worse: The same of the other text.
        beta: What a nat of log-ratio weighs.
        smoothing: eps, share of the pairs taken to be ordered wrongly, in [0, 0.5).

    Source: arXiv:2305.18290, Eq. 7; smoothing: arXiv:2310.12036's conservative form.
    """
    z = beta * (better - worse)
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def ipo(better: PerPair, worse: PerPair, *, beta: float) -> PerPair:
    """(h_w - h_l - 1 / (2 beta))^2. Source: arXiv:2310.12036, Eq. 17."""
    return (better - worse - 1 / (2 * beta)) ** 2


def simpo(better: PerPair, worse: PerPair, *, beta: float, gamma: float) -> PerPair:
    """-log sigma(beta (l_w - l_l) - gamma), without a reference.

    Args:
        better: l_w = log pi(y_w|x) / |y_w|, the mean over the text's tokens.
        worse: The same of the other text.
        beta: What a nat of mean log-probability weighs.
        gamma: Margin that the better text is to have, in units of the reward beta * l.

    Source: arXiv:2405.14734, Eq. 6.
    """
    return -logsigmoid(beta * (better - worse) - gamma)


def tdpo(
    better: PerPair,
    worse: PerPair,
    better_kl: PerPair,
    worse_kl: PerPair,
    *,
    beta: float,
    alpha: float | None = None,
) -> PerPair:
    """-log sigma(beta (h_w - h_l - delta)).

    Args:
        better: h_w as in `dpo`.
        worse: h_l.
        better_kl: D_w = sum over the text's states of KL(pi_start || pi), whole vocabulary.
        worse_kl: D_l.
        beta: What a nat weighs.
        alpha: None: delta = D_l - D_w (TDPO1); else alpha (D_l - sg D_w) (TDPO2).

    Source: arXiv:2404.11999, Eqs. 13 and 17.
    """
    first = alpha is None
    delta = worse_kl - better_kl if first else alpha * (worse_kl - better_kl.detach())
    return -logsigmoid(beta * (better - worse - delta))


def leave_one_out(scores: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Each score less the mean of the others of its group (RLOO, arXiv:2402.14740).

    A text that is alone in its group has no others: its advantage is 0.
    """
    total, number = _of_groups(scores, group)
    return (scores * number - total) / (number - 1).clamp(min=1)


def group_normalized(scores: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """(score - mean) / (sd + 1e-9) within its group, sample sd (GRPO, arXiv:2402.03300).

    0 in a group of one, and where all scores of a group are equal.
    """
    total, number = _of_groups(scores, group)
    centred = scores - total / number
    squares, _ = _of_groups(centred**2, group)
    return centred / ((squares / (number - 1).clamp(min=1)).sqrt() + NORM_FLOOR)


def _of_groups(
    values: Float[Tensor, " N"], group: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Sum of each one's group, and how many are in it."""
    _, place = group.unique(return_inverse=True)
    zeros = values.new_zeros(int(place.max()) + 1)
    total = zeros.index_add(0, place, values)
    number = zeros.index_add(0, place, torch.ones_like(values))
    return total[place], number[place]


def clipped_surrogate(
    log_probs: PerToken,
    old_log_probs: PerToken,
    advantage: PerToken,
    mask: Mask,
    *,
    clip: float,
    whole: bool = False,
) -> PerToken:
    """-min(rho A, clip(rho, 1 - c, 1 + c) A) per token, 0 on padding.

    Args:
        log_probs: log pi(a_t|s_t) [nats].
        old_log_probs: The same of the policy that sampled, without gradient.
        advantage: A_t, without gradient.
        mask: Real tokens.
        clip: c.
        whole: rho is the whole sequence's ratio, the same for all its tokens, not a token's own.

    Source: arXiv:1707.06347, Eq. 7; whole sequences: RLOO, arXiv:2402.14740.
    """
    ratio = (log_probs - old_log_probs).where(mask, 0.0)
    ratio = (sums_of_rows(ratio, mask)[:, None] if whole else ratio).exp()
    best = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -best.where(mask, 0.0)


def sums_of_rows(values: PerToken, mask: Mask) -> Float[Tensor, " N"]:
    """Sum over each row's real tokens."""
    return values.where(mask, 0.0).sum(-1)
