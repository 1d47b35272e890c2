"""Special tokens: what a tokenizer puts around a text, and which tokens end one.

Neither is guessed. What stands around a text is read off several texts that have tokens of their
own, and must be the same for all of them; a text that the tokenizer drops whole (a Latin letter
where only Chinese is known) says nothing. The end tokens are those of the tokenizer, of the model's
`generation_config` and of its config together, as Transformers' `generate` takes them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pgtg.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = ("a", "the", "0", ".", "e")  # tried first; then single tokens of the vocabulary
ENOUGH = 3  # texts with tokens of their own, all different
Frame = tuple[list[int], list[int]]  # tokens before and after a text


def frame(tokenizer: "PreTrainedTokenizerBase", *, target: bool = False) -> Frame:
    """Special tokens that the tokenizer puts before and after every text.

    Args:
        target: Around a text to be written, where a tokenizer of several languages has other
            tokens for it than for a source.

    Raises:
        ConfigError: The tokenizer knows no text, or frames one text otherwise than another.
    """
    found: list[Frame] | None = None
    for text in _texts(tokenizer):
        bare, full = encode(tokenizer, text), encode(tokenizer, text, special=True, target=target)
        here = _frames(bare, full)
        found = here if found is None else [one for one in found if one in here]
    if found is None:
        raise ConfigError("its tokenizer has no tokens for any text: is it the model's own?")
    if not found:
        raise ConfigError("its tokenizer does not put the same special tokens around every text")
    return found[0]


def encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool = False, target: bool = False
) -> list[int]:
    """Ids of a text alone, or with what the tokenizer puts around it."""
    given: dict[str, Any] = {"text_target" if target else "text": text}
    ids: Any = tokenizer(**given, add_special_tokens=special, verbose=False)["input_ids"]
    return list(ids)


def _frames(bare: list[int], full: list[int]) -> list[Frame]:
    """All (before, after) for which before + bare + after is the full text."""
    size = len(bare)
    places = [i for i in range(len(full) - size + 1) if full[i : i + size] == bare]
    return [(full[:i], full[i + size :]) for i in places]


def _texts(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Texts with tokens, all different; fewer than ENOUGH only where the vocabulary has no more."""
    seen: list[list[int]] = []
    for text in _candidates(tokenizer):
        ids = encode(tokenizer, text) if text else []
        if ids and ids not in seen:
            seen.append(ids)
            yield text
        if len(seen) == ENOUGH:
            return


def _candidates(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    yield from TEXTS
    for number in ordinary(tokenizer):
        text = tokenizer.decode([number])
        assert isinstance(text, str)
        yield text.strip()


def ordinary(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of the tokens that are not special, in order."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return sorted({*tokenizer.get_vocab().values()} - special)


def end_tokens(*named: Any) -> list[int]:
    """All end tokens that a tokenizer and configs name, the first one's first; may be empty.

    Args:
        named: A tokenizer, a model's generation_config, its config: what has `eos_token_id`.
    """
    found: list[int] = []
    for one in named:
        ids = getattr(one, "eos_token_id", None)
        found += ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
    return [int(number) for number in dict.fromkeys(found)]
