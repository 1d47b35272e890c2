"""How many tokens a sampling batch may hold: from the device's free memory and the model's size."""

from typing import Any

import torch

from pgtg.config import BATCH_TOKENS
from pgtg.models.language import LanguageModel

SHARE = 0.5  # of the free memory; the rest is for what is not counted, and for fragments
ROW = 64  # a row has at least about that many tokens; it holds one row of logits


def token_budget(asked: int | str, lm: LanguageModel | None = None) -> int:
    """Tokens of a batch.

    Args:
        asked: A whole number, taken as it is, or "auto".
        lm: The model that samples; None: whole sequences are read, with all of their logits.
    """
    if isinstance(asked, int):
        return asked
    free = None if lm is None else free_bytes(lm.device)
    if lm is None or free is None:
        return BATCH_TOKENS
    return max(1, int(SHARE * free / bytes_per_token(lm)))


def free_bytes(device: torch.device) -> int | None:
    """Memory that new tensors can have on a GPU; None for other devices."""
    if device.type != "cuda":
        return None
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def bytes_per_token(lm: LanguageModel) -> int:
    """What a token of a batch takes while it is sampled [bytes].

    Keys and values of all layers; one layer's activations, and its attention scores over a source,
    while sources are read; a share of a row of logits and of what drawing makes of it.
    """
    config: Any = lm.model.config.get_text_config(decoder=True)
    item = next(lm.model.parameters()).element_size()
    layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    heads = config.num_attention_heads
    width = lm.width
    size = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or width // heads
    kept = 2 * layers * (getattr(config, "num_key_value_heads", None) or heads) * size
    inner = getattr(config, "d_ff", None) or getattr(config, "intermediate_size", None)
    passing = 8 * width + 3 * (inner or 4 * width) + 3 * heads * 1024
    drawing = 6 * 4 * config.vocab_size // ROW
    return item * (kept + passing) + drawing
