"""Gradient checkpointing: a layer keeps what goes into it, and is computed again when its gradient
is asked for. Costs a further forward pass, and saves the memory of all that layers do inside.

The layers are those that Transformers marks for it. They must be called without a cache: computing
one again would write into the cache a second time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pgtg.errors import ConfigError

Contexts = tuple[AbstractContextManager, AbstractContextManager]


def checkpointable_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of a model that can be computed again.

    Raises:
        ConfigError: There are none.
    """
    found = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not found:
        raise ConfigError(
            f"gradient_checkpointing: Transformers' {type(model).__name__} has no layers for it; "
            "expected false"
        )
    return found


@contextmanager
def checkpointed(model: nn.Module, contexts: Callable[[], Contexts]) -> Iterator[None]:
    """Layers of the model that are called inside are computed again in the backward pass.

    Args:
        contexts: Asked at each layer's call: what is entered around the call, and what around the
            call that repeats it.
    """
    layers: list[Any] = [*checkpointable_layers(model)]
    for layer in layers:
        layer._gradient_checkpointing_func = partial(
            checkpoint, use_reentrant=False, context_fn=contexts
        )
        layer.gradient_checkpointing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False
