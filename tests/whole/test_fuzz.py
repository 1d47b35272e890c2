"""Bad input, made at random: an error of ours or an exact answer, and counts that add up.

A few hundred cases by default; with `-m slow` each test has many times more, over 5,000 in all.
"""

import json
import math
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st

from pgtg.cli.calls import Call
from pgtg.config import RunConfig, known_keys
from pgtg.config.compose import run_config
from pgtg.errors import PgtgError
from pgtg.runs import folder as store
from pgtg.runs.files import read_json, read_jsonl, read_table
from pgtg.runs.folder import Artifact, RunFolder, content_hash
from tests.support.fuzzing import exit_code, fuzzed, ours, plain

# --- command lines


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
    st.tuples(st.sampled_from(["summarize", "prompt"]), st.lists(overrides, max_size=4)), 10, 1000
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
    from tests.support.tiny import TINY

    return yaml.safe_dump(asdict(run_config("summarize", TINY)) | {"run_dir": None})


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


@fuzzed(configs(), 10, 1000)
def test_configs_of_run_folders(text: bytes):
    """Opened and understood, or refused in words; also when a run would resume with it."""
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


@fuzzed(manifests(), 75, 2000)
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


@fuzzed(st.tuples(st.sampled_from(sorted(READERS)), edits), 75, 1500)
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
