"""Key-value caches with room for the tokens to come: written in place, never concatenated.

There are two kinds, with keys and values in tensors of the full length from the start. A roomy
layer shows the part that is filled. A fixed one shows all of it, and masks say what is filled: so
the step of a token has the same shapes each time, and can be compiled.

Transformers' dynamic cache makes each layer's keys and values again at every token, one longer.
With a roomy layer all models read what they would read otherwise, to the bit.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer, StaticLayer

from pgtg.models.backends.attention import are_few, in_columns


class RoomyLayer(DynamicLayer):
    """A dynamic layer whose keys and values are the filled part of longer tensors.

    Args:
        layer: What has been read so far; its tensors are copied.
        room: Tokens that can be read after those without a new allocation.
    """

    def __init__(self, layer: DynamicLayer, room: int):
        super().__init__()
        assert layer.keys is not None and layer.values is not None
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self._fill(layer.keys, layer.values, layer.keys.shape[-2] + room)

    def _fill(self, keys: Tensor, values: Tensor, length: int) -> None:
        self._long_keys, self._long_values = _longer(keys, length), _longer(values, length)
        self._show(keys.shape[-2])

    def _show(self, filled: int) -> None:
        self.keys = self._long_keys[:, :, :filled]
        self.values = self._long_values[:, :, :filled]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any):
        assert self.keys is not None and self.values is not None
        filled = self.keys.shape[-2]
        after = filled + key_states.shape[-2]
        if after > self._long_keys.shape[-2]:
            self._fill(self.keys, self.values, 2 * after)
        self._long_keys[:, :, filled:after] = key_states
        self._long_values[:, :, filled:after] = value_states
        self._show(after)
        return self.keys, self.values

    def batch_select_indices(self, indices: Int[Tensor, " M"]) -> None:
        length = self._long_keys.shape[-2]
        assert self.keys is not None and self.values is not None
        self._fill(self.keys[indices], self.values[indices], length)


class FixedLayer(StaticLayer):
    """Transformers' layer for compiled passes, with what has been read so far.

    Args:
        layer: A dynamic layer; its tensors are copied.
        length: Of its tensors from now on, more than will ever be filled.
    """

    def __init__(self, layer: DynamicLayer, length: int):
        super().__init__(max_cache_len=length)
        assert layer.keys is not None and layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        assert self.keys is not None and self.values is not None
        filled = layer.keys.shape[-2]
        self.keys[:, :, :filled], self.values[:, :, :filled] = layer.keys, layer.values
        self.cumulative_length.fill_(filled)

    def batch_select_indices(self, indices: Int[Tensor, " M"]) -> None:
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[indices], self.values[indices]
        self.batch_size = len(indices)
        for part in (self.keys, self.values):
            torch._dynamo.mark_static_address(part)


def _longer(part: Tensor, length: int) -> Tensor:
    """[N, H, T, D] as the first T tokens of [N, H, length, D]; the rest is not yet written."""
    made = part.new_empty(*part.shape[:2], length, part.shape[3])
    made[:, :, : part.shape[2]] = part
    return made


def make_room(cache: Any, room: int) -> list[str]:
    """Let the layers of a dynamic cache that keep all tokens be written in place from now on.

    Returns:
        The kinds of layers that stay as they are: sliding windows, linear attention.
    """
    left = set()
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = RoomyLayer(layer, room)
        elif not isinstance(layer, RoomyLayer):
            left.add(type(layer).__name__)
    return sorted(left)


def lay_in_columns(cache: Any, queries: int) -> None:
    """Bring a cache's values into the order in which attention of few queries reads them best.

    Args:
        queries: How many come to a row's keys at once, of all heads; where that is not few the
            values stay as they are, which torch's kernel reads in half the time.
    """
    for layer in cache.layers:
        if layer.is_initialized and are_few(queries, layer.values):
            layer.values = in_columns(layer.values)


def fix_length(cache: Any, length: int) -> list[str]:
    """Let the layers of a dynamic cache keep one length from now on.

    Returns:
        The kinds of layers that stay as they are: sliding windows, linear attention.
    """
    kinds = {type(layer) for layer in cache.layers}
    left = sorted(kind.__name__ for kind in kinds - {DynamicLayer, RoomyLayer})
    if not left:
        cache.layers[:] = [FixedLayer(layer, length) for layer in cache.layers]
    return left


def fixed_length(cache: Any) -> int | None:
    """The length of a cache of fixed layers; None for any other."""
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    return layers[0].max_cache_len if layers and isinstance(layers[0], FixedLayer) else None
