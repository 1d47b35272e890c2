"""Codecs of all kinds of tokenizers, and texts that are hard on them."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pgtg.models import pieces
from pgtg.models.codec import Codec, PromptCodec
from pgtg.models.tiny.t5 import build_tokenizer

HOSTILE = (
    "a \u20ac10 👩\u200d👩\u200d👧 na\u00efve",
    " \n\n\tשלום e\u0301\u0301 <script>alert('x')</script>  ",
    "\u202ereversed\u200b zero \x00 end",
    "…",
)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: every byte a token, and two merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"</s>": 0} | {letter: i for i, letter in enumerate(letters, 1)}
    vocab |= {"Ġt": len(vocab), "he": len(vocab) + 1}
    backend = Tokenizer(models.BPE(vocab, [("Ġ", "t"), ("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    backend.decoder = decoders.ByteLevel()  # type: ignore
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """T5's kind: sub-words with ▁ for a space, bytes for what the vocabulary lacks."""
    words = ["▁", "▁a", "▁na", "ve", "e", "a", "1", "0", "<", ">", "script", "\u0301"]
    vocab = [("</s>", 0.0), ("<unk>", -20.0)] + [(word, -2.0) for word in words]
    vocab += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    backend = Tokenizer(models.Unigram(vocab, 1, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore
    backend.decoder = decoders.Sequence(  # type: ignore
        [decoders.ByteFallback(), decoders.Metaspace()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def codec(kind: str, most: int = 500) -> Codec:
    if kind == "prompt":
        return PromptCodec(bytes_tokenizer(), False, "", "", "", most, most)
    tokenizers = {
        "bytes": bytes_tokenizer,
        "causal": bytes_tokenizer,
        "unigram": unigram_tokenizer,
        "words": lambda: build_tokenizer(["the", "cat", "sat", "."]),
    }
    before = " " if kind == "causal" else ""
    return Codec(tokenizers[kind](), kind != "causal", "", "", before, most, most)


KINDS = ("bytes", "causal", "unigram", "words", "prompt")
CODECS = {kind: codec(kind) for kind in KINDS}


def together(text: str, found: list[pieces.Piece]) -> str:
    """The text of all spans, which must follow one another."""
    ends = [0, *(piece.end for piece in found)]
    assert [piece.start for piece in found] == ends[:-1]
    assert all(piece.start <= piece.end for piece in found)
    return "".join(text[piece.start : piece.end] for piece in found)
