"""Layers of a model by faster code for the same formula.

Linear layers where torch's own product is slow (`linear`), and GELU by its tanh formula, which some
models spell out: eight passes over the widest states, each kept for the backward pass, where torch
has one and keeps its input.
"""

from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from pgtg.models.backends import linear
from pgtg.models.backends.linear import FastConv1D, FastLinear

CHANGED = ("_orig_mod", "base_layer")  # attributes of torch.compile's and PEFT's modules
LINEAR: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, Conv1D: FastConv1D}

_Module = TypeVar("_Module", bound=nn.Module)


class OneGELU(nn.Module):
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) in one pass (GPT-2, T5 1.1, GPT-J)."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.gelu(input, approximate="tanh")


def with_fast_layers(module: _Module) -> _Module:
    """The module itself, its layers by the fast ones from now on where those are faster.

    Left as they are: subclasses, layers with a forward of their own (Accelerate's hooks), and all
    of a module that torch.compile or PEFT have changed.
    """
    if any(hasattr(part, mark) for part in module.modules() for mark in CHANGED):
        return module
    for part in module.modules():
        if "forward" not in vars(part):
            part.__class__ = _fast(part)
    return module


def _fast(part: Any) -> type[nn.Module]:
    """The class that a layer has from now on: often its own."""
    own = type(part)
    if own in (NewGELUActivation, FastGELUActivation):
        return OneGELU
    wide = getattr(part, "out_features", 0) >= linear.WIDE
    return LINEAR.get(own, own) if wide or linear.onednn_is_faster() else own
