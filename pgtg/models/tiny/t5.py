"""The tiny T5 of the embedded default, with a tokenizer of one word a token.

Stock initialisation hardly learns within minutes (embeddings of standard deviation 1, tied to
logits that are scaled by 1/sqrt(d): Adam needs hundreds of steps to move a logit). So here the
embeddings start 20 times smaller and the decoder's output is not scaled (`scale_decoder_outputs`,
an option of Transformers' T5 that is saved with the model). Learning to copy random words first is
what brings a model of this size to copying facts; see `copy_pairs`.
"""

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from pgtg.config import TinyT5Config

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
EMBEDDING_SCALE = 0.05  # of the stock initialisation's standard deviation 1
COPY_WORDS = (6, 14)  # shortest and longest span to copy [words]; a summary has about this many


def build(
    words: Sequence[str], cfg: TinyT5Config, seed: int
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast]:
    """A fresh model drawn from `seed` alone, and its tokenizer.

    Both save to, and load from, plain Transformers folders.

    Args:
        words: The vocabulary, each word one token.
        cfg: Sizes.
        seed: Of the initial weights; torch's own generator is left as it was.
    """
    tokenizer = build_tokenizer(words)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=cfg.d_model,
        d_kv=cfg.d_kv,
        d_ff=cfg.d_ff,
        num_heads=cfg.heads,
        num_layers=cfg.encoder_layers,
        num_decoder_layers=cfg.decoder_layers,
        dropout_rate=cfg.dropout,
        pad_token_id=0,
        eos_token_id=1,
    )
    config.decoder_start_token_id = 0
    config.scale_decoder_outputs = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(EMBEDDING_SCALE)
    return model.eval(), tokenizer


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Words split by white space, ids in the order given after pad 0, eos 1 and unk 2.

    The end token is appended when text is encoded; decoding joins words by single spaces.

    Raises:
        ValueError: A word comes twice, is empty or holds white space, or is a special token.
    """
    vocab = {token: i for i, token in enumerate([PAD, EOS, UNK, *words])}
    if len(vocab) != len(words) + 3 or any(word.split() != [word] for word in words):
        raise ValueError("words must be distinct, without white space, and no special tokens")
    backend = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"$A {EOS}", special_tokens=[(EOS, vocab[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )


def copy_pairs(words: Sequence[str], n: int, seed: int) -> list[tuple[str, str]]:
    """`n` (source, target) pairs with source == target: random words in random order.

    A model that can copy finds facts in a source many times sooner than one that starts from
    nothing.
    """
    rng = random.Random(f"copy {seed}")
    texts = [" ".join(rng.choices(words, k=rng.randint(*COPY_WORDS))) for _ in range(n)]
    return [(text, text) for text in texts]
