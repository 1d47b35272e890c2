"""Attention masks made once and without waiting for the device.

Transformers makes a model's masks again in each forward call, and asks each time whether a mask is
all True, for which the host waits for an accelerator. A mask with four dimensions passes through as
it is. Models with sliding windows, positions by the mask (ALiBi) or attention of their own make
theirs as before.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from pgtg.models.cache import fixed_length

OWN_ATTENTION = ("sliding", "local", "chunked", "alibi")
BIDIRECTIONAL, CAUSAL = "create_bidirectional_mask", "create_causal_mask"


@dataclass(frozen=True)
class ReadyMasks:
    """Which masks a model takes ready-made, and these masks.

    Args:
        for_encoder: The encoder's, of real source tokens.
        for_source: The decoder's, of real source tokens.
        for_tokens: A causal LM's.
        for_own: An encoder-decoder's decoder, which else makes a mask of ones and looks at it.
    """

    for_encoder: bool
    for_source: bool
    for_tokens: bool
    for_own: bool

    @classmethod
    def of(cls, model: Any, layers: nn.Module) -> "ReadyMasks":
        """For a model and its (decoder's) layers."""
        if not model.config.is_encoder_decoder:
            positions = "position_ids" in inspect.signature(layers.forward).parameters
            return cls(False, False, positions and _hands_on(layers, CAUSAL), False)
        own = _hands_on(layers, CAUSAL) and "torch.ones(" in _source(type(layers))
        encoder = _hands_on(model.get_encoder(), BIDIRECTIONAL)
        return cls(encoder, _hands_on(layers, BIDIRECTIONAL), False, own)

    def encoder(self, mask: Bool[Tensor, "B S"]) -> Tensor | None:
        return bidirectional(mask) if self.for_encoder else mask.long()

    def source(self, mask: Bool[Tensor, "B S"]) -> Tensor | None:
        return bidirectional(mask) if self.for_source else mask.long()

    def causal(self, mask: Bool[Tensor, "N L"], tokens: int) -> Tensor | None:
        """For the last T of L tokens of a causal LM."""
        return causal(mask, tokens) if self.for_tokens else mask.long()

    def own(self, tokens: Int[Tensor, "N T"], cache: Any) -> Tensor | None:
        """For tokens that an encoder-decoder's decoder reads after those of the cache."""
        if not self.for_own:
            return None
        if (length := fixed_length(cache)) is not None:
            read = torch.arange(length, device=tokens.device) <= cache.get_seq_length()
            return read.expand(len(tokens), 1, 1, length)
        if tokens.device.type == "cpu":
            return None
        before = 0 if cache is None else cache.get_seq_length()
        shape = len(tokens), before + tokens.shape[1]
        return causal(torch.ones(shape, dtype=torch.bool, device=tokens.device), tokens.shape[1])


NONE_READY = ReadyMasks(False, False, False, False)


def _hands_on(stack: nn.Module, maker: str) -> bool:
    """Whether a stack gives the mask that it gets to Transformers' `maker` and to nothing else."""
    config = getattr(stack, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa":  # whose masks are boolean
        return False
    source = _source(type(stack))
    return f"{maker}(" in source and not any(word in source for word in OWN_ATTENTION)


@cache
def _source(stack: type[nn.Module]) -> str:
    """The code of a stack's forward, "" if it cannot be read."""
    try:
        return inspect.getsource(stack.forward)
    except (OSError, TypeError):
        return ""


def bidirectional(mask: Bool[Tensor, "B S"]) -> Bool[Tensor, "B 1 1 S"] | None:
    """For queries that see all real tokens of their row; None (CPU only) if that is all of them.

    On an accelerator the host does not wait to know that.
    """
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    return mask[:, None, None]


def causal(mask: Bool[Tensor, "N L"], tokens: int) -> Bool[Tensor, "N 1 T L"] | None:
    """For the last T of L tokens, each of which sees the real ones up to itself.

    None (CPU only) if these are all tokens before it, which Transformers takes for granted of a
    single token and of T = L.
    """
    length = mask.shape[1]
    if tokens == 1:
        return bidirectional(mask)
    if tokens == length and mask.device.type == "cpu" and bool(mask.all()):
        return None
    before = torch.ones(tokens, length, dtype=torch.bool, device=mask.device)
    return mask[:, None, None] & before.tril(length - tokens)
