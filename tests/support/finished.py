"""Finished runs that many tests read: each is trained once, by the first test that asks for it."""

import fcntl
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from pgtg.config import RunConfig
from pgtg.pipeline.run import run_stage, train
from pgtg.runs.files import content_hash
from tests.support.starts import shared_starts


def finished_run(
    cfg: RunConfig, factory: pytest.TempPathFactory, *stages: str, name: str = "run"
) -> Path:
    """A copy of the run of this config, whose bytes are the same whoever trains it.

    The workers of one session share the original, so that each config is trained once.

    Args:
        cfg: A config whose run needs nothing that a test has patched.
        factory: Makes the folder of the copy, which is the caller's own.
        stages: Those of round 0 to run, instead of the whole.
        name: Of the copy.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    original = base / "runs" / content_hash([asdict(cfg), stages])[:16]
    original.parent.mkdir(exist_ok=True)
    with original.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not original.is_dir():
            growing = original.with_suffix(".growing")
            shutil.rmtree(growing, ignore_errors=True)  # of a worker that failed or was ended
            with shared_starts(factory):
                for stage in stages:
                    run_stage(cfg, growing, stage)
                if not stages:
                    train(cfg, growing)
            growing.rename(original)
    return Path(shutil.copytree(original, factory.mktemp("finished") / name))
