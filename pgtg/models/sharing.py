"""Rows that continue the same source attend to one copy of its keys and values.

An encoder-decoder's cross-attention reads the source's keys and values at every token; for K rows
of one source Transformers keeps K copies of them. Here the queries of rows that share a source are
laid side by side, as if they were further tokens of one row: cross-attention asks nothing of the
order of its queries, so the answers are the same, and the copies are neither made, nor read, nor
kept for the backward pass.
"""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# what Transformers' attention modules call the states that they attend to, and the mask of those
SOURCE_STATES = "key_value_states"
MASKS = ("attention_mask", "mask")
WASTE = 2  # most places for queries, as a multiple of the queries


def indices(rows: Sequence[int], device: torch.device | str) -> Int[Tensor, " N"]:
    """Row numbers that the host knows, on a device, which the host does not wait for."""
    return torch.tensor(rows, dtype=torch.long).to(device, non_blocking=True)


@dataclass(frozen=True)
class Layout:
    """Where the queries of N rows stand, in B sources with places for `width` rows each."""

    place: Int[Tensor, " N"] | None  # on the rows' device; None: row n stands at place n
    sources: int
    width: int

    @classmethod
    def of(
        cls, origin: Sequence[int], sources: int, device: torch.device | str = "cpu"
    ) -> "Layout | None":
        """The layout of rows whose sources are `origin`, each in [0, sources).

        None if the sources' numbers of rows differ so much that most places would be empty.
        """
        width = max(Counter(origin).values())
        if sources * width > WASTE * len(origin):
            return None
        place, rows = [], [0] * sources  # rows of each source so far
        for source in origin:
            place.append(source * width + rows[source])
            rows[source] += 1
        in_order = place == list(range(sources * width))
        return cls(None if in_order else indices(place, device), sources, width)

    def together(self, rows: Float[Tensor, "N T D"]) -> Float[Tensor, "B K*T D"]:
        if self.place is not None:
            empty = rows.new_zeros(self.sources * self.width, *rows.shape[1:])
            rows = empty.index_copy(0, self.place, rows)
        return rows.reshape(self.sources, -1, rows.shape[-1])

    def apart(self, together: Float[Tensor, "B K*T D"]) -> Float[Tensor, "N T D"]:
        rows = together.reshape(self.sources * self.width, -1, together.shape[-1])
        return rows if self.place is None else rows[self.place]


class SharedSources:
    """Puts the rows of a source together around each cross-attention of a decoder.

    Outside of `laid_out`, and where a module attends to its own row, nothing changes.
    """

    def __init__(self, attentions: list[nn.Module]):
        self._layout: Layout | None = None
        for module in attentions:
            module.register_forward_pre_hook(self._before, with_kwargs=True)
            module.register_forward_hook(self._after, with_kwargs=True)

    @contextmanager
    def laid_out(self, layout: Layout | None) -> Iterator[None]:
        """Rows stand in the decoder's cross-attentions as the layout says, inside."""
        alone = layout is None or (layout.width == 1 and layout.place is None)
        self._layout = None if alone else layout
        try:
            yield
        finally:
            self._layout = None

    def laid_out_as_now(self) -> AbstractContextManager[None]:
        """`laid_out` with the layout of the moment at which this is called."""
        return self.laid_out(self._layout)

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._layout is None or kwargs.get(SOURCE_STATES) is None:
            return None
        rows = args[0] if args else kwargs["hidden_states"]
        together = self._layout.together(rows)
        changed: dict[str, Any] = {} if args else {"hidden_states": together}
        for name in MASKS:
            if kwargs.get(name) is not None:  # [B, 1, T, S]: the same for every query
                changed[name] = kwargs[name][:, :, :1].expand(-1, -1, together.shape[1], -1)
        return (together, *args[1:]) if args else args, kwargs | changed

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
        if self._layout is None or kwargs.get(SOURCE_STATES) is None:
            return None
        return (self._layout.apart(out[0]), *out[1:])


def sharing(decoder: nn.Module) -> SharedSources | None:
    """Sharing for the decoder of an encoder-decoder; None where it is of a make unknown here."""
    attentions = [module for module in decoder.modules() if _attends_to_source(module)]
    return SharedSources(attentions) if attentions else None


def _attends_to_source(module: nn.Module) -> bool:
    """Whether a module is an attention to another sequence, and not a layer around one."""
    inner = [part for part in module.modules() if part is not module]
    return _takes_source(module) and not any(map(_takes_source, inner))


def _takes_source(module: nn.Module) -> bool:
    return SOURCE_STATES in inspect.signature(module.forward).parameters
