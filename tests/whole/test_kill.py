"""Real processes, really killed: what is resumed ends with the bytes of a run never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.finished import finished_run
from tests.support.forking import ENVIRONMENT, Forked
from tests.support.tiny import TINY, results, tiny
from tests.support.tiny_preferences import TINY_PREFERENCES, tiny_preferences

PATIENCE = 90.0  # s until a point must be reached; a child needs some seconds for its imports


WORDS = {"summarize": TINY, "preferences": TINY_PREFERENCES}


def arguments(run: Path, *more: str, task: str = "summarize") -> list[str]:
    return ["train", task, *WORDS[task], *more, f"run_dir={run}"]


def forked(run: Path, *more: str, task: str = "summarize") -> Forked:
    return Forked(arguments(run, *more, task=task), run.with_name(run.name + ".stderr"))


def started(run: Path, *more: str) -> subprocess.Popen[str]:
    """A process of its own, imports and all."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgtg", *arguments(run, *more)],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


Start = Callable[..., "Forked | subprocess.Popen[str]"]


def complete(run: Path, *more: str, start: Start = forked) -> str:
    """Run to the end; what it said on stderr."""
    child = start(run, *more)
    said = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 0, said
    return said


def stop(
    run: Path, point: Callable[[Path], bool], signum: int, *more: str, start: Start = forked
) -> int:
    """Begin or resume, send a signal as soon as `point` is reached; the exit code."""
    child = start(run, *more)
    end = time.monotonic() + PATIENCE
    while not point(run) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    if child.poll() is None:
        child.send_signal(signum)
    said = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode, f"it had ended before the point was reached: {said}"
    return child.returncode


def logged(count: int) -> Callable[[Path], bool]:
    """That many lines of metrics are there."""

    def reached(run: Path) -> bool:
        path = run / "metrics.jsonl"
        return path.is_file() and path.read_bytes().count(b"\n") >= count

    return reached


def there(pattern: str) -> Callable[[Path], bool]:
    """A file or folder that matches, hidden working folders included."""
    return lambda run: run.is_dir() and any(run.glob(pattern))


# In the order of the run. What is half done lies in hidden folders, .NAME.<hash>.partial.
POINTS: dict[str, Callable[[Path], bool]] = {
    "created": there("config.yaml"),
    "copying": there(".warm_start.*.partial/copy/state/manifest.json"),
    "warming up": there(".warm_start.*.partial/warm_start/state/manifest.json"),
    "sampling": there("rounds/00/.sample.*.partial/train/00000.parquet"),
    "judged": there("rounds/00/.sample.*.partial/heldout/00000.parquet"),
    "aligning": there("rounds/00/.align.*.partial/state/manifest.json"),
    "saving the reward model": there("rounds/00/.align.*.partial/reward/model.safetensors"),
    "scored": there("rounds/00/score"),
    "improving": there("rounds/00/.improve.*.partial/state/manifest.json"),
    "control": there("controls/uniform/00/.improve.*.partial/state"),
    "published": there("policy/manifest.json"),
    "second round": there("rounds/01/.sample.*.partial/train"),
    "aligning again": there("rounds/01/.align.*.partial/state/manifest.json"),
    "improving again": there("rounds/01/.improve.*.partial/state/manifest.json"),
    "evaluating": there("eval/test/.start.*.partial"),
    "evaluated": there("eval/test/pgtg"),
}
POINTS_OF_PREFERENCES = POINTS | {"evaluated": there("eval/validation/pgtg")}
CHOSEN = ("sampling", "aligning", "improving again")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    return finished_run(tiny(), tmp_path_factory)


def no_scratch(run: Path) -> bool:
    """Nothing half-made is left behind."""
    return not [
        p for p in run.rglob(".*") if p.name.endswith((".tmp", ".old", ".next", ".partial"))
    ]


@pytest.mark.slow
def test_killed_at_every_stage_of_one_run(whole: Path, tmp_path: Path):
    """One run, killed at three points one after the other, resumed each time."""
    run = tmp_path / "run"
    for name in CHOSEN:
        assert stop(run, POINTS[name], signal.SIGKILL) == -signal.SIGKILL, name
        assert not (run / "eval" / "results_test.json").exists()
    complete(run)
    assert results(run) == results(whole)
    assert no_scratch(run)


@pytest.mark.slow
def test_a_run_on_preferences_is_killed_and_ends_as_ever(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    """One run of two rounds, killed at five points one after the other, resumed each time."""
    whole, run = finished_run(tiny_preferences(), tmp_path_factory), tmp_path / "run"
    start = partial(forked, task="preferences")
    for name in ("aligning", "control", "aligning again", "improving again", "evaluated"):
        assert stop(run, POINTS_OF_PREFERENCES[name], signal.SIGKILL, start=start) == -9, name
    complete(run, start=start)
    assert results(run) == results(whole)
    assert no_scratch(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_killed_at(whole: Path, tmp_path: Path, name: str):
    run = tmp_path / "run"
    assert stop(run, POINTS[name], signal.SIGKILL, start=started) == -signal.SIGKILL
    complete(run, start=started)
    assert results(run) == results(whole)
    assert no_scratch(run)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5, 9, 14, 19, 24, 27])
def test_killed_after_some_lines(whole: Path, tmp_path: Path, count: int):
    """The log is the clock: also between two checkpoints, with lines that must go again."""
    run = tmp_path / "run"
    sparse = ("reward.fit.checkpoint_every=3", "improve.checkpoint_every=0")
    assert stop(run, logged(count), signal.SIGKILL, *sparse) == -signal.SIGKILL
    complete(run, *sparse)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    same = (
        "policy/model.safetensors",
        "reward/model.safetensors",
        "reward/reward_head.safetensors",
    )
    found, expected = results(run), results(whole)
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "name"),
    [
        (signal.SIGTERM, 143, "aligning"),
        (signal.SIGINT, 130, "improving"),
        (signal.SIGTERM, 143, "sampling"),
        (signal.SIGTERM, 143, "evaluating"),
        (signal.SIGINT, 130, "warming up"),
    ],
)
def test_a_signal_ends_the_run_with_its_code(
    whole: Path, tmp_path: Path, signum: int, code: int, name: str
):
    """In training, sampling and evaluation alike; and the run resumes from there."""
    run = tmp_path / "run"
    assert stop(run, POINTS[name], signum) == code
    complete(run)
    assert results(run) == results(whole)


@pytest.mark.slow
def test_the_comparison_can_fail(whole: Path, tmp_path: Path):
    """Negative control: another seed."""
    complete(tmp_path / "other", "seed=1")
    other, expected = results(tmp_path / "other"), results(whole)
    names = ("policy/model.safetensors", "reward/model.safetensors", "metrics.jsonl")
    assert all(other[name] != expected[name] for name in names)
    assert other["eval/results_test.json"] != expected["eval/results_test.json"]


@pytest.mark.slow
def test_a_state_with_other_bytes_is_refused(tmp_path: Path):
    run = tmp_path / "run"
    stop(run, POINTS["aligning"], signal.SIGKILL)
    [state] = run.glob("rounds/00/.align.*.partial/state")
    path = state / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    child = forked(run)
    said = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 2 and "optimizer.safetensors is damaged" in said


@pytest.mark.slow
def test_a_state_sealed_without_its_optimiser_ends_elsewhere(whole: Path, tmp_path: Path):
    """Negative control: the comparison sees a resume that forgets Adam's moments."""
    from pgtg.runs.folder import Artifact, save_tensors

    run = tmp_path / "run"
    stop(run, POINTS["aligning"], signal.SIGKILL)
    [path] = run.glob("rounds/00/.align.*.partial/state")
    state, kept = Artifact(path), {p.name: p.read_bytes() for p in path.iterdir()}
    manifest = state.manifest()
    folder = state.working(manifest["inputs"], fresh=True)
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").unlink()
    save_tensors(folder / "optimizer.safetensors", {})
    state.commit(
        inputs=manifest["inputs"],
        metrics={},
        position=manifest["position"],
        progress=manifest["extra"]["progress"],
    )
    complete(run)
    assert results(run)["reward/model.safetensors"] != results(whole)["reward/model.safetensors"]


@pytest.mark.slow
def test_two_at_once_and_the_second_is_told_who_has_it(tmp_path: Path):
    run = tmp_path / "run"
    first = started(run)
    while not (run / "config.yaml").is_file():
        time.sleep(0.01)
    second = started(run)
    said = second.communicate(timeout=PATIENCE)[1]
    if first.poll() is None or "in use" in said:
        assert second.returncode == 2 and f"in use by process {first.pid}" in said
    first.communicate(timeout=PATIENCE)  # reads to the end, and closes the pipes
    assert first.returncode == 0


@pytest.mark.slow
def test_the_log_of_the_whole_run_is_plain_json(whole: Path):
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 33 and all({"stage", "round", "step"} <= set(row) for row in rows)
