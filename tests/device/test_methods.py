"""Methods that learn from judged generations on a second device: the CPU's numbers."""

import math
from pathlib import Path

import pytest

from pgtg.methods import self_distill
from pgtg.pipeline.run import train
from tests.device.test_runs import CLOSE, SMALL, logged
from tests.support.sim_device import NAME
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)

FEW = [word for word in SMALL if not word.startswith("method.")]
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("best_of_k", "simpo", "tdpo", "rloo", "ppo", "nlpo")
]


@pytest.mark.parametrize("name", ["grpo", *SLOW])
def test_a_run_has_the_cpus_numbers(name: str, tmp_path: Path):
    alike(tmp_path, f"method={name}")


@pytest.mark.slow
def test_what_reads_hints_has_the_cpus_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(self_distill, "LEAST", -math.inf)
    alike(tmp_path, "method=self_distill", "method.hint='{winner} {source}'")


@pytest.mark.slow
def test_what_reads_a_run_of_dpo_has_the_cpus_numbers(tmp_path: Path):
    train(tiny(*SHORT, *FEW, "method=dpo", "evaluate.splits=[]"), tmp_path / "dpo")
    alike(tmp_path, "method=rto", f"method.dpo={tmp_path / 'dpo'}")


def alike(tmp_path: Path, *words: str) -> None:
    """A run on either device logs the same, but for rounding."""
    for device in ("cpu", NAME):
        train(tiny(*SHORT, *FEW, *words, f"device={device}"), tmp_path / device)
    expected, found = (dict(logged(tmp_path / device)) for device in ("cpu", NAME))
    assert any(key.startswith("improve") for key in expected)
    assert found == pytest.approx(expected, **CLOSE)
