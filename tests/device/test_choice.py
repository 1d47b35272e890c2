"""Which device a run takes, and what is refused, in one line, before anything is written."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from pgtg.cli.main import app
from pgtg.errors import ConfigError, MissingResourceError, PgtgError
from pgtg.pipeline.run import train
from pgtg.runtime.device import pick_device, set_arithmetic
from pgtg.training.state import optimizer_tensors, set_optimizer
from pgtg.training.update import Training
from tests.support.sim_device import NAME, refusing
from tests.support.tiny import tiny
from tests.training.test_loop import CFG, WHERE


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("nonesuch", "device=nonesuch: torch knows no such device"),
        ("meta", "device=meta cannot be used here"),
        ("cpu:x", "device: found 'cpu:x'"),
    ],
)
def test_a_device_that_is_not_there_is_one_line_before_the_run_folder(
    device: str, said: str, tmp_path: Path
):
    with pytest.raises(PgtgError, match=said) as caught:
        train(tiny(f"device={device}"), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    result = CliRunner().invoke(
        app, ["train", "summarize", f"device={device}", f"run_dir={tmp_path}/r"]
    )
    assert result.exit_code == caught.value.exit_code and said in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_device_without_float64_is_refused(tmp_path: Path):
    with refusing(torch.float64), pytest.raises(ConfigError, match=r"no float64.*device=cpu"):
        train(tiny(f"device={NAME}"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_the_machines_accelerator(monkeypatch: pytest.MonkeyPatch):
    assert pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.get_device_module(NAME), "offered", True)
    assert pick_device("auto").type == NAME and pick_device("cpu").type == "cpu"


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("arithmetic")
def test_the_options_of_arithmetic_are_set_and_said():
    assert set_arithmetic(torch.device("cpu"), tf32=True, deterministic=True) == ""
    assert not torch.are_deterministic_algorithms_enabled()
    device = torch.device(NAME, 0)
    said = set_arithmetic(device, tf32=True, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert said == "pretend device: deterministic algorithms"
    assert "nondeterministic" in set_arithmetic(device, tf32=True, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_adams_state_read_from_a_file_lies_beside_its_parameters():
    """All of it: fused Adam takes its step count from nowhere else."""
    training = Training.begun(nn.Linear(2, 2).to(NAME), CFG, WHERE)

    def step() -> None:
        training.model(torch.ones(1, 2, device=NAME)).sum().backward()
        training.optimizer.step()

    step()
    saved = {name: value.cpu() for name, value in optimizer_tensors(training).items()}
    set_optimizer(training, saved)
    assert {value.device.type for value in optimizer_tensors(training).values()} == {NAME}
    step()


def test_missing_devices_are_of_the_resources():
    with pytest.raises(MissingResourceError):
        pick_device("nonesuch")
