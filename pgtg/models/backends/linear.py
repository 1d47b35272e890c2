"""Linear layers in oneDNN where torch's own matrix product leaves half of the CPU idle.

In float32 torch multiplies by MKL, which keeps to AVX2 on CPUs that are not Intel's; oneDNN, which
comes with torch as well, uses AVX-512 there. It is the same arithmetic, float32 throughout, in
another order of additions. Which one is taken depends on the CPU and on shapes alone, never on a
measurement, so a run on one machine keeps its bits. The environment's PGTG_ONEDNN=0 leaves all
products to torch.
"""

import functools
import math
import os
import platform
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

# multiplications below which the call itself costs more than what is won (benchmarks/linear.py)
WORTHWHILE = 2**21
FEWEST_ROWS = 4  # with fewer, weights are read faster than either multiplies

_Module = TypeVar("_Module", bound=nn.Module)


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is a CPU with AVX-512 that MKL does not use, under a torch that has oneDNN.

    PGTG_ONEDNN=0 says no.
    """
    if os.environ.get("PGTG_ONEDNN") == "0":
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() != "GenuineIntel"


def _vendor() -> str:
    """The CPU's maker as it calls itself, "" if that cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def with_fast_linears(module: _Module) -> _Module:
    """The module itself, its linear layers computed by oneDNN from now on where that is faster."""
    if onednn_is_faster():
        for part in module.modules():
            part.__class__ = FAST.get(type(part), type(part))
    return module


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, for x [..., I], W [O, I] and b [O]."""
    rows = math.prod(x.shape[:-1])
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if (
        not plain
        or rows < FEWEST_ROWS
        or rows * weight.numel() < WORTHWHILE
        or torch.is_autocast_enabled("cpu")
    ):
        return functional.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], None)


class _Linear(torch.autograd.Function):
    """oneDNN's linear layer, with its gradients by the same product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _product(rows, weight.t()).view(x.shape) if for_x else None,
            _product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


class FastLinear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class FastConv1D(Conv1D):
    """Transformers' `Conv1D` (GPT-2), a linear layer with its weight [I, O], by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.t(), self.bias)


FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, Conv1D: FastConv1D}
