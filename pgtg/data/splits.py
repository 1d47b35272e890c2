"""Examples from the rows of files, of a `save_to_disk` folder, or of a hub data set.

What becomes of a row is decided here, in one place, and counted with its reason:

- *Dropped and counted*: source or reference missing (null, or no such key in this row), not a
  string, or not valid Unicode; whatever lies beyond `limit`.
- *Dropped, or kept as they stand, and counted*: source or reference empty (white space only), by
  `data.empty`; an earlier row again, or its source with other references, by `data.repeats`. Both
  are said by split. Where nothing is said, training drops them, since they teach nothing or twice,
  and evaluation keeps them, so that n is that of everybody who uses the split.
- *An error*: a column that no row has, a broken line or file (with its place), ids that repeat, a
  split with no usable row. These are mistakes of the call or the file, not of single rows.
- *Left alone*: the text itself, which is never stripped, cut or re-encoded. Over-long texts are
  counted where they are tokenised. A byte-order mark and CRLF line ends belong to the file and go.

Texts are not kept in memory: `examples` puts them into a table that is mapped from the disk, and
repetitions are found by fingerprints.

A column may be a field within one, as `article.text`; of a list of objects it is the list of their
fields. A reference column holds a string, or a list of strings; an empty one among several is left
out and the row counted under `truncated`. `limit` takes the first n usable rows in the file's
order: no shuffling, so that a limit means the same rows in every run.

`tables` reads the formats; `fewshot` makes labelled texts of rows in the same way.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Protocol, TypeVar

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.data.columns import cell, require_columns
from pgtg.data.examples import ExampleWriter, StoredExamples
from pgtg.data.tables import SOURCES, Row, Table
from pgtg.data.worlds.flaws import plant
from pgtg.errors import ConfigError, DataError
from pgtg.types import DataCounts, Example

T = TypeVar("T")
T_in = TypeVar("T_in", contravariant=True)

# in names of columns that hold preferences
PREFERENCES = ("chosen", "rejected", "score", "rank", "rating", "preference", "completions")
SPARE, EMPTY_SOURCE = "empty references left out", "empty source kept"  # in DataCounts.truncated


@dataclass(frozen=True)
class OddRows:
    """Which rows of a split are kept although they are repeated, or empty."""

    repeats: bool = False
    empty: bool = False

    @classmethod
    def of(cls, cfg: DataConfig, split: str) -> "OddRows":
        """As the config says; where it is silent, the training split drops and others keep."""
        usual = "drop" if split == "train" else "keep"
        return cls(cfg.repeats.get(split, usual) == "keep", cfg.empty.get(split, usual) == "keep")


def has_split(cfg: DataConfig, split: str) -> bool:
    """Whether the config does not say that there is no such split (`data.splits.test=null`)."""
    return cfg.splits.get(split, "") is not None


def load_split(
    cfg: DataConfig, split: str, tally: "Tally | None" = None
) -> tuple[StoredExamples, DataCounts]:
    """One split of the config's data (`name: files` or `name: hub`).

    Args:
        tally: Where to count, for who wants the sources' fingerprints afterwards.

    Returns:
        The usable rows in the file's order, and what became of all rows. An id is the row number
        from 0 where no id column is named.

    Raises:
        ConfigError: Path or columns are not set, or the name is of another kind of data.
        DataError: Missing file, split or column; broken line; repeated id; no usable row.
        MissingResourceError: A hub data set that is neither in the cache nor within reach.
    """
    if cfg.name not in SOURCES:
        raise ConfigError(f"data.name={cfg.name!r} is not read from rows: give files or hub")
    unset = [key for key in ("source", "references") if not getattr(cfg.columns, key)]
    problems = [f"data.columns.{key} is not set: name the column" for key in unset]
    if cfg.path is None:
        problems.append("data.path is not set: give a file, a folder or a hub id")
    if problems:
        raise ConfigError(*problems)
    if not has_split(cfg, split):
        raise DataError(f"data.splits.{split} is null: this data has no {split} split")
    table = SOURCES[cfg.name](cfg, split)
    odd = OddRows.of(cfg, split)
    return _examples(table, cfg, split, odd, tally)


@dataclass
class Tally:
    """Counts while a split is read."""

    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    seen: dict[bytes, Any] = field(default_factory=dict)  # text's fingerprint -> what came with it
    ids: dict[str, int] = field(default_factory=dict)  # id -> row
    planted: Counter[str] = field(default_factory=Counter)  # what became of targets -> rows

    def note(self, counter: Counter[str], reason: str, name: str, rows: int = 1) -> None:
        counter[reason] += rows
        self.first.setdefault(reason, name)


def fingerprint(text: str) -> bytes:
    """16 bytes that tell a text from all others."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Keeper(Protocol[T_in]):
    """Where usable rows go: a list, or what puts them on the disk."""

    def append(self, item: T_in, /) -> None: ...

    def __len__(self) -> int: ...


def read_rows(
    table: Table,
    split: str,
    make: Callable[[Row, str, Tally], T | None],
    require: Callable[[Sequence[str], str], None],
    *,
    into: Keeper[T],
    id_column: str | None,
    limit: int | None,
    tally: "Tally | None" = None,
    reads: Sequence[str] | None = None,
) -> DataCounts:
    """Keep the usable rows of a table; returns what became of all of them.

    Args:
        table: Where the rows come from.
        split: Its name, for the counts and the errors.
        make: A row and its id to what is kept, or None with the reason noted in the tally.
        require: Raises DataError where the columns (of a table of that name) lack a needed one.
        into: Takes what `make` returns.
        id_column: Column with the ids; None numbers the rows from 0.
        limit: Keep the first so many usable rows; None = all.
        tally: Where to count, for who wants the texts' fingerprints afterwards.
        reads: The columns that `make` reads, so that the others can be named; None: any of them.

    Raises:
        DataError: As `require`; a repeated id; no usable row.
    """
    if table.columns is not None:
        require(table.columns, table.name)
    tally, met, number = tally or Tally(), dict[str, None](), -1
    for number, row in enumerate(table.rows):
        met.update(dict.fromkeys(row))
        name = str(number) if id_column is None else _id(row, id_column, number, table.name)
        if limit is not None and len(into) >= limit:
            rest = 1 if table.total is None else table.total - number
            tally.note(tally.dropped, "beyond limit", name, rest)
            if table.total is not None:
                break
            continue
        made = make(row, name, tally)
        if made is not None:
            _require_new_id(tally, name, number, table.name)
            into.append(made)
            if remark := table.remark(row):
                tally.note(tally.cut, remark, name)
    rows = number + 1 if table.total is None else table.total
    if table.columns is None and rows:
        require(list(met), table.name)
    counts = DataCounts(split, rows, len(into), dict(tally.dropped), dict(tally.cut), tally.first)
    if reads is not None:
        read = {*reads, *(name.split(".")[0] for name in reads)}
        there = met if table.columns is None else table.columns
        counts = replace(counts, unread=[name for name in there if name not in read])
    if not len(into):
        raise DataError(f"{table.name}: no usable row for the {split} split: {_why_empty(counts)}")
    return counts


def _examples(
    table: Table, cfg: DataConfig, split: str, odd: OddRows, tally: Tally | None
) -> tuple[StoredExamples, DataCounts]:
    columns, tally = cfg.columns, tally or Tally()
    named = [*([columns.id] if columns.id else []), columns.source, *columns.references]
    writer = ExampleWriter()

    def make(row: Row, name: str, tally: Tally) -> Example | None:
        example = _example(row, columns, name, tally, odd)
        if example is None or cfg.flaws is None:
            return example
        target, kind = plant(example.source, example.references, cfg.flaws, split, name)
        tally.planted[kind] += 1
        return replace(example, target=target)

    counts = read_rows(
        table,
        split,
        make,
        lambda there, where: require_columns(named, there, where),
        into=writer,
        id_column=columns.id,
        limit=cfg.limit.get(split),
        tally=tally,
        reads=named,
    )
    return writer.finish(), replace(counts, planted=dict(tally.planted))


def _why_empty(counts: DataCounts) -> str:
    if not counts.rows:
        return "it has no rows"
    reasons = [
        f"{rows} {why} (first: {counts.examples[why]})" for why, rows in counts.dropped.items()
    ]
    return f"{counts.rows} rows, {', '.join(reasons)}"


def _example(
    row: Row, columns: ColumnsConfig, name: str, tally: Tally, odd: OddRows
) -> Example | None:
    """The row's example, or None with the reason noted."""
    source: Any = cell(row, columns.source)
    references, spare, problem = _references(row, columns.references)
    problem, notes = text_problem(source, "source") or problem, list[str]()
    if odd.empty and problem == "empty source":
        notes.append(problem)
        problem = None if references else "empty reference"
    if odd.empty and problem == "empty reference":
        empty = [text for text in spare if text is not None]
        if empty:
            notes.append(problem)
            references, spare, problem = empty[:1], [], None
    if problem is None and source.strip():
        problem = _repeated(source, tuple(references), tally)
        if odd.repeats and problem is not None:
            notes.append(problem)
            problem = None
    if problem is not None:
        tally.note(tally.dropped, problem, name)
        return None
    for note in notes:
        tally.note(tally.cut, f"{note} kept", name)
    if spare:
        tally.note(tally.cut, SPARE, name)
    return Example(name, source, tuple(references), references[0])


def _references(row: Row, columns: Sequence[str]) -> tuple[list[str], list[str | None], str | None]:
    """Usable references of a row, its missing and empty ones, and why it has none to use."""
    found: list[str] = []
    spare: list[str | None] = []
    problem = None
    for column in columns:
        value: Any = cell(row, column)
        for text in value if isinstance(value, list | tuple) else [value]:
            trouble = text_problem(text, "reference")
            if trouble is None:
                found.append(text)
            elif trouble.startswith(("missing", "empty")):
                spare.append(text)
            else:
                problem = problem or trouble
    if problem is None and not found:
        values = [cell(row, column) for column in columns]
        problem = "missing reference" if all(v is None for v in values) else "empty reference"
    return found, spare, problem


def repeated_between(seen: Mapping[str, frozenset[bytes]]) -> list[str]:
    """Which splits share texts, one line a pair; by the fingerprints of each split's texts."""
    lines = []
    for one, other in combinations(seen, 2):
        shared = len(seen[one] & seen[other])
        if shared:
            of = f"{shared} of the {len(seen[other])} texts of {other}"
            lines.append(f"data: {of} stand in {one} too")
    return lines


def counts_line(counts: DataCounts) -> str:
    """What became of a split's rows, in one line."""
    lost = [
        f"{number} {reason} (first: {counts.examples.get(reason, 'unnamed')})"
        for reason, number in {**counts.dropped, **counts.truncated}.items()
    ]
    return "; ".join([f"data {counts.split}: {counts.kept} of {counts.rows} rows", *lost])


def unread_line(splits: Iterable[DataCounts]) -> str | None:
    """The columns that nothing reads, in one line; None if there are none.

    Whoever names a column of better answers as the reference trains on them alone: where other
    columns look like preferences, the line says what reads those.
    """
    found = dict.fromkeys(name for counts in splits for name in counts.unread)
    if not found:
        return None
    line = f"columns not read: {', '.join(found)}"
    if any(mark in name.lower() for name in found for mark in PREFERENCES):
        line += "; preferences are learned from by `pgtg train preferences`"
    return line


def text_problem(text: Any, what: str) -> str | None:
    """Why a text is not usable, None if it is."""
    if text is None:
        return f"missing {what}"
    if isinstance(text, Mapping):
        return f"non-string {what} (an object; name a field of it, as column.field)"
    if not isinstance(text, str):
        return f"non-string {what}"
    if not text.strip():
        return f"empty {what}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer and no file takes it
        return f"broken Unicode {what}"
    return None


def _repeated(source: str, references: tuple[str, ...], tally: Tally) -> str | None:
    text, others = fingerprint(source), fingerprint(repr(references))
    if text not in tally.seen:
        tally.seen[text] = others
        return None
    same = tally.seen[text] == others
    return "duplicate row" if same else "duplicate source, other references"


def _id(row: Row, column: str, number: int, where: str) -> str:
    name = cell(row, column)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        if column.split(".")[0] not in row and number == 0:
            require_columns([column], list(row), where)
        raise DataError(
            f"{where}: row {number} has no id in column {column!r} (found {name!r}): "
            "data.columns.id=null numbers the rows"
        )
    return str(name)


def _require_new_id(tally: Tally, name: str, number: int, where: str) -> None:
    if name in tally.ids:
        raise DataError(
            f"{where}: rows {tally.ids[name]} and {number} have the same id {name!r}: "
            "choose another data.columns.id, or null to number the rows"
        )
    tally.ids[name] = number
