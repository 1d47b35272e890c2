"""Tiny random models of several families, with weights large enough that a wrong mask shows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from pgtg.models.language import LanguageModel
from pgtg.types import TokenBatch

VOCAB, EOS = 23, 2
COMMON: dict[str, Any] = {"vocab_size": VOCAB, "eos_token_id": EOS, "pad_token_id": EOS}


def _t5(layers: int) -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
    config = T5Config(num_layers=layers, num_decoder_layers=layers, **sizes, **COMMON)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def _bart(layers: int) -> PreTrainedModel:
    config = BartConfig(
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=40,
        init_std=0.3,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
        **COMMON,
    )
    return BartForConditionalGeneration(config)


def _gpt2(layers: int) -> PreTrainedModel:
    sizes: dict[str, Any] = {"n_positions": 40, "n_embd": 16, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(n_layer=layers, initializer_range=0.3, **sizes, **COMMON))


def _llama(layers: int) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        initializer_range=0.3,
        **COMMON,
    )
    return LlamaForCausalLM(config)


def _opt(layers: int) -> PreTrainedModel:
    config = OPTConfig(
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=40,
        word_embed_proj_dim=16,
        init_std=0.3,
        **COMMON,
    )
    return OPTForCausalLM(config)


def _bloom(layers: int) -> PreTrainedModel:
    config = BloomConfig(hidden_size=16, n_layer=layers, n_head=2, initializer_range=0.3, **COMMON)
    return BloomForCausalLM(config)


FAMILIES: dict[str, Callable[[int], PreTrainedModel]] = {
    "t5": _t5,
    "bart": _bart,
    "gpt2": _gpt2,
    "llama": _llama,
    "opt": _opt,
    "bloom": _bloom,
}


def build(family: str, layers: int = 2, seed: int = 0) -> LanguageModel:
    """A model with random weights, in eval mode."""
    torch.manual_seed(seed)
    return LanguageModel(FAMILIES[family](layers).eval())


@torch.no_grad()
def alone(lm: LanguageModel, source: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """States [T+1, D] and logits [T, V] of one sequence by one plain forward, without a cache."""
    if lm.is_encoder_decoder:
        start = lm.model.config.decoder_start_token_id
        out = lm.model(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([[start, *tokens]]),
            output_hidden_states=True,
        )
        return out.decoder_hidden_states[-1][0], out.logits[0, :-1]
    ids = torch.tensor([[*source, *tokens]])
    out = lm.model(input_ids=ids, output_hidden_states=True)
    first = len(source) - 1
    return out.hidden_states[-1][0, first:], out.logits[0, first:-1]


# the origin repeats and jumps; ids equal to eos, which is pad too, stand anywhere
SOURCES = [[5, 6, 2, 7, 8], [9, 2, 3], [4, 4, 11, 12, 13, 3, 2]]
TOKENS = [[3, 9, 2], [7, 2, 2, 10, 15, 1], [2], [14, 3, 6, 8], [20, 21, 22, 3, 4, 2]]
ORIGIN = [0, 0, 2, 1, 2]


def rectangle(
    rows: Sequence[Sequence[int]], side: str, fill: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Rows as a rectangle with any ids in the padding, written here on its own."""
    width = max(map(len, rows))
    ids, mask = [], []
    for n, row in enumerate(rows):
        gap = [fill[(n + i) % len(fill)] for i in range(width - len(row))]
        ids.append([*gap, *row] if side == "left" else [*row, *gap])
        real, rest = [True] * len(row), [False] * len(gap)
        mask.append(rest + real if side == "left" else real + rest)
    return torch.tensor(ids), torch.tensor(mask)


def batch(
    *,
    sources_to: str = "right",
    tokens_to: str = "right",
    fill: Sequence[int] = (EOS,),
    rows: Sequence[int] = range(len(TOKENS)),
) -> TokenBatch:
    """The sequences above, or some of them, with padding on either side."""
    source, source_mask = rectangle(SOURCES, sources_to, fill)
    tokens, mask = rectangle([TOKENS[r] for r in rows], tokens_to, fill)
    return TokenBatch(source, source_mask, tokens, mask, torch.tensor([ORIGIN[r] for r in rows]))
