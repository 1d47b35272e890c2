"""Tables that are mapped from the disk: the same rows as in memory, and no file left behind."""

import tempfile

import numpy as np
import pyarrow as pa
import pytest

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.data import rows
from pgtg.data.examples import Examples, ExampleWriter
from pgtg.data.rows import BATCH, RowWriter, mapped_rows, write_rows
from pgtg.data.splits import fingerprint, load_split
from pgtg.errors import ArtifactError, PgtgError
from pgtg.types import Example

SCHEMA = pa.schema({"name": pa.large_string(), "ids": pa.large_list(pa.uint16()), "n": pa.int64()})
SIZES = [0, 1, BATCH - 1, BATCH, 2 * BATCH + 3]


def made(count: int) -> list[dict]:
    rng = np.random.default_rng(count)
    lengths = rng.integers(0, 5, count)
    return [
        {"name": f"r{i}", "ids": rng.integers(0, 2**16, n).tolist(), "n": i}
        for i, n in enumerate(lengths)
    ]


def check(found: rows.Rows, expected: list[dict]) -> None:
    assert len(found) == len(expected)
    assert found.column("name") == [row["name"] for row in expected]
    assert found.flat("n").tolist() == [row["n"] for row in expected]
    assert found.lengths("ids").tolist() == [len(row["ids"]) for row in expected]
    for i in {0, 1, BATCH - 1, BATCH, len(expected) - 1} & set(range(len(expected))):
        assert found.value("name", i) == expected[i]["name"]
        assert found.numbers("ids", i).tolist() == expected[i]["ids"]
    for outside in (-1, len(expected)):
        with pytest.raises(IndexError):
            found.value("name", outside)


@pytest.mark.parametrize("spill", [0, 40_000, rows.SPILL])
@pytest.mark.parametrize("count", SIZES)
def test_rows_in_memory_and_on_the_disk_are_the_same(count, spill, monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "SPILL", spill)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    writer, expected = RowWriter(SCHEMA), made(count)
    for number, row in enumerate(expected):
        assert len(writer) == number
        writer.append(row)
    found = writer.finish()
    check(found, expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", SIZES[1:])
def test_rows_of_a_file(count, tmp_path):
    expected = made(count)
    batches = [
        pa.RecordBatch.from_pylist(expected[i : i + 700], SCHEMA) for i in range(0, count, 700)
    ]
    write_rows(tmp_path / "a.arrow", SCHEMA, batches)
    check(mapped_rows(tmp_path / "a.arrow", SCHEMA), expected)


@pytest.mark.parametrize("spill", [0, rows.SPILL])
def test_single_rows_and_many_keep_their_order(spill, monkeypatch):
    monkeypatch.setattr(rows, "SPILL", spill)
    writer, expected = RowWriter(SCHEMA), made(12)
    for start in (0, 6):
        for row in expected[start : start + 2]:
            writer.append(row)
        writer.write(pa.RecordBatch.from_pylist(expected[start + 2 : start + 6], SCHEMA))
        assert len(writer) == start + 6
    check(writer.finish(), expected)


def test_what_is_large_goes_to_the_disk_while_it_is_written(monkeypatch):
    """By its bytes in all, some rows at a time."""
    whole, files = made(3 * BATCH), list[object]()
    one = pa.RecordBatch.from_pylist(whole[:BATCH], SCHEMA).nbytes
    monkeypatch.setattr(rows, "SPILL", int(1.5 * one))
    plain = tempfile.TemporaryFile
    monkeypatch.setattr(
        rows.tempfile, "TemporaryFile", lambda **how: files.append(how) or plain(**how)
    )
    writer = RowWriter(SCHEMA)
    for number, row in enumerate(whole):
        writer.append(row)
        assert len(files) == (number + 1 >= 2 * BATCH)
    check(writer.finish(), whole)


def test_files_without_a_name_lie_where_there_is_a_disk(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("os.access", lambda path, mode: path == "/var/tmp")
    assert rows.scratch() == "/var/tmp"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert rows.scratch() == str(tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    """Cut at any byte, with other columns, or with an offset that leads outside."""
    path, batch = tmp_path / "a.arrow", pa.RecordBatch.from_pylist(made(9), SCHEMA)
    write_rows(path, SCHEMA, [batch])
    whole = path.read_bytes()
    with pytest.raises(ArtifactError, match="other columns"):
        mapped_rows(path, pa.schema({"name": pa.string()}))
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError):
            mapped_rows(path, SCHEMA)
    offsets = np.frombuffer(batch.column("ids").buffers()[1], np.int64)[:10].tobytes()
    assert whole.count(offsets) == 1
    for place in (-8, 24):  # the last, and one in the middle
        wild = bytearray(offsets)
        wild[place : place + 8 or None] = (10**6).to_bytes(8, "little")
        path.write_bytes(whole.replace(offsets, bytes(wild)))
        with pytest.raises(ArtifactError, match=r"a\.arrow is not readable"):
            mapped_rows(path, SCHEMA)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(ArtifactError, match="is a link"):
        mapped_rows(tmp_path / "link", SCHEMA)


def test_a_full_disk_is_one_line(monkeypatch):
    monkeypatch.setattr(rows, "SPILL", 0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    writer = RowWriter(SCHEMA)
    for row in made(3):
        writer.append(row)
    with pytest.raises(PgtgError, match="No space left on device"):
        writer.finish()


ROWS = [
    Example("a", "first\u2028 article", ("one", "eins"), "one"),
    Example("b", "", ("two",), "another target"),
    Example("c", "third", ("a", "b"), "b"),
]


@pytest.mark.parametrize("spill", [0, rows.SPILL])
def test_stored_examples(spill, monkeypatch):
    monkeypatch.setattr(rows, "SPILL", spill)
    writer = ExampleWriter()
    for example in ROWS:
        writer.append(example)
    stored = writer.finish()
    assert stored == ROWS and stored != ROWS[:2] and stored != [ROWS[0], ROWS[2], ROWS[1]]
    assert stored[-1] == ROWS[-1] and stored[1:] == ROWS[1:]
    for base in (stored, ROWS):
        whole = Examples("train", base)
        assert list(whole) == ROWS and len(whole) == 3 and whole[-1] == ROWS[-1]
        some = whole.chosen([2, 0])
        assert list(some) == [ROWS[2], ROWS[0]] and some.ids() == ["c", "a"]
        assert list(some[1:]) == [ROWS[0]] and some[1:].rows.tolist() == [0]
        assert list(some.chosen(np.array([1]))) == [ROWS[0]]
        assert whole.named(["c", "none", "a"]) == {"a": ROWS[0], "c": ROWS[2]}


def test_repeats_are_found_without_their_texts(tmp_path):
    """References that only look alike once joined are other references."""
    lines = [
        '{"s": "x", "r": ["a", "b"]}',
        '{"s": "x", "r": ["a", "b"]}',
        '{"s": "x", "r": ["ab"]}',
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    cfg = DataConfig("files", str(tmp_path), columns=ColumnsConfig(None, "s", ["r"]))
    examples, counts = load_split(cfg, "train")
    assert examples == [Example("0", "x", ("a", "b"), "a")]
    assert counts.dropped == {"duplicate row": 1, "duplicate source, other references": 1}
    assert fingerprint("a") != fingerprint("b") and len(fingerprint("x" * 10**5)) == 16
