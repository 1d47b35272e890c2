"""Padding, made and moved by position. Ids are never compared with a pad id: pad may equal eos."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pad(
    rows: Sequence[Sequence[int]], *, side: str = "right", fill: int = 0
) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"]]:
    """Rows of token ids as one rectangle, with the mask of real tokens.

    Args:
        rows: R lists of ids, at most L long; an empty row is all padding.
        side: "right" or "left", where the padding goes.
        fill: The id written into padding. No result may depend on it.
    """
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), max(width, 1)), fill, dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
        ids[i, columns] = torch.tensor(row, dtype=torch.long)
        mask[i, columns] = True
    return ids, mask


def move_padding(
    ids: Int[Tensor, "R L"], mask: Bool[Tensor, "R L"], *, side: str
) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"]]:
    """The same rows with all padding on one side, real tokens in their order.

    A model with absolute positions (BART, GPT-2) sees a row the same way wherever its caller put
    the padding, because every row passes through here first.
    """
    order = (~mask if side == "right" else mask).to(torch.uint8).argsort(dim=-1, stable=True)
    return ids.gather(-1, order), mask.gather(-1, order)


def masked_sum(values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, ""]:
    """Sum over all real tokens. Values at padding, whatever they are, get no gradient.

    Not `values[mask].sum()`: how many tokens a mask keeps is known only when a GPU has been waited
    for.
    """
    return values.where(mask, 0.0).sum()


def masked_mean(values: Float[Tensor, "*N T"], mask: Bool[Tensor, "*N T"]) -> Float[Tensor, "*N"]:
    """Mean over the real tokens of each row; 0 for a row without any."""
    total = values.where(mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1)


def length_sorted(
    lengths: Sequence[int], *, budget: int, held: Callable[[int], int] = int
) -> list[list[int]]:
    """Batches of rows of similar length, each at most `budget` padded tokens.

    Args:
        lengths: Tokens of each row.
        budget: Padded tokens that one batch may hold; a batch has at least one row.
        held: The tokens that a row of that length comes to (generation); more for a longer one.

    Returns:
        Row numbers by batch, longest first, so that running out of memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    size = 0
    for i in order:
        if not batches or len(batches[-1]) >= size:
            size = max(1, budget // max(1, held(lengths[i])))
            batches.append([])
        batches[-1].append(i)
    return batches
