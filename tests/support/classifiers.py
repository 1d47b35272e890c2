"""Tiny random classifier LMs of five families, with tokenisers built in code."""

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from pgtg.types import Labelled

TEXTS = [
    "the film is great and it was terrible . goodness good",
    "It was News: World Sports Business Tech negative positive great terrible N/A",
    "Absolutely absolute movie rated Grade a b c d e f g h i j k l m n o p q r s t u v w x y z",
]
CORPUS = [f"{text} {word}" for text in TEXTS for word in text.split()] * 3
WORDS = {"bert": ["terrible", "great"]}  # the others: with a leading space
MAX_TOKENS = 48
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.3,
}


def words(family: str) -> list[str]:
    return WORDS.get(family, [" terrible", " great"])


def tokenizer(family: str) -> PreTrainedTokenizerBase:
    """As that family's: BERT's WordPiece, byte-level BPE with or without a start token."""
    return _wordpiece() if family == "bert" else _byte_bpe(family)


def _wordpiece() -> PreTrainedTokenizerBase:
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer: Any = WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tok.train_from_iterator(CORPUS, trainer)
    tok.post_processor = post.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, **{f"{name}_token": token for name, token in names.items()}
    )


def _byte_bpe(family: str) -> PreTrainedTokenizerBase:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if family == "roberta":
        special.append("<mask>")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = BpeTrainer(
        vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(CORPUS, trainer)
    named: dict[str, Any] = {"eos_token": "</s>", "pad_token": "<pad>"}
    if family == "roberta":
        tok.post_processor = post.RobertaProcessing(("</s>", 2), ("<s>", 0))
        # as RoBERTa's: it takes in the space before it
        mask = AddedToken("<mask>", lstrip=True, rstrip=False, special=True)
        named |= {"bos_token": "<s>", "sep_token": "</s>", "cls_token": "<s>", "mask_token": mask}
    if family == "llama":
        tok.post_processor = post.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        named |= {"bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="<unk>", **named)


def model(family: str, vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """Random weights, large enough that a wrong token or position shows; biases too."""
    torch.manual_seed(seed)
    if family == "bert":
        config: Any = BertConfig(vocab_size=vocabulary, max_position_embeddings=MAX_TOKENS, **SIZES)
        made: PreTrainedModel = BertForMaskedLM(config)
    elif family == "roberta":  # positions begin at 2
        config = RobertaConfig(
            vocab_size=vocabulary, max_position_embeddings=MAX_TOKENS + 2, pad_token_id=1, **SIZES
        )
        made = RobertaForMaskedLM(config)
    elif family == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
        made = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=MAX_TOKENS, **sizes))
    elif family == "mamba":  # it has no cache of keys and values
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
        made = MambaForCausalLM(MambaConfig(vocab_size=vocabulary, initializer_range=0.3, **sizes))
    else:
        config = LlamaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=MAX_TOKENS,
            num_key_value_heads=1,
            **SIZES,
        )
        made = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.3)
    return made.eval().requires_grad_(False)


def labelled(*texts: str) -> list[Labelled]:
    return [Labelled(str(i), text, i % 2) for i, text in enumerate(texts)]
