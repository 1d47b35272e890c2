"""Few-shot data: files exactly as they are, draws that never overlap, every odd row counted."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgtg.config import ColumnsConfig, DataConfig, FewshotConfig
from pgtg.data.fewshot import EMPTY, REPEATED, load_fewshot
from pgtg.data.tables import QUOTES
from pgtg.errors import ConfigError, DataError
from pgtg.types import Labelled

REAL = Path(__file__).parents[3] / "shared" / "data" / "fewshot"
FOLDERS = ["16-100", "16-13", "16-21", "16-42", "16-87"]


def config(path: Path, **more) -> DataConfig:
    few = FewshotConfig(
        labels=more.pop("labels", ["no", "yes"]),
        text=more.pop("text", ["text", "sentence"]),
        label=more.pop("label", "label"),
        shots=more.pop("shots", 2),
        folders=more.pop("folders", ["a", "b"]),
    )
    columns = ColumnsConfig(more.pop("id", None))
    return DataConfig(more.pop("name", "files"), str(path), columns=columns, fewshot=few, **more)


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: list[dict]) -> None:
    write(path, [json.dumps(row) for row in rows])


def load(cfg: DataConfig, split: str = "train", data_seed: int = 0):
    found = load_fewshot(cfg, split, data_seed)
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write(
            tmp_path / name / "train.tsv", ["sentence\tlabel", f"{name} one\t1", f"{name} two\t0"]
        )
        write(tmp_path / name / "dev.tsv", ["text\tlabel", f"{name} three\t0"])
    write(tmp_path / "test.tsv", ["sentence\tlabel", "last\t1"])
    return tmp_path


# --- folders


def test_the_data_seed_numbers_the_folders_and_either_text_column_is_read(folder: Path):
    cfg = config(folder)
    assert load(cfg, "train", 1)[0] == [Labelled("0", "b one", 1), Labelled("1", "b two", 0)]
    assert load(cfg, "dev", 0)[0] == [Labelled("0", "a three", 0)]
    assert load(cfg, "test", 0) == load(cfg, "test", 1)
    assert load(cfg, "test")[0] == [Labelled("0", "last", 1)]


def test_a_missing_test_file_is_none_and_dev_never_stands_in(folder: Path):
    (folder / "test.tsv").unlink()
    assert load_fewshot(config(folder), "test", 0) is None
    write(folder / "b" / "test.tsv", ["sentence\tlabel", "of b\t0"])
    assert load_fewshot(config(folder), "test", 0) is None
    assert load(config(folder), "test", 1)[0] == [Labelled("0", "of b", 0)]
    assert load_fewshot(config(folder, splits={"test": None}), "test", 1) is None
    with pytest.raises(DataError, match=r"data\.splits\.test=tset\.tsv: no such file"):
        load_fewshot(config(folder, splits={"test": "tset.tsv"}), "test", 0)


@pytest.mark.parametrize("named", [None, "test.tsv"])
def test_a_test_file_that_is_a_link_to_nothing_is_said(folder: Path, named: str | None):
    """Neither "there is no test split" nor the file of the same name that lies in the folder."""
    (folder / "test.tsv").unlink()
    (folder / "test.tsv").symlink_to(folder / "moved.tsv")
    write(folder / "b" / "test.tsv", ["sentence\tlabel", "of b\t0"])
    cfg = config(folder, splits={"test": named} if named else {})
    with pytest.raises(DataError, match=r"test\.tsv \(a link to .*moved\.tsv\)"):
        load_fewshot(cfg, "test", 1)


def test_csv_and_jsonl_with_named_files_columns_and_ids(tmp_path: Path):
    write(tmp_path / "one.csv", ["key,words,class", 'x,"a, ""b""",yes', "y,c,no"])
    write_rows(tmp_path / "two.jsonl", [{"key": "z", "words": "d", "class": 1}])
    cfg = config(
        tmp_path,
        folders=["."],
        text=["words"],
        label="class",
        id="key",
        splits={"train": "one.csv", "dev": "two.jsonl"},
    )
    assert load(cfg, "train")[0] == [Labelled("x", 'a, "b"', 1), Labelled("y", "c", 0)]
    assert load(cfg, "dev")[0] == [Labelled("z", "d", 1)]


def test_limit_takes_the_first_rows_and_counts_the_rest(folder: Path):
    write(folder / "test.tsv", ["sentence\tlabel", *[f"t{i}\t{i % 2}" for i in range(7)]])
    examples, counts = load(config(folder, limit={"test": 3}), "test")
    assert [e.text for e in examples] == ["t0", "t1", "t2"]
    assert (counts.rows, counts.kept, counts.dropped) == (7, 3, {"beyond limit": 4})


# --- rows


def test_every_odd_row_is_counted_and_empty_texts_stay(tmp_path: Path):
    rows = [
        {"text": "good", "label": 1},
        {"text": "", "label": 0},  # legal: scored like any other
        {"text": "good", "label": 0},  # read as it is
        {"text": "a", "label": ""},
        {"text": "b", "label": "maybe"},
        {"text": "c", "label": 2},
        {"text": "c", "label": -1},
        {"text": "d", "label": True},
        {"text": "e", "label": 1.0},
        {"text": "f"},
        {"text": 5, "label": 1},
        {"label": 1},
        {"text": "\ud800", "label": 1},
        {"text": "h", "label": "yes"},
        {"text": "i", "label": " 1 "},
    ]
    write_rows(tmp_path / "a" / "train.jsonl", rows)
    examples, counts = load(config(tmp_path))
    kept = [("0", "good", 1), ("1", "", 0), ("2", "good", 0), ("13", "h", 1), ("14", "i", 1)]
    assert examples == [Labelled(*row) for row in kept]
    assert counts.dropped == {
        "empty label": 1,
        "unknown label": 3,
        "wrong type of label": 2,
        "missing label": 1,
        "non-string text": 1,
        "missing text": 1,
        "broken Unicode text": 1,
    }
    assert counts.truncated == {EMPTY: 1, REPEATED: 1}
    assert counts.rows == 15 == counts.kept + sum(counts.dropped.values())
    assert counts.examples["unknown label"] == "4" and counts.examples[EMPTY] == "1"


def test_class_names_that_are_numbers_are_names(tmp_path: Path):
    write(tmp_path / "a" / "train.tsv", ["text\tlabel", "one star\t1", "two stars\t2", "none\t0"])
    examples, counts = load(config(tmp_path, labels=["1", "2"]))
    assert [(e.text, e.label) for e in examples] == [("one star", 0), ("two stars", 1)]
    assert counts.dropped == {"unknown label": 1}


def test_a_missing_column_names_the_columns_there(tmp_path: Path):
    write(tmp_path / "a" / "train.tsv", ["txet\tlable", "one\t1"])
    with pytest.raises(DataError, match=r"no column 'text': did you mean 'txet'.*txet, lable"):
        load(config(tmp_path))
    with pytest.raises(DataError, match=r"no column 'label': did you mean 'lable'"):
        load(config(tmp_path, text=["txet"]))


def test_a_class_without_training_rows_is_refused(tmp_path: Path):
    write(tmp_path / "a" / "train.tsv", ["text\tlabel", "one\tyes"])
    with pytest.raises(DataError, match="0 of class 'no'"):
        load(config(tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data_seed": 2}, "data_seed=2: there are 2 folders, from 0: a, b"),
        ({"split": "valid"}, "no split 'valid'"),
        ({"labels": ["yes"]}, "two or more different classes"),
        ({"labels": ["yes", "yes"]}, "two or more different classes"),
        ({"name": "hub"}, "folders of files"),
        ({"name": "newswire"}, "give files or hub"),
        ({"folders": [], "splits": {"test": "train"}}, "name another"),
    ],
)
def test_wrong_settings_are_refused(folder: Path, more: dict, message: str):
    split, data_seed = more.pop("split", "train"), more.pop("data_seed", 0)
    with pytest.raises(ConfigError, match=message):
        load_fewshot(config(folder, **more), split, data_seed)


# --- drawing


def pool(tmp_path: Path) -> list[dict]:
    """12 rows of a class, one text twice, and one of its texts with both labels."""
    rows = [{"text": f"{label} {i}", "label": label} for i in range(12) for label in ("no", "yes")]
    rows += [{"text": "no 0", "label": "no"}, {"text": "no 1", "label": "yes"}]
    write_rows(tmp_path / "train.jsonl", rows)
    return rows


def test_draws_are_balanced_disjoint_and_a_function_of_the_data_seed(tmp_path: Path):
    rows = pool(tmp_path)
    cfg = config(tmp_path, folders=[], shots=6)  # all rows of a class are needed
    seen = []
    for seed in range(3):
        train, dev = load(cfg, "train", seed)[0], load(cfg, "dev", seed)[0]
        assert not {e.text for e in train} & {e.text for e in dev}
        for examples in (train, dev):
            assert [e.label for e in examples].count(0) == 6 == len(examples) / 2
            assert all(
                rows[int(e.id)] == {"text": e.text, "label": e.text.split()[0]} for e in examples
            )
            assert [int(e.id) for e in examples] == sorted(int(e.id) for e in examples)
        assert load(cfg, "train", seed)[0] == train
        seen.append(train)
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_what_a_draw_leaves_is_counted(tmp_path: Path):
    pool(tmp_path)
    counts = load(config(tmp_path, folders=[], shots=2), "dev")[1]
    assert (counts.split, counts.rows, counts.kept) == ("dev", 26, 4)
    repeats = {"repeated text": 1, "repeated text, other label": 1}
    assert counts.dropped == {**repeats, "not drawn": 20}


def test_too_few_rows_to_draw_from_name_the_class(tmp_path: Path):
    pool(tmp_path)
    with pytest.raises(DataError, match="12 of class 'no', 12 of class 'yes', at least 14"):
        load(config(tmp_path, folders=[], shots=7))


def test_a_save_to_disk_folder_is_drawn_from_and_its_test_split_read(tmp_path: Path):
    import datasets

    part = datasets.Dataset.from_list
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(8)]
    held = part([{"text": "last", "label": 1}])
    datasets.DatasetDict({"all": part(rows), "held": held}).save_to_disk(tmp_path / "set")
    cfg = config(tmp_path / "set", folders=[], splits={"train": "all"})
    texts = {e.text for split in ("train", "dev") for e in load(cfg, split)[0]}
    assert texts == {row["text"] for row in rows}  # 2 shots x 2 classes x 2 splits: all of them
    assert load_fewshot(cfg, "test", 0) is None  # no split of that name
    cfg.splits["test"] = "held"
    assert load(cfg, "test")[0] == [Labelled("0", "last", 1)]


# --- the published files


def rows_by_csv(path: Path) -> list[tuple[str, int]]:
    with path.open(newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file, delimiter="\t"))
    return [(text, int(label)) for text, label in cells[1:]]


@pytest.mark.skipif(not REAL.is_dir(), reason="the 16-shot files are not next to the checkout")
@pytest.mark.parametrize(
    ("name", "classes", "test"), [("sst-2", 2, 1821), ("yelp-2", 2, None), ("agnews", 4, 7600)]
)
def test_the_published_files_are_read_as_they_are(name: str, classes: int, test: int | None):
    labels = [f"class {i}" for i in range(classes)]
    cfg = config(REAL / name, labels=labels, folders=FOLDERS, shots=16, quoting="standard")
    for seed, folder in enumerate(FOLDERS):
        for split in ("train", "dev"):
            examples, counts = load(cfg, split, seed)
            assert [(e.text, e.label) for e in examples] == rows_by_csv(
                REAL / name / folder / f"{split}.tsv"
            )
            assert [[e.label for e in examples].count(i) for i in range(classes)] == [16] * classes
            assert counts.dropped == counts.truncated == {}
    found = load_fewshot(cfg, "test", 0)
    if test is None:
        assert found is None
        return
    assert found is not None and len(found[0]) == test
    assert [(e.text, e.label) for e in found[0]] == rows_by_csv(REAL / name / "test.tsv")


@pytest.mark.skipif(not REAL.is_dir(), reason="the 16-shot files are not next to the checkout")
def test_quoting_matters_in_281_rows_of_agnews():
    cfg = config(REAL / "agnews", labels=["a", "b", "c", "d"], folders=FOLDERS)
    raw = (REAL / "agnews" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    lines = [line.rsplit("\t", 1)[0] for line in raw]
    found, counts = load(replace(cfg, quoting="standard"), "test")
    assert sum(e.text != line for e, line in zip(found, lines, strict=True)) == 281
    kept, counted = load(cfg, "test")
    assert [e.text for e in kept] == lines
    assert (counts.truncated.get(QUOTES), counted.truncated[QUOTES]) == (None, 281)


def test_labels_of_other_names_are_mapped(tmp_path: Path):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate([1.0, 0.0, True, "Ja"])]
    write_rows(tmp_path / "a" / "train.jsonl", rows)
    cfg = config(tmp_path)
    few = cfg.fewshot
    assert few is not None
    names = few.labels
    mapped = {"1.0": names[1], "0.0": names[0], "true": names[1], "Ja": names[0]}
    examples, counts = load(replace(cfg, fewshot=replace(few, label_map=mapped)))
    assert [example.label for example in examples] == [1, 0, 1, 0] and not counts.dropped
    with pytest.raises(ConfigError, match=r"label_map\.x: there is no class 'gutt'"):
        load(replace(cfg, fewshot=replace(few, label_map={"x": "gutt"})))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, 2, 1, 2], r"2 of 4 rows have an unknown label \(first: row 1\)"),
        ([-1, -1], r"2 unknown label \(first: 0\)"),
        ([None, None], "no column 'label'"),
    ],
)
def test_a_test_split_of_other_or_hidden_labels_is_refused(tmp_path: Path, labels, said: str):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    write_rows(tmp_path / "test.jsonl", rows)
    with pytest.raises(DataError, match=said) as caught:
        load_fewshot(config(tmp_path), "test", 0)
    assert "data.splits.test=null leaves it out" in str(caught.value)
    assert load_fewshot(config(tmp_path, splits={"test": None}), "test", 0) is None
