"""Examples from files, from a `save_to_disk` folder, or from the Hugging Face hub.

What becomes of a row is decided here, in one place, and counted with its reason:

- *Dropped and counted*: source or reference missing (null, or no such key in this row), empty
  (white space only), not a string, or not valid Unicode; an exact repetition of an earlier row; an
  earlier row's source with other references; whatever lies beyond `limit`.
- *An error*: a column that no row has, a broken line or file (with its place), ids that repeat, a
  split with no usable row. These are mistakes of the call or the file, not of single rows.
- *Left alone*: the text itself, which is never stripped, cut or re-encoded. Over-long texts are
  counted where they are tokenised. A byte-order mark and CRLF line ends belong to the file and go.

A reference column holds a string, or a list of strings; an empty one among several is left out and
the row counted under `truncated`. `limit` takes the first n usable rows in the file's order: no
shuffling, so that a limit means the same rows in every run.

Formats: jsonl, json (a list of objects, or {"data": [...]}), csv, tsv (standard quoting), parquet.
A hub data set must need no code of its own: `datasets` runs none since version 4.
"""

import csv
import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.errors import ConfigError, DataError, MissingResourceError
from pgtg.types import DataCounts, Example

Row = dict[str, Any]

ALIASES = {"validation": ("validation", "valid", "val", "dev")}  # other names of a split's file
SPARE = "empty references left out"  # key in DataCounts.truncated


@dataclass(frozen=True)
class Table:
    """Rows of one split: where they are from, their columns if known before reading, and them."""

    name: str
    rows: Iterable[Any]  # of Row
    columns: Sequence[str] | None = None
    total: int | None = None  # number of rows if known without reading them all


def load_split(cfg: DataConfig, split: str) -> tuple[list[Example], DataCounts]:
    """One split of the config's data (`name: files` or `name: hub`).

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
    unset = [key for key in ("source", "references") if getattr(cfg.columns, key) in ("???", [])]
    problems = [f"data.columns.{key} is not set: name the column" for key in unset]
    if cfg.path is None:
        problems.append("data.path is not set: give a file, a folder or a hub id")
    if problems:
        raise ConfigError(*problems)
    if split in cfg.splits and cfg.splits[split] is None:
        raise DataError(f"data.splits.{split} is null: this data has no {split} split")
    table = SOURCES[cfg.name](cfg, split)
    return _examples(table, cfg.columns, split, cfg.limit.get(split))


# --- rows to examples


@dataclass
class _Tally:
    """Counts while a split is read."""

    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    seen: dict[str, tuple[str, ...]] = field(default_factory=dict)  # source -> its references
    ids: dict[str, int] = field(default_factory=dict)  # id -> row

    def note(self, counter: Counter[str], reason: str, name: str, rows: int = 1) -> None:
        counter[reason] += rows
        self.first.setdefault(reason, name)


def _examples(
    table: Table, columns: ColumnsConfig, split: str, limit: int | None
) -> tuple[list[Example], DataCounts]:
    named = [*([columns.id] if columns.id else []), columns.source, *columns.references]
    if table.columns is not None:
        _require_columns(named, table.columns, table.name)
    tally, kept, met, number = _Tally(), [], dict[str, None](), -1
    for number, row in enumerate(table.rows):
        met.update(dict.fromkeys(row))
        name = str(number) if columns.id is None else _id(row, columns.id, number, table.name)
        if limit is not None and len(kept) >= limit:
            rest = 1 if table.total is None else table.total - number
            tally.note(tally.dropped, "beyond limit", name, rest)
            if table.total is not None:
                break
            continue
        example = _example(row, columns, name, tally)
        if example is not None:
            _require_new_id(tally, name, number, table.name)
            kept.append(example)
    rows = number + 1 if table.total is None else table.total
    if table.columns is None and rows:
        _require_columns(named, list(met), table.name)
    counts = DataCounts(split, rows, len(kept), dict(tally.dropped), dict(tally.cut), tally.first)
    if not kept:
        raise DataError(f"{table.name}: no usable row for the {split} split: {_why_empty(counts)}")
    return kept, counts


def _why_empty(counts: DataCounts) -> str:
    if not counts.rows:
        return "it has no rows"
    reasons = [
        f"{rows} {why} (first: {counts.examples[why]})" for why, rows in counts.dropped.items()
    ]
    return f"{counts.rows} rows, {', '.join(reasons)}"


def _example(row: Row, columns: ColumnsConfig, name: str, tally: _Tally) -> Example | None:
    """The row's example, or None with the reason noted."""
    source: Any = row.get(columns.source)
    problem = _problem(source, "source")
    references: list[str] = []
    spare = 0
    for column in columns.references:
        value: Any = row.get(column)
        for text in value if isinstance(value, list | tuple) else [value]:
            trouble = _problem(text, "reference")
            if trouble is None:
                references.append(text)
            elif trouble.startswith(("missing", "empty")):
                spare += 1
            else:
                problem = problem or trouble
    if problem is None and not references:
        values = [row.get(column) for column in columns.references]
        problem = "missing reference" if all(v is None for v in values) else "empty reference"
    if problem is None:
        problem = _repeated(source, tuple(references), tally)
    if problem is not None:
        tally.note(tally.dropped, problem, name)
        return None
    if spare:
        tally.note(tally.cut, SPARE, name)
    return Example(name, source, tuple(references), references[0])


def _problem(text: Any, what: str) -> str | None:
    """Why a text is not usable, None if it is."""
    if text is None:
        return f"missing {what}"
    if not isinstance(text, str):
        return f"non-string {what}"
    if not text.strip():
        return f"empty {what}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer and no file takes it
        return f"broken Unicode {what}"
    return None


def _repeated(source: str, references: tuple[str, ...], tally: _Tally) -> str | None:
    if source not in tally.seen:
        tally.seen[source] = references
        return None
    same = tally.seen[source] == references
    return "duplicate row" if same else "duplicate source, other references"


def _id(row: Row, column: str, number: int, where: str) -> str:
    name = row.get(column)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        if column not in row and number == 0:
            _require_columns([column], list(row), where)
        raise DataError(
            f"{where}: row {number} has no id in column {column!r} (found {name!r}): "
            "data.columns.id=null numbers the rows"
        )
    return str(name)


def _require_new_id(tally: _Tally, name: str, number: int, where: str) -> None:
    if name in tally.ids:
        raise DataError(
            f"{where}: rows {tally.ids[name]} and {number} have the same id {name!r}: "
            "choose another data.columns.id, or null to number the rows"
        )
    tally.ids[name] = number


def _require_columns(named: Sequence[str], columns: Sequence[str], where: str) -> None:
    for name in named:
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(f"{where} has no column {name!r}: {hint}columns: {', '.join(columns)}")


# --- files


def _from_files(cfg: DataConfig, split: str) -> Table:
    path = Path(str(cfg.path)).expanduser()
    if not path.exists():
        raise DataError(f"data.path={cfg.path}: no such file or folder")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_disk(path, cfg.splits.get(split) or split)
    files = _find(path, split, cfg.splits.get(split))
    if files[0].is_dir():
        return _from_disk(files[0], split, single=True)
    if files[0].suffix not in READERS:
        raise DataError(f"{files[0]}: unknown format, known: {', '.join(READERS)}")
    tables = [READERS[file.suffix](file) for file in files]
    return tables[0] if len(tables) == 1 else _chained(tables, f"{files[0].parent}/{split}")


def _find(path: Path, split: str, named: str | None) -> list[Path]:
    """The split's file (or its shards): as named in the config, else by the split's name."""
    if named is not None:
        base = path if path.is_dir() else path.parent
        file = base / Path(named).expanduser()
        files = sorted(file.parent.glob(file.name)) if "*" in file.name else [file]
        if not files or not files[0].exists():
            raise DataError(f"data.splits.{split}={named}: no such file in {base}")
        return files
    if path.is_file():
        raise DataError(
            f"data.path={path} is one file: give its folder, and each split's file as data.splits"
            f".{split}=name"
        )
    for alias in ALIASES.get(split, (split,)):
        found = sorted(f for f in path.glob(f"{alias}.*") if f.suffix in READERS)
        found = found or sorted(f for f in path.glob(f"{alias}-*-of-*") if f.suffix in READERS)
        if len(found) > 1 and "-of-" not in found[0].name:
            names = ", ".join(f.name for f in found)
            raise DataError(f"{path} has several {split} files ({names}): name it in data.splits")
        if found:
            return found
    there = ", ".join(sorted(f.name for f in path.iterdir())[:12]) or "nothing"
    raise DataError(
        f"{path} has no {split} file ({split}.jsonl, .json, .csv, .tsv, .parquet): found {there}; "
        f"name it as data.splits.{split}=file"
    )


def _chained(tables: Sequence[Table], name: str) -> Table:
    columns = tables[0].columns
    for table in tables:
        if table.columns is not None and columns is not None and set(table.columns) != set(columns):
            raise DataError(f"{table.name} has other columns than {tables[0].name}")
    totals = [table.total for table in tables]
    total = None if None in totals else sum(t for t in totals if t is not None)
    return Table(name, (row for table in tables for row in table.rows), columns, total)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, ended by \\n or \\r\\n only, without the byte-order mark."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            try:
                yield raw.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{line}: not UTF-8 ({error.reason})") from error


def _jsonl(path: Path) -> Table:
    """One object a line; blank lines are no rows."""

    def rows() -> Iterator[Row]:
        for line, text in enumerate(_lines(path), 1):
            if text.strip():
                yield _parsed(text, f"{path}:{line}")

    return Table(str(path), rows())


def _parsed(text: str, where: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: broken JSON line: {error.msg} (column {error.colno})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def _json(path: Path) -> Table:
    try:
        content = json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        hint = "; with one object a line the name must end in .jsonl" if error.lineno == 2 else ""
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg}{hint}") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: expected a list of objects, or {{"data": [...]}}')
    return Table(str(path), rows)


def _delimited(delimiter: str) -> Callable[[Path], Table]:
    """Reader of csv or tsv: header line first, standard quoting, quoted line breaks allowed."""
    csv.field_size_limit(2**31 - 1)  # articles longer than the module's 128 KiB
    return lambda path: Table(str(path), _delimited_rows(path, delimiter))


def _delimited_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Rows by column name. A blank line is no row; cells left off at the end are None."""
    reader = csv.DictReader(_lines(path), delimiter=delimiter, strict=True)
    try:
        header = list(reader.fieldnames or [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}: a column name stands twice in the header: {header}")
        for row in reader:
            if None in row:  # DictReader's key for the surplus
                raise DataError(
                    f"{path}:{reader.line_num}: more cells than the {len(header)} column names: "
                    f"quote texts that hold the delimiter {delimiter!r}"
                )
            yield row
    except csv.Error as error:  # the inner reader knows the line; DictReader the last good one
        raise DataError(f"{path}:{reader.reader.line_num}: broken quoting: {error}") from error


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
    return Table(str(path), rows, file.schema_arrow.names, file.metadata.num_rows)


READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet,
}


# --- the datasets library


def _from_disk(path: Path, split: str, *, single: bool = False) -> Table:
    """A folder written by `save_to_disk`: with splits, or one split that the config names."""
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable save_to_disk folder: {_line(error)}") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(f"{path} has no split {split!r}: splits: {', '.join(map(str, data))}")
        data = data[split]
    elif not single:
        raise DataError(
            f"{path} is one split of a save_to_disk folder: give the folder above it, and each "
            f"split's folder as data.splits.{split}=name"
        )
    return Table(f"{path} [{split}]", data, data.column_names, len(data))


def _from_hub(cfg: DataConfig, split: str) -> Table:
    """A hub data set through `datasets`, from its cache when offline."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = cfg.splits.get(split) or split
    label = "/".join(part for part in (cfg.path, cfg.subset) if part) + f" [{name}]"
    try:
        data = load_dataset(str(cfg.path), cfg.subset, split=name, revision=cfg.revision)
    except (ConnectionError, FileNotFoundError) as error:  # offline, unknown, or not in the cache
        raise MissingResourceError(
            f"hub data set {label} is not in the local cache and cannot be fetched "
            f"({_line(error)}): check data.path and data.subset, fetch it once online, or use "
            "data.name=files"
        ) from error
    except (ValueError, RuntimeError, OSError, DatasetsError) as error:
        raise DataError(f"hub data set {label}: {_line(error)}") from error
    return Table(f"hub data set {label}", data, data.column_names, len(data))


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


SOURCES: dict[str, Callable[[DataConfig, str], Table]] = {"files": _from_files, "hub": _from_hub}
