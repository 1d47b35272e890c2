"""Units of credit that are larger than a token: segments of a text, and rewards shared within them.

A segment's reward is the one at its last token. All tensors here are right-padded.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mask = Bool[Tensor, "N T"]


def ends_by_size(mask: Mask, size: int) -> Mask:
    """Last tokens of segments of `size` tokens; a text's last segment may be shorter."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (places % size == 0) & mask | _last(mask)


def ends_by_entropy(entropies: Float[Tensor, "N T"], above: float, mask: Mask) -> Mask:
    """Last tokens of segments that end where a choice comes: before a token that was drawn from a
    state of more entropy than `above`, and at a text's end.

    Args:
        entropies: Of the distribution that each token was drawn from [nats].
        above: [nats].
    """
    after = torch.cat([entropies[:, 1:] > above, torch.zeros_like(mask[:, :1])], dim=1)
    followed = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return after & followed | _last(mask)


def ends_by_sign(closing: Mask, opening: Mask, mask: Mask) -> Mask:
    """Last tokens of sentences: a closing token before an opening one, and a text's last token.

    Args:
        closing: Tokens that end in a full stop, or another sign after which a sentence is over.
        opening: Tokens that begin with a space or a line break, or show nothing.
    """
    after = torch.cat([opening[:, 1:], torch.ones_like(opening[:, :1])], dim=1)
    return closing & after & mask | _last(mask)


def shared(
    rewards: Float[Tensor, "N T"], ends: Mask, mask: Mask, spread: str
) -> Float[Tensor, "N T"]:
    """Each segment's reward R, that of its last token, given to its tokens.

    Args:
        ends: Last tokens of segments.
        spread: "copy": each token has R; "even": R over the number of tokens; "end": the last one
            has R, the others 0.

    Returns:
        [N, T]; 0 at padding. Gradients reach the segments' last tokens alone.
    """
    if spread == "end":
        return rewards.where(ends & mask, 0.0)
    width = mask.shape[1]
    places = torch.arange(width, device=mask.device).expand_as(mask)
    own = places.where(ends, width - 1).flip(-1).cummin(-1).values.flip(-1)  # its segment's end
    found = rewards.gather(-1, own)
    if spread == "even":
        sizes = torch.zeros_like(rewards).scatter_add(-1, own, mask.to(rewards.dtype))
        found = found / sizes.gather(-1, own).clamp(min=1)
    return found.where(mask, 0.0)


def _last(mask: Mask) -> Mask:
    """The last real token of each row."""
    return mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
