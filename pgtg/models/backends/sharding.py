"""Weights, gradients and optimiser state of a training, divided among the processes (FSDP2).

Each process keeps a part of every weight. The whole of a layer's weights is gathered for its passes
and freed after them; its gradient is added up and divided again. So training holds 1/N of weights,
gradients and Adam's moments in each of N processes, plus the whole weights of one layer, and of
all that is no layer (embeddings, head) during a pass.

Only training is divided. Sampling, scoring and validation read whole weights (`whole`), since each
process does as many passes there as its share of the work asks for; what is saved is whole too.
A policy that is an adaptor on a frozen model stays undivided: what it trains is small.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pgtg.runtime import distributed

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

PASSES = ("states", "logits")  # methods apart from forward that make passes


def shard(model: nn.Module) -> None:
    """Divide the weights of a model that is to be trained, if the launcher asked for it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    how = distributed.sharding()
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if how is None or is_sharded(model) or not any(map(_is_trained, layers)):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # T5's layers hand on a view of their position bias, which nothing changes in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (distributed.count(),))
    for layer in reversed(layers):  # inner ones first
        fully_shard(layer, mesh=mesh, reshard_after_forward=how.reshard)
    root: Any = fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for name in PASSES:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)  # a loss is a mean over all processes' batches
        part.set_force_sum_reduction_for_comms(True)  # gloo scales no sums
    root._get_fsdp_state()._lazy_init()  # else the first part that makes a pass would be the root


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are divided among the processes."""
    return bool(_parts(model))


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """The model has whole weights inside; all processes come here at the same time.

    Inside, they may be read by any number of passes, and not be changed.
    """
    parts, how = _parts(model), distributed.sharding()
    if how is None or not any(map(is_divided, model.parameters())):
        yield
        return
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            keep = part is parts[0]  # the root's are asked for by the backward pass at once
            part.set_reshard_after_forward(how.reshard and not keep, recurse=False)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided; all processes ask at the same time."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, for what is saved: in the first process; none in the others.

    Where nothing is divided, the tensors as they are.
    """
    if not any(map(is_divided, tensors.values())):
        return dict(tensors)
    found: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}  # tied weights stay one
    for name, tensor in tensors.items():
        if id(tensor) not in known:
            value = whole_tensor(tensor.detach())
            known[id(tensor)] = value.cpu() if distributed.is_first() else value.new_empty(0)
        found[name] = known[id(tensor)]
    return found if distributed.is_first() else {}


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state_dict, `gathered`."""
    return gathered(module.state_dict(keep_vars=True))


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A value of a parameter's shape, divided as the parameter is."""
    if not is_divided(parameter) or is_divided(value) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    value, mesh = value.to(parameter.device), parameter.device_mesh
    return distribute_tensor(value, mesh, parameter.placements, src_data_rank=None)


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def _parts(model: nn.Module) -> "list[FSDPModule]":
    """The modules whose weights are gathered together, the model itself first."""
    if distributed.sharding() is None:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def is_divided(tensor: Tensor) -> bool:
    """Whether each process holds a part of the tensor."""
    if distributed.sharding() is None:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _is_trained(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())
