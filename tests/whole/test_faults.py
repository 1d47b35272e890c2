"""Disks, damaged files and judges that fail: one line, the right code, nothing lost."""

import contextlib
import errno
import math
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import RunConfig, TextJudgeConfig
from pgtg.errors import ArtifactError, PgtgError
from pgtg.judges import pool as pools
from pgtg.judges.pool import JudgePool
from pgtg.ops import objectives  # noqa: F401 (so that methods are loaded before they are changed)
from pgtg.pipeline.run import train
from pgtg.runs import artifacts, files
from pgtg.runs.folder import RunFolder
from tests.support.failing import SHORT, SLOW, cfg, finished, run, said  # noqa: F401 (fixtures)
from tests.support.tiny import _quiet, results, tiny  # noqa: F401 (a fixture)

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
    """Begin and resume a run on a disk that gets full again and again; how often it did."""
    for failures, writes in enumerate(counts):
        with full_after(writes, monkeypatch):
            code, text = said(capsys, lambda: train(cfg, run))
        if code == 0:
            return failures
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1, text
        assert "No space left" in errors[0] and "Traceback" not in text
    raise AssertionError("the run did not end")


@pytest.mark.slow
def test_a_disk_that_fills_up_now_and_then(
    cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys
):
    counts = iter([3, 100, 10**6])
    assert survive(cfg, tmp_path / "run", monkeypatch, capsys, counts) == 2
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
            continue  # published copies are made again
        if artifact.path.name == "targets":
            continue  # read while the policy is trained only; test_tokens.py damages them there
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


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.slow
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


def test_a_damaged_manifest_or_published_copy_is_made_again(
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
    with JudgePool(TextJudgeConfig("rouge1", 1)) as pool:
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
    pool = JudgePool(TextJudgeConfig("rouge1", 1))
    assert pool._workers is not None
    [worker] = pool._workers._processes.values()
    waiting = pool.submit(["a"], [["a"]])
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 10
    while worker.is_alive():  # a killed process lets go of its pipe before it can be reaped
        assert time.monotonic() - began < 20
        time.sleep(0.01)
    assert waiting.cancelled() or waiting.exception() is not None


@pytest.mark.slow
def test_a_judge_that_dies_is_said():
    with JudgePool(TextJudgeConfig("rouge1", 1)) as pool:
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

    def corrupted(self: Any, *texts: Any) -> dict[str, list[float]]:
        return {name: [math.nan, *row[1:]] for name, row in real(self, *texts).items()}

    with monkeypatch.context() as patch:
        patch.setattr(Rouge, "score", corrupted)
        code, text = said(capsys, lambda: train(cfg, tmp_path / "run"))
    assert code == 1 and "judge rouge1: score nan for the text" in text
    train(cfg, tmp_path / "run")
    assert results(tmp_path / "run") == results(finished)
