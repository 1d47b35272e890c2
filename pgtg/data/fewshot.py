"""A classification data set: a few labelled examples to learn from, and a test split.

Two ways to the few examples (`data.fewshot`):

- `folders` name one folder per data seed, with a train and a dev file each (tsv, csv, jsonl, json
  or parquet); every row is taken, in the file's order. The test file lies next to the folders or in
  them. One fixed pair of files is `folders: [.]`.
- `folders: []` draws `shots` train and `shots` dev examples per class, by the data seed, from the
  split `train` of files, a `save_to_disk` folder or a hub data set. Repetitions of a text are left
  out before, so that no text is in both.

Which file or split `train`, `dev` and `test` are is found by name, or said in `data.splits`; a test
split that is null there, or is not there, is None here: nothing else ever takes its place.

Labels are class names, or numbers from 0 (in any format); where a class is itself named by a
number, only names count. `data.fewshot.label_map` names the class of any other label (1.0, true). A
split with unknown labels and no row of one of the classes is an error: its labels are not counted
as the others' are, or they are hidden (-1). What becomes of a row:

- *Dropped and counted*: text or label missing, text not a string or not valid Unicode, label empty,
  unknown or of a wrong type; whatever lies beyond `limit`; when drawing, repetitions of a text and
  the rows not drawn.
- *Kept and counted* (under `truncated`): empty texts, and repeated texts where nothing is drawn:
  published files are read as they are.
- *An error*: what `tasks.data` calls so, a class without a training row, too few rows to draw from.
"""

import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pgtg.config import DataConfig, FewshotConfig
from pgtg.data.columns import cell, require_columns
from pgtg.data.splits import Tally, fingerprint, read_rows, text_problem
from pgtg.data.tables import SOURCES, Row, Table, saved_splits, split_files
from pgtg.errors import ConfigError, DataError
from pgtg.types import DataCounts, Labelled

V = TypeVar("V")

SPLITS = ("train", "dev", "test")
UNKNOWN = "unknown label"
HIDDEN = (
    "if its labels are hidden, data.splits.test=null leaves it out, or name another split there"
)
EMPTY, REPEATED = "empty text kept", "repeated text kept"  # keys in DataCounts.truncated


def load_fewshot(
    cfg: DataConfig, split: str, data_seed: int
) -> tuple[list[Labelled], DataCounts] | None:
    """One split of a classification data set.

    Args:
        cfg: Its `fewshot` section is set; `name` is files or hub.
        split: "train", "dev" or "test".
        data_seed: Number of the folder, or seed of the draw; the test split does not depend on it
            unless each folder has its own.

    Returns:
        The examples in the file's order and what became of all rows; None if there is no test file.

    Raises:
        ConfigError: The section, path or folder is not set, or the split is of no such name.
        DataError: Missing file or column, broken line, no usable row, a class without rows.
        MissingResourceError: A hub data set that is neither in the cache nor within reach.
    """
    few = _checked(cfg, split)
    cfg = replace(cfg, splits=_as_dev(cfg.splits), limit=_as_dev(cfg.limit))
    if split == "test":
        table = _test_table(cfg, few, data_seed)
        try:
            return None if table is None else _read(table, cfg, few, split)
        except DataError as error:
            raise DataError(f"{error}; {HIDDEN}") from error
    if not few.folders:
        return _drawn(cfg, few, split, data_seed)
    table = SOURCES["files"](replace(cfg, path=str(_folder(cfg, few, data_seed))), split)
    examples, counts = _read(table, cfg, few, split)
    if split == "train":
        _require_classes(examples, few, 1, table.name)
    return examples, counts


def _as_dev(values: Mapping[str, V]) -> dict[str, V]:
    """A mapping by split, in which "validation" is another name of dev."""
    return {"dev" if split == "validation" else split: value for split, value in values.items()}


def _checked(cfg: DataConfig, split: str) -> FewshotConfig:
    few, problems = cfg.fewshot, []
    if cfg.name not in SOURCES:
        problems.append(f"data.name={cfg.name!r} is not read from rows: give files or hub")
    if cfg.path is None:
        problems.append("data.path is not set: give a folder or a hub id")
    if few is None or split not in SPLITS:
        what = "data.fewshot is not set" if few is None else f"no split {split!r}: {SPLITS}"
        raise ConfigError(*problems, what)
    if len(set(few.labels)) < max(2, len(few.labels)):
        problems.append(f"data.fewshot.labels={few.labels}: name two or more different classes")
    for label, name in few.label_map.items():
        if name not in few.labels:
            problems.append(f"data.fewshot.label_map.{label}: there is no class {name!r}")
    if few.folders and cfg.name != "files":
        problems.append("data.fewshot.folders are folders of files: with data.name=hub give []")
    if not few.folders and cfg.splits.get("test") == (cfg.splits.get("train") or "train"):
        problems.append("data.splits.test is the split to draw from: name another, or null")
    if problems:
        raise ConfigError(*problems)
    return few


# --- where the rows are


def _folder(cfg: DataConfig, few: FewshotConfig, data_seed: int) -> Path:
    if not 0 <= data_seed < len(few.folders):
        raise ConfigError(
            f"data_seed={data_seed}: there are {len(few.folders)} folders, from 0: "
            f"{', '.join(few.folders)}"
        )
    return Path(str(cfg.path)).expanduser() / few.folders[data_seed]


def _test_table(cfg: DataConfig, few: FewshotConfig, data_seed: int) -> Table | None:
    """The rows of the test split, None if the config or the folder has none."""
    if cfg.splits.get("test", "") is None:
        return None
    if cfg.name != "files":
        return SOURCES[cfg.name](cfg, "test")
    folders = [Path(str(cfg.path)).expanduser()]
    if few.folders:
        folders.append(_folder(cfg, few, data_seed))
    named = cfg.splits.get("test")
    for folder in folders:
        saved = saved_splits(folder)
        # a link to nothing is a test file that cannot be read, not a missing one
        there = os.path.lexists(folder / named) if named else bool(split_files(folder, "test"))
        if there or (saved is not None and (named or "test") in saved):
            return SOURCES["files"](replace(cfg, path=str(folder)), "test")
    if named:
        raise DataError(f"data.splits.test={named}: no such file or split in {folders[0]}")
    return None


# --- rows to examples


def _read(
    table: Table, cfg: DataConfig, few: FewshotConfig, split: str, *, repeats: bool = True
) -> tuple[list[Labelled], DataCounts]:
    limit = cfg.limit.get(split)
    found: list[Labelled] = []
    counts = read_rows(
        table,
        split,
        partial(_example, few=few, repeats=repeats),
        partial(_require, few=few),
        into=found,
        id_column=cfg.columns.id,
        limit=limit,
    )
    _require_same_labels(found, counts, few, table.name)
    return found, counts


def _require_same_labels(
    examples: Sequence[Labelled], counts: DataCounts, few: FewshotConfig, where: str
) -> None:
    """No class is without a row while other rows have labels that nobody knows."""
    there = {example.label for example in examples}
    missing = [name for i, name in enumerate(few.labels) if i not in there]
    if counts.dropped.get(UNKNOWN) and missing:
        raise DataError(
            f"{where}: {counts.dropped[UNKNOWN]} of {counts.rows} rows have an unknown label "
            f"(first: row {counts.examples[UNKNOWN]}), none is of class {missing[0]!r}: classes "
            f"{', '.join(few.labels)} are counted from 0; name others in data.fewshot.label_map"
        )


def _require(there: Sequence[str], where: str, *, few: FewshotConfig) -> None:
    """The label column, and one of the text columns."""
    if not any(name.split(".")[0] in there for name in few.text):
        require_columns(few.text[:1], there, where)
    require_columns([few.label], there, where)


def _example(
    row: Row, name: str, tally: Tally, *, few: FewshotConfig, repeats: bool
) -> Labelled | None:
    """The row's example, or None with the reason noted."""
    texts = (cell(row, column) for column in few.text)
    text: Any = next((text for text in texts if text is not None), None)
    problem = text_problem(text, "text")
    empty = problem is not None and problem.startswith("empty")
    label = _label(cell(row, few.label), few)
    if problem is None or empty:
        problem = label if isinstance(label, str) else None
    mark = fingerprint(text) if problem is None else b""
    repeated = problem is None and mark in tally.seen
    if repeated and not repeats:
        same = tally.seen[mark] == label
        problem = "repeated text" if same else "repeated text, other label"
    if problem is not None or isinstance(label, str):
        tally.note(tally.dropped, str(problem), name)
        return None
    tally.seen.setdefault(mark, label)
    for reason, holds in ((EMPTY, empty), (REPEATED, repeated)):
        if holds:
            tally.note(tally.cut, reason, name)
    return Labelled(name, text, label)


def _label(value: Any, few: FewshotConfig) -> int | str:
    """Number of the class, or what is wrong with the label."""
    if value is None:
        return "missing label"
    name = str(value).strip().lower() if isinstance(value, bool) else str(value).strip()
    if name in few.label_map:
        return list(few.labels).index(few.label_map[name])
    if isinstance(value, bool) or not isinstance(value, int | str):
        return "wrong type of label"
    if not name:
        return "empty label"
    if name in few.labels:
        return list(few.labels).index(name)
    numbers = not any(label.strip().isdecimal() for label in few.labels)
    if numbers and name.isdecimal() and int(name) < len(few.labels):
        return int(name)
    return UNKNOWN


def _require_classes(
    examples: Sequence[Labelled], few: FewshotConfig, least: int, where: str
) -> dict[int, list[Labelled]]:
    """The examples by class, each class with at least so many."""
    found: dict[int, list[Labelled]] = defaultdict(list)
    for example in examples:
        found[example.label].append(example)
    short = [
        f"{len(found[i])} of class {label!r}"
        for i, label in enumerate(few.labels)
        if len(found[i]) < least
    ]
    if short:
        raise DataError(
            f"{where}: {', '.join(short)}, at least {least} are needed: check "
            "data.fewshot.labels, label and shots"
        )
    return found


def _drawn(
    cfg: DataConfig, few: FewshotConfig, split: str, data_seed: int
) -> tuple[list[Labelled], DataCounts]:
    """`shots` examples per class for train, `shots` others for dev; the same draw for both."""
    table = SOURCES[cfg.name](cfg, "train")
    pool, counts = _read(table, cfg, few, "train", repeats=False)
    by_class = _require_classes(pool, few, 2 * few.shots, table.name)
    drawn: set[str] = set()
    for label in range(len(few.labels)):
        rng = random.Random(f"few-shot {data_seed} {label}")
        rows = rng.sample(by_class[label], 2 * few.shots)
        part = rows[: few.shots] if split == "train" else rows[few.shots :]
        drawn.update(example.id for example in part)
    kept = [example for example in pool if example.id in drawn]
    rest = next((example.id for example in pool if example.id not in drawn), None)
    if rest is None:
        return kept, replace(counts, split=split)
    dropped = {**counts.dropped, "not drawn": len(pool) - len(kept)}
    first = {**counts.examples, "not drawn": rest}
    return kept, replace(counts, split=split, kept=len(kept), dropped=dropped, examples=first)
