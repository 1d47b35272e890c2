"""Text to ids: wrapping of each family, cuts that are flagged, a suffix that stays."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pgtg.errors import ConfigError
from pgtg.models.codec import Codec
from pgtg.models.special_tokens import end_tokens, frame

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "sum", ":", "tldr", "one", "two", "three", "four", "five"]
IDS = {word: i for i, word in enumerate(WORDS)}
BOS, EOS = IDS["<s>"], IDS["</s>"]
TEMPLATES = {"t5": "$A </s>", "bart": "<s> $A </s>", "gpt2": "$A", "llama": "<s> $A"}
ENDLESS = "t5 without post-processor"


def codec(family: str, **options: Any) -> Codec:
    """Words split by white space, wrapped as the family's own tokenizer does."""
    backend = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    if family in TEMPLATES:
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
    return Codec(tokenizer, family in ("t5", "bart", ENDLESS), **options)


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


def test_targets_end_also_where_the_tokenizer_adds_no_end_token():
    made = codec(ENDLESS)
    assert made.encode_source("one two") == (ids("one two"), False)
    assert made.encode_target("three") == (ids("three </s>"), False)
    assert made.encode_target("") == ([EOS], False)


def test_all_end_tokens_of_tokenizer_and_configs_end_a_text():
    """As in Llama-3 and Gemma: generation_config has a list; the tokenizer's ends the targets."""
    made = codec("llama", ends=(IDS["tldr"], EOS))
    assert made.eos_ids == [EOS, IDS["tldr"]]
    assert made.encode_target("one")[0] == ids("one </s>")
    nameless = codec("gpt2", specials={"eos_token": None}, ends=(IDS[":"], IDS["tldr"]))
    assert nameless.encode_target("one")[0] == ids("one :")
    many, one, none = (type("Config", (), {"eos_token_id": value}) for value in ([4, 1], 1, None))
    assert end_tokens(many, one, none, None) == [4, 1]


CHINESE = "今天气很好我们去公园"


def chinese(template: str) -> PreTrainedTokenizerFast:
    """One character a token, no unknown token: text of other characters has no token at all."""
    vocab = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", *CHINESE])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=template, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("template", "seq2seq", "source", "target"),
    [
        ("<s> $A </s>", True, [0, 3, 4, 2], [0, 5, 2]),
        ("<s> $A", False, [0, 3, 4], [5, 2]),
        ("</s> <s> $A </s> <s>", True, [2, 0, 3, 4, 2, 0], [2, 0, 5, 2]),
    ],
)
def test_special_tokens_do_not_rest_on_latin_text(
    template: str, seq2seq: bool, source: list[int], target: list[int]
):
    made = Codec(chinese(template), seq2seq, "", "", "", 9, 9)
    assert made.encode_source(CHINESE[:2])[0] == source
    assert made.encode_target(CHINESE[2])[0] == target
    assert made.encode_source("abc")[0] == [number for number in source if number < 3]


def test_a_tokenizer_of_languages_frames_targets_as_targets():
    """mBART's way: the source's language before a source, the target's before a target."""

    class Languages:
        def __init__(self, tokenizers: dict[str, Any]):
            self._by_kind = tokenizers

        def __call__(self, **given: Any) -> Any:
            kind = "text_target" if "text_target" in given else "text"
            return self._by_kind[kind](given.pop(kind), **given)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._by_kind["text"], name)

    both: Any = Languages({"text": chinese("</s> $A </s>"), "text_target": chinese("<s> $A </s>")})
    assert frame(both) == ([2], [2]) and frame(both, target=True) == ([0], [2])
    assert Codec(both, True, "", "", "", 9, 9).encode_target("今")[0] == [0, 3, 2]


def test_a_tokenizer_that_knows_no_text_is_refused():
    backend = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[]))
    empty = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    with pytest.raises(ConfigError, match=r"policy\.path: its tokenizer has no tokens"):
        Codec(empty, True, "", "", "", 9, 9).encode_source("one")


@pytest.mark.parametrize("family", TEMPLATES)
def test_many_texts_are_encoded_as_each_alone(family: str):
    """Cut and uncut, with an empty one among them, with and without prefix."""
    texts = ["one two three", "one", "", "five four three two one two one"]
    for options in ({}, {"prefix": "sum : ", "suffix": " tldr", "target_prefix": ": "}):
        made = codec(family, max_source_tokens=6, max_target_tokens=4, **options)
        alone = codec(family, max_source_tokens=6, max_target_tokens=4, **options)
        sources = [alone.encode_source(text) for text in texts]
        assert made.encode_sources(texts) == sources
        assert {cut for _, cut in sources} == {True, False}
        assert made.encode_targets(texts) == [alone.encode_target(text) for text in texts]
        assert made.encode_sources(texts[:2]) == sources[:2]
        assert made.encode_sources([]) == made.encode_targets([]) == []
