"""The pretend device itself: as strict as CUDA, the CPU's numbers, and every wait counted."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from tests.support import sim_device
from tests.support.sim_device import NAME, Sim, counted_syncs, refusing

WAITING: list[tuple[str, Callable[[Tensor], object]]] = [
    ("item", lambda x: x.max().item()),
    ("item", lambda x: bool((x > 1).any())),
    ("item", lambda x: int(x[0])),
    ("item", lambda x: float(x[0])),
    ("item", lambda x: torch.allclose(x, x)),
    ("tolist", lambda x: x.tolist()),
    ("to_cpu", lambda x: x.cpu()),
    ("to_cpu", lambda x: torch.zeros(6).copy_(x)),
    ("nonzero", lambda x: x.nonzero()),
    ("nonzero", lambda x: torch.where(x > 0)),
    ("mask", lambda x: x[x > 2]),
    ("mask", lambda x: x.__setitem__(x > 2, torch.ones(3, device=NAME))),
    ("mask", lambda x: x.masked_select(x > 2)),
    ("unique", lambda x: x.unique()),
    ("equal", lambda x: torch.equal(x, x)),
    ("bincount", lambda x: x.long().bincount()),
    ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
    ("synchronize", lambda x: torch.get_device_module(NAME).synchronize()),
]


@pytest.mark.parametrize(("kind", "wait"), WAITING)
def test_what_makes_the_host_wait_is_counted_once(kind: str, wait: Callable[[Tensor], object]):
    values = torch.arange(6.0, device=NAME)
    with counted_syncs() as syncs:
        wait(values)
    assert syncs == {kind: 1}


def test_work_on_the_device_makes_nobody_wait():
    values = torch.arange(6.0, device=NAME, requires_grad=True)
    before = sim_device.ASYNC["to_cpu"]
    with counted_syncs() as syncs:
        rows = values[torch.tensor([0, 1])] * torch.tensor(2.0)  # the CPU's indices and scalars
        rows.masked_fill(rows > 1, 0.0).repeat_interleave(2).sum().backward()
        values.detach().to("cpu", non_blocking=True)
    assert not syncs and sim_device.ASYNC["to_cpu"] == before + 1


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(6),
        lambda x: torch.ones(6)[x.long()],
        lambda x: torch.cat([x, torch.ones(6)]),
        lambda x: torch.ones(6, 6) @ x,
        lambda x: x.__setitem__(x > 2, torch.ones(3)),
    ],
)
def test_tensors_of_two_devices_refuse_to_meet(mix: Callable[[Tensor], object]):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(torch.arange(6.0, device=NAME))


def test_a_device_can_lack_a_type_and_has_no_numpy():
    values = torch.ones(2, device=NAME)
    with refusing(torch.float64), pytest.raises(TypeError, match="float64"):
        values.double()
    with pytest.raises(TypeError, match="numpy"):
        values.numpy()


def test_lists_and_slices_are_indices_too():
    values = torch.arange(6, device=NAME).view(2, 3)
    values[[1], :2] = 7
    assert values[:, [-1, 0]].tolist() == [[2, 0], [5, 7]] and values[0, 1].item() == 1


def test_fused_adam_takes_no_state_of_the_cpu():
    layer = nn.Linear(2, 2).to(NAME)
    adam = torch.optim.Adam(layer.parameters(), fused=True)
    layer(torch.ones(1, 2, device=NAME)).sum().backward()
    adam.step()
    adam.state[layer.weight]["step"] = adam.state[layer.weight]["step"].cpu()
    with pytest.raises(RuntimeError, match="same device"):
        adam.step()


def test_the_device_draws_from_its_own_generator():
    torch.manual_seed(3)
    torch.rand(2)  # the CPU's
    found = dropout(torch.ones(20, device=NAME)).cpu()
    torch.manual_seed(3)
    assert found.equal(dropout(torch.ones(20)))


def test_autocast_computes_products_narrow_and_sums_wide():
    layer = nn.Linear(2, 2).to(NAME)
    with torch.autocast(NAME, torch.bfloat16):
        out = layer(torch.ones(1, 2, device=NAME))
        assert out.dtype == torch.bfloat16 and out.softmax(-1).dtype == torch.float32
    out.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_weights_that_are_one_stay_one_on_the_device():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    model.to(NAME)
    assert model[1].weight is model[0].weight and model[0].weight.device.type == NAME
    assert len(list(model.parameters())) == 3


def test_copies_of_a_model_stay_on_the_device():
    layer = copy.deepcopy(nn.Linear(2, 2).to(NAME))
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.device.type == NAME


def test_the_cpu_is_left_as_it_is():
    """Neither the device's factories nor `device=auto` reach tests of the same process."""
    assert type(torch.tensor([1.0]) + torch.arange(1.0)) is Tensor
    assert isinstance(torch.arange(2, device=NAME), Sim)
    assert not torch.accelerator.is_available()
    with torch.device("meta"):  # models are built so before their weights are read
        assert torch.arange(2).is_meta and torch.tensor([1.0]).is_meta


@pytest.mark.slow
def test_a_module_runs_with_the_device_known(tmp_path: Path):
    script = "import torch; from tests.support.sim_device import SYNCS; "
    script += "torch.ones(1, device='sim').item(); print(SYNCS.total(), torch.sim.offered)"
    (tmp_path / "probe.py").write_text(script)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.support.sim_device", "-m", "probe"]
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["1", "True"]
