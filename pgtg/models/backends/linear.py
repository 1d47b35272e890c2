"""Linear layers on a CPU, where torch's own matrix product leaves a good part of it idle.

In float32 torch multiplies by MKL, which keeps to AVX2 on CPUs that are not Intel's; oneDNN, which
comes with torch as well, uses AVX-512 there. It is the same arithmetic, float32 throughout, in
another order of additions. Which one is taken depends on the CPU and on shapes alone, never on a
measurement, so a run on one machine keeps its bits. The environment's PGTG_ONEDNN=0 leaves all
products to torch.

Where products are torch's, MKL copies all weights of a layer into its own order before it
multiplies. A few rows times an LM head read and write that copy for little work: there the head's
columns are taken a block after another, each of which stays in the processor's cache (24 rows times
T5-small's head: 1.3 times as fast; 64 rows times GPT-2's: 1.5 times).
"""

import functools
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

# multiplications below which the call itself costs more than what is won (benchmarks/linear.py)
WORTHWHILE = 2**21
FEWEST_ROWS = 4  # with fewer, weights are read faster than either multiplies
WIDE = 8192  # outputs from which a layer is an LM head, for which blocks pay
BLOCK = 512  # outputs of a block, for each thread: about a megabyte of weights
MOST_ROWS = 400  # rows of a product by blocks; with more, MKL's copy is soon made up for


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is a CPU with AVX-512 that MKL does not use, under a torch that has oneDNN.

    PGTG_ONEDNN=0 says no.
    """
    if os.environ.get("PGTG_ONEDNN") == "0" or not torch.backends.mkldnn.is_available():
        return False
    unused = torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() != "GenuineIntel"
    return unused and _onednn_multiplies()


@torch.no_grad()
def _onednn_multiplies() -> bool:
    """Whether torch's operator, which is not public, is there and gives the product."""
    x, weight = torch.arange(12.0).view(3, 4) - 5, torch.arange(8.0).view(2, 4) - 3
    try:
        return torch.allclose(_product(x, weight), functional.linear(x, weight))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _vendor() -> str:
    """The CPU's maker as it calls itself, "" if that cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, for x [..., I], W [O, I] and b [O]."""
    rows = math.prod(x.shape[:-1])
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if (
        torch.compiler.is_compiling()
        or not plain
        or rows < FEWEST_ROWS
        or rows * weight.numel() < WORTHWHILE
        or torch.is_autocast_enabled("cpu")
    ):
        return functional.linear(x, weight, bias)
    if onednn_is_faster():
        grad = torch.is_grad_enabled()
        return _Linear.apply(x, weight, bias) if grad else _product(x, weight, bias)
    if rows > MOST_ROWS or torch.is_grad_enabled():
        return functional.linear(x, weight, bias)
    return _by_blocks(x, weight, bias)


def multiply(x: Float[Tensor, "R I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "R O"]:
    """x W^T without gradients, for a weight that may lie either way."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu"
    if plain and len(x) * weight.numel() >= WORTHWHILE and onednn_is_faster():
        return _product(x, weight)
    return x @ weight.t()


def _by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own product, some columns of the output after another."""
    rows, width = x.reshape(-1, x.shape[-1]), BLOCK * torch.get_num_threads()
    out = x.new_empty(len(rows), len(weight))
    for start in range(0, len(weight), width):
        block = slice(start, start + width)
        torch.mm(rows, weight[block].t(), out=out[:, block])
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], -1)


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
