"""Run folders and artifacts: what a kill, a flipped bit, a second process or a stranger can do."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pgtg.errors import ArtifactError, ConfigError, DivergedError, PgtgError
from pgtg.runs import artifacts
from pgtg.runs import folder as store
from pgtg.runs.artifacts import settle
from pgtg.runs.folder import Artifact, RunFolder

CONFIG = {"task": "summarize", "seed": 0, "improve": {"lr": 1e-05, "names": ["a", "b"]}}


def make(path: Path, text: str = "hello", inputs: str = "i", position: int = 0) -> Artifact:
    artifact = Artifact(path)
    folder = artifact.working(inputs)
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.txt").write_text(text * 2)
    return artifact.commit(inputs=inputs, metrics={"x": 0.5}, position=position, step=3)


def run_folder(path: Path) -> RunFolder:
    return RunFolder(path).create(CONFIG, store.provenance(["pgtg"], 0))


def start(code: str, *argv: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- artifacts ------------------------------------------------------------------------------------


def test_an_artifact_exists_only_once_committed(tmp_path: Path):
    """Half-made it is invisible; committed, its manifest holds what was given and all files."""
    artifact = Artifact(tmp_path / "sample")
    (artifact.working("i") / "a.txt").write_text("x")
    assert not artifact.exists()
    assert not artifact.path.exists()
    with pytest.raises(ArtifactError, match="never finished"):
        artifact.manifest()
    make(tmp_path / "sample", position=7)
    manifest = artifact.verify()
    assert manifest["kind"] == "sample"
    assert manifest["inputs"] == "i"
    assert manifest["position"] == 7
    assert manifest["metrics"] == {"x": 0.5}
    assert manifest["extra"] == {"seconds": None, "step": 3}  # a part lay there: time unknown
    assert sorted(manifest["files"]) == ["a.txt", "sub/b.txt"]
    assert manifest["files"]["sub/b.txt"]["bytes"] == 10
    assert [p.name for p in tmp_path.iterdir()] == ["sample"]


def test_a_manifest_holds_the_seconds_of_work_done_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The last call of `working` starts the clock; half-done work of a killed process stops it."""
    clock = iter([10.0, 20.0, 22.5, 30.0, 40.0])
    monkeypatch.setattr("pgtg.runs.artifacts.time.monotonic", lambda: next(clock))

    def seconds(artifact: Artifact) -> float | None:
        return artifact.commit(inputs="i").manifest()["extra"]["seconds"]

    artifact = Artifact(tmp_path / "sample")
    artifact.working("i")
    (artifact.working("i") / "part0").write_text("x")
    assert seconds(artifact) == 2.5
    (artifact.working("i") / "part0").write_text("x")  # and killed
    resumed = Artifact(tmp_path / "sample")
    resumed.working("i")
    assert seconds(resumed) is None


def test_working_keeps_content_for_the_same_inputs_only(tmp_path: Path):
    """A resume finds its parts; another config, or `fresh`, starts empty."""
    artifact = Artifact(tmp_path / "sample")
    (artifact.working("one") / "part0").write_text("x")
    assert (artifact.working("one") / "part0").exists()
    assert not any(artifact.working("two").iterdir())
    assert not any(artifact.working("one").iterdir())  # "two" had emptied it
    (artifact.working("one") / "part0").write_text("x")
    assert not any(artifact.working("one", fresh=True).iterdir())


def test_commit_replaces_and_needs_work(tmp_path: Path):
    """The new version takes the old one's place, files of the old one do not stay."""
    artifact = make(tmp_path / "a", "old")
    (artifact.working("j") / "only.txt").write_text("new")
    assert (artifact.path / "a.txt").read_text() == "old"  # until the commit
    artifact.commit(inputs="j")
    assert sorted(artifact.verify()["files"]) == ["only.txt"]
    with pytest.raises(PgtgError, match="nothing to commit"):
        artifact.commit(inputs="j")


def test_all_is_synced_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a power cut must not tear: files, their folders and the manifest lie on the disk before
    the renames, and each rename before what comes after it."""
    calls: list[tuple[str, str]] = []
    rename, replace = os.rename, os.replace

    def place(descriptor: int) -> str:
        return os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), tmp_path)

    def renamed(real: Any, old: Any, new: Any) -> None:
        calls.append(("rename", os.path.relpath(old, tmp_path)))
        real(old, new)

    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(("sync", place(descriptor))))
    monkeypatch.setattr(os, "rename", partial(renamed, rename))
    monkeypatch.setattr(os, "replace", partial(renamed, replace))
    make(tmp_path / "a")
    growing = next(name for kind, name in calls if kind == "rename" and name.endswith(".partial"))
    sealed = calls.index(("rename", growing))
    before, after = calls[:sealed], calls[sealed:]
    for name in (f"{growing}/a.txt", f"{growing}/sub/b.txt", f"{growing}/sub", growing):
        assert ("sync", name) in before
    manifest = next(name for kind, name in before if kind == "rename" and "manifest" in name)
    assert before[-3:] == [("sync", manifest), ("rename", manifest), ("sync", growing)]
    assert after == [("rename", growing), ("sync", "."), ("rename", ".a.next"), ("sync", ".")]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add", "manifest", "link"])
def test_damage_is_found_and_named(tmp_path: Path, damage: str):
    """Every kind of damage ends in an error that names the file; nothing else is wrong before."""
    artifact = make(tmp_path / "a")
    artifact.verify()
    target = artifact.path / "sub" / "b.txt"
    data = target.read_bytes()
    if damage == "flip":
        target.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "truncate":
        target.write_bytes(data[:-1])
    elif damage == "delete":
        target.unlink()
    elif damage == "add":
        target = artifact.path / "evil.bin"
        target.write_bytes(b"x")
    elif damage == "link":
        target.unlink()
        target.symlink_to("/etc/hostname")
    else:
        target = artifact.path / "manifest.json"
        target.write_text(target.read_text().replace("0.5", "0.6"))
        assert not artifact.exists()
    with pytest.raises(ArtifactError, match=target.name):
        artifact.verify()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\\b", "a\0b", ".hidden", 3]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: object):
    """In manifests (with a right checksum, as a stranger would write it) and in `file`."""
    artifact = make(tmp_path / "a")
    path = artifact.path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    manifest["files"] = {str(name) if name != 3 else "": {"bytes": 1, "sha256": "0"}}
    store.write_json(path, {**manifest, "checksum": store.content_hash(manifest)})
    for reader in (artifact.manifest, artifact.verify):
        with pytest.raises(ArtifactError, match=r"leads outside|not a file name"):
            reader()
    with pytest.raises(ArtifactError):
        artifact.file(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, "null", '{"schema": 1}', '{"schema": 1e999}', "\udc80"]
)
def test_any_manifest_gives_an_error_of_ours(tmp_path: Path, text: str):
    """Never another exception, whatever stands there."""
    artifact = make(tmp_path / "a")
    (artifact.path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert not artifact.exists()
    with pytest.raises(ArtifactError):
        artifact.verify()


def test_a_link_is_neither_committed_nor_opened(tmp_path: Path):
    artifact = Artifact(tmp_path / "a")
    (artifact.working("i") / "x").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="link"):
        artifact.commit(inputs="i")
    run = run_folder(tmp_path / "run")
    (run.path / "rounds").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match=r"rounds.*link"):
        run.open()


@pytest.mark.parametrize(
    "names", ["next", "next+final", "next+final+old", "next+old", "final+old", "old"]
)
def test_every_state_between_the_renames_heals(tmp_path: Path, names: str):
    """The newest complete version wins; afterwards it stands alone."""
    order = {"next": ".a.next", "final": "a", "old": ".a.old"}
    for name in names.split("+"):
        make(tmp_path / "made", text=name)
        (tmp_path / "made").rename(tmp_path / order[name])
    settle(tmp_path / "a")
    assert (tmp_path / "a" / "a.txt").read_text() == names.split("+")[0]
    Artifact(tmp_path / "a").verify()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


CHILD = """
import sys
from pathlib import Path
from pgtg.runs.folder import RunFolder
run = RunFolder(sys.argv[1])
with run.lock():
    run.open()
    artifact = run.artifact("rounds", "00", "improve")
    n = artifact.manifest()["extra"]["n"] if artifact.exists() else -1
    if n >= 0:
        run.publish("policy", artifact.path, n=n)  # killed between commit and publish
    print(n, flush=True)
    while True:
        n += 1
        folder = artifact.working(str(n))
        for part in range(3):
            (folder / f"{part}.bin").write_bytes(f"{n},".encode() * (500 + part))
        artifact.commit(inputs=str(n), position=n, n=n)
        run.publish("policy", artifact.path, n=n)
        print(n, flush=True)
"""


def after_a_kill(run: RunFolder, said: int, first_done: bool) -> None:
    """What was said to be committed is there, or the next one; complete, and published."""
    with run.lock():
        run.open()
        artifact, policy = run.artifact("rounds", "00", "improve"), run.artifact("policy")
        if first_done:
            manifest = artifact.verify()
            n = manifest["extra"]["n"]
            assert n in (said, said + 1)
            assert artifact.file("2.bin").read_bytes() == f"{n},".encode() * 502
            assert policy.verify()["extra"]["n"] in (said, said + 1)
            assert run.last_position() == n
        left = [p.name for p in run.path.rglob(".*") if not p.name.endswith(".partial")]
        assert left == []


def test_sigkill_at_any_moment_leaves_a_complete_version(tmp_path: Path):
    """A child commits and publishes in a loop and is killed for real at 6 random moments."""
    run = run_folder(tmp_path / "run")
    moments = random.Random(0)
    said = -1
    for _ in range(6):
        child = start(CHILD, run.path)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        deadline = time.monotonic() + moments.uniform(0.0, 0.12)
        while time.monotonic() < deadline:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        said = max([said, *(int(line) for line in lines if line.endswith("\n"))])
        after_a_kill(run, said, first_done=said >= 0)
    assert said > 2  # commits came between the kills; how many, the load of the machine decides


STEPPED = """
import os, sys
from pathlib import Path
from pgtg.runs.folder import RunFolder
calls, limit = 0, int(sys.argv[2])
def counted(name, real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    setattr(os, name, call)
run = RunFolder(sys.argv[1])
with run.lock():
    run.open()
    artifact = run.artifact("rounds", "00", "improve")
    for name in ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir", "link", "open"):
        counted(name, getattr(os, name))
    folder = artifact.working("new")
    (folder / "a.txt").write_text("new")
    artifact.commit(inputs="new", n=1)
    run.publish("policy", artifact.path, n=1)
print("done")
"""


def kill_at_call(path: Path, limit: int) -> bool:
    child = start(STEPPED, path, limit)
    done = child.communicate()[0].strip() == "done"
    assert child.returncode == (0 if done else -signal.SIGKILL)
    return done


@pytest.mark.slow
def test_sigkill_at_each_system_call_of_a_replacement(tmp_path: Path):
    """Dies in turn at every call that changes the disk; old or new is always there, complete."""
    for limit in range(1, 400):
        run = run_folder(tmp_path / str(limit))
        artifact = run.artifact("rounds", "00", "improve")
        make(artifact.path, "old")
        run.publish("policy", artifact.path)
        done = kill_at_call(run.path, limit)
        with run.lock():
            run.open()
            for each in (artifact, run.artifact("policy")):
                each.verify()
                assert each.file("a.txt").read_text() in ("old", "new")
        if done:
            break
    assert done
    assert limit > 40


def test_remove_takes_artifact_and_partials(tmp_path: Path):
    artifact = make(tmp_path / "a")
    artifact.working("other")
    artifact.remove()
    assert list(tmp_path.iterdir()) == []


# --- run folder -----------------------------------------------------------------------------------


def test_create_open_and_config_round_trip(tmp_path: Path):
    """The config comes back equal, floats bit for bit; a second create is refused."""
    config = {**CONFIG, "prefix": "summarize: ", "none": None, "date": "2024-01-01", "e": "1e-5"}
    run = RunFolder(tmp_path / "run").create(config, store.provenance(["pgtg", "train"], 3))
    assert run.open().config() == config
    made = store.read_json(run.path / "provenance.json")
    assert made["seed"] == 3
    assert made["packages"]["torch"].startswith(torch.__version__[:3])
    with pytest.raises(ArtifactError, match="already holds a run"):
        run.create(config, {})


def test_missing_and_half_written_folders_are_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no run folder at"):
        RunFolder(tmp_path / "nowhere").open()
    store.write_json(tmp_path / "provenance.json", {})
    with pytest.raises(ArtifactError, match=r"has no config\.yaml"):
        RunFolder(tmp_path).open()


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!binary aGk=",
        "a: ${oc.env:HOME}",
        "a: &x [1]\nb: *x",
        "a: [1",
        "- 1",
        "",
        "\x00",
    ],
)
def test_a_config_of_a_stranger_is_plain_or_refused(tmp_path: Path, text: str):
    run = run_folder(tmp_path / "run")
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=r"config\.yaml"):
        run.open()


def test_an_interpolation_is_not_written(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"\$\{x\}"):
        RunFolder(tmp_path).create({"a": "${x}"}, {})
    assert not (tmp_path / "config.yaml").exists()


def test_config_diff_names_what_changes_results(tmp_path: Path):
    """By dotted key; where a run lies and who watches it does not count."""
    run = run_folder(tmp_path / "run")
    new = {**CONFIG, "seed": 1, "improve": {"lr": 2e-5, "names": ["a"]}, "run_dir": "x"}
    new |= {"logger": {"name": "wandb"}, "quiet": True, "judge": {"workers": 3}, "threads": 2}
    assert run.config_diff(CONFIG) == []
    assert run.config_diff(new) == [
        "seed: 0 -> 1",
        "improve.lr: 1e-05 -> 2e-05",
        'improve.names: ["a", "b"] -> ["a"]',
        "threads: (absent) -> 2",
    ]


def test_open_cleans_garbage_and_keeps_what_counts(tmp_path: Path):
    """Temporary names go, also inside partial folders; partial folders stay."""
    run = run_folder(tmp_path / "run")
    partial = run.artifact("rounds", "00", "improve").working("i")
    make(partial / "state" / "000100", position=50)
    (partial / ".x.1234.tmp").write_text("")
    (run.path / ".policy.1234.tmp").mkdir()
    (run.path / ".policy.1234.tmp" / "f").write_text("")
    run.open()
    assert partial.is_dir()
    assert not list(run.path.rglob("*.tmp"))


def test_last_position_sees_commits_and_states_in_partial_folders(tmp_path: Path):
    """The largest of all, damaged ones left out."""
    run = run_folder(tmp_path / "run")
    assert run.last_position() == 0
    make(run.artifact("rounds", "00", "sample").path, position=100)
    partial = run.artifact("rounds", "00", "improve").working("i")
    make(partial / "state" / "000100", position=250)
    assert run.last_position() == 250
    (make(partial / "state" / "000200", position=300).path / "manifest.json").write_text("{")
    assert run.last_position() == 250
    run.artifact("rounds", "00", "improve").working("j")  # another config: the states are gone
    assert run.last_position() == 100


def test_publish_replaces_and_verifies(tmp_path: Path):
    run = run_folder(tmp_path / "run")
    for text in ("one", "two"):
        source = make(run.artifact("rounds", "00", "improve").path, text)
        policy = run.publish("policy", source.path, round=0)
        assert (run.path / "policy" / "sub" / "b.txt").read_text() == text * 2
        assert policy.verify()["extra"] == {"round": 0}
    assert (run.path / "policy" / "a.txt").stat().st_nlink == 2  # no second copy on the disk


HOLDER = """
import sys, time
from pgtg.runs.folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path):
    """At once; and once the first is killed, the stale lock is no obstacle."""
    run = run_folder(tmp_path / "run")
    child = start(HOLDER, run.path)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    began = time.monotonic()
    with pytest.raises(ArtifactError, match=f"in use by process {child.pid}"), run.lock():
        pass
    assert time.monotonic() - began < 1.0
    run.open()  # reading meanwhile is fine
    child.kill()
    child.communicate()
    with run.lock():
        assert json.loads((run.path / "run.lock").read_text())["pid"] == os.getpid()
    with run.lock():
        pass


# --- cache ----------------------------------------------------------------------------------------


CACHE_WRITER = """
import sys
from pgtg.runs import artifacts
from pgtg.runs import folder as store
artifact = store.cached(sys.argv[1], "warm", "key")
folder = artifact.working("key")
for part in range(20):
    (folder / f"{part}.txt").write_text("same" * 1000)
print("ready", flush=True)
sys.stdin.readline()
artifact.commit(inputs="key")
artifact.verify()
"""


def test_concurrent_cache_writers_leave_one_complete_artifact(tmp_path: Path):
    """Four processes commit at the same moment; none fails, and nothing is left over."""
    jobs = [start(CACHE_WRITER, tmp_path) for _ in range(4)]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("go\n")
        job.stdin.flush()
    for job in jobs:
        job.communicate()
    assert [job.returncode for job in jobs] == [0] * 4
    assert len(store.cached(tmp_path, "warm", "key").verify()["files"]) == 20
    assert {p.name for p in (tmp_path / "warm").iterdir()} == {"key", ".key.lock"}


def test_a_damaged_cache_entry_is_replaced_and_a_dead_makers_folder_swept(tmp_path: Path):
    code = (
        "import os, sys; from pgtg.runs import folder as store\n"
        "store.cached(sys.argv[1], 'warm', 'key').working('i'); os.kill(os.getpid(), 9)"
    )
    start(code, tmp_path).communicate()
    assert list((tmp_path / "warm").glob("*.making")) != []
    artifact = store.cached(tmp_path, "warm", "key")
    for text in ("one", "two"):
        (artifact.working("i") / "f").write_text(text)
        artifact.commit(inputs="i")
        assert artifact.file("f").read_text() == text
        artifact.file("f").write_text("broken")
    assert not list((tmp_path / "warm").glob("*.making"))


def test_hashes_follow_content_only(tmp_path: Path):
    """Order of keys does not count; each parent file, the config and the inputs do."""
    assert store.content_hash({"a": 1, "b": [1.5]}) == store.content_hash({"b": [1.5], "a": 1})
    assert store.content_hash({"a": 1}) != store.content_hash({"a": "1"})
    one, same = make(tmp_path / "x" / "s"), make(tmp_path / "y" / "s", position=9)
    other = make(tmp_path / "z" / "s", text="other")
    base = store.hash_of([one], {"lr": 1})
    assert base == store.hash_of([same], {"lr": 1})
    assert base != store.hash_of([other], {"lr": 1})
    assert base != store.hash_of([one], {"lr": 2})


# --- files ----------------------------------------------------------------------------------------

ODD = "caf\u00e9 \u2028 \x85 \ud800 [bold]\r\n"


def write_all(folder: Path, flip: bool) -> list[Path]:
    """The same content each time; `flip` changes only the order in which tensors are given."""
    paths = [folder / name for name in ("a.json", "a.jsonl", "a.parquet", "a.safetensors")]
    names = [f"t{n}" for n in range(20)]
    tensors = {name: torch.arange(6.0).view(2, 3).T + len(name) for name in names}
    order = dict(reversed(tensors.items())) if flip else tensors
    store.write_json(paths[0], {"b": 1, "a": [math.pi, 1e-300]})
    store.write_jsonl(paths[1], ({"n": n, "x": n / 3, "text": ODD} for n in range(50)))
    columns = {"ids": [[1, 2], [], [3]], "r": [[0.1], [], [2.0]], "s": [0.1, 2.0, 3.0]}
    store.write_table(paths[2], {**columns, "text": ["a", "b", "c"]})
    store.save_tensors(paths[3], order)
    return paths


def test_same_content_same_bytes_and_round_trip(tmp_path: Path):
    one, two = write_all(tmp_path / "1", False), write_all(tmp_path / "2", True)
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert store.read_json(one[0]) == {"b": 1, "a": [math.pi, 1e-300]}
    rows = store.read_jsonl(one[1])
    assert rows == [{"n": n, "x": n / 3, "text": ODD} for n in range(50)]
    table = store.read_table(one[2])
    assert table["ids"] == [[1, 2], [], [3]]
    assert table["s"] == [0.1, 2.0, 3.0]
    assert table["r"] == [[torch.tensor(0.1).item()], [], [2.0]]  # 4-byte floats inside lists
    loaded = store.load_tensors(one[3])
    assert torch.equal(loaded["t3"], torch.arange(6.0).view(2, 3).T + 2)
    assert not list(tmp_path.rglob("*.tmp"))


def test_table_types(tmp_path: Path):
    """Empty lists keep their type; a number too large for its column is refused."""
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    store.write_table(path, {"ids": [[1], []], "r": [[], []]}, types={"r": "float32"})
    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert kinds == {"ids": "list<element: int32>", "r": "list<element: float>"}
    assert store.read_table(path, ["r"]) == {"r": [[], []]}
    with pytest.raises(ValueError, match="2147483648"):
        store.write_table(path, {"ids": [[2**31]]})
    with pytest.raises(ArtifactError, match="no column x"):
        store.read_table(path, ["x"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float):
    """The old file stays as it was."""
    store.write_json(tmp_path / "a.json", 1)
    with pytest.raises(DivergedError, match=r"a\.json"):
        store.write_json(tmp_path / "a.json", {"x": bad})
    with pytest.raises(DivergedError, match="line 2"):
        store.write_jsonl(tmp_path / "a.jsonl", [{"x": 1}, {"x": bad}])
    assert store.read_json(tmp_path / "a.json") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "link", "pipe"])
def test_readers_answer_damage_with_one_line(tmp_path: Path, name: str, damage: str):
    path = next(p for p in write_all(tmp_path, False) if p.name == name)
    read = {
        "a.json": store.read_json,
        "a.jsonl": store.read_jsonl,
        "a.parquet": store.read_table,
        "a.safetensors": store.load_tensors,
    }[name]
    data = path.read_bytes()
    path.unlink()
    if damage in ("empty", "cut", "garbage"):
        path.write_bytes({"empty": b"", "cut": data[:-9], "garbage": b"\x80\x04." * 40}[damage])
    elif damage == "link":
        path.symlink_to("/etc/hostname")
    elif damage == "pipe":
        os.mkfifo(path)
    if (name, damage) == ("a.jsonl", "empty"):
        assert read(path) == []  # no rows is a table too; a cut one is found by its checksum
        return
    with pytest.raises(ArtifactError, match=name) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_jsonl_without_its_last_line_end_is_cut(tmp_path: Path):
    """One byte short: the last row still parses, but a longer number may have lost its end."""
    store.write_jsonl(tmp_path / "a.jsonl", [{"n": 1}])
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cut short"):
        store.read_jsonl(tmp_path / "a.jsonl")


def test_size_limits_and_read_only_folders(tmp_path: Path):
    store.save_tensors(tmp_path / "t.safetensors", {"x": torch.zeros(1000)})
    with pytest.raises(ArtifactError, match="more than the 100 allowed"):
        store.load_tensors(tmp_path / "t.safetensors", max_bytes=100)
    (tmp_path / "file").write_text("")
    with pytest.raises(PgtgError, match="cannot write") as caught:
        store.write_json(tmp_path / "file" / "a.json", 1)  # works for root as well
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_no_heavy_import():
    code = (
        "import sys, pgtg.runs.folder, pgtg.runs.log\n"
        "print([m for m in ('torch', 'wandb', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    assert start(code).communicate()[0].strip() == "[]"


def test_yaml_is_plain(tmp_path: Path):
    """Values that occur twice are written twice: no anchors, readable by any yaml reader."""
    shared = [1, 2]
    run = RunFolder(tmp_path).create({"a": shared, "b": shared, "t": (1, 2)}, {})
    text = (tmp_path / "config.yaml").read_text()
    assert "&" not in text
    assert yaml.safe_load(text)["b"] == [1, 2]
    assert run.config()["t"] == [1, 2]


def test_a_manifest_is_read_again_when_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Remembered by the state of its file; one just written may change within a clock tick."""
    artifact = Artifact(tmp_path / "made")
    (artifact.working("x") / "file").write_text("text")
    artifact.commit(inputs="x", position=0)
    read, check = [], artifacts._checked_manifest
    monkeypatch.setattr(
        artifacts, "_checked_manifest", lambda *where: read.append(where) or check(*where)
    )
    for settled, expected in ((10**18, 3), (-(10**18), 1)):
        read.clear()
        monkeypatch.setattr(artifacts, "SETTLED", settled)
        for _ in range(2):
            artifact.manifest()["inputs"] = "what a reader does with it is its own"
        assert artifact.manifest()["inputs"] == "x" and len(read) == expected
    path = artifact.path / "manifest.json"
    before, text = path.stat(), path.read_text()
    path.write_text(text.replace('"x"', '"y"'))  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.manifest()


def test_what_is_made_from_other_inputs_or_lost_bytes_is_not_taken(tmp_path: Path):
    artifact = Artifact(tmp_path / "made")
    assert not artifact.made_from("x")
    (artifact.working("x") / "file").write_text("text")
    artifact.commit(inputs="x", position=0)
    assert artifact.made_from("x") and not artifact.made_from("y")
    (artifact.path / "file").write_text("tex!")
    with pytest.raises(ArtifactError, match="is damaged"):
        artifact.made_from("x")
