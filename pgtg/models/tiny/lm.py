"""Two tiny language models of the generated reviews' words, with a tokenizer of one word a token.

A masked LM (RoBERTa's architecture) judges prompts, a causal LM (GPT-2's) writes them; what they
are taught stands in `recipes.teaching`. Both have the same ids for the same words, and save to, and
load from, plain Transformers folders.

Stock initialisation (standard deviation 0.02) spends half of the training on a plateau before
review and prompt are combined at all; 0.1 leaves it at once.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from pgtg.config import TinyLMConfig
from pgtg.ops.sampling import seeded

START, PAD, END, UNK, MASK = SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0..4
INITIAL_STD = 0.1  # of all weight matrices
POSITIONS = 128  # longest text [tokens], special ones included


def build_tokenizer(words: Sequence[str], *, masked: bool) -> PreTrainedTokenizerFast:
    """Words split by white space, ids in the order given after the special tokens.

    Encoding text puts <s> and </s> around it for the masked LM, and adds nothing for the causal
    one, where </s> both starts and ends a text, as GPT-2's end-of-text token does.

    Raises:
        ValueError: A word comes twice, is empty or holds white space, or is a special token.
    """
    vocab = {token: i for i, token in enumerate([*SPECIAL, *words])}
    if len(vocab) != len(words) + len(SPECIAL) or any(word.split() != [word] for word in words):
        raise ValueError("words must be distinct, without white space, and no special tokens")
    backend = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if masked:
        backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START if masked else END,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNK,
        mask_token=MASK if masked else None,
        cls_token=START if masked else None,
        sep_token=END if masked else None,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_masked(
    words: Sequence[str], cfg: TinyLMConfig, seed: int
) -> tuple[RobertaForMaskedLM, PreTrainedTokenizerFast]:
    """A fresh masked LM drawn from `seed` alone, and its tokenizer."""
    tokenizer = build_tokenizer(words, masked=True)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.d_model,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=2 * cfg.d_model,
        max_position_embeddings=POSITIONS + 2,  # RoBERTa counts positions from pad's id + 1
        type_vocab_size=1,
        initializer_range=INITIAL_STD,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    with seeded(seed):
        return RobertaForMaskedLM(config).eval(), tokenizer


def build_causal(
    words: Sequence[str], cfg: TinyLMConfig, seed: int
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A fresh causal LM drawn from `seed` alone, and its tokenizer."""
    tokenizer = build_tokenizer(words, masked=False)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=cfg.d_model,
        n_layer=cfg.layers,
        n_head=cfg.heads,
        n_inner=2 * cfg.d_model,
        n_positions=POSITIONS,
        initializer_range=INITIAL_STD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=2,
        pad_token_id=1,
        eos_token_id=2,
    )
    with seeded(seed):
        return GPT2LMHeadModel(config).eval(), tokenizer
