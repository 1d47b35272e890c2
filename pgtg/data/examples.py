"""Examples of a split that stay on the disk until one is asked for, and selections of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa

from pgtg.data.rows import Rows, RowWriter, Stored
from pgtg.types import Example

_TEXT = pa.large_string()
SCHEMA = pa.schema(
    {"id": _TEXT, "source": _TEXT, "references": pa.large_list(_TEXT), "target": _TEXT}
)  # target: null where it is the first reference


class Examples(Sequence[Example]):
    """Some examples of a split, in an order; each is made when it is asked for.

    Args:
        split: Their split's name.
        base: The whole split.
        rows: Their numbers in it; None for all.
    """

    def __init__(self, split: str, base: Sequence[Example], rows: np.ndarray | None = None):
        self.split, self.base = split, base
        self.rows = np.arange(len(base)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Examples": ...
    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return Examples(self.split, self.base, self.rows[index])
        return self.base[int(self.rows[index])]

    def __iter__(self) -> Iterator[Example]:
        return (self.base[row] for row in self.rows.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def chosen(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        """The examples at these places."""
        return Examples(self.split, self.base, self.rows[np.asarray(rows, dtype=np.int64)])

    def ids(self) -> list[str]:
        """Their ids; no text is read."""
        if isinstance(self.base, StoredExamples):
            return self.base.ids(self.rows.tolist())
        return [self.base[row].id for row in self.rows.tolist()]

    def named(self, ids: Iterable[str]) -> dict[str, Example]:
        """Those of the examples that have one of these ids, by id."""
        wanted = set(ids)
        return {name: self[i] for i, name in enumerate(self.ids()) if name in wanted}


class StoredExamples(Stored[Example]):
    """A split's examples in `rows.Rows`."""

    def __init__(self, rows: Rows):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, place: int) -> Example:
        id, source, references, target = (self._rows.value(name, place) for name in SCHEMA.names)
        return Example(id, source, tuple(references), references[0] if target is None else target)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def ids(self, rows: Iterable[int]) -> list[str]:
        return [self._rows.value("id", row) for row in rows]


class ExampleWriter:
    """Takes a split's examples one by one, as a list would."""

    def __init__(self) -> None:
        self._rows = RowWriter(SCHEMA)

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, example: Example) -> None:
        assert example.truth is None, "planted truth is not stored"
        target = None if example.target == example.references[0] else example.target
        values = (example.id, example.source, list(example.references), target)
        self._rows.append(dict(zip(SCHEMA.names, values, strict=True)))

    def finish(self) -> StoredExamples:
        return StoredExamples(self._rows.finish())
