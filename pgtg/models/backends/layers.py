"""Layers of a model by faster code for the same formula.

- Linear layers, where torch's own product is slow (`linear`).
- GELU by its tanh formula, which some models spell out: eight passes over the widest states, each
  kept for the backward pass, where torch has one and keeps its input.
- T5's ReLU, which reads what nothing else reads: in place where no gradients are wanted.
- T5's relative positions, which every layer of a stack brings into another order before it adds
  them to its scores: in that order from the start.
"""

from typing import Any, TypeVar

import torch
from jaxtyping import Float
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


class ReLU(nn.ReLU):
    """max(x, 0) in place of x, unless gradients are wanted: x may be a view of a product then."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, inplace=not torch.is_grad_enabled())


def with_fast_layers(module: _Module) -> _Module:
    """The module itself, its layers by the fast ones from now on where those are faster.

    Left as they are: subclasses, layers with a forward of their own (Accelerate's hooks), and all
    of a module that torch.compile or PEFT have changed.
    """
    if any(hasattr(part, mark) for part in module.modules() for mark in CHANGED):
        return module
    for name, part in module.named_modules():
        if "forward" not in vars(part):
            _change(part, name.rpartition(".")[2])
    return module


def _change(part: Any, name: str) -> None:
    part.__class__ = _fast(part)
    if (
        type(part).__name__.endswith("DenseActDense")
        and type(getattr(part, "act", None)) is nn.ReLU
    ):
        part.act.__class__ = ReLU
    if name == "relative_attention_bias" and not part._forward_hooks:
        part.register_forward_hook(_heads_first)


def _heads_first(
    module: nn.Module, args: tuple[Tensor, ...], out: Float[Tensor, "Q K H"]
) -> Float[Tensor, "Q K H"]:
    """The same, laid out in memory as [H, Q, K]: the order in which scores are."""
    return out.permute(2, 0, 1).contiguous().permute(1, 2, 0) if out.dim() == 3 else out


def _fast(part: Any) -> type[nn.Module]:
    """The class that a layer has from now on: often its own."""
    own = type(part)
    if own in (NewGELUActivation, FastGELUActivation):
        return OneGELU
    wide = getattr(part, "out_features", 0) >= linear.WIDE
    return LINEAR.get(own, own) if wide or linear.onednn_is_faster() else own
