"""Rows of a split from files, from a `save_to_disk` folder, or from the Hugging Face hub.

Formats: jsonl, json (a list of objects, or {"data": [...]}), csv, tsv (standard quoting), parquet.
A byte-order mark and CRLF line ends belong to the file and go; texts stay as they are. A broken
line or file is an error with its place.
A hub data set must need no code of its own: `datasets` runs none since version 4.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.config import DataConfig
from pgtg.errors import DataError, MissingResourceError

Row = dict[str, Any]

_TOO_DEEP = "JSON that is nested too deep, or with a number too long"

ALIASES = {  # other names of a split's file
    "validation": ("validation", "valid", "val", "dev"),
    "dev": ("dev", "validation", "valid", "val"),
}


@dataclass(frozen=True)
class Table:
    """Rows of one split: where they are from, their columns if known before reading, and them."""

    name: str
    rows: Iterable[Any]  # of Row
    columns: Sequence[str] | None = None
    total: int | None = None  # number of rows if known without reading them all


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
    found = split_files(path, split)
    if found:
        return found
    there = ", ".join(sorted(f.name for f in path.iterdir())[:12]) or "nothing"
    raise DataError(
        f"{path} has no {split} file ({split}.jsonl, .json, .csv, .tsv, .parquet): found {there}; "
        f"name it as data.splits.{split}=file"
    )


def split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split (or its shards) by the split's name or another name of it; else none."""
    for alias in ALIASES.get(split, (split,)):
        found = sorted(f for f in folder.glob(f"{alias}.*") if f.suffix in READERS)
        found = found or sorted(f for f in folder.glob(f"{alias}-*-of-*") if f.suffix in READERS)
        if len(found) > 1 and "-of-" not in found[0].name:
            names = ", ".join(f.name for f in found)
            raise DataError(f"{folder} has several {split} files ({names}): name it in data.splits")
        if found:
            return found
    return []


def saved_splits(folder: Path) -> list[str] | None:
    """Names of the splits in a `save_to_disk` folder; None if it is no such folder."""
    listed = folder / "dataset_dict.json"
    if not listed.is_file():
        return None
    found = _document(listed)
    names = found.get("splits") if isinstance(found, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{listed}: no list of splits: not a readable save_to_disk folder")
    return names


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
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {_TOO_DEEP} ({_line(error)})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def _document(path: Path) -> Any:
    try:
        return json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        hint = "; with one object a line the name must end in .jsonl" if error.lineno == 2 else ""
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {_TOO_DEEP} ({_line(error)})") from error


def _json(path: Path) -> Table:
    content = _document(path)
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
        columns, total = file.schema_arrow.names, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {_line(error)}") from error
    return Table(str(path), _parquet_rows(path, file, total), columns, total)


def _parquet_rows(path: Path, file: Any, total: int) -> Iterator[Row]:
    """Rows in batches, so that a file larger than the memory is no matter."""
    import pyarrow

    number = 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            number += batch.num_rows
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DataError(f"{path}: broken after row {number}: {_line(error)}") from error
    if number != total:
        raise DataError(f"{path}: says it has {total} rows, and has {number}: it is damaged")


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
