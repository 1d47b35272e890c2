"""The cache: same bits with and without it, made once, safe under kills, and it stays small."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pgtg.config.sizes import parse_size, show_size
from pgtg.errors import ConfigError
from pgtg.pipeline import evaluate, reuse
from pgtg.pipeline.run import train
from pgtg.pipeline.stages import improve, sample
from pgtg.runs import entries
from pgtg.runs import folder as store
from pgtg.runs.artifacts import Artifact
from pgtg.runs.cache import CachedArtifact
from tests.support.finished import finished_run
from tests.support.tiny import TINY, _quiet, results, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_prompt import tiny_prompt

SHORT = ("schedule.total=2", "evaluate.decodings=[greedy]", "evaluate.diagnose=0")  # one round
SHARED = {"sample": 1, "improve": 1, "eval": 2, "warm_start": 1}  # entries of such a run


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stages were computed, not taken."""
    seen: list[str] = []

    def watched(name: str, original: Callable) -> Callable:
        def make(*args, **kwargs):
            seen.append(name)
            return original(*args, **kwargs)

        return make

    for module in (sample, improve, evaluate):
        monkeypatch.setattr(
            module, "_make", watched(module.__name__.removeprefix("pgtg.pipeline."), module._make)
        )
    return seen


def kinds(cache: Path) -> dict[str, int]:
    found = [entry.kind for entry in entries.entries(cache)]
    return {kind: found.count(kind) for kind in found}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a cache."""
    return finished_run(tiny(*SHORT), tmp_path_factory)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache, and the run that filled it."""
    folder = tmp_path_factory.mktemp("filled")
    train(tiny(*SHORT, f"cache={folder / 'cache'}"), folder / "run")
    return folder / "cache", folder / "run"


@pytest.fixture
def full(filled: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the filled cache."""
    return Path(shutil.copytree(filled[0], tmp_path / "cache"))


@pytest.mark.slow
def test_a_run_has_the_same_bits_off_on_a_miss_and_on_a_hit(
    plain: Path, filled: tuple[Path, Path], full: Path, tmp_path: Path, made: list[str]
):
    """All files and metrics.jsonl; on the hit nothing that could be shared is computed."""
    assert results(filled[1]) == results(plain)
    train(tiny(*SHORT, f"cache={full}"), tmp_path / "hit")
    assert results(tmp_path / "hit") == results(plain)
    assert (kinds(full), made) == (SHARED, ["stages.improve", "evaluate"])  # of the method itself
    for name in ("start", "rounds/00/sample", "controls/uniform/00/improve"):  # taken, and said so
        miss, hit = (
            Artifact(run / name).manifest()["extra"] for run in (filled[1], tmp_path / "hit")
        )
        assert miss["seconds"] > 0 and "cached_seconds" not in miss
        assert (hit["seconds"], hit["cached_seconds"]) == (0, miss["seconds"])


def test_another_aggregator_shares_what_no_reward_touched(
    full: Path, tmp_path: Path, made: list[str]
):
    train(tiny(*SHORT, f"cache={full}", "aggregator=max"), tmp_path / "max")
    assert (kinds(full), made) == (SHARED, ["stages.improve", "evaluate"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "new"),
    [
        ("seed=1", {"sample": 2, "improve": 2, "eval": 4, "warm_start": 2}),
        ("sample.temperature=0.7", {"sample": 2, "improve": 2, "eval": 4}),
        ("improve.lr=0.004", {"improve": 2, "eval": 3}),
        ("reward.fit.lr=0.02", {}),
    ],
)
def test_the_key_holds_all_that_a_result_depends_on(
    full: Path, tmp_path: Path, change: str, new: dict[str, int]
):
    train(tiny(*SHORT, f"cache={full}", change), tmp_path / "other")
    assert kinds(full) == SHARED | new


@pytest.mark.slow
def test_other_code_takes_nothing(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reuse, "_code", lambda: "of another version")
    train(tiny(*SHORT, f"cache={full}"), tmp_path / "other")
    assert kinds(full) == SHARED | {"sample": 2, "improve": 2, "eval": 4}


@pytest.mark.slow
def test_a_prompt_search_has_the_same_bits_with_and_without(tmp_path: Path, made: list[str]):
    """Its baselines and the search without a reward are shared, over rounds."""
    short = ("prompt.baselines=[manual]", "method.controls=[sparse]")
    train(tiny_prompt(*short), tmp_path / "off")
    train(tiny_prompt(*short, f"cache={tmp_path / 'cache'}"), tmp_path / "miss")
    made.clear()
    train(tiny_prompt(*short, f"cache={tmp_path / 'cache'}"), tmp_path / "hit")
    assert results(tmp_path / "miss") == results(tmp_path / "off") == results(tmp_path / "hit")
    assert made.count("stages.sample") == 1  # the method's second round
    assert kinds(tmp_path / "cache")["sample"] == 3


@pytest.mark.slow
def test_a_damaged_entry_is_made_again(plain: Path, full: Path, tmp_path: Path, made: list[str]):
    (part,) = full.glob("sample/*/files/train/00000.parquet")
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    train(tiny(*SHORT, f"cache={full}"), tmp_path / "run")
    assert results(tmp_path / "run") == results(plain)
    assert made.count("stages.sample") == 1
    for entry in entries.entries(full):
        CachedArtifact(entry.path).verify()


@pytest.mark.slow
def test_half_done_work_is_finished_and_shared(plain: Path, tmp_path: Path, made: list[str]):
    """Stopped while it sampled: the run resumes with its own chunks, and its entry is whole."""
    cfg, cache = tiny(*SHORT, f"cache={tmp_path / 'cache'}"), tmp_path / "cache"
    original, calls = sample._generate, []

    def stop(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "_generate", stop)
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path / "run")
    assert "sample" not in kinds(cache)
    train(cfg, tmp_path / "run")
    assert results(tmp_path / "run") == results(plain)
    assert kinds(cache) == SHARED


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_does_not_end_a_run(plain: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("in the way")
    train(tiny(*SHORT, f"cache={tmp_path / 'cache'}"), tmp_path / "run")
    assert results(tmp_path / "run") == results(plain)


# ---------------------------------------------------------------- locks

MAKER = """
import sys, time
from pathlib import Path
from pgtg.runs import folder as store
entry, log = store.cached(sys.argv[1], "kind", "key"), Path(sys.argv[2])
with entry.held(lambda text: log.open("a").write("waits\\n"), alone=True):
    if not entry.exists():
        log.open("a").write("makes\\n")
        time.sleep(float(sys.argv[3]))
        (entry.working("i") / "file").write_text("bytes")
        entry.commit(inputs="i")
"""


def maker(cache: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MAKER, str(cache), str(log), str(seconds)])


def wait_for(path: Path, text: str) -> None:
    end = time.monotonic() + 60
    while not (path.is_file() and text in path.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    assert text in path.read_text()


def test_the_second_waits_instead_of_making_it_twice(tmp_path: Path):
    first = maker(tmp_path / "c", tmp_path / "first", 1.5)
    wait_for(tmp_path / "first", "makes")
    second = maker(tmp_path / "c", tmp_path / "second", 0.0)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert (tmp_path / "second").read_text() == "waits\n"


def test_a_killed_maker_is_waited_for_no_longer(tmp_path: Path):
    first = maker(tmp_path / "c", tmp_path / "first", 60.0)
    wait_for(tmp_path / "first", "makes")
    second = maker(tmp_path / "c", tmp_path / "second", 0.0)
    wait_for(tmp_path / "second", "waits")
    first.kill()
    assert (first.wait(60), second.wait(60)) == (-signal.SIGKILL, 0)
    assert (tmp_path / "second").read_text() == "waits\nmakes\n"


# ---------------------------------------------------------------- size


def fill(cache: Path, *ages: float) -> list[CachedArtifact]:
    """Entries of 1000 bytes and a manifest, last used so many seconds ago."""
    found = []
    for number, age in enumerate(ages):
        entry = store.cached(cache, "kind", f"k{number}")
        (entry.working("i") / "file").write_bytes(b"x" * 1000)
        entry.commit(inputs="i", label=f"run {number}")
        then = time.time() - age
        os.utime(entry.path / "manifest.json", (then, then))
        found.append(entry)
    return found


def test_what_was_used_longest_ago_goes_first(tmp_path: Path):
    first, second, third = fill(tmp_path, 300, 100, 200)
    here = entries.entries(tmp_path)
    assert [entry.label for entry in here] == ["run 1", "run 2", "run 0"]
    each = {sum(f.stat().st_size for f in e.path.iterdir()) for e in (first, second, third)}
    assert {entry.size for entry in here} == each
    gone = entries.prune(tmp_path, 2 * max(each))
    assert [entry.label for entry in gone] == ["run 0"]
    third.used()
    assert [e.label for e in entries.prune(tmp_path, max(each))] == ["run 1"]
    assert third.exists() and not first.exists()


def test_nothing_in_use_is_deleted(tmp_path: Path):
    """Nor the newest, which was just made; what is half-made by a living process stays too."""
    first, second, _ = fill(tmp_path, 300, 200, 100)
    with first.held(print, alone=False):
        gone = entries.prune(tmp_path, 0, keep=second.path)
    assert [entry.label for entry in gone] == ["run 2"]
    assert first.verify() and second.verify()
    growing = store.cached(tmp_path, "kind", "new")
    (growing.working("i") / "file").write_text("half")
    entries.clear_leftovers(tmp_path)
    growing.commit(inputs="i")
    assert growing.verify()


def test_a_deleted_entrys_lock_is_not_mistaken_for_the_new_ones(tmp_path: Path):
    """Whoever waited on the lock file of an entry that was deleted takes the new file's lock."""
    (entry,) = fill(tmp_path, 1)
    path = entry.path.parent / f".{entry.path.name}.use"
    waits, ends, found = threading.Event(), threading.Event(), []

    def second() -> None:
        with entry.held(lambda text: waits.set(), alone=True):
            found.append(CachedArtifact(entry.path).discard())  # False: it is in use, by us
            ends.set()

    with entry.held(print, alone=True):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        time.sleep(0.1)  # it has the old file open by now
        path.unlink()
    assert ends.wait(30)
    thread.join()
    assert found == [False]


def test_leftovers_of_killed_makers_are_cleared(tmp_path: Path):
    code = (
        "import os, sys; from pgtg.runs import folder as store;"
        "store.cached(sys.argv[1], 'kind', 'key').working('i'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert list(tmp_path.glob("kind/.*.making"))
    entries.clear_leftovers(tmp_path)
    assert not list(tmp_path.glob("kind/.*.making"))


def test_answers_go_only_when_nobody_has_them_open(tmp_path: Path):
    folder = tmp_path / "answers"
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path; from pgtg.judges.memo import Memo;"
        "memo = Memo(Path(sys.argv[1]), (2, 2)); print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "a.sqlite")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "open\n"
    assert entries.clear_answers(tmp_path) == []
    child.communicate("")
    assert [entry.kind for entry in entries.clear_answers(tmp_path)] == ["answers"]
    assert entries.entries(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("7", 7), ("3k", 3000)],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1MB", "2 GBs", "nan"])
def test_what_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="such as"):
        parse_size(text)
    monkeypatch.setenv("PGTG_CACHE_SIZE", text or "x")
    with pytest.raises(ConfigError, match="PGTG_CACHE_SIZE"):
        entries.size_limit()


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert entries.size_limit() == 20 * 10**9
    monkeypatch.setenv("PGTG_CACHE_SIZE", "off")
    assert entries.size_limit() is None
    assert [show_size(n) for n in (12, 1500, 2.5e6, 123e9)] == [
        "12 B",
        "1.5 kB",
        "2.5 MB",
        "123 GB",
    ]


# ---------------------------------------------------------------- two sweeps


@pytest.mark.slow
@pytest.mark.parametrize("after", ["start", "sample", "improve"])
def test_two_sweeps_on_one_cache_one_of_them_killed(tmp_path: Path, after: str):
    """Started at the same moment; the one that makes the shared part is killed: the other's runs
    have the bits of runs without a cache, and what it left in the cache is whole."""
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "pgtg", "train", "summarize", "-m", *TINY, *SHORT]
    command += [f"cache={cache}", "aggregator=avg,max", "--quiet"]
    sweeps = [
        subprocess.Popen(
            [*command, f"sweep_dir={tmp_path / name}"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PGTG_QUIET": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("a", "b")
    ]
    end = time.monotonic() + 120
    victim = None
    while victim is None and time.monotonic() < end:
        for number, name in enumerate(("a", "b")):
            run = tmp_path / name / "aggregator=avg"
            making = after == "start" and any(cache.glob("*/.*.making"))
            done = run / ("controls/uniform/00" if after == "improve" else "rounds/00") / after
            if (making and (run / "config.yaml").is_file()) or done.is_dir():
                victim = number
        time.sleep(0.002)
    assert victim is not None
    sweeps[victim].kill()
    sweeps[victim].wait(60)
    assert sweeps[1 - victim].wait(280) == 0
    for aggregator in ("avg", "max"):
        train(tiny(*SHORT, f"aggregator={aggregator}"), tmp_path / aggregator)
        run = tmp_path / ("a", "b")[1 - victim] / f"aggregator={aggregator}"
        assert results(run) == results(tmp_path / aggregator)
    for entry in entries.entries(cache):
        CachedArtifact(entry.path).verify()
    json.loads((tmp_path / ("a", "b")[victim] / "sweep.json").read_text())
