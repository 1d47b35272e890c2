"""The data that passes between the parts of pgtg: small frozen dataclasses, shapes in the types.

Shape letters, everywhere: `B` sources · `S` source tokens · `N` generations · `T` generated tokens
(right-padded) · `G` comparison groups · `J` candidates per group · `V` vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenIds = list[int]


@dataclass(frozen=True)
class Example:
    """One row of a task's data.

    Args:
        id: Unique within its split.
        source: What the policy reads, before prefix or template.
        references: Texts that the judge and the metrics compare with, at least one.
        target: Text that supervised training learns from; the first reference in ordinary data.
        truth: Planted ground truth, in generated data only.
    """

    id: str
    source: str
    references: tuple[str, ...]
    target: str
    truth: Any = None


@dataclass(frozen=True)
class Labelled:
    """One text to classify.

    Args:
        id: Unique within its split.
        text: As it stands in the data; may be empty.
        label: Number of its class, from 0.
    """

    id: str
    text: str
    label: int


@dataclass(frozen=True)
class DataCounts:
    """What became of the rows of one split: nothing is dropped or cut without being counted."""

    split: str
    rows: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    truncated: Mapping[str, int] = field(default_factory=dict)  # column -> rows cut to fit
    examples: Mapping[str, str] = field(default_factory=dict)  # reason -> id of the first such row
    unread: Sequence[str] = ()  # columns that nothing reads
    planted: Mapping[str, int] = field(default_factory=dict)  # what became of targets -> rows


@dataclass(frozen=True)
class TokenBatch:
    """N token sequences, each continuing one of B sources. Masks mark real tokens."""

    source: Int[Tensor, "B S"]
    source_mask: Bool[Tensor, "B S"]
    tokens: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    origin: Int[Tensor, " N"]  # the source, a row in 0..B-1, that each sequence continues
    known_origin: tuple[int, ...] | None = None  # the same where the host knows it
    read: int | None = None  # real tokens of the sources, counted where the batch was made
    real: int | None = None  # real tokens of the sequences, counted there too
    recurring: bool = False  # whether the same sequences are read again and again in a run

    def to(self, device: Any) -> "TokenBatch":
        """The same batch on another device."""
        names = ("source", "source_mask", "tokens", "mask", "origin")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def rows(self) -> tuple[int, ...]:
        """`origin` for the host, which waits for the device only where it is not known."""
        return tuple(self.origin.tolist()) if self.known_origin is None else self.known_origin

    def counted(self) -> tuple[int, int]:
        """Real tokens of sources and of sequences; the device is asked only if nobody counted."""
        read = int(self.source_mask.sum()) if self.read is None else self.read
        return read, int(self.mask.sum()) if self.real is None else self.real


@dataclass(frozen=True)
class Generations:
    """N generations with the judge's scores, and the groups in which they are compared."""

    source_ids: list[str]  # B ids of the sources
    sources: list[TokenIds]  # B tokenised sources
    origin: list[int]  # N rows into sources
    tokens: list[TokenIds]  # N generations as sampled; ids, never text, go from stage to stage
    texts: list[str]  # N decoded generations, for people and for the judge
    scores: list[float]  # N judge's scores, higher is better
    groups: Int[Tensor, "G J"]  # rows into the N generations: those of each source, -1 if fewer
    pairs: Int[Tensor, "P 2"] | None = None  # only these were compared: better row, other row
    margins: Float[Tensor, " G"] | None = None  # of groups of two: by how much [nats]
    example_scores: np.ndarray | None = None  # [N, E] scores on each example the judge used

    @property
    def members(self) -> list[list[int]]:
        """The rows of each group."""
        return [[row for row in own if row >= 0] for own in self.groups.tolist()]


@dataclass(frozen=True)
class Window:
    """Counts over one accumulation window: what its losses are means over."""

    sequences: int  # targets, or comparison groups
    tokens: int  # of the targets
    sampled: int = 0  # tokens of the policy's own samples
    read: int = 0  # tokens of the sources
    places: int = 0  # tokens that a model reads for them, padding and all
    texts: int = 0  # that are read with gradients, of a pair two; 0: one a sequence

    def __add__(self, other: "Window") -> "Window":
        return Window(
            self.sequences + other.sequences,
            self.tokens + other.tokens,
            self.sampled + other.sampled,
            self.read + other.read,
            self.places + other.places,
            self.texts + other.texts,
        )

    @property
    def padding(self) -> float:
        """Share [0, 1] of padding in what is read of the sources."""
        return 1 - self.read / self.places if self.places else 0.0


@dataclass(frozen=True)
class Loss:
    """What an objective returns: the value to minimise and what to log with it.

    Everything is already divided by the whole accumulation window's counts, so that over the
    window's micro-batches values, gradients and metrics simply add up. Metrics are left where they
    were computed: an update fetches all of its numbers at once.
    """

    value: Float[Tensor, ""]
    metrics: Mapping[str, Float[Tensor, ""] | float] = field(default_factory=dict)
