"""What a language model remembers of what it has read: sources, and the rows that continue them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from pgtg.models.sharing import Layout


@dataclass(frozen=True)
class Sources:
    """What the encoder made of B sources, and which of them each of N rows continues."""

    encoded: Float[Tensor, "B S D"]
    mask: Bool[Tensor, "B S"]
    origin: Int[Tensor, " N"]
    layout: Layout | None  # of rows that share a source; None: row n has source n to itself

    def select(self, rows: Int[Tensor, " M"], cache: Any) -> "Sources":
        """The sources of the rows named; the cache of their keys and values changes too."""
        origin = self.origin[rows]
        used, shared = origin.unique(return_inverse=True)
        layout = self.layout and Layout.of(shared, len(used))
        if layout is None:  # too uneven, or not possible with this model
            used, shared = origin, torch.arange(len(origin), device=origin.device)
        encoded, mask = self.encoded, self.mask
        if not torch.equal(used, torch.arange(len(encoded), device=used.device)):
            cache.batch_select_indices(used)
            encoded, mask = encoded[used], mask[used]
        return Sources(encoded, mask, shared, layout)


@dataclass
class Reading:
    """What a model remembers of N rows: changed in place by `extend`, narrowed by `select`."""

    output: Float[Tensor, "N 1 D"]  # states or logits after the last token read
    cache: Any  # Transformers' key-value cache
    mask: Bool[Tensor, "N L"] | None  # causal: real tokens read so far
    sources: Sources | None  # encoder-decoder only
    # without a cache: all tokens (of the decoder) read so far, in rows with padding anywhere
    history: tuple[Int[Tensor, "N L"], Bool[Tensor, "N L"]] | None = None

    def select(self, rows: Int[Tensor, " M"]) -> "Reading":
        """The rows named, in that order; a row may come several times. The cache is changed."""
        if self.history is not None:
            sources = self.sources and self.sources.select(rows, DynamicCache())
            history = self.history[0][rows], self.history[1][rows]
            return Reading(self.output[rows], None, None, sources, history)
        if self.sources is None:
            self.cache.batch_select_indices(rows)
            mask = None if self.mask is None else self.mask[rows]
            return Reading(self.output[rows], self.cache, mask, None)
        self.cache.self_attention_cache.batch_select_indices(rows)
        sources = self.sources.select(rows, self.cache.cross_attention_cache)
        return Reading(self.output[rows], self.cache, None, sources)
