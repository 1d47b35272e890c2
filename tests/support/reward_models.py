"""Tiny random reward models of several families, saved as Transformers folders."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tokenizer(*, pair: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte a token; for an encoder with special tokens around one text, or between two."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in ("<s>", "</s>")])
    if pair:
        special = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(  # type: ignore
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=special
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    made.chat_template = template
    return made


def config(family: str, **changed: Any) -> Any:
    """Of a family's tiny model with one label; a padding token only where it is asked for."""
    rows = len(tokenizer())
    common: dict[str, Any] = {"vocab_size": rows, "num_labels": 1, "initializer_range": 0.3}
    common |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if family == "gpt2":
        return GPT2Config(n_embd=16, n_head=2, n_layer=2, n_positions=512, **common | changed)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 24}
    if family == "bert":
        common["pad_token_id"] = 0
        return BertConfig(max_position_embeddings=512, **sizes, **common | changed)
    return LlamaConfig(max_position_embeddings=512, **sizes, **common | changed)


def reward_model(
    folder: Path, family: str = "llama", *, template: str | None = None, **changed: Any
) -> str:
    """A saved random model; its scores tell texts apart."""
    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_config(config(family, **changed))
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer(pair=family == "bert", template=template).save_pretrained(folder)
    return str(folder)
