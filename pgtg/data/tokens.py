"""Token ids of a split's sources and targets: made in batches, mapped from the disk, cut as the
codec says. A large split's are kept in the run's folder, so that a run tokenises it once, for all
rounds and controls, and not again when it is resumed."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, overload

import numpy as np
import pyarrow as pa

from pgtg.data.rows import Rows, RowWriter, mapped_rows, write_rows
from pgtg.models.codec import Codec
from pgtg.runs.artifacts import Artifact
from pgtg.runs.files import content_hash
from pgtg.runs.log import RunLog
from pgtg.runtime.distributed import first
from pgtg.types import Example, TokenIds

BATCH = 256  # texts that the tokenizer is given at a time
KEPT_FROM = 4096  # examples: some seconds of work; fewer are tokenised again by whoever asks
FILE = "tokens.arrow"


class Ids(Sequence[TokenIds]):
    """Token ids of some rows; each list is made when it is asked for."""

    def __init__(self, table: Rows, name: str, rows: np.ndarray):
        self._table, self._name, self._rows = table, name, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> TokenIds: ...
    @overload
    def __getitem__(self, index: slice) -> "Ids": ...
    def __getitem__(self, index: int | slice) -> "TokenIds | Ids":
        if isinstance(index, slice):
            return Ids(self._table, self._name, self._rows[index])
        return self._table.numbers(self._name, int(self._rows[index])).tolist()


@dataclass(frozen=True)
class Encoded:
    """Tokenised sources.

    Args:
        ids: Their token ids.
        cut: How many were cut to fit.
    """

    ids: Sequence[TokenIds]
    cut: int


def encoded(examples: Sequence[Example], codec: Codec) -> Encoded:
    """The examples' sources, tokenised now."""
    found = codec.encode_sources([example.source for example in examples])
    return Encoded([ids for ids, _ in found], sum(cut for _, cut in found))


class Tokens:
    """Token ids of a split's examples, by row.

    Attributes:
        source_lengths: Of the sources [tokens]; known without reading them, as are the following.
        target_lengths: Of the targets [tokens].
        source_cut: Whether each source was cut to fit.
        target_cut: The same for each target.
    """

    def __init__(self, table: Rows):
        self._table = table
        self.source_lengths, self.target_lengths = table.lengths("source"), table.lengths("target")
        self.source_cut = table.flat("source_cut").astype(bool)
        self.target_cut = table.flat("target_cut").astype(bool)

    def __len__(self) -> int:
        return len(self._table)

    def sources(self, rows: np.ndarray) -> Ids:
        return Ids(self._table, "source", rows)

    def targets(self, rows: np.ndarray) -> Ids:
        return Ids(self._table, "target", rows)

    def encoded(self, rows: np.ndarray) -> Encoded:
        """The sources of some rows, and how many of them were cut."""
        return Encoded(self.sources(rows), int(self.source_cut[rows].sum()))


def tokenized(
    examples: Sequence[Example],
    codec: Codec,
    *,
    contents: str,
    kept: Artifact | None = None,
    log: RunLog | None = None,
) -> Tokens:
    """Tokens of a split.

    Args:
        examples: The split.
        codec: How its texts become ids.
        contents: Hash of the examples.
        kept: Where a large split's are kept; None: nowhere.
        log: Shows how far it is.
    """
    batches = _batches(examples, codec)
    if kept is None or log is None or len(examples) < KEPT_FROM:
        writer = RowWriter(schema(codec))
        for batch in batches:
            writer.write(batch)
        return Tokens(writer.finish())
    inputs = content_hash([contents, description(codec, examples[0])])
    _keep(kept, inputs, schema(codec), _shown(batches, log, len(examples)))
    return Tokens(mapped_rows(kept.file(FILE), schema(codec)))


@first
def _keep(
    artifact: Artifact, inputs: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> None:
    """Make the artifact unless it is there, whole, from these inputs."""
    if artifact.exists() and artifact.manifest()["inputs"] == inputs:
        artifact.verify()
        return
    working = artifact.working(inputs)
    write_rows(working / FILE, schema, batches)
    artifact.commit(inputs=inputs, kind="tokens")  # at position 0: it outlives what is made again


def schema(codec: Codec) -> pa.Schema:
    """Two bytes an id where the vocabulary allows it."""
    largest = max(codec.tokenizer.get_vocab().values(), default=0)
    ids = pa.list_(pa.uint16() if largest < 2**16 else pa.int32())
    flags = {"source_cut": pa.bool_(), "target_cut": pa.bool_()}
    return pa.schema({"source": ids, "target": ids, **flags})


def description(codec: Codec, example: Example) -> dict[str, Any]:
    """What tells a codec's ids from another's; the ids of one example speak for its code."""
    tokenizer, backend = codec.tokenizer, getattr(codec.tokenizer, "backend_tokenizer", None)
    about = asdict(replace(codec, tokenizer=None))  # pyright: ignore[reportArgumentType]
    about["tokenizer"] = backend.to_str() if backend is not None else tokenizer.get_vocab()
    about["chat_template"] = getattr(tokenizer, "chat_template", None)
    about["libraries"] = [version(name) for name in ("tokenizers", "transformers")]
    about["example"] = [codec.encode_source(example.source), codec.encode_target(example.target)]
    return about


def _batches(examples: Sequence[Example], codec: Codec) -> Iterator[pa.RecordBatch]:
    """The table's parts, of BATCH examples each."""
    columns = schema(codec)
    for start in range(0, len(examples), BATCH):
        part = list(examples[start : start + BATCH])
        sources = codec.encode_sources([example.source for example in part])
        targets = codec.encode_targets([example.target for example in part])
        rows = [[ids for ids, _ in sources], [ids for ids, _ in targets]]
        rows += [[cut for _, cut in sources], [cut for _, cut in targets]]
        arrays = [pa.array(row, type=f.type) for row, f in zip(rows, columns, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)


def _shown(batches: Iterator[pa.RecordBatch], log: RunLog, total: int) -> Iterator[pa.RecordBatch]:
    with log.progress("tokenise", total) as bar:
        for batch in batches:
            yield batch
            bar.advance(batch.num_rows)
