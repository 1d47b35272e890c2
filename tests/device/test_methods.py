"""Methods that learn from judged generations on a second device: the CPU's numbers."""

from pathlib import Path

import pytest

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
    for device in ("cpu", NAME):
        train(tiny(*SHORT, *FEW, f"method={name}", f"device={device}"), tmp_path / device)
    expected, found = (dict(logged(tmp_path / device)) for device in ("cpu", NAME))
    assert any(key.startswith("improve") for key in expected)
    assert found == pytest.approx(expected, **CLOSE)
