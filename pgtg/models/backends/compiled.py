"""A model's step of one token through torch.compile: fewer and larger kernels.

Shapes are compiled as they are, not for any size: caches have a fixed length (`models.cache`), and
lengths and rows come in few sizes (`models.generate`), each of which takes seconds to minutes once.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

MOST_SHAPES = 256  # of all models of a process; what comes after them is not compiled


def forward(model: nn.Module, **given: Any) -> Any:
    """What `model(**given)` gives."""
    if next(model.parameters()).is_cuda:  # what an earlier step gave may be overwritten now
        torch.compiler.cudagraph_mark_step_begin()
    with torch._dynamo.config.patch(  # type: ignore[attr-defined]
        recompile_limit=MOST_SHAPES, accumulated_recompile_limit=MOST_SHAPES
    ):
        return _compiled(str(next(model.parameters()).device.type))(model, **given)


@cache
def _compiled(device: str) -> Callable[..., Any]:
    """On CUDA a step is replayed as one graph, without a launch for each kernel."""
    mode = "reduce-overhead" if device == "cuda" else None
    return torch.compile(_forward, dynamic=False, mode=mode)


def _forward(model: nn.Module, **given: Any) -> Any:
    return model(**given)


def size(number: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that is not below a number of rows or tokens."""
    found = 16
    while found < number:
        found = found * 3 // 2 if found & (found - 1) == 0 else found * 4 // 3
    return found
