"""Token lists to batches, and a model's value per token over many sequences, length-sorted."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.ops.masking import length_sorted, move_padding, pad
from pgtg.types import TokenBatch, TokenIds


def token_batch(
    sources: Sequence[TokenIds],
    tokens: Sequence[TokenIds],
    origin: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    recurring: bool = False,
) -> TokenBatch:
    """B tokenised sources and N token lists that continue them, as one padded batch."""
    source, source_mask = (moved(part, device) for part in pad(sources))
    ids, mask = (moved(part, device) for part in pad(tokens))
    known = tuple(origin)
    rows = moved(torch.tensor(known, dtype=torch.long), device)
    read, real = sum(map(len, sources)), sum(map(len, tokens))
    return TokenBatch(source, source_mask, ids, mask, rows, known, read, real, recurring)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on a device; the CPU does not wait until it is there."""
    device = torch.device(device)
    if device.type == "cuda":  # from memory that the GPU reads by itself
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def continuing(source: TokenIds, tokens: Int[Tensor, "N T"]) -> TokenBatch:
    """Sequences of one length that continue one source, left on the device where they were made."""
    number, length = tokens.shape
    one = moved(torch.tensor([source], dtype=torch.long), tokens.device)
    return TokenBatch(
        one,
        torch.ones_like(one, dtype=torch.bool),
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        torch.zeros(number, dtype=torch.long, device=tokens.device),
        (0,) * number,
        len(source),
        number * length,
    )


def right_padded(batch: TokenBatch) -> TokenBatch:
    """The same batch with its tokens right-padded, as language models read them."""
    tokens, mask = move_padding(batch.tokens, batch.mask, side="right")
    return replace(batch, tokens=tokens, mask=mask)


@torch.no_grad()
def per_token(
    value: Callable[[TokenBatch], Float[Tensor, "N T"]],
    sources: Sequence[TokenIds],
    tokens: Sequence[TokenIds],
    origin: Sequence[int],
    *,
    batch_tokens: int,
    device: torch.device | str = "cpu",
    recurring: bool = False,
) -> list[np.ndarray]:
    """`value` of each token of N sequences, one float32 array a sequence.

    Each source is read once, with all of its sequences, in batches of similar length.
    """
    continuing: list[list[int]] = [[] for _ in sources]
    for row, source in enumerate(origin):
        continuing[source].append(row)
    used = [i for i, rows in enumerate(continuing) if rows]
    lengths = [len(sources[i]) + sum(len(tokens[row]) for row in continuing[i]) for i in used]
    out: list[np.ndarray] = [np.empty(0, np.float32) for _ in tokens]
    for places in length_sorted(lengths, budget=batch_tokens):
        rows = [row for p in places for row in continuing[used[p]]]
        local = [n for n, p in enumerate(places) for _ in continuing[used[p]]]
        own = [sources[used[p]] for p in places], [tokens[row] for row in rows]
        batch = token_batch(*own, local, device, recurring=recurring)
        values = value(batch).float().cpu().numpy()
        for row, line in zip(rows, values, strict=True):
            out[row] = line[: len(tokens[row])].copy()
    return out
