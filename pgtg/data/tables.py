"""Rows of a split from files, from a `save_to_disk` folder, or from the Hugging Face hub.

Formats: jsonl, json (a list of objects, or {"data": [...]}), csv, tsv, parquet; all but parquet may
be packed by gzip (.jsonl.gz). Each has its own quoting rule (`data.quoting` names another): cells
of a csv may stand in quotes, a tsv knows no quoting (as GLUE and LM-BFF write it).
A byte-order mark and CRLF line ends belong to the file and go; texts stay as they are. A broken
line or file is an error with its place.
A hub data set must need no code of its own: `datasets` runs none since version 4.
"""

import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.config import ALIASES, DataConfig
from pgtg.errors import DataError, MissingResourceError

Row = dict[str, Any]

_TOO_DEEP = "JSON that is nested too deep, or with a number too long"

QUOTING = {".csv": "standard", ".tsv": "none"}  # each format's own rule
# what is counted of rows that are kept as they are
BREAKS = "line break inside a cell (data.quoting=none reads each line as a row)"
QUOTES = "quotes around a cell kept as text (data.quoting=standard takes them off)"


@dataclass(frozen=True)
class Table:
    """Rows of one split: where they are from, their columns if known before reading, and them."""

    name: str
    rows: Iterable[Any]  # of Row
    columns: Sequence[str] | None = None
    total: int | None = None  # number of rows if known without reading them all
    remark: Callable[[Any], str | None] = lambda row: None  # what is odd about a row that is kept


def _from_files(cfg: DataConfig, split: str) -> Table:
    path = Path(str(cfg.path)).expanduser()
    if not path.exists():
        raise DataError(f"data.path={cfg.path}: no such file or folder")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_disk(path, split, cfg.splits.get(split))
    files = _find(path, split, cfg.splits.get(split))
    if files[0].is_dir():
        return _from_disk(files[0], split, single=True)
    tables = [of_file(file, cfg.quoting) for file in files]
    return tables[0] if len(tables) == 1 else _chained(tables, f"{files[0].parent}/{split}")


def of_file(file: Path, quoting: str = "auto") -> Table:
    """The rows of one file, by its name's ending.

    Raises:
        DataError: An unknown format, or a file that cannot be opened.
    """
    if format_of(file) not in READERS:
        raise DataError(f"{file}: unknown format, known: {', '.join(READERS)}")
    _require_open(file)
    return READERS[format_of(file)](file, quoting)


def has_file(cfg: DataConfig, split: str) -> bool:
    """Whether files or a `save_to_disk` folder hold the split under a name of its own; a hub's are
    not asked for."""
    path = Path(str(cfg.path)).expanduser()
    if cfg.name != "files" or path.is_file():
        return False
    saved = saved_splits(path) if path.is_dir() else None
    if saved is not None:
        return any(name in saved for name in ALIASES.get(split, (split,)))
    return path.is_dir() and bool(split_files(path, split))


def _require_open(file: Path) -> None:
    """Raises DataError if a file cannot be opened: a link to nothing, no right to read it."""
    try:
        file.open("rb").close()
    except OSError as error:
        to = f" (a link to {file.readlink()})" if file.is_symlink() else ""
        raise DataError(f"{file}{to}: {error.strerror or error}") from error


def format_of(file: Path) -> str:
    """ ".jsonl" of train.jsonl, train.JSONL and train.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = suffixes[-1:] == [".gz"] and suffixes[-2:-1] != [".parquet"]
    return (suffixes[:-1] if packed else suffixes)[-1:][0] if suffixes[packed:] else ""


def _find(path: Path, split: str, named: str | None) -> list[Path]:
    """The split's file (or its shards): as named in the config, else by the split's name."""
    if named is not None:
        base = path if path.is_dir() else path.parent
        file = base / Path(named).expanduser()
        files = sorted(file.parent.glob(file.name)) if "*" in file.name else [file]
        if not files or not os.path.lexists(files[0]):
            raise DataError(f"data.splits.{split}={named}: no such file in {base}")
        return files
    if path.is_file() and split == "train":
        return [path]
    if path.is_file():
        raise DataError(
            f"data.path={path} is one file, of the training split: give its folder, and each "
            f"split's file as data.splits.{split}=name"
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
        found = sorted(f for f in folder.glob(f"{alias}.*") if format_of(f) in READERS)
        found = found or sorted(
            f for f in folder.glob(f"{alias}-*-of-*") if format_of(f) in READERS
        )
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
    rows = (row for table in tables for row in table.rows)
    return Table(name, rows, columns, total, tables[0].remark)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, ended by \\n or \\r\\n only, without the byte-order mark."""
    line, opened = 0, gzip.open if path.suffix.lower() == ".gz" else Path.open
    with opened(path, "rb") as file:
        try:
            for line, raw in enumerate(file, 1):
                yield raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            wide = line == 1 and error.object.startswith((b"\xff\xfe", b"\xfe\xff"))
            reason = "UTF-16: save it as UTF-8" if wide else error.reason
            raise DataError(f"{path}:{line}: not UTF-8 ({reason})") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: broken gzip after line {line}: {_line(error)}") from error


def _jsonl(path: Path, quoting: str = "auto") -> Table:
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


def _json(path: Path, quoting: str = "auto") -> Table:
    content = _document(path)
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: expected a list of objects, or {{"data": [...]}}')
    return Table(str(path), rows)


def _delimited(path: Path, quoting: str = "auto") -> Table:
    """Rows of a csv or tsv by column name; the header line comes first.

    A blank line is no row; cells left off at the end are None.
    """
    csv.field_size_limit(2**31 - 1)  # articles longer than the module's 128 KiB
    rule = QUOTING[format_of(path)] if quoting == "auto" else quoting
    delimiter = "\t" if format_of(path) == ".tsv" else ","
    if rule == "none":
        return Table(str(path), _unquoted_rows(path, delimiter), remark=_kept_quotes)
    return Table(str(path), _quoted_rows(path, delimiter, rule), remark=_line_breaks)


def _line_breaks(row: Row) -> str | None:
    return BREAKS if any("\n" in cell for cell in row.values() if cell) else None


def _kept_quotes(row: Row) -> str | None:
    cells = [cell for cell in row.values() if cell and len(cell) > 1]
    return QUOTES if any(cell[0] == cell[-1] == '"' for cell in cells) else None


def _unquoted_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Each line is a row, and nothing in it but the delimiter has a meaning."""
    header: list[str] | None = None
    for number, line in enumerate(_lines(path), 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if not text:
            continue
        cells = text.split(delimiter)
        if header is None:
            header = _checked_header(path, cells)
        elif len(cells) > len(header):
            raise _surplus(path, number, header, delimiter)
        else:
            yield dict.fromkeys(header) | dict(zip(header, cells, strict=False))


def _quoted_rows(path: Path, delimiter: str, rule: str) -> Iterator[Row]:
    how: dict[str, Any] = {"strict": True}
    if rule == "backslash":
        how |= {"doublequote": False, "escapechar": "\\"}
    reader = csv.DictReader(_lines(path), delimiter=delimiter, **how)
    try:
        header = _checked_header(path, list(reader.fieldnames or []))
        for row in reader:
            if None in row:  # DictReader's key for the surplus
                raise _surplus(path, reader.line_num, header, delimiter)
            yield row
    except csv.Error as error:  # the inner reader knows the line; DictReader the last good one
        raise DataError(
            f"{path}:{reader.reader.line_num}: broken quoting: {error} (read with "
            f"data.quoting={rule}; others: pgtg ls quoting)"
        ) from error


def _checked_header(path: Path, header: list[str]) -> list[str]:
    if len(set(header)) < len(header):
        raise DataError(f"{path}: a column name stands twice in the header: {header}")
    return header


def _surplus(path: Path, line: int, header: Sequence[str], delimiter: str) -> DataError:
    return DataError(
        f"{path}:{line}: more cells than the {len(header)} column names: quote texts that hold the "
        f"delimiter {delimiter!r} (and data.quoting=standard, if they are quoted)"
    )


def _parquet(path: Path, quoting: str = "auto") -> Table:
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


READERS: dict[str, Callable[..., Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".parquet": _parquet,
}


# --- the datasets library


def _from_disk(path: Path, split: str, named: str | None = None, *, single: bool = False) -> Table:
    """A folder written by `save_to_disk`: with splits, or one split that the config names."""
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable save_to_disk folder: {_line(error)}") from error
    if isinstance(data, datasets.DatasetDict):
        found = named or next((n for n in ALIASES.get(split, ()) if n in data), split)
        if found not in data:
            raise DataError(
                f"{path} has no split {found!r}: splits: {', '.join(map(str, data))}; name one as "
                f"data.splits.{split}=..."
            )
        split, data = found, data[found]
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
            f"({_line(error)}), and {cfg.path} is no file or folder here: check data.path and "
            "data.subset, or fetch it once online"
        ) from error
    except (ValueError, RuntimeError, OSError, DatasetsError) as error:
        raise DataError(f"hub data set {label}: {_line(error)}") from error
    return Table(f"hub data set {label}", data, data.column_names, len(data))


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


SOURCES: dict[str, Callable[[DataConfig, str], Table]] = {"files": _from_files, "hub": _from_hub}
