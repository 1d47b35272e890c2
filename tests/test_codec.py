"""Text to ids: wrapping of each family, cuts that are flagged, a suffix that stays."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pgtg.errors import ConfigError
from pgtg.models.codec import Codec

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "sum", ":", "tldr", "one", "two", "three", "four", "five"]
IDS = {word: i for i, word in enumerate(WORDS)}
BOS, EOS = IDS["<s>"], IDS["</s>"]
TEMPLATES = {"t5": "$A </s>", "bart": "<s> $A </s>", "gpt2": "$A", "llama": "<s> $A"}


def codec(family: str, **options: Any) -> Codec:
    """Words split by white space, wrapped as the family's own tokenizer does."""
    backend = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=TEMPLATES[family], special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **(specials | options.pop("specials", {}))
    )
    options = {
        "prefix": "",
        "suffix": "",
        "target_prefix": "",
        "max_source_tokens": 50,
        "max_target_tokens": 50,
    } | options
    return Codec(tokenizer, family in ("t5", "bart"), **options)


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


@pytest.mark.parametrize(
    ("family", "source", "target"),
    [
        ("t5", "one two </s>", "three </s>"),
        ("bart", "<s> one two </s>", "<s> three </s>"),
        ("gpt2", "one two", "three </s>"),  # a causal source runs straight into its target
        ("llama", "<s> one two", "three </s>"),
    ],
)
def test_wrapping(family: str, source: str, target: str):
    assert codec(family).encode_source("one two") == (ids(source), False)
    assert codec(family).encode_target("three") == (ids(target), False)
    assert codec(family).eos_ids == [EOS]


@pytest.mark.parametrize(
    ("family", "full"),
    [
        ("t5", "sum : one two three tldr : </s>"),
        ("bart", "<s> sum : one two three tldr : </s>"),
        ("gpt2", "sum : one two three tldr :"),
        ("llama", "<s> sum : one two three tldr :"),
    ],
)
def test_prefix_and_suffix_are_never_cut(family: str, full: str):
    """Shorter and shorter limits take words off the text's end, and say so."""
    words = full.split()
    for cut in range(3):
        limit = len(words) - cut
        end = words.index("three") + 1
        kept = words[: end - cut] + words[end:]
        made = codec(family, prefix="sum : ", suffix=" tldr :", max_source_tokens=limit)
        assert made.encode_source("one two three") == (ids(" ".join(kept)), cut > 0)


@pytest.mark.parametrize("family", TEMPLATES)
def test_no_room_for_text_is_an_error(family: str):
    """A limit that prefix and suffix fill, or overfill, is a mistake in the config."""
    for limit in (1, 3, 4):
        made = codec(family, prefix="sum : ", suffix=" tldr :", max_source_tokens=limit)
        with pytest.raises(ConfigError, match=r"policy\.max_source_tokens=.*no room for text"):
            made.encode_source("one two three")


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_target_that_is_cut_has_no_end_and_is_flagged(family: str):
    whole, flagged = codec(family).encode_target("one two three")
    assert whole[-1] == EOS and not flagged
    exact = codec(family, max_target_tokens=len(whole)).encode_target("one two three")
    assert exact == (whole, False)
    short = codec(family, max_target_tokens=len(whole) - 1).encode_target("one two three")
    assert short == (whole[:-1], True)


def test_target_prefix():
    assert codec("gpt2", target_prefix=": ").encode_target("one")[0] == ids(": one </s>")


def test_decoding_drops_special_tokens_and_outer_space():
    assert codec("bart").decode(ids("<s> one two </s> <pad>")) == "one two"
    assert codec("gpt2").decode([]) == ""


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_empty_text_keeps_its_wrapping(family: str):
    source, cut = codec(family).encode_source("")
    assert not cut and source == ids(TEMPLATES[family].replace("$A", ""))
    assert codec(family).encode_target("")[0][-1:] == [EOS]


def test_a_tokenizer_without_an_end_token():
    with pytest.raises(ConfigError, match="no end-of-text token"):
        codec("gpt2", specials={"eos_token": None}).encode_target("one")
