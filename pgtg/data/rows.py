"""Rows in Arrow's layout, mapped into memory: one is read where it lies, when it is asked for.

A table that is small stays in memory, as Arrow's bytes; one of more than SPILL bytes goes to a file
and is mapped from there, so that the system can drop its pages. The file has no name: it is gone
when the process is, however that ends.
"""

import mmap
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

from pgtg.errors import ArtifactError
from pgtg.runs.files import atomic, plain_file, reading, writing

SPILL = 64 * 2**20  # bytes that a table may take in memory
BATCH = 1024  # rows that are written at a time


T = TypeVar("T")


class Stored(Sequence[T], ABC):
    """A sequence whose items are made from what is stored, each when it is asked for."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The item at a place from 0."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return self.at(places) if isinstance(places, int) else [self.at(n) for n in places]


class Rows:
    """Rows by number.

    Args:
        batches: The table's parts, in order.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch]):
        self._batches = [batch for batch in batches if batch.num_rows]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def value(self, name: str, row: int) -> Any:
        """One cell as a Python value."""
        column, place = self._cell(name, row)
        return column[place].as_py()

    def numbers(self, name: str, row: int) -> np.ndarray:
        """One cell of a column of lists of numbers: a view, which nothing may be written to."""
        column, place = self._cell(name, row)
        return column[place].values.to_numpy()

    def flat(self, name: str) -> np.ndarray:
        """A column of numbers, as a copy."""
        return self._joined(
            [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches]
        )

    def lengths(self, name: str) -> np.ndarray:
        """Lengths of a column's lists; the lists are not read."""
        return self._joined([np.diff(batch.column(name).offsets) for batch in self._batches])

    def column(self, name: str) -> list[Any]:
        """A column as Python values."""
        return [value for batch in self._batches for value in batch.column(name).to_pylist()]

    def _cell(self, name: str, row: int) -> tuple[Any, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        part = int(np.searchsorted(self._ends, row, side="right"))
        batch = self._batches[part]
        return batch.column(name), row - (int(self._ends[part]) - batch.num_rows)

    def _joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


class RowWriter:
    """Takes rows one by one, in memory or to a file without a name.

    Args:
        schema: Of the table.
    """

    def __init__(self, schema: pa.Schema):
        self._schema, self._length, self._bytes = schema, 0, 0
        self._waiting: list[Mapping[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._file: Any = None
        self._writer: Any = None

    def __len__(self) -> int:
        return self._length

    def append(self, row: Mapping[str, Any]) -> None:
        """One row, its values by column.

        Raises:
            PgtgError: The disk refuses it.
        """
        self._length += 1
        self._waiting.append(row)
        if len(self._waiting) == BATCH:
            self._flush()

    def write(self, batch: pa.RecordBatch) -> None:
        """Many rows, after those that were appended."""
        self._flush()
        self._length += batch.num_rows
        self._put(batch)

    def finish(self) -> Rows:
        """What was written; nothing can be added any more."""
        self._flush()
        if self._writer is None:
            return Rows(self._batches)
        with writing(Path(scratch())):
            self._writer.close()
            self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file.close()
        return Rows(_batches(pa.py_buffer(mapped)))

    def _flush(self) -> None:
        if not self._waiting:
            return
        batch, self._waiting = pa.RecordBatch.from_pylist(self._waiting, self._schema), []
        self._put(batch)

    def _put(self, batch: pa.RecordBatch) -> None:
        self._bytes += batch.nbytes
        if self._writer is None and self._bytes <= SPILL:
            self._batches.append(batch)
            return
        with writing(Path(scratch())):
            if self._writer is None:
                self._file = tempfile.TemporaryFile(dir=scratch())  # noqa: SIM115
                self._writer = pa.ipc.new_file(self._file, self._schema)
            for each in [*self._batches, batch]:
                self._writer.write_batch(each)
            self._batches = []


def scratch() -> str:
    """Folder for files without a name: TMPDIR, else /var/tmp, which lies on a disk where /tmp may
    be memory."""
    usual = "/var/tmp"
    if "TMPDIR" in os.environ or not os.access(usual, os.W_OK):
        return tempfile.gettempdir()
    return usual


def write_rows(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """A table as a file that `mapped_rows` reads; `batches` may be a stream."""
    with atomic(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def mapped_rows(path: Path, schema: pa.Schema) -> Rows:
    """The rows of a file, mapped. Every offset in it is checked, since it may be a stranger's.

    Raises:
        ArtifactError: Missing, damaged, or with other columns.
    """
    plain_file(path, 2**50)
    try:
        with reading(path):
            batches = _batches(pa.memory_map(str(path)))
        for batch in batches:
            batch.validate(full=True)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{path} is not readable Arrow ({reason}); delete its folder"
        ) from error
    if any(batch.schema != schema for batch in batches):
        raise ArtifactError(f"{path} has other columns than expected; redo its stage")
    return Rows(batches)


def _batches(source: Any) -> list[pa.RecordBatch]:
    file = pa.ipc.open_file(source)
    return [file.get_batch(i) for i in range(file.num_record_batches)]
