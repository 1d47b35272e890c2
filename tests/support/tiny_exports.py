"""Runs of seconds on tiny causal models of several families, for what is exported of them."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pgtg.config import RunConfig
from pgtg.config.compose import run_config
from pgtg.models.language import LanguageModel
from pgtg.models.loading import save_language_model
from pgtg.models.tiny.lm import build_tokenizer
from tests.support.tiny_preferences import EXAMPLE, TINY_PREFERENCES

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
FAMILIES = ("llama", "qwen2", "mistral", "tied")


def words() -> list[str]:
    """All words of the example's pairs."""
    lines = (EXAMPLE / "train.jsonl").read_text().splitlines()
    lines += (EXAMPLE / "validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return sorted({word for row in rows for key in row for word in str(row[key]).split()})


def causal(family: str, rows: int) -> PreTrainedModel:
    """A random model with as many rows of embeddings."""
    common: dict[str, Any] = {"vocab_size": rows, "eos_token_id": 2, "pad_token_id": 1}
    common["bos_token_id"] = 2
    torch.manual_seed(0)
    if family == "gpt2":
        small: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
        return GPT2LMHeadModel(GPT2Config(**small, **common)).eval()
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **common)),
        "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **common, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **common)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, **common, sliding_window=8)),
    }
    return made[family]().eval()


def model_folder(folder: Path, family: str) -> Path:
    """Such a model with a tokenizer of the example's words."""
    tokenizer = build_tokenizer(words(), masked=False)
    save_language_model(LanguageModel(causal(family, len(tokenizer))), tokenizer, folder)
    return folder


def llama(factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama, at one place for all workers of a session."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "models" / "llama"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder if folder.is_dir() else model_folder(folder, "llama")


def tiny_causal(model: Path, *overrides: str) -> RunConfig:
    """The config of a run of the example's pairs on such a model: one round, no controls."""
    own = [text for text in TINY_PREFERENCES if not text.startswith("policy.tiny_lm")]
    own += ["policy=pretrained", f"policy.path={model}", "policy.max_source_tokens=64"]
    own += ["policy.max_target_tokens=48", "schedule.total=2", "schedule.retrain_until=0"]
    own += ["method.controls=[]", "evaluate.decodings=[greedy]"]
    own += ["reward.head=linear", "reward.fit.lr=0.02", "reward.score=[train,heldout]"]
    return run_config("preferences", [*own, *overrides])
