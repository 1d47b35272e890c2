"""Watches the type that a model computes in."""

import torch
from transformers.pytorch_utils import Conv1D

from pgtg.models.language import LanguageModel


def products(lm: LanguageModel) -> list[torch.dtype]:
    """The types of what the model's linear layers give from now on, one for each call."""
    found: list[torch.dtype] = []
    for part in lm.modules():
        if isinstance(part, torch.nn.Linear | Conv1D):
            part.register_forward_hook(lambda module, given, out: found.append(out.dtype))
    return found
