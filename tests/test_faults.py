"""Disks, memory, judges, numbers, clocks that fail: one line, the right code, nothing lost."""

import contextlib
import datetime
import errno
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tiny import _quiet, results, tiny  # noqa: F401 (a fixture)
from tiny_models import build

from pgtg import artifacts, files
from pgtg.cli import reporting
from pgtg.config import JudgeConfig, RunConfig
from pgtg.errors import ArtifactError, DivergedError, PgtgError
from pgtg.judges import pool as pools
from pgtg.judges.pool import JudgePool
from pgtg.models import generate as generating
from pgtg.models.generate import Decoding, generate
from pgtg.models.reward import RewardModel
from pgtg.ops import objectives  # noqa: F401 (so that methods are loaded before they are changed)
from pgtg.store import RunFolder, load_tensors
from pgtg.train import train
from pgtg.types import Loss

SLOW = pytest.mark.slow
SHORT = ("schedule.total=2", "method.controls=[]", "evaluate.start_policy=false")


@pytest.fixture(scope="module")
def cfg() -> RunConfig:
    return tiny(*SHORT)


@pytest.fixture(scope="module")
def finished(cfg: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(cfg, folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def said(capsys: pytest.CaptureFixture[str], call: Callable[[], Any]) -> tuple[int, str]:
    """Exit code and stderr of a call, as on the command line."""
    code = 0
    capsys.readouterr()
    try:
        with reporting():
            call()
    except typer.Exit as end:
        code = end.exit_code
    return code, capsys.readouterr().err


# --- disks


class Full:
    """A disk that takes so many more writes."""

    def __init__(self, writes: int, code: int = errno.ENOSPC):
        self.left, self.code = writes, code

    def use(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))


@contextlib.contextmanager
def full_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Full]:
    """Every sync of a file or folder, and every line of the logs, is a write."""
    disk, sync, line = Full(writes), files.sync, os.write

    def counted(path: Path) -> None:
        disk.use()
        sync(path)

    def written(descriptor: int, data: bytes) -> int:
        if descriptor > 2:
            disk.use()
        return line(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", counted)
        patch.setattr(artifacts, "sync", counted)
        patch.setattr(os, "write", written)
        yield disk


def survive(
    cfg: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch, capsys, counts: Iterator[int]
) -> int:
    """Begin and go on with a run on a disk that gets full again and again; how often it did."""
    for failures, writes in enumerate(counts):
        with full_after(writes, monkeypatch):
            code, text = said(capsys, lambda: train(cfg, run))
        if code == 0:
            return failures
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1, text
        assert "No space left" in errors[0] and "Traceback" not in text
    raise AssertionError("the run did not end")


def test_a_disk_that_fills_up_now_and_then(
    cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys
):
    counts = iter([3, 60, 150, 10**6])
    assert survive(cfg, tmp_path / "run", monkeypatch, capsys, counts) == 3
    assert results(tmp_path / "run") == results(finished)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_every_write(
    cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys
):
    """Each attempt gets one write further than the one before."""
    counts = iter(range(10**6))
    assert survive(cfg, tmp_path / "run", monkeypatch, capsys, counts) > 30
    assert results(tmp_path / "run") == results(finished)


@pytest.mark.parametrize("size", [300, pytest.param(3000, marks=SLOW), 12_000])
def test_files_that_may_not_grow(cfg: RunConfig, finished: Path, tmp_path: Path, capsys, size: int):
    """The kernel's limit on a file's size: met inside the libraries that write as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        code, text = said(capsys, lambda: train(cfg, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1, text
    assert "File too large" in errors[0] and "already saved is intact" in errors[0]
    if size == 3000:
        train(cfg, tmp_path / "run")
        assert results(tmp_path / "run") == results(finished)


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, where one may be mounted."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [16, 48, 96, 160, 240, 320])
def test_a_small_disk(cfg: RunConfig, finished: Path, tmp_path: Path, capsys, kilobytes: int):
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        code, text = said(capsys, lambda: train(cfg, disk / "run"))
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1, text
        assert "No space left" in errors[0]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        train(cfg, disk / "run")
        assert results(disk / "run") == results(finished)


def test_a_folder_that_is_read_only(cfg: RunConfig, finished: Path, tmp_path: Path, capsys):
    """A finished run can be read there; one that has to write says so at once."""
    with small_disk(tmp_path / "disk", 64_000) as disk:
        shutil.copytree(finished, disk / "run")
        (disk / "empty").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("run", "empty"):
            code, text = said(capsys, lambda name=name: train(cfg, disk / name))
            assert code == 1 and "Read-only file system" in text and text.count("\n") == 1, text
        assert RunFolder(disk / "run").open().artifact("policy").verify()


# --- damage


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[:-1])
    else:
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 4
        path.unlink()  # it may be linked from a published copy
        path.write_bytes(flipped)


def kinds(run: Path) -> list[str]:
    """One file of each kind in each stage of a run."""
    found: dict[tuple[str, str], str] = {}
    for artifact in RunFolder(run).artifacts():
        if artifact.path.parent == run and artifact.path.name != "start":
            continue  # published copies are made anew
        for name in artifact.manifest()["files"]:
            key = (artifact.path.name, Path(name).name)
            found.setdefault(key, str((artifact.path / name).relative_to(run)))
    return sorted(found.values())


def check_damage(cfg: RunConfig, run: Path, whole: dict[str, str], name: str, how: str) -> None:
    """The error names the file and the way out, and the way out leads to the same results."""
    damage(run / name, how)
    with pytest.raises(ArtifactError) as caught:
        train(cfg, run)
    text = str(caught.value)
    assert str(run / name) in text and "\n" not in text
    advice = next(w for w in text.split() if w.startswith(str(run)) and (Path(w).is_dir()))
    assert f"delete the folder {advice}" in text
    shutil.rmtree(advice)
    train(cfg, run)
    assert results(run) == whole


@pytest.mark.parametrize("how", [pytest.param("truncated", marks=SLOW), "flipped"])
def test_a_damaged_sample_is_found(cfg: RunConfig, finished: Path, run: Path, how: str):
    [name] = [name for name in kinds(run) if "sample/heldout/00000" in name]
    check_damage(cfg, run, results(finished), name, how)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_every_kind_of_damage_is_found(cfg: RunConfig, finished: Path, run: Path, how: str):
    whole, names = results(finished), kinds(finished)
    assert len(names) > 15
    for name in names:
        check_damage(cfg, run, whole, name, how)


def test_a_damaged_manifest_or_published_copy_is_made_anew(
    cfg: RunConfig, finished: Path, run: Path
):
    damage(run / "rounds" / "00" / "improve" / "manifest.json", "flipped")
    damage(run / "policy" / "model.safetensors", "flipped")
    (run / "reward" / "model.safetensors").unlink()
    train(cfg, run)
    assert results(run) == results(finished)


# --- judges


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are spawned from here on never get ready."""
    monkeypatch.setattr(pools, "_begin", _begin_asleep)
    monkeypatch.setattr(pools, "HUNG_S", 1.0)
    monkeypatch.setattr(pools, "ENDING_S", 0.5)


def _begin_asleep(*_: Any) -> None:
    time.sleep(600)


def test_a_judge_that_hangs_is_ended(hanging: None):
    """Its pool says so after HUNG_S seconds, and can be closed."""
    began = time.monotonic()
    with JudgePool(JudgeConfig("rouge1", 1)) as pool:
        with pytest.raises(PgtgError, match="finished nothing for 1 s") as caught:
            pool.score(["a b"], [["a"]])
        with pytest.raises(PgtgError, match="finished nothing"):
            pool.score(["a b"], [["a"]])
    assert caught.value.exit_code == 1
    assert time.monotonic() - began < 20


def test_a_judge_that_hangs_does_not_keep_the_run_from_ending(
    hanging: None, monkeypatch: pytest.MonkeyPatch
):
    """As after Ctrl-C, while a part is out."""
    monkeypatch.setattr(pools, "HUNG_S", 600.0)
    pool = JudgePool(JudgeConfig("rouge1", 1))
    assert pool._workers is not None
    [worker] = pool._workers._processes.values()
    waiting = pool.submit(["a"], [["a"]])
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 10
    worker.join(timeout=5)
    assert not worker.is_alive()
    assert waiting.cancelled() or waiting.exception() is not None


def test_a_judge_that_dies_is_said():
    with JudgePool(JudgeConfig("rouge1", 1)) as pool:
        assert pool._workers is not None
        assert pool.score(["a"], [["a"]]) == [100.0]
        for pid in list(pool._workers._processes):
            os.kill(pid, 9)
        with pytest.raises(PgtgError, match="judge worker process died"):
            pool.score(["a b"], [["a"]])


@pytest.mark.slow
def test_a_judge_that_says_nan(cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys):
    from pgtg.metrics.rouge import Rouge

    real = Rouge.score

    def spoilt(self: Any, *texts: Any) -> dict[str, list[float]]:
        return {name: [math.nan, *row[1:]] for name, row in real(self, *texts).items()}

    with monkeypatch.context() as patch:
        patch.setattr(Rouge, "score", spoilt)
        code, text = said(capsys, lambda: train(cfg, tmp_path / "run"))
    assert code == 1 and "rouge1 of example 0 is nan" in text
    train(cfg, tmp_path / "run")
    assert results(tmp_path / "run") == results(finished)


# --- memory


def tokens_of(batch_tokens: int = 10**6, warn: Callable[[str], None] = print) -> dict[int, Any]:
    sources = [[3 + i % 5] * (2 + i % 4) for i in range(8)]
    return dict(
        generate(
            build("gpt2"),
            sources,
            [str(i) for i in range(8)],
            k=2,
            eos_ids=[2],
            decoding=Decoding(False, 6),
            batch_tokens=batch_tokens,
            seed_key=(0,),
            warn=warn,
        )
    )


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_sampling_halves_its_batches(monkeypatch: pytest.MonkeyPatch, kind: str):
    """A batch of more than 2 sources does not fit: the same generations, said once."""
    expected, real, sizes, warned = tokens_of(), generating.generate_batch, [], []

    def small(lm: Any, source: torch.Tensor, *more: Any) -> Any:
        sizes.append(len(source))
        if len(source) > 2:
            raise ERRORS[kind]
        return real(lm, source, *more)

    monkeypatch.setattr(generating, "_share", 1.0)
    monkeypatch.setattr(generating, "generate_batch", small)
    assert tokens_of(150, warned.append) == expected
    assert tokens_of(150, warned.append) == expected
    assert len(warned) == 1 and "out of memory" in warned[0]
    assert max(sizes) > 2 and sizes[-1] <= 2
    assert sum(size > 2 for size in sizes) == sizes.index(next(s for s in sizes if s <= 2))


@pytest.mark.parametrize("kind", ERRORS)
def test_one_source_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch, kind: str):
    def never(*_: Any) -> Any:
        raise ERRORS[kind]

    monkeypatch.setattr(generating, "_share", 1.0)
    monkeypatch.setattr(generating, "generate_batch", never)
    with pytest.raises(PgtgError, match=r"do not fit into the memory: lower sample\.k"):
        tokens_of(warn=lambda text: None)


def test_other_errors_of_sampling_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def wrong(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(generating, "generate_batch", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        tokens_of()


# --- numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_finite(bad: float, greedy: bool):
    lm = build("gpt2")
    head = lm.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight[4] = bad
    sampling = generate(
        lm,
        [[3, 5]],
        ["a"],
        k=1,
        eos_ids=[2],
        decoding=Decoding(greedy, 4),
        batch_tokens=99,
        seed_key=(0,),
    )
    with pytest.raises(DivergedError, match="logits at token 0"):
        list(sampling)


def plant(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, from the third time on that a number of that kind is made."""
    import pgtg.loop as loop
    from pgtg.models.language import LanguageModel

    calls = {"n": 0}

    def third() -> bool:
        calls["n"] += 1
        return calls["n"] > 2

    if where == "weights":
        real_step = torch.optim.Adam.step

        def step(self: Any, *more: Any) -> Any:
            done = real_step(self, *more)
            if third():
                self.param_groups[0]["params"][0].data.fill_(math.nan)
            return done

        monkeypatch.setattr(torch.optim.Adam, "step", step)
    elif where == "loss":
        real_update = loop._update

        def update(model: Any, windows: Any, objective: Any, *more: Any) -> Any:
            class Spoilt:
                count = objective.count

                def __call__(self, batch: Any, window: Any) -> Loss:
                    loss = objective(batch, window)
                    return Loss(loss.value * math.nan, loss.metrics) if third() else loss

            return real_update(model, windows, Spoilt(), *more)

        monkeypatch.setattr(loop, "_update", update)
    else:
        owner: Any = {"reward": RewardModel, "logits": LanguageModel}[where]
        name = {"reward": "forward", "logits": "logits"}[where]
        real = getattr(owner, name)

        def spoilt(self: Any, *more: Any) -> Any:
            value = real(self, *more)
            return value * math.nan if third() else value

        monkeypatch.setattr(owner, name, spoilt)


@pytest.mark.parametrize(
    "where",
    [pytest.param("loss", marks=SLOW), "reward", "weights", pytest.param("logits", marks=SLOW)],
)
def test_nan_ends_the_run_and_loses_nothing(
    cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys, where: str
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        plant(where, patch)
        code, text = said(capsys, lambda: train(cfg, run))
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1, text
    assert "nan" in errors[0].lower() or "not finite" in errors[0]
    for path in run.rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_tensors(path).values()), path
    train(cfg, run)
    assert results(run) == results(finished)


@pytest.mark.parametrize("head", ["reward", pytest.param("start_log_prob", marks=SLOW)])
def test_nan_in_the_scores_of_a_round(
    cfg: RunConfig, finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch, head: str
):
    """Where nothing is trained either."""
    import pgtg.stages.score as stage

    shutil.rmtree(run / "rounds" / "00" / "score")
    with monkeypatch.context() as patch:
        if head == "reward":
            patch.setattr(RewardModel, "forward", lambda self, b: b.mask.float() * math.nan)
        else:
            patch.setattr(stage, "log_probability", lambda logits, t: t.float() * math.nan)
        with pytest.raises(DivergedError, match=f"{head} is not finite"):
            train(cfg, run)
    train(cfg, run)
    assert results(run) == results(finished)


# --- trackers, processes, clocks


class Broken:
    """A tracker that fails at each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            self.calls.append(name)
            raise RuntimeError(f"{name} failed\nwith lines")

        return fail


@contextlib.contextmanager
def backwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at the clock is an hour before the one before."""
    import pgtg.log as logging

    start, looks = time.time(), [0]

    def earlier() -> float:
        looks[0] += 1
        return start - 3600.0 * looks[0]

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(earlier(), tz)

    fake = type("Clock", (), {"datetime": Backwards, "UTC": datetime.UTC})
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", earlier)
        patch.setattr(logging, "datetime", fake)
        yield
    assert looks[0] > 10


def test_a_broken_tracker_and_a_clock_that_jumps_back(
    cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys
):
    """Said once, and the same bits."""
    broken = Broken()
    monkeypatch.setattr("pgtg.train.tracker", lambda *_: broken)
    with backwards(monkeypatch):
        code, text = said(capsys, lambda: train(cfg, tmp_path / "run"))
    assert (code, text.count("the tracker failed")) == (0, 1)
    assert broken.calls[0] == "start" and broken.calls[-1] == "close"
    assert results(tmp_path / "run") == results(finished)
    capsys.readouterr()


HOLD = """
import sys
from pgtg.store import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_has_the_run(cfg: RunConfig, run: Path, capsys):
    command = [sys.executable, "-c", HOLD, str(run)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before, began = results(run), time.monotonic()
        code, text = said(capsys, lambda: train(cfg, run))
        assert time.monotonic() - began < 5
        assert code == 2 and f"in use by process {holder.pid}" in text
        assert results(run) == before
        assert holder.stdin is not None
        holder.stdin.close()
    train(cfg, run)
