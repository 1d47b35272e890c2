"""Bad input, made at random: an error of ours or an exact answer, and counts that add up.

A few hundred cases by default; with `-m slow` each test has many times more, over 5,000 in all.
"""

import contextlib
import copy
import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgtg import compose, store
from pgtg.calls import Call
from pgtg.cli import reporting
from pgtg.compose import run_config
from pgtg.config import ColumnsConfig, DataConfig, FewshotConfig, RunConfig, known_keys
from pgtg.errors import PgtgError
from pgtg.files import read_json, read_jsonl, read_table
from pgtg.ops.ranking import auc, pair_accuracy, plackett_luce_nll, top1_accuracy
from pgtg.store import Artifact, RunFolder, content_hash
from pgtg.tasks.data import load_split
from pgtg.tasks.fewshot import load_fewshot
from pgtg.types import DataCounts


def fuzzed(strategy: st.SearchStrategy, few: int, many: int) -> Callable[..., Any]:
    """A test of a property in `few` cases, and in `many` where slow tests run."""

    def wrap(check: Callable[[Any], None]) -> Callable[[int], None]:
        def one(case: Any) -> None:
            check(case)

        @pytest.mark.parametrize("cases", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(cases: int) -> None:
            how = settings(
                max_examples=cases,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            )
            how(given(strategy)(one))()

        test.__doc__ = check.__doc__
        return test

    return wrap


def exit_code(call: Callable[[], Any]) -> int:
    """As the command line reports a call; what nobody foresaw is a failure here."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), reporting():
            call()
    except typer.Exit as end:
        if not isinstance(end.__cause__, PgtgError):
            raise AssertionError(said.getvalue()) from end.__cause__
        return end.exit_code
    return 0


def ours(call: Callable[[], Any]) -> Any:
    """What a call returns, or the PgtgError that it raises; anything else is a failure."""
    try:
        return call()
    except PgtgError as error:
        return error


# --- command lines


@cache
def base(task: str, groups: tuple[str, ...]) -> Any:
    return _compose(compose.loader(), task, [_parsed(text) for text in groups])


_compose = compose._compose


def _parsed(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(text)


def _quick(load: Any, task: str, parsed: Sequence[Any]) -> Any:
    """As `compose._compose`, which takes a third of a second, with the config files read once."""
    groups = [o for o in parsed if compose._options(load, o)]
    cfg = copy.deepcopy(base(task, tuple(str(o.input_line) for o in groups)))
    values = [o for o in parsed if o not in groups and not o.is_hydra_override()]
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg


@pytest.fixture(autouse=True)
def _one_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = compose.loader()
    options: dict[str, list[str]] = {}
    real = compose._options

    def known(load: Any, override: Any) -> list[str]:
        key = override.key_or_group
        if key not in options:
            options[key] = real(load, override)
        return options[key]

    monkeypatch.setattr(compose, "_options", known)
    monkeypatch.setattr(compose, "_compose", _quick)
    monkeypatch.setattr(compose, "loader", lambda config_dir=None: kept)


KEYS = sorted(known_keys())
GROUPS = ["aggregator", "judge", "method", "reward", "experiment", "task", "metrics", "dataset"]
odd = st.text(
    st.sampled_from("a1.,=+~-_[]{}()$:'\"\\ \n\t\0é\u2028\ud800/*|@#!<>%^&;"), max_size=12
)
values = st.one_of(
    odd,
    st.text(max_size=8),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            *("null", "true", "???", "[]", "[1,2]", "{a:1}", "${seed}", "${oc.env:HOME}", "'"),
            *("max", "[max,min]", "-1", "0", "1e999", "avg,sum", "${oc.env:NO}", "${no.where}"),
        ]
    ),
)
keys = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(KEYS), st.sampled_from(GROUPS), odd, st.text(max_size=6)
)
overrides = st.one_of(
    st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), keys, values).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    ),
    odd,
)


@fuzzed(
    st.tuples(st.sampled_from(["summarize", "prompt"]), st.lists(overrides, max_size=4)), 40, 1000
)
def test_overrides(case: tuple[str, list[str]]):
    """Accepted with a checked config, or refused with exit code 2; never anything else."""
    task, given_overrides = case
    jobs: list[RunConfig] = []
    code = exit_code(lambda: jobs.extend(Call.parse(task, given_overrides, None).jobs()))
    assert code in (0, 2)
    assert (code == 0) == bool(jobs)
    for run in jobs:
        assert isinstance(run, RunConfig) and run.task == task


numbers = st.one_of(st.integers(-3, 1000), st.floats(allow_nan=True, allow_infinity=True))


@fuzzed(
    st.tuples(st.sampled_from(["improve.lr", "sample.k", "seed", "sample.top_p"]), numbers), 30, 300
)
def test_numbers_arrive_or_are_refused(case: tuple[str, float]):
    key, value = case
    found = ours(lambda: run_config("summarize", [f"{key}={value!r}"]))
    if isinstance(found, PgtgError):
        assert key in str(found)
        return
    section, _, name = key.rpartition(".")
    got = getattr(getattr(found, section) if section else found, name)
    assert got == value and math.isfinite(got)


# --- run folders


@cache
def honest() -> str:
    from tiny import TINY

    return yaml.safe_dump(asdict(run_config("summarize", TINY)) | {"run_dir": None})


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """The yaml of a run, changed in a line, a value or a byte; or anything."""
    kind = draw(st.sampled_from(["value", "value", "key", "lines", "bytes", "yaml", "anything"]))
    lines = honest().splitlines()
    if kind in ("value", "key"):
        tree = yaml.safe_load(honest())
        part = tree
        name = draw(st.sampled_from(sorted(part)))
        while isinstance(part[name], dict) and part[name] and draw(st.integers(0, 3)):
            part = part[name]
            name = draw(st.sampled_from(sorted(part)))
        if kind == "value":
            part[name] = draw(plain)
        else:
            part[draw(st.one_of(st.text(max_size=6), st.integers(), st.none()))] = part.pop(name)
        return yaml.safe_dump(tree).encode()
    if kind == "lines":
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = draw(st.one_of(odd, st.just(lines[place] * 2), st.just("  " + lines[place])))
        return "\n".join(lines).encode("utf-8", "replace")
    if kind == "bytes":
        data = bytearray("\n".join(lines).encode())
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data)
    if kind == "yaml":
        return yaml.safe_dump(draw(plain)).encode("utf-8", "replace")
    return draw(st.binary(max_size=40))


@fuzzed(configs(), 40, 1000)
def test_configs_of_run_folders(text: bytes):
    """Opened and understood, or refused in words; also when a run would go on with it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_bytes(text)
        run = RunFolder(folder)
        saved = ours(lambda: run.open().config())
        if isinstance(saved, PgtgError):
            return
        found = ours(lambda: run_config(str(saved.get("task")), saved=saved))
        if not isinstance(found, PgtgError):
            new = asdict(found) | {"run_dir": None}
            assert isinstance(ours(lambda: run.config_diff(new)), list | PgtgError)


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """A right manifest with something in it changed; mostly with a checksum that fits."""
    body: dict[str, Any] = {
        "schema": 1,
        "kind": "a",
        "inputs": "i",
        "metrics": {"x": 0.5},
        "position": 0,
        "extra": {"dropped": ["a.txt"], "step": 1},
        "files": {"a.txt": {"bytes": 1, "sha256": "0" * 64}},
    }
    finite = plain.filter(lambda tree: "NaN" not in (t := json.dumps(tree)) and "Infinity" not in t)
    part = body
    if draw(st.booleans()):
        part = body[draw(st.sampled_from(["metrics", "extra", "files"]))]
        if draw(st.booleans()) and "a.txt" in part:
            part = part["a.txt"]
    name = draw(st.one_of(st.sampled_from([*part]), st.text(max_size=4)))
    part[name] = draw(finite)
    if draw(st.integers(0, 4)):
        body["checksum"] = content_hash(body)
    data = json.dumps(body).encode()
    if not draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + draw(st.binary(max_size=3)) + data[place + 1 :]
    return data


@fuzzed(manifests(), 150, 2000)
def test_manifests(data: bytes):
    """Whatever a manifest says, readers answer with an error of ours, and touch nothing else."""
    with tempfile.TemporaryDirectory() as name:
        outside, folder = Path(name), Path(name) / "run"
        artifact = Artifact(folder / "a")
        artifact.path.mkdir(parents=True)
        (outside / "precious").write_text("x")
        (artifact.path / "a.txt").write_text("b")
        (artifact.path / "manifest.json").write_bytes(data)
        run = RunFolder(folder)
        ours(artifact.manifest)
        assert isinstance(ours(artifact.verify), PgtgError)  # the bytes do not fit in any of them
        assert isinstance(run.last_position(), int) and run.last_position() >= 0
        assert len(run.artifacts()) == int(artifact.exists())
        ours(lambda: artifact.drop(["a.txt", "../../precious"]))
        ours(lambda: store.hash_of([artifact], {}))
        assert (outside / "precious").read_text() == "x"


@cache
def written() -> dict[str, bytes]:
    """A file of each kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store.write_json(folder / "a.json", {"a": [1, 2.5, "é"], "b": None})
        store.write_jsonl(folder / "a.jsonl", [{"n": n, "t": "x" * n} for n in range(4)])
        store.write_table(
            folder / "a.parquet", {"ids": [[1, 2], []], "t": ["a", "b"], "s": [0.5, 1.0]}
        )
        store.save_tensors(folder / "a.safetensors", {"w": torch.arange(4.0)})
        return {path.suffix: path.read_bytes() for path in folder.iterdir()}


READERS = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_table,
    ".safetensors": store.load_tensors,
}
edits = st.lists(
    st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=3
)


@fuzzed(st.tuples(st.sampled_from(sorted(READERS)), edits), 150, 1500)
def test_files_of_artifacts(case: tuple[str, list[tuple[float, bytes, int]]]):
    """Bytes put in the place of others, a few times: a value or an ArtifactError."""
    suffix, changes = case
    data = written()[suffix]
    for where, new, cut in changes:
        place = int(where * len(data))
        data = data[:place] + new + data[place + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(data)
        found = ours(lambda: READERS[suffix](path))
        assert not isinstance(found, PgtgError) or path.name in str(found)


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


@fuzzed(st.tuples(rows_of, layout), 150, 2500)
def test_rows_of_jsonl(case: tuple[list[dict], tuple[bool, str, bool]]):
    """Beside a sound row, so that most tables are read."""
    rows, how = case
    rows = [*rows, {"text": "sound", "sum": "row"}]
    found = loaded(".jsonl", jsonl(rows, how))
    assert found is not None
    check_rows(found, rows)


@fuzzed(st.tuples(rows_of, longs, layout), 4, 40)
def test_lines_of_megabytes(case: tuple[list[dict], str, tuple[bool, str, bool]]):
    rows, long, how = case
    rows = [*rows, {"text": long, "sum": [long, ""]}, {"text": long, "sum": "other"}]
    found = loaded(".jsonl", jsonl(rows, how))
    check_rows(found, rows)
    assert found is None or any(example.source == long for example in found[0])


@fuzzed(
    st.tuples(st.lists(st.lists(strange, min_size=2, max_size=2), max_size=6), layout), 80, 1000
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


suffixes = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"])
start = st.sampled_from(
    [b"", b'{"text": "a", "sum": "b"}\n', b'[{"text": "a", "sum": "b"}]', b"text,sum\n"]
)


@fuzzed(st.tuples(suffixes, start, st.binary(max_size=60)), 120, 1500)
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


@fuzzed(st.tuples(rows_of, layout, st.sampled_from(["train", "dev"]), st.booleans()), 100, 1500)
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


@fuzzed(groups, 150, 2000)
def test_rankings(rows: list[tuple[list[float], list[float]]]):
    """Exact with ties and infinities; NaN where something is NaN, which no log takes."""
    evaluations = torch.tensor([a for a, _ in rows], dtype=torch.float64)
    preference = torch.tensor([b for _, b in rows], dtype=torch.float64)
    broken = bool((evaluations + 0).isnan().any() or preference.isnan().any())
    for measure, expected in ((pair_accuracy, expected_accuracy), (top1_accuracy, expected_top1)):
        found = measure(evaluations, preference)
        if broken:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(expected(rows), abs=1e-12, nan_ok=True)
    up, down = evaluations.flatten(), preference.flatten()
    wins = [(p > q) + (p == q) / 2 for p in up.tolist() for q in down.tolist()]
    area = math.nan if broken else sum(wins) / len(wins)
    assert auc(up, down) == pytest.approx(area, abs=1e-12, nan_ok=True)


@fuzzed(groups, 100, 1000)
def test_the_ranking_loss(rows: list[tuple[list[float], list[float]]]):
    """Refused for scores that are no numbers; else exact, or NaN, which ends the training."""
    evaluations = torch.tensor([a for a, _ in rows], dtype=torch.float64)
    preference = torch.tensor([b for _, b in rows], dtype=torch.float64)
    if not preference.isfinite().all():
        with pytest.raises(ValueError, match="finite scores"):
            plackett_luce_nll(evaluations, preference)
        return
    found = plackett_luce_nll(evaluations, preference)
    for value, (a, b) in zip(found.tolist(), rows, strict=True):
        if not all(map(math.isfinite, a)):
            assert not math.isfinite(value) or -math.inf in a
            continue
        order = sorted(range(len(a)), key=lambda i: -b[i])  # stable, as ours
        ranked = torch.tensor([a[i] for i in order], dtype=torch.float64)
        nll = sum(
            (ranked[k:].logsumexp(0) - ranked[k] for k in range(len(a))), start=torch.tensor(0.0)
        )
        assert value == pytest.approx(float(nll), rel=1e-6, abs=1e-6)
