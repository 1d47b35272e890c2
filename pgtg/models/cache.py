"""Key-value caches with room for the tokens to come: written in place, never concatenated.

Transformers' dynamic cache makes each layer's keys and values again at every token, one longer. A
layer here holds tensors of the full length from the start and shows the part that is filled, so all
models read what they would read otherwise, to the bit.
"""

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer


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
