"""Configs of the true sizes, tokenizers of one word a token, and texts: the same for both sides."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, PreTrainedTokenizerFast, RobertaConfig, T5Config

END = "<|endoftext|>"
START: dict[str, Any] = {"decoder_start_token_id": 0}


def t5_config(tiny: bool) -> T5Config:
    """T5-small's size."""
    if not tiny:
        return T5Config(**START)
    return T5Config(
        vocab_size=2000,
        d_model=64,
        d_kv=16,
        num_heads=4,
        d_ff=128,
        num_layers=2,
        **START,
    )


def gpt2_config(tiny: bool) -> GPT2Config:
    """distilgpt2's size; tiny keeps its width, which the reference takes from the name."""
    return GPT2Config(n_layer=2) if tiny else GPT2Config(n_layer=6)


def roberta_config(tiny: bool, classifier: str) -> RobertaConfig:
    """roberta-base's size, or roberta-large's."""
    layers, heads, width = (24, 16, 1024) if classifier == "large" else (12, 12, 768)
    if tiny:
        layers, heads, width = 2, 4, 64
    return RobertaConfig(
        vocab_size=50265,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=128 if tiny else 4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
    )


def _tokenizer(
    special: list[str], words: list[str], template: str = "", **names: str
) -> PreTrainedTokenizerFast:
    table = {word: i for i, word in enumerate(special)}
    for word in words:
        table.setdefault(word, len(table))
    plain = Tokenizer(models.WordLevel(table, unk_token=names["unk_token"]))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        used = [(token, table[token]) for token in special if token in template]
        plain.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, model_max_length=512, clean_up_tokenization_spaces=False, **names
    )


def _numbered(number: int) -> list[str]:
    return [f"w{i}" for i in range(number)]


def documents(texts: Path) -> list[dict[str, Any]]:
    with texts.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def t5_tokenizer(size: int, texts: Path) -> PreTrainedTokenizerFast:
    """The commonest words of the documents: METEOR meets words that WordNet knows."""
    counts: Counter[str] = Counter()
    for row in documents(texts):
        counts.update(row["document"].split())
    words = [word for word, _ in counts.most_common(size)]
    return _tokenizer(
        ["<pad>", "</s>", "<unk>"],
        words + _numbered(size - len(words)),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    names = {f"{name}_token": END for name in ("bos", "eos", "unk", "pad")}
    return _tokenizer([END], _numbered(50256), **names)


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        _numbered(50256),
        "<s> $A </s>",
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def token_rows(number: int, length: int, seed: int, vocabulary: int) -> list[list[int]]:
    """Random tokens; none is special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, vocabulary, (number, length), generator=generator).tolist()


def sentences(examples: Path) -> tuple[list[str], list[int]]:
    """Random words, as many as the examples have tokens (1.2 a word), and the examples' labels."""
    with (examples / "train.tsv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    rng = np.random.default_rng(0)
    texts = []
    for row in found:
        length = max(1, round(1.2 * len(row["sentence"].split())))
        texts.append(" ".join(f"w{i}" for i in rng.integers(0, 50000, length)))
    return texts, [int(row["label"]) for row in found]
