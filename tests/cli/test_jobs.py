"""Sweeps through Hydra's own multirun, in a real process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.tiny import TINY

pytestmark = pytest.mark.slow


def sweep(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["-m", "pgtg", "train", "summarize", "-m", *TINY, *more]
    return subprocess.run(
        [sys.executable, *arguments, f"hydra.sweep.dir={folder}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def test_eight_runs_of_four_aggregators_and_two_seeds(tmp_path: Path):
    """Each in a folder of its own, each complete, each another; two jobs differ as configured."""
    done = sweep(tmp_path / "s", "aggregator=avg,sum,min,max", "seed=0,1")
    assert done.returncode == 0, done.stderr
    found = {}
    for run in runs(tmp_path / "s"):
        config = yaml.safe_load((run / "config.yaml").read_text())
        key = (config["aggregator"]["name"], config["seed"])
        for name in ("policy/manifest.json", "reward/manifest.json", "eval/results_test.json"):
            assert (run / name).is_file(), (key, name)
        found[key] = (run / "reward" / "model.safetensors").read_bytes()
    assert set(found) == {(a, s) for a in ("avg", "sum", "min", "max") for s in (0, 1)}
    assert len(set(found.values())) == 8
    for number in range(8):
        assert f"job {number} " in done.stderr


def test_a_failed_job_is_shown_when_it_fails_and_the_others_run(tmp_path: Path):
    """The first job diverges at once, the second is fine."""
    done = sweep(tmp_path / "s", "improve.lr=1e38,0.005")
    lines = done.stderr.splitlines()
    errors = [i for i, line in enumerate(lines) if line.startswith("error: job 0 ")]
    second = next(i for i, line in enumerate(lines) if line.startswith("job 1 "))
    assert errors and errors[0] < second, done.stderr
    assert "improve round 0 update" in lines[errors[0]]
    assert done.returncode == 1
    finished = [run for run in runs(tmp_path / "s") if (run / "eval/results_test.json").is_file()]
    assert len(finished) == 1 and "0.005" in finished[0].name
