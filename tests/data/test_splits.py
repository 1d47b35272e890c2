"""Data from files and the hub: every trap is counted or refused, nothing goes in silence."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.data.splits import SPARE, load_split, repeated_between, unread_line
from pgtg.data.tables import BREAKS, QUOTES
from pgtg.errors import ConfigError, DataError, MissingResourceError
from pgtg.types import Example

ROWS = [
    {"key": "p", "text": "first article", "sums": ["one", "eins"], "more": "uno"},
    {
        "key": "q",
        "text": 'zweiter, „langer“ Artikel\u2028mit "allem"',
        "sums": ["two"],
        "more": "due",
    },
    {"key": "r", "text": "third\narticle", "sums": ["three"], "more": "tre"},
]


def config(path: object, **more) -> DataConfig:
    columns = ColumnsConfig(more.pop("id", "key"), "text", more.pop("references", ["sums"]))
    return DataConfig(more.pop("name", "files"), str(path), columns=columns, **more)


def write_jsonl(path: Path, rows: list[dict], *, end: str = "\n", bom: bool = False) -> Path:
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    return path


def load_rows(folder: Path, rows: list[dict], **more):
    write_jsonl(folder / "train.jsonl", rows)
    return load_split(config(folder, **more), "train")


def expected(references: list[str]) -> list[Example]:
    examples = []
    for row in ROWS:
        texts = [t for c in references for t in (row[c] if isinstance(row[c], list) else [row[c]])]
        examples.append(Example(row["key"], row["text"], tuple(texts), texts[0]))
    return examples


# --- formats


@pytest.mark.parametrize("suffix", ["jsonl", "json", "wrapped json", "parquet", "saved"])
@pytest.mark.parametrize("references", [["sums"], ["more"], ["more", "sums"]])
def test_every_format_gives_the_same_examples(tmp_path, suffix, references):
    import datasets
    import pyarrow
    import pyarrow.parquet

    if suffix == "jsonl":
        write_jsonl(tmp_path / "train.jsonl", ROWS)
    elif suffix == "json":
        (tmp_path / "train.json").write_text(json.dumps(ROWS, indent=1))
    elif suffix == "wrapped json":
        (tmp_path / "train.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    else:
        data = datasets.Dataset.from_list(ROWS)
        datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "set")
        tmp_path = tmp_path / "set"
    examples, counts = load_split(config(tmp_path, references=references), "train")
    assert examples == expected(references)
    assert (counts.split, counts.rows, counts.kept) == ("train", 3, 3)
    assert counts.dropped == counts.truncated == counts.examples == {}


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_and_tsv(tmp_path, suffix, delimiter, end, encoding):
    """Quoted delimiters, quotes and line breaks; byte-order mark and CRLF of the file."""
    with (tmp_path / f"train.{suffix}").open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
        writer.writerow(["key", "text", "more"])
        writer.writerows([row["key"], row["text"], row["more"]] for row in ROWS)
    cfg = replace(config(tmp_path, references=["more"]), quoting="standard")
    examples, counts = load_split(cfg, "train")
    assert examples == expected(["more"])
    broken = sum("\n" in row["text"] for row in ROWS)
    assert counts.truncated.get(BREAKS, 0) == broken > 0


def test_jsonl_with_byte_order_mark_crlf_and_blank_lines(tmp_path):
    """U+2028 inside a text is no line end."""
    path = write_jsonl(tmp_path / "train.jsonl", ROWS, end="\r\n\r\n", bom=True)
    assert b"\xe2\x80\xa8" in path.read_bytes()
    examples, counts = load_split(config(tmp_path), "train")
    assert examples == expected(["sums"])
    assert counts.rows == 3


def test_articles_longer_than_the_csv_modules_limit(tmp_path):
    long = "word " * 60_000
    (tmp_path / "train.csv").write_text(f"text,sums\n{long},short\n")
    examples, _ = load_split(config(tmp_path, id=None), "train")
    assert examples[0].source == long


def test_where_a_split_is_found(tmp_path):
    write_jsonl(tmp_path / "dev.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "odd name.jsonl", ROWS[:2])
    for shard in (1, 0):
        write_jsonl(tmp_path / f"train-0000{shard}-of-00002.jsonl", [ROWS[shard]])

    def keys(split: str, path: Path = tmp_path, **splits: str) -> list[str]:
        return [example.id for example in load_split(config(path, splits=splits), split)[0]]

    assert keys("validation") == ["p"]  # under one of its usual names
    assert keys("train") == ["p", "q"]  # shards, in order
    assert keys("test", test="odd name.jsonl") == ["p", "q"]
    assert keys("test", test=str(tmp_path / "odd name.jsonl")) == ["p", "q"]
    assert keys("test", test="train-*") == ["p", "q"]
    assert keys("test", tmp_path / "dev.jsonl", test="odd name.jsonl") == ["p", "q"]


def test_a_split_that_cannot_be_found_says_what_is_there(tmp_path):
    write_jsonl(tmp_path / "training.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no train file .*found training.jsonl.*data.splits.train"):
        load_split(config(tmp_path), "train")
    with pytest.raises(DataError, match="no such file or folder"):
        load_split(config(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match=r"data.splits.train=gone.csv: no such file"):
        load_split(config(tmp_path, splits={"train": "gone.csv"}), "train")
    with pytest.raises(DataError, match="is one file"):  # or train and test would be the same rows
        load_split(config(tmp_path / "training.jsonl"), "test")
    assert len(load_split(config(tmp_path / "training.jsonl"), "train")[0]) == len(ROWS)
    with pytest.raises(DataError, match="null: this data has no test split"):
        load_split(config(tmp_path, splits={"test": None}), "test")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"unknown format, known: .jsonl"):
        load_split(config(tmp_path, splits={"train": "notes.txt"}), "train")
    for suffix in ("csv", "json"):
        (tmp_path / f"test.{suffix}").write_text("x")
    with pytest.raises(DataError, match="several test files"):
        load_split(config(tmp_path), "test")


def test_saved_folders(tmp_path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(tmp_path / "all")
    data.save_to_disk(tmp_path / "parts" / "mine")
    named = config(tmp_path / "all", splits={"validation": "dev"})
    assert len(load_split(named, "validation")[0]) == 3
    with pytest.raises(DataError, match="no split 'test': splits: train, dev"):
        load_split(named, "test")
    part = config(tmp_path / "parts", splits={"train": "mine"})
    assert len(load_split(part, "train")[0]) == 3
    with pytest.raises(DataError, match="is one split"):
        load_split(config(tmp_path / "parts" / "mine"), "train")
    part.columns.source = "tekst"
    with pytest.raises(DataError, match="has no column 'tekst'"):
        load_split(part, "train")


# --- rows


def test_traps_are_counted_with_reason_and_first_id(tmp_path):
    good = {"key": "good", "text": "an article", "sums": "its summary"}
    traps = {
        "missing source": {"text": None},
        "empty source": {"text": " \n\t"},
        "non-string source": {"text": ["a", "list"]},
        "broken Unicode source": {"text": "half \ud83d of a pair"},
        "missing reference": {"sums": None},
        "empty reference": {"sums": [" ", None]},
        "non-string reference": {"sums": ["fine", 3]},
        "duplicate row": {"text": "an article", "sums": "its summary"},
        "duplicate source, other references": {"text": "an article", "sums": "another"},
    }
    rows = [good]
    for number, (reason, trap) in enumerate(traps.items()):
        fresh = {"text": f"article {number}", "sums": "a summary"}
        rows += [{"key": f"{reason} {copy}", **fresh, **trap} for copy in range(2)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, counts = load_split(config(tmp_path), "train")
    assert [example.id for example in examples] == ["good"]
    assert counts.rows == len(rows) == counts.kept + sum(counts.dropped.values())
    assert counts.dropped == dict.fromkeys(traps, 2)
    assert counts.examples == {reason: f"{reason} 0" for reason in traps}


ODD = {
    "empty source": {"text": " \n\t"},
    "empty reference": {"sums": [" ", None]},
    "duplicate row": {"text": "an article", "sums": "its summary"},
    "duplicate source, other references": {"text": "an article", "sums": "another"},
}
EMPTY, REPEATS = list(ODD)[:2], list(ODD)[2:]


@pytest.mark.parametrize(
    ("split", "options", "kept"),
    [
        ("train", {}, []),
        ("validation", {}, list(ODD)),
        ("test", {}, list(ODD)),
        ("test", {"repeats": {"test": "drop"}}, EMPTY),
        ("test", {"empty": {"test": "drop"}, "repeats": {"train": "drop"}}, REPEATS),
        ("train", {"repeats": {"train": "keep"}, "empty": {"train": "keep"}}, list(ODD)),
    ],
)
def test_odd_rows_are_kept_or_dropped_as_said_and_counted(tmp_path, split, options, kept):
    """By default only training drops them. Rows of empty sources do not repeat each other."""
    rows = [{"key": "good", "text": "an article", "sums": "its summary"}]
    for number, (reason, odd) in enumerate(ODD.items()):
        fresh = {"text": f"article {number}", "sums": "a summary"}
        rows += [{"key": f"{reason} {copy}", **fresh, **odd} for copy in range(2)]
    if "empty reference" in kept and "duplicate row" not in kept:  # the second copy repeats too
        rows = [row for row in rows if row["key"] != "empty reference 1"]
    write_jsonl(tmp_path / f"{split}.jsonl", rows)
    examples, counts = load_split(config(tmp_path, **options), split)
    numbers = {reason: sum(row["key"].startswith(reason) for row in rows) for reason in ODD}
    assert counts.dropped == {reason: numbers[reason] for reason in ODD if reason not in kept}
    said = {f"{reason} kept": numbers[reason] for reason in kept}
    repeated = (
        {"duplicate row kept": 1 + numbers["duplicate row"]} if "empty reference" in kept else {}
    )
    assert counts.truncated == said | (repeated if "duplicate row" in kept else {})
    assert counts.rows == len(rows) == counts.kept + sum(counts.dropped.values())
    by_id = {example.id: (example.source, example.references) for example in examples}
    assert len(by_id) == counts.kept
    if "empty source" in kept:
        assert by_id["empty source 1"] == (" \n\t", ("a summary",))
        assert by_id["empty reference 0"] == ("article 1", (" ",))


def test_a_key_that_only_some_rows_lack_is_a_missing_value(tmp_path):
    short = {"key": "short", "text": "no summary here"}
    examples, counts = load_rows(tmp_path, [short, *ROWS])
    assert len(examples) == 3
    assert counts.dropped == {"missing reference": 1}
    assert counts.examples == {"missing reference": "short"}


def test_empty_references_among_others_are_left_out_and_counted(tmp_path):
    rows = [
        {"key": "a", "text": "x", "sums": ["one", ""], "more": None},
        {"key": "b", "text": "y", "sums": ["two"], "more": "deux"},
    ]
    examples, counts = load_rows(tmp_path, rows, references=["sums", "more"])
    assert [example.references for example in examples] == [("one",), ("two", "deux")]
    assert counts.truncated == {SPARE: 1}
    assert counts.examples == {SPARE: "a"}
    assert counts.dropped == {}


def test_texts_are_never_changed(tmp_path):
    rows = [{"key": "a", "text": "  two  spaces\r\n", "sums": "\tindented "}]
    (example,), _ = load_rows(tmp_path, rows)
    assert (example.source, example.target) == ("  two  spaces\r\n", "\tindented ")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_limit_takes_the_first_usable_rows_and_says_so(tmp_path, suffix):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "" if i == 1 else f"t{i}", "sums": "s"} for i in range(6)]
    if suffix == "jsonl":
        write_jsonl(tmp_path / "train.jsonl", rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    examples, counts = load_split(config(tmp_path, id=None, limit={"train": 2}), "train")
    assert [example.id for example in examples] == ["0", "2"]  # the row number where no id is named
    assert counts.rows == 6
    assert counts.dropped == {"empty source": 1, "beyond limit": 3}
    assert counts.examples == {"empty source": "1", "beyond limit": "3"}


@pytest.mark.parametrize("name", ["text", "sums", "key"])
def test_missing_column_names_the_nearest_and_all(tmp_path, name):
    rows = [{(f"{k}_1" if k == name else k): v for k, v in row.items()} for row in ROWS]
    with pytest.raises(DataError, match=f"no column '{name}': did you mean '{name}_1'.*columns: "):
        load_rows(tmp_path, rows)


def test_ids(tmp_path):
    numbers = [{**row, "key": number} for number, row in enumerate(ROWS)]
    assert [example.id for example in load_rows(tmp_path, numbers)[0]] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"rows 0 and 2 have the same id 'p'"):
        load_rows(tmp_path, [ROWS[0], ROWS[1], {**ROWS[2], "key": "p"}])
    assert load_rows(tmp_path, [*ROWS, ROWS[0]])[1].dropped == {"duplicate row": 1}
    for broken in (None, "", 1.5, True):
        with pytest.raises(DataError, match="row 1 has no id in column 'key'"):
            load_rows(tmp_path, [ROWS[0], {**ROWS[1], "key": broken}])


# --- broken files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", b'{"text": "a", "sums": "b"}\n{"text": \n', r"train.jsonl:2: broken JSON"),
        (
            "train.jsonl",
            b'{"text": "a"}\n\n[1]\n',
            r"train.jsonl:3: expected .* object, found list",
        ),
        ("train.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"train.jsonl:2: not UTF-8"),
        ("train.json", b'[{"text": "a"},\n {"text" "b"}]', r"train.json:2: broken JSON"),
        ("train.json", b'{"text": "a"}\n{"text": "b"}\n', r"must end in .jsonl"),
        ("train.json", b'{"rows": []}', r"expected a list of objects"),
        ("train.csv", b"text,sums\na,b\na,b,c\n", r"train.csv:3: more cells than the 2"),
        ("train.csv", b'text,sums\n"open,b\n', r"train.csv:2: broken quoting"),
        ("train.csv", b'text,sums\n"a"b,c\n', r"train.csv:2: broken quoting"),
        ("train.csv", b"text,text\na,b\n", r"stands twice"),
        ("train.csv", b"text,sums\na,\xff\n", r"train.csv:2: not UTF-8"),
        ("train.tsv", "text\tsums\n".encode("utf-16"), r"train.tsv:1: not UTF-8 .UTF-16"),
        ("train.csv", b"text;sums\na;b\n", r"cells are separated by ';': a .csv needs commas"),
        ("train.csv", b"text\tsums\na\tb\n", r"cells are separated by .*a .tsv tabs"),
        ("train.tsv", b'"text"\t"sums"\n"a"\t"b"\n', r"in quotes: data.quoting=standard"),
        ("train.csv", b"text,sums\n", r"no usable row for the train split: it has no rows"),
        ("train.csv", b"", r"it has no rows"),
        ("train.jsonl", b"", r"it has no rows"),
        ("train.parquet", b"PAR1 not really", r"not a readable parquet"),
        ("train.csv", b"text,sums\n,b\na\n", r"2 rows, 1 empty source \(first: 0\), 1 missing ref"),
    ],
)
def test_broken_files_are_named_with_their_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_split(config(tmp_path, id=None), "train")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_config_that_names_too_little():
    with pytest.raises(ConfigError) as caught:
        load_split(DataConfig("files", columns=ColumnsConfig(None, "", [])), "train")
    assert [p.split()[0] for p in caught.value.problems] == [
        "data.columns.source",
        "data.columns.references",
        "data.path",
    ]
    with pytest.raises(ConfigError, match=r"data.name='newswire'"):
        load_split(DataConfig("newswire"), "train")


# --- the hub


def test_hub_goes_through_load_dataset_with_subset_split_and_revision(monkeypatch):
    import datasets

    calls = []

    def fake(*arguments, **options):
        calls.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    cfg = config(
        "owner/set", name="hub", subset="3.0.0", revision="abc", splits={"validation": "dev"}
    )
    assert load_split(cfg, "validation")[0] == expected(["sums"])
    assert calls == [(("owner/set", "3.0.0"), {"split": "dev", "revision": "abc"})]
    load_split(cfg, "train")
    assert calls[1][1]["split"] == "train"


def test_hub_reads_a_folder_in_the_hubs_layout(tmp_path, monkeypatch):
    """The real `load_dataset`, offline: a local folder stands in for a repository."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "repo").mkdir()
    write_jsonl(tmp_path / "repo" / "train.jsonl", ROWS)
    cfg = config(tmp_path / "repo", name="hub")
    assert load_split(cfg, "train")[0] == expected(["sums"])
    with pytest.raises(DataError, match='Unknown split "test"'):
        load_split(cfg, "test")


def test_hub_set_that_is_not_here_gives_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingResourceError, match=r"owner/nothing.*fetch it once online"
    ) as caught:
        load_split(config("owner/nothing", name="hub"), "train")
    assert "\n" not in str(caught.value)


TSV = """source	target
"the cat sat on a mat	cat
the dog ran to town	dog
rain fell on hills "	rain
"all of it"	"all"
a\\"b	c
"""


def test_tsv_knows_no_quotes_and_a_key_chooses_another_rule(tmp_path: Path):
    """As GLUE and LM-BFF write it: a line is a row, whatever quotes it holds."""
    (tmp_path / "train.tsv").write_text(TSV)
    cfg = DataConfig("files", str(tmp_path), columns=ColumnsConfig(None, "source", ["target"]))
    examples, counts = load_split(cfg, "train")
    assert [e.source for e in examples] == [line.split("\t")[0] for line in TSV.splitlines()[1:]]
    assert (counts.rows, counts.truncated) == (5, {QUOTES: 1}) and counts.examples[QUOTES] == "3"
    merged, counts = load_split(replace(cfg, quoting="standard"), "train")
    assert len(merged) < 5 and counts.truncated[BREAKS] == 1  # said, where it is asked for
    (tmp_path / "train.tsv").write_text('source\ttarget\n"say \\"hi\\""\tx\n')
    escaped, _ = load_split(replace(cfg, quoting="backslash"), "train")
    assert [e.source for e in escaped] == ['say "hi"']
    (tmp_path / "train.tsv").write_text("source\ttarget\na\tb\tc\n")
    with pytest.raises(DataError, match=r"train\.tsv:2: more cells than the 2 column names"):
        load_split(cfg, "train")


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.CSV", "train.tsv.gz"])
def test_packed_files_and_endings_in_capitals(tmp_path: Path, name: str):
    text = '{"source": "a", "target": "b"}\n'
    if "jsonl" not in name:
        text = "source,target\na,b\n".replace(",", "\t" if "tsv" in name else ",")
    data = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
    (tmp_path / name).write_bytes(data)
    cfg = DataConfig("files", str(tmp_path), columns=ColumnsConfig(None, "source", ["target"]))
    assert [e.source for e in load_split(cfg, "train")[0]] == ["a"]
    if name.endswith("gz"):
        (tmp_path / name).write_bytes(data[:-9])
        with pytest.raises(DataError, match="broken gzip"):
            load_split(cfg, "train")


def test_fields_within_columns(tmp_path: Path):
    rows = [
        {
            "article": {"text": "a"},
            "answers": {"text": ["x", "y"]},
            "more": [{"t": "p"}, {"t": "q"}],
        },
        {"article": {"text": "b"}, "answers": {"text": ["z"]}, "more": [{"t": "r"}]},
        {"article": None, "answers": {"text": []}, "more": []},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ColumnsConfig(None, "article.text", ["answers.text", "more.t"])
    examples, counts = load_split(DataConfig("files", str(tmp_path), columns=columns), "train")
    assert [(e.source, e.references) for e in examples] == [
        ("a", ("x", "y", "p", "q")),
        ("b", ("z", "r")),
    ]
    assert counts.dropped == {"missing source": 1}
    columns = ColumnsConfig(None, "article.text", ["answers"])
    with pytest.raises(DataError, match=r"name a field of it, as column\.field"):
        load_split(DataConfig("files", str(tmp_path), columns=columns), "train")
    columns = ColumnsConfig(None, "artikel.text", ["answers.text"])
    with pytest.raises(DataError, match=r"no column 'artikel\.text'"):
        load_split(DataConfig("files", str(tmp_path), columns=columns), "train")


def test_texts_that_stand_in_several_splits_are_said():
    seen = {"train": frozenset([b"a", b"b"]), "test": frozenset([b"b", b"c", b"d"])}
    (line,) = repeated_between(seen)
    assert line == "data: 1 of the 3 texts of test stand in train too"
    assert repeated_between({"train": frozenset([b"a"]), "test": frozenset([b"b"])}) == []


def test_columns_that_nothing_reads_are_named_once(tmp_path: Path):
    """Those of fields are read by their owner; what holds preferences is told where they go."""
    rows = [{"key": "p", "text": {"body": "article"}, "sums": "one", "rejected": "two", "url": "x"}]
    columns = ColumnsConfig("key", "text.body", ["sums"])
    write_jsonl(tmp_path / "train.jsonl", rows)
    _, counts = load_split(DataConfig("files", str(tmp_path), columns=columns), "train")
    assert counts.unread == ["rejected", "url"]
    said = unread_line([counts, counts])
    assert said == (
        "columns not read: rejected, url; preferences are learned from by `pgtg train preferences`"
    )
    assert unread_line([replace(counts, unread=["url"])]) == "columns not read: url"
    assert unread_line([replace(counts, unread=[])]) is None
