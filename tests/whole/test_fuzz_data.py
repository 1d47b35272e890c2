"""Bad data and rankings, made at random: an error of ours or exact, and counts that add up."""

import contextlib
import csv
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from pgtg.config import ColumnsConfig, DataConfig, FewshotConfig
from pgtg.data.adapters import COLUMNS
from pgtg.data.fewshot import load_fewshot
from pgtg.data.pairs import read_rankings
from pgtg.data.splits import load_split
from pgtg.errors import PgtgError
from pgtg.ops.ranking import auc, pair_accuracy, plackett_luce_nll, top1_accuracy
from pgtg.types import DataCounts
from tests.support.fuzzing import fuzzed, ours, plain

# --- data

strange = st.text(
    st.one_of(
        st.sampled_from("ab \t\r\n\0\x0b\x1b\x85\u2028\ufeff\ud800\udfff\"',;|\\é"), st.characters()
    ),
    max_size=12,
)
longs = st.integers(1, 2).map(lambda n: "long " * (n * 200_000))  # 1 or 2 MB
cells = st.one_of(
    strange,
    strange,
    st.sampled_from(["one", "two", "", " "]),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(strange, max_size=3),
    plain,
)
rows_of = st.lists(
    st.dictionaries(st.sampled_from(["text", "sum", "label", "other"]), cells, max_size=4),
    max_size=8,
)
layout = st.tuples(st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())


def jsonl(rows: Sequence[Any], how: tuple[bool, str, bool]) -> bytes:
    ascii_only, end, bom = how
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows)
    return (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "surrogatepass")


def is_utf8(data: bytes) -> bool:
    """Lone surrogates that are written as they are, are not."""
    with contextlib.suppress(UnicodeDecodeError):
        data.decode()
        return True
    return False


def adds_up(counts: DataCounts, kept: int) -> None:
    """No row goes without a reason, and each reason has an example."""
    assert counts.kept == kept
    assert counts.rows == counts.kept + sum(counts.dropped.values()), counts
    assert {*counts.dropped, *counts.truncated} == {*counts.examples}


def loaded(suffix: str, data: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"train{suffix}").write_bytes(data)
        columns = ColumnsConfig(None, "text", ["sum"])
        found = ours(lambda: load_split(DataConfig("files", folder, columns=columns), "train"))
        if isinstance(found, PgtgError):
            assert folder in str(found)
            return None
        return found


def check_rows(found: Any, rows: Sequence[Any]) -> None:
    """Kept texts are those of their rows, to the character."""
    if found is None:
        return
    examples, counts = found
    assert counts.rows == len(rows)
    adds_up(counts, len(examples))
    for example in examples:
        row = rows[int(example.id)]
        references = row["sum"] if isinstance(row["sum"], list) else [row["sum"]]
        assert example.source == row["text"]
        assert list(example.references) == [
            t for t in references if isinstance(t, str) and t.strip()
        ]


@fuzzed(st.tuples(rows_of, layout), 75, 2500)
def test_rows_of_jsonl(case: tuple[list[dict], tuple[bool, str, bool]]):
    """Together with a sound row, so that most tables are read."""
    rows, how = case
    rows = [*rows, {"text": "sound", "sum": "row"}]
    data = jsonl(rows, how)
    found = loaded(".jsonl", data)
    assert (found is not None) == is_utf8(data)
    check_rows(found, rows)


@fuzzed(st.tuples(rows_of, longs, layout), 4, 40)
def test_lines_of_megabytes(case: tuple[list[dict], str, tuple[bool, str, bool]]):
    rows, long, how = case
    rows = [*rows, {"text": long, "sum": [long, ""]}, {"text": long, "sum": "other"}]
    found = loaded(".jsonl", jsonl(rows, how))
    check_rows(found, rows)
    assert found is None or any(example.source == long for example in found[0])


@fuzzed(
    st.tuples(st.lists(st.lists(strange, min_size=2, max_size=2), max_size=6), layout), 40, 1000
)
def test_rows_of_csv(case: tuple[list[list[str]], tuple[bool, str, bool]]):
    """Standard quoting; blank lines are no rows, a lone carriage return is text."""
    rows, (_, end, bom) = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
            writer.writerows([["text", "sum"], *rows])
        data = (b"\xef\xbb\xbf" if bom else b"") + path.read_bytes()
    found = loaded(".csv", data)
    check_rows(found, [dict(zip(("text", "sum"), row, strict=True)) for row in rows])


def mostly(sound: st.SearchStrategy) -> st.SearchStrategy:
    """One value in ten is something else."""
    return st.integers(0, 9).flatmap(lambda n: cells if n == 7 else sound)


def preferences(kind: str, talk: bool) -> st.SearchStrategy:
    """Rows of a kind, each cell perhaps something else."""
    text = mostly(st.sampled_from(["a", "b", "a c", "a d"]))
    turn = st.fixed_dictionaries(
        {"role": mostly(st.just("assistant")), "content": text}, optional={"tool_calls": plain}
    )
    asked = st.fixed_dictionaries({"role": st.just("user"), "content": text})
    answer = st.one_of(st.lists(turn, min_size=1, max_size=1), st.tuples(asked, turn).map(list))
    one = mostly(answer if talk else text)
    number = mostly(st.integers(0, 2))
    columns = {
        "pairs": {"chosen": one, "rejected": one},
        "rankings": {"ranks": mostly(st.lists(number, min_size=2, max_size=3))},
        "comparisons": {"pairs": mostly(st.lists(st.tuples(number, number, number).map(list)))},
    }[kind]
    if kind != "pairs":
        columns["completions"] = mostly(st.lists(one, min_size=2, max_size=3))
    prompt = mostly(st.one_of(text, st.lists(asked, max_size=1)) if talk else text)
    columns |= {"prompt": prompt}
    more = {"margin": number, "tools": mostly(st.just([]))}
    return st.lists(st.fixed_dictionaries(columns, optional=more), min_size=1, max_size=6)


forms = st.tuples(st.sampled_from(["pairs", "rankings", "comparisons"]), st.booleans())


@fuzzed(st.tuples(forms.flatmap(lambda form: preferences(*form)), st.booleans()), 50, 2500)
def test_rows_of_preferences(case: tuple[list[dict], bool]):
    """What is kept holds a preference between texts of its row."""
    rows, as_chat = case
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.jsonl").write_bytes(jsonl(rows, (True, "\n", False)))
        cfg = DataConfig("files", folder, columns=COLUMNS, format="auto", as_chat=as_chat)
        found = ours(lambda: read_rankings(cfg, "train"))
    if isinstance(found, PgtgError):
        assert folder in str(found)
        return
    rankings, counts = found
    assert counts.rows == len(rows)
    adds_up(counts, len(rankings))
    for one in rankings:
        assert len(one.completions) == len(one.scores) >= 2
        assert all(text.strip() for text in [one.prompt, *one.completions])
        assert one.pairs or min(one.scores) < max(one.scores)
        assert one.margin is None or one.margin >= 0
        assert not (rankings.conversational or as_chat) or json.loads(one.prompt)["messages"]
        given = [rows[int(one.id)].get(key) for key in ("chosen", "rejected", "completions")]
        assert all(json.dumps(text)[1:-1] in json.dumps(given) for text in one.completions)


suffixes = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"])
start = st.sampled_from(
    [b"", b'{"text": "a", "sum": "b"}\n', b'[{"text": "a", "sum": "b"}]', b"text,sum\n"]
)


@fuzzed(st.tuples(suffixes, start, st.binary(max_size=60)), 60, 1500)
def test_files_of_any_bytes(case: tuple[str, bytes, bytes]):
    """A table with counts that add up, or one line that names the file."""
    suffix, begin, data = case
    found = loaded(suffix, begin + data)
    if found is not None:
        adds_up(found[1], len(found[0]))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"a":' * 10**5, '{"text": ' + "9" * 10**5 + "}", '{"text": NaN, "sum": "a"}'],
)
def test_json_that_python_chokes_on(suffix: str, text: str):
    assert loaded(suffix, text.encode()) is None


@fuzzed(st.tuples(rows_of, layout, st.sampled_from(["train", "dev"]), st.booleans()), 50, 1500)
def test_rows_of_classes(case: tuple[list[dict], tuple[bool, str, bool], str, bool]):
    """The same for labelled texts, read as they are or drawn from."""
    rows, how, split, drawn = case
    names = ["bad", "good"]
    sound = [{"text": f"t{i}", "label": names[i % 2]} for i in range(6)]
    rows = [*sound, *rows, *({"text": "x", "label": value} for value in (0, "1", 2, True, 1.0))]
    few = FewshotConfig(
        text=["text"], label="label", labels=names, folders=[] if drawn else ["."], shots=1
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train", "dev"):
            (Path(folder) / f"{name}.jsonl").write_bytes(jsonl(rows, how))
        found = ours(lambda: load_fewshot(DataConfig("files", folder, fewshot=few), split, 0))
    if not is_utf8(jsonl(rows, how)):
        assert isinstance(found, PgtgError) and "not UTF-8" in str(found)
        return
    assert isinstance(found, tuple)
    examples, counts = found
    assert counts.rows == len(rows) and len(examples) >= 2
    adds_up(counts, len(examples))
    for example in examples:
        row = rows[int(example.id)]
        assert example.text == row["text"]
        assert str(row["label"]).strip() in (names[example.label], str(example.label))


# --- rankings

score = st.one_of(
    st.sampled_from([0.0, 0.0, 1.0, 1.0, -1.0, math.inf, -math.inf, math.nan]), st.floats(width=32)
)
groups = st.integers(2, 5).flatmap(
    lambda j: st.lists(
        st.tuples(st.lists(score, min_size=j, max_size=j), st.lists(score, min_size=j, max_size=j)),
        min_size=1,
        max_size=4,
    )
)


def expected_accuracy(rows: Sequence[tuple[list[float], list[float]]]) -> float:
    """By definition: pair after pair."""
    found = [
        1.0 if a[i] > a[j] else 0.5 if a[i] == a[j] else 0.0
        for a, b in rows
        for i in range(len(a))
        for j in range(len(a))
        if b[i] > b[j]
    ]
    return sum(found) / len(found) if found else math.nan


def expected_top1(rows: Sequence[tuple[list[float], list[float]]]) -> float:
    found = [b[a.index(max(a))] == max(b) for a, b in rows if len(set(b)) > 1]
    return sum(found) / len(found) if found else math.nan


def there(rows: list[tuple[list[float], list[float]]]) -> list[tuple[list[float], list[float]]]:
    """The groups without the candidates that are not there."""
    found = []
    for a, b in rows:
        kept = [(x, y) for x, y in zip(a, b, strict=True) if not math.isnan(y)]
        found.append(([x for x, _ in kept], [y for _, y in kept]))
    return found


@fuzzed(groups, 75, 2000)
def test_rankings(rows: list[tuple[list[float], list[float]]]):
    """Exact with ties and infinities; NaN where an evaluation is NaN, which no log takes.

    A preference of NaN is of a candidate that is not there.
    """
    evaluations = torch.tensor([a for a, _ in rows], dtype=torch.float64)
    preference = torch.tensor([b for _, b in rows], dtype=torch.float64)
    rows = there(rows)
    broken = any(math.isnan(value) for a, _ in rows for value in a)
    for measure, expected in ((pair_accuracy, expected_accuracy), (top1_accuracy, expected_top1)):
        found = measure(evaluations, preference)
        if broken:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(expected(rows), abs=1e-12, nan_ok=True)
    up, down = evaluations.flatten(), preference.flatten()
    wins = [(p > q) + (p == q) / 2 for p in up.tolist() for q in down.tolist()]
    broken = bool(up.isnan().any() or down.isnan().any())
    area = math.nan if broken else sum(wins) / len(wins)
    assert auc(up, down) == pytest.approx(area, abs=1e-12, nan_ok=True)


@fuzzed(groups, 50, 1000)
def test_the_ranking_loss(rows: list[tuple[list[float], list[float]]]):
    """Refused for infinite scores; else exact, or NaN, which ends the training."""
    evaluations = torch.tensor([a for a, _ in rows], dtype=torch.float64)
    preference = torch.tensor([b for _, b in rows], dtype=torch.float64)
    if preference.isinf().any():
        with pytest.raises(ValueError, match="finite scores"):
            plackett_luce_nll(evaluations, preference)
        return
    found = plackett_luce_nll(evaluations, preference)
    for value, (a, b) in zip(found.tolist(), there(rows), strict=True):
        if not all(map(math.isfinite, a)):
            assert not math.isfinite(value) or -math.inf in a
            continue
        allowed = [  # orders that agree with the scores, which may tie
            torch.tensor([a[i] for i in order], dtype=torch.float64)
            for order in itertools.permutations(range(len(a)))
            if all(b[i] >= b[j] for i, j in itertools.pairwise(order))
        ]
        each = [sum(r[k] - r[k:].logsumexp(0) for k in range(len(a))) for r in allowed]
        nll = math.log(len(each)) - torch.tensor(each).logsumexp(0)
        rounding = (
            1e-15 * len(a) * max(map(abs, a), default=0.0)
        )  # of the definition's own float64 sums
        assert value == pytest.approx(float(nll), rel=1e-6, abs=max(1e-6, rounding))
