"""Files that a kill at any instant cannot tear, with bytes that depend on their content only.

Every writer here fills a hidden temporary name, syncs it to the disk and renames it, so that a
reader sees the old file or the new one. A hidden name that ends in `.tmp` is garbage of a killed
process. Readers answer a damaged file with an `ArtifactError` that names it, never with a
traceback, and run nothing that the file says: json, parquet and safetensors, no pickles.
`pyarrow` and `torch` are imported where they are needed: this module is on the command line's path.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pgtg.errors import ArtifactError, DivergedError, PgtgError
from pgtg.runtime.distributed import first

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON_BYTES = 32 * 2**20  # one json document: far above any of ours; some 20 times in memory
MAX_LINES_BYTES = 4 * 2**30  # a file of json lines
MAX_TABLE_BYTES = 4 * 2**30  # a parquet file, and what it says it holds once it is unpacked


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or a read-only folder into one line; the run failed (exit code 1)."""
    try:
        yield
    except Exception as error:
        native = re.search(r"\(os error (\d+)\)", str(error))  # libraries in Rust: no OSError
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif native is not None:
            reason = os.strerror(int(native[1]))
        else:
            raise
        raise PgtgError(
            f"cannot write {path}: {reason}; what is already saved is intact: "
            "make room or fix the permissions, then give the same command again to resume"
        ) from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`; renames it over `path` when the block ends well."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            follow_umask(temporary)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a disk that cannot be written: the cause is raised
            temporary.unlink()


def put_at(path: Path, at: int, data: bytes, *, cut: bool) -> int:
    """Write bytes into a file from a place on; they are on the disk when this returns.

    Args:
        at: The first byte's place.
        cut: Whether what lies behind them goes.

    Returns:
        Where they end.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(at)
            file.write(data)
            if cut:
                file.truncate()
            file.flush()
            os.fsync(file.fileno())
            return file.tell()


def follow_umask(path: Path) -> None:
    """Give a new file the mode that `open` would have given it; safetensors writes 0600."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """fsync of a file, or of a folder's list of names; the folder may be a link to one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Deletes a folder at once: renamed to garbage first, so that a kill leaves no half of it."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    garbage = path.parent / f".{path.name.strip('.')}.{secrets.token_hex(6)}.tmp"
    with writing(path):
        path.rename(garbage)
        shutil.rmtree(garbage)


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(obj: Any) -> str:
    """sha256 of anything that json can hold (dataclasses too); the order of keys does not count.

    Raises:
        DivergedError: A number in it is not finite.
        TypeError: Something in it that json cannot hold.
    """
    text = _dumps(obj, "content_hash", sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    """What json does not know by itself: dataclasses and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"json cannot hold a {type(value).__name__}: {value!r:.80}")


def _dumps(obj: Any, where: object, **how: Any) -> str:
    try:
        return json.dumps(obj, allow_nan=False, default=_plain, **how)
    except ValueError as error:
        raise DivergedError(f"{where}: a number is not finite (NaN or infinity)") from error


def json_line(obj: Any, where: object) -> bytes:
    """One line of json in UTF-8, floats by repr (they come back bit for bit).

    A lone surrogate has no UTF-8, so a line that holds one is escaped as a whole.
    """
    text = _dumps(obj, where, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return _dumps(obj, where).encode("ascii") + b"\n"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)  # 1e999 is infinity


def _loads(data: bytes, where: str, way_out: str) -> Any:
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not readable json ({error}); {way_out}") from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a file that is missing or cannot be read into one line."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"cannot read {path}: {error.strerror or error}; restore it, or delete its folder "
            "and run again"
        ) from error


def plain_file(path: Path, max_bytes: int = MAX_JSON_BYTES) -> os.stat_result:
    """Size and time of a regular file, which is not opened.

    Raises:
        ArtifactError: Missing, a link, a pipe or a device, or larger than `max_bytes`.
    """
    with reading(path):
        info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise ArtifactError(f"{path} is a link or a device, not a plain file: delete it")
    if info.st_size > max_bytes:
        raise ArtifactError(f"{path} has {info.st_size} bytes, more than the {max_bytes} allowed")
    return info


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """All bytes of a `plain_file`. Raises ArtifactError."""
    plain_file(path, max_bytes)
    with reading(path):
        return path.read_bytes()


@first
def write_json(path: Path, obj: Any) -> None:
    """One indented json document, keys in the order given; NaN and infinity are refused."""
    data = _dumps(obj, path, indent=2).encode("ascii") + b"\n"
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def read_json(path: Path) -> Any:
    """The document that `write_json` wrote. Raises ArtifactError."""
    return _loads(read_bytes(path), str(path), "delete its folder and run again")


@first
def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One json object per line; `rows` may be a stream. NaN and infinity are refused."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        for number, row in enumerate(rows, start=1):
            file.write(json_line(row, f"{path} line {number}"))


def read_jsonl(path: Path) -> list[Any]:
    """All rows. Lines end at \\n only (text may hold U+2028 and friends). Raises ArtifactError."""
    lines = read_bytes(path, max_bytes=MAX_LINES_BYTES).split(b"\n")
    if lines.pop() != b"":
        raise ArtifactError(f"{path} is cut short: its last line has no end; redo its stage")
    return [
        _loads(line, f"{path} line {number}", "redo its stage")
        for number, line in enumerate(lines, start=1)
    ]


def _arrow_type(values: Sequence[Any]) -> Any:
    """Arrow type of a column: 4-byte numbers inside lists (ids, rewards), 8-byte ones outside."""
    import pyarrow as pa

    lists = any(isinstance(value, list | tuple) for value in values)
    items = [item for value in values for item in value] if lists else values
    kinds = {type(item) for item in items if item is not None}
    if kinds <= {int} and (lists or kinds):
        return pa.list_(pa.int32()) if lists else pa.int64()
    if kinds and kinds <= {int, float}:
        return pa.list_(pa.float32()) if lists else pa.float64()
    return None  # strings, booleans, nested: as arrow finds them


@first
def write_table(
    path: Path, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str] | None = None
) -> None:
    """A parquet file of columns of equal length (Python values, not tensors).

    Args:
        columns: Values by column. Lists of int become list<int32>, lists of float list<float32>.
        types: "int32" or "float32" for the items of a list column that may be empty in all rows.

    Raises:
        ValueError: A value that does not fit its column's type, or columns of unequal length.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    named = {"int32": pa.list_(pa.int32()), "float32": pa.list_(pa.float32())}
    given = {name: named[kind] for name, kind in (types or {}).items()}
    arrays = {
        name: pa.array(values, type=given.get(name, _arrow_type(values)))
        for name, values in columns.items()
    }
    with atomic(path) as temporary:
        pq.write_table(pa.table(arrays), temporary, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Columns of a parquet file as Python values.

    A few bytes of parquet may stand for billions of values, or for one long text over and over, so
    both are counted before anything is unpacked.

    Raises:
        ArtifactError: Missing, damaged, without one of the columns, or too large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = read_bytes(path, max_bytes=MAX_TABLE_BYTES)
    try:
        source = pq.ParquetFile(pa.BufferReader(data))
        texts = [
            field.name
            for field in source.schema_arrow
            if field.type in (pa.string(), pa.large_string(), pa.binary())
        ]
        _refuse_claims(path, source.metadata)
        source = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
        missing = sorted(set(columns or ()) - set(source.schema_arrow.names))
        table = source.read(columns=columns if not missing else [])
        _refuse_long_texts(path, table)
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = (str(error).splitlines() or ["too large"])[0]
        raise ArtifactError(f"{path} is not readable parquet ({reason}); redo its stage") from error
    if missing:
        raise ArtifactError(f"{path} has no column {', '.join(missing)}; redo its stage")
    return table.to_pydict()


def _refuse_claims(path: Path, about: Any) -> None:
    """Refuse a table whose metadata name more than MAX_TABLE_BYTES. Raises ArtifactError."""
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    claimed = sum(max(8 * chunk.num_values, chunk.total_uncompressed_size) for chunk in chunks)
    for chunk in chunks:  # a text in a list may be repeated as often as there are values
        if "." in chunk.path_in_schema and chunk.physical_type == "BYTE_ARRAY":
            claimed += chunk.num_values * chunk.total_uncompressed_size
    claimed = max(claimed, 8 * about.num_rows * max(about.num_columns, 1))
    if claimed > MAX_TABLE_BYTES:
        raise ArtifactError(f"{path} claims {claimed} bytes of values, {MAX_TABLE_BYTES} allowed")


def _refuse_long_texts(path: Path, table: Any) -> None:
    """Refuse texts that are long only together; they stand in dictionaries, each once."""
    import pyarrow as pa
    import pyarrow.compute

    total, pc = 0, cast(Any, pyarrow.compute)  # it makes its functions when it is imported
    for column in table.columns:
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            lengths = pc.binary_length(chunk.dictionary).take(chunk.indices)
            total += pc.sum(lengths).as_py() or 0
    if total > MAX_TABLE_BYTES:
        raise ArtifactError(f"{path} holds {total} bytes of text, {MAX_TABLE_BYTES} allowed")


@first
def save_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """A safetensors file. Tensors that share memory are written apart, as contiguous copies."""
    from safetensors.torch import save_file

    data: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        storage = value.untyped_storage()
        alone = storage.data_ptr() not in seen and storage.nbytes() == value.nbytes
        seen.add(storage.data_ptr())
        data[name] = value if alone else value.clone()
    with atomic(path) as temporary:
        save_file(data, temporary, metadata={"format": "pt"})


def load_tensors(path: Path, max_bytes: int | None = None) -> "dict[str, Tensor]":
    """Tensors by name, on the CPU, from safetensors and nothing else.

    The format holds no compressed data and the library compares each shape with the bytes there
    are, so the size of the file bounds the memory; `max_bytes` refuses it before it is read.

    Raises:
        ArtifactError: Missing, a link, too large, or not a complete safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    plain_file(path, 2**50 if max_bytes is None else max_bytes)
    try:
        with reading(path):
            return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is not readable safetensors ({error}); redo it") from error


def finite(values: Mapping[str, Any], where: str) -> dict[str, int | float]:
    """Numbers as plain Python ones. Raises DivergedError naming the one that is not finite."""
    plain = {key: v if type(v) is int else float(v) for key, v in values.items()}
    for key, value in plain.items():
        if not math.isfinite(value):
            raise DivergedError(f"{where}: {key} is {value}, not a finite number")
    return plain
