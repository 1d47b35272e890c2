"""What a language model remembers of what it has read: sources, and the rows that continue them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from pgtg.errors import ConfigError
from pgtg.models.backends.compiled import size
from pgtg.models.cache import fix_length, make_room
from pgtg.models.sharing import Layout, indices


@dataclass(frozen=True)
class Sources:
    """What the encoder made of B sources, and which of them each of N rows continues."""

    encoded: Float[Tensor, "B S D"]
    mask: Bool[Tensor, "B S"]
    seen: Tensor | None  # the mask as the decoder takes it
    origin: tuple[int, ...]  # N rows into the sources
    layout: Layout | None  # of rows that share a source; None: row n has source n to itself

    @property
    def width(self) -> int:
        """The most rows that share a source."""
        return 1 if self.layout is None else self.layout.width

    def select(self, rows: Sequence[int], cache: Any) -> "Sources":
        """The sources of the rows named; the cache of their keys and values changes too."""
        origin = [self.origin[row] for row in rows]
        used = sorted(set(origin))
        place = {source: n for n, source in enumerate(used)}
        shared = [place[source] for source in origin]
        device = self.encoded.device
        layout = self.layout and Layout.of(shared, len(used), device)
        if layout is None:  # too uneven, or not possible with this model
            used, shared = origin, list(range(len(origin)))
        encoded, mask, seen = self.encoded, self.mask, self.seen
        if used != list(range(len(encoded))):
            index = indices(used, device)
            cache.batch_select_indices(index)
            encoded, mask = encoded[index], mask[index]
            seen = None if seen is None else seen[index]
        return Sources(encoded, mask, seen, tuple(shared), layout)

    def apart(self, cache: Any) -> "Sources":
        """A source of its own for each row; the cache of their keys and values changes too."""
        if self.layout is None:
            return self
        index = indices(list(self.origin), self.encoded.device)
        cache.batch_select_indices(index)
        seen = None if self.seen is None else self.seen[index]
        rows = tuple(range(len(index)))
        return Sources(self.encoded[index], self.mask[index], seen, rows, None)


@dataclass
class Reading:
    """What a model remembers of N rows: changed in place by `extend`, narrowed by `select`."""

    output: Float[Tensor, "N 1 D"]  # states or logits after the last token read
    cache: Any  # Transformers' key-value cache
    mask: Bool[Tensor, "N L"] | None  # causal: real tokens read so far
    sources: Sources | None  # encoder-decoder only
    # without a cache: all tokens (of the decoder) read so far, in rows with padding anywhere
    history: tuple[Int[Tensor, "N L"], Bool[Tensor, "N L"]] | None = None
    filled: int | None = None  # columns of the mask that are filled, after `fix`

    def select(self, rows: Sequence[int] | Int[Tensor, " M"]) -> "Reading":
        """The rows named, in that order; a row may come several times. The cache is changed.

        Numbers that the host knows spare it a look at the device.
        """
        rows = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        if rows == list(range(len(self.output))):
            return replace(self)
        index = indices(rows, self.output.device)
        if self.history is not None:
            sources = self.sources and self.sources.select(rows, DynamicCache())
            history = self.history[0][index], self.history[1][index]
            return Reading(self.output[index], None, None, sources, history)
        if self.sources is None:
            self.cache.batch_select_indices(index)
            mask = None if self.mask is None else self.mask[index]
            return Reading(self.output[index], self.cache, mask, None, filled=self.filled)
        self.cache.self_attention_cache.batch_select_indices(index)
        sources = self.sources.select(rows, self.cache.cross_attention_cache)
        return Reading(self.output[index], self.cache, None, sources, filled=self.filled)

    def add(self, mask: Bool[Tensor, "N T"]) -> None:
        """Real tokens that are read next."""
        assert self.mask is not None
        if self.filled is None:
            self.mask = torch.cat([self.mask, mask], dim=1)
        else:
            after = self.filled + mask.shape[1]
            self.mask[:, self.filled : after] = mask
            self.filled = after

    def fork(self) -> "Reading":
        """The same memory once more: what either reads or selects, the other does not see."""
        return replace(self, cache=deepcopy(self.cache))

    def reserve(self, tokens: int) -> list[str]:
        """Make room for that many further tokens, read one after another without gradients.

        Returns:
            The kinds of the cache's layers for which that is not possible.
        """
        if self.cache is None:
            return []
        return make_room(getattr(self.cache, "self_attention_cache", self.cache), tokens)

    def fix(self, tokens: int) -> None:
        """Make room for that many further tokens, to be read one after another in steps of one
        shape; rows share no source any more.

        Raises:
            ConfigError: There is no cache, or layers of it cannot have a fixed length.
        """
        own = getattr(self.cache, "self_attention_cache", self.cache)
        filled = 0 if own is None else own.get_seq_length()
        length = size(filled + tokens + 1)  # never full, so masks are never left out
        left = ["there is none"] if own is None else fix_length(own, length)
        if left:
            raise ConfigError(
                f"sample.compile: this model's cache has no fixed length ({', '.join(left)}); "
                "sample.compile=false goes without"
            )
        if self.sources is not None:
            self.sources = self.sources.apart(self.cache.cross_attention_cache)
        if self.mask is not None:
            mask = self.mask.new_zeros(len(self.mask), length)
            mask[:, :filled] = self.mask
            self.mask = mask
        self.filled = filled
