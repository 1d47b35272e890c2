"""What black-box tuning puts around an evolution strategy: projection, losses, selection.

Source: Sun et al. 2022 (arXiv:2201.03514), its released code, and RLPrompt's copy of it.
"""

import math

from jaxtyping import Float, Int
from torch import Tensor


def projection_scale(
    mean: float, std: float, dim: int, *, sigma: float, alpha: float = 1.0, centred: bool
) -> tuple[float, float]:
    """Mean and standard deviation of a random projection's entries.

    With them the sum of `dim` entries, each times a normal number of standard deviation sigma, is
    spread like the entries of the embedding table.

    Args:
        mean, std: Of the entries of embedding rows (`std` with division by their number).
        dim: Width of the space that is searched.
        sigma: First step size of the search.
        alpha: Factor of the spread (`centred` only).
        centred: Mean 0 and std alpha s / (sqrt(dim) sigma), as the authors' code has it today;
            otherwise m / (dim - s^2) and s / sqrt(dim - s^2), as RLPrompt's copy.
    """
    if centred:
        return 0.0, alpha * std / (math.sqrt(dim) * sigma)
    return mean / (dim - std**2), std / math.sqrt(dim - std**2)


def label_cross_entropy(
    log_probs: Float[Tensor, "*P E C"], labels: Int[Tensor, " E"]
) -> Float[Tensor, "*P"]:
    """Mean over the examples of -log p(label) among the label words [nats]."""
    index = labels.expand(log_probs.shape[:-1])[..., None]
    own = log_probs.log_softmax(-1).gather(-1, index).squeeze(-1)
    return -own.mean(-1)


def label_hinge(
    logits: Float[Tensor, "*P E C"], labels: Int[Tensor, " E"], margin: float = 2.0
) -> Float[Tensor, "*P"]:
    """Mean over the examples of the sum over other words of max(0, margin + logit - own logit).

    Differences of logits are those of log-probabilities, so either will do.
    """
    index = labels.expand(logits.shape[:-1])[..., None]
    excess = (margin + logits - logits.gather(-1, index)).clamp(min=0)
    return excess.scatter(-1, index, 0.0).sum(-1).mean(-1)
