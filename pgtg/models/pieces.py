"""Tokens as parts of a text: `text[start:end]` is what a token stands for, exactly.

Spans follow one another without gap or overlap, so the spans of a text's tokens put together are
the text. A space between two words belongs to the word after it. A token that is no whole character
(one of the bytes of an emoji, say) has an empty span, and the last byte's token holds the whole
character. An empty span is also what a token without text has: an end token, or white space that
the decoded text lost at its ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from pgtg.models.codec import Codec, PromptCodec
from pgtg.types import TokenIds


@dataclass(frozen=True)
class Piece:
    """One token of a text.

    Args:
        id: In the vocabulary.
        string: The vocabulary's own writing of it, e.g. "▁the" or "Ġthe".
        start: First character of its span in the text.
        end: One after its last character.
    """

    id: int
    string: str
    start: int
    end: int


def of_tokens(codec: Codec, ids: TokenIds) -> tuple[str, list[Piece]]:
    """The text of a generation as the judge read it, and its pieces.

    A prefix of the tokens is decoded for each token: where it first agrees with the whole text is
    where the token ends. So this holds for every tokenizer that decodes, whatever it joins by.
    """
    whole = _decoded(codec, ids)
    text = whole.strip() if not isinstance(codec, PromptCodec) else whole
    lost = len(whole) - len(whole.lstrip()) if text != whole else 0
    ends, reached = [], 0
    for count in range(1, len(ids) + 1):
        reached = max(reached, _common(_decoded(codec, ids[:count]), whole))
        ends.append(min(max(reached - lost, 0), len(text)))
    return text, _pieces(codec.tokenizer, ids, ends)


def of_text(codec: Codec, text: str) -> tuple[str, list[Piece], bool]:
    """A text that nobody sampled, its pieces, and whether its end was cut off to fit.

    The text is the one given, except for a tokenizer that knows no offsets (one without a fast
    version): then it is what the tokens decode to, which the spans refer to.
    """
    ids, cut = codec.encode_target(text)
    if not getattr(codec.tokenizer, "is_fast", False):
        return *of_tokens(codec, ids), cut
    prefix = len(codec.lead)
    found: Any = codec.tokenizer(
        codec.lead + text, add_special_tokens=False, return_offsets_mapping=True
    )
    body = list(found["input_ids"])
    first = next(n for n in range(len(ids) + 1) if ids[n : n + len(body)] == body[: len(ids) - n])
    spans = [(start - prefix, end - prefix) for start, end in found["offset_mapping"]]
    ends = [0] * first + _ends(spans)
    ends = [min(max(end, 0), len(text)) for end in ends[: len(ids)]]
    ends += [ends[-1] if ends else 0] * (len(ids) - len(ends))
    return text, _pieces(codec.tokenizer, ids, ends), cut


def under(
    text: str, pieces: Sequence[Piece], spans: Sequence[tuple[int, int, str]]
) -> Bool[np.ndarray, " T"]:
    """Tokens of which more than half of the characters, white space left out, are under a span.

    Args:
        spans: First character, one after the last, and a label.
    """
    marked = np.zeros(len(text), bool)
    for start, end, _ in spans:
        marked[start:end] = True
    places = [_visible(text, piece) for piece in pieces]
    return np.array([2 * marked[own].sum() > len(own) for own in places], bool)


def shown(text: str, pieces: Sequence[Piece]) -> Bool[np.ndarray, " T"]:
    """Tokens that hold a character: no end token, no white space alone."""
    return np.array([len(_visible(text, piece)) > 0 for piece in pieces], bool)


def _visible(text: str, piece: Piece) -> list[int]:
    return [n for n in range(piece.start, piece.end) if not text[n].isspace()]


def _ends(spans: Sequence[tuple[int, int]]) -> list[int]:
    """Ends of consecutive spans: what the next token's span holds as well is left to that one."""
    ends, reached = [], 0
    for number, (_, end) in enumerate(spans):
        following = spans[number + 1][0] if number + 1 < len(spans) else end
        reached = max(reached, min(end, following) if following < end else end)
        ends.append(reached)
    return ends


def _pieces(tokenizer: Any, ids: TokenIds, ends: Sequence[int]) -> list[Piece]:
    strings = tokenizer.convert_ids_to_tokens(ids)
    starts = [0, *ends]
    return [
        Piece(id, str(string), starts[n], ends[n])
        for n, (id, string) in enumerate(zip(ids, strings, strict=True))
    ]


def _decoded(codec: Codec, ids: TokenIds) -> str:
    """As `codec.decode`, but with the white space at its ends."""
    if isinstance(codec, PromptCodec):
        return codec.decode(ids)
    text = codec.tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _common(a: str, b: str) -> int:
    """Length of the longest common start."""
    if b.startswith(a):
        return len(a)
    return next(n for n, (x, y) in enumerate(zip(a + "\0", b + "\1", strict=False)) if x != y)


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with, and those bytes (GPT-2)."""
    same = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in same]
    return {chr(b): b for b in same} | {chr(256 + n): b for n, b in enumerate(others)}


BYTES = _byte_alphabet()


def name(piece: Piece, *, special: bool) -> str:
    """How a token without text is called: "</s>", or the bytes that it holds, "⟨e2 82⟩"."""
    if not special and piece.string and all(char in BYTES for char in piece.string):
        values = " ".join(f"{BYTES[char]:02x}" for char in piece.string)
        if not piece.string.startswith("<0x"):
            return f"⟨{values}⟩"
    return piece.string
