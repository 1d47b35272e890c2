"""First-order candidates for a trigger token, and how its answers are counted (AutoPrompt).

Source: Shin et al. 2020 (arXiv:2010.15980) and its released code.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def first_order_scores(
    embeddings: Float[Tensor, "V D"], gradient: Float[Tensor, " D"]
) -> Float[Tensor, " V"]:
    """By how much a loss falls if a token's embedding takes the present one's place, to first
    order and up to a constant: -E g.

    Args:
        gradient: Of the loss with respect to the embedding at the place.
    """
    return -(embeddings.to(gradient.dtype) @ gradient)


def best_tokens(
    scores: Float[Tensor, " V"], number: int, allowed: Sequence[int] | None = None
) -> list[int]:
    """The ids with the largest scores, best first; of equals the lower id.

    Args:
        allowed: The only ids that compete; None for all.
    """
    ids = torch.arange(len(scores)) if allowed is None else torch.tensor(sorted(allowed))
    order = scores.cpu()[ids].argsort(descending=True, stable=True)
    return ids[order[:number]].tolist()


def strictly_right(
    log_probs: Float[Tensor, "*P E C"], labels: Int[Tensor, " E"]
) -> Bool[Tensor, "*P E"]:
    """Whether the own label word is likelier than every other one: a tie is wrong."""
    index = labels.expand(log_probs.shape[:-1])[..., None]
    own = log_probs.gather(-1, index).squeeze(-1)
    others = log_probs.scatter(-1, index, -torch.inf)
    return own > others.max(-1).values
