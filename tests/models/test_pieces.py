"""Tokens as parts of a text, for all kinds of tokenizers."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtg.models import pieces
from pgtg.models.codec import Codec
from pgtg.models.tiny.t5 import build_tokenizer
from tests.support.explain_codecs import CODECS, HOSTILE, KINDS, codec, together


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HOSTILE)
def test_spans_of_a_given_text_put_together_are_the_text(kind: str, text: str):
    shown, found, cut = pieces.of_text(CODECS[kind], text)
    assert shown == text and not cut
    assert [piece.id for piece in found] == CODECS[kind].encode_target(text)[0]
    covered = together(text, found)
    assert text.startswith(covered)
    assert text[len(covered) :].strip() == ""  # outer space that the tokenizer drops


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spans_of_any_tokens_put_together_are_what_the_judge_read(kind: str, data: st.DataObject):
    """Also of tokens that no text has: half characters, special tokens in the middle."""
    own = CODECS[kind]
    ids = data.draw(st.lists(st.integers(0, len(own.tokenizer) - 1), max_size=12))
    text, found = pieces.of_tokens(own, ids)
    assert text == own.decode(ids) and together(text, found) == text
    assert [piece.id for piece in found] == ids


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=20).filter(lambda text: not text.isspace()))
def test_spans_of_any_text_are_the_same_from_both_sides(text: str):
    """Offsets of the tokenizer, and prefixes of what its tokens decode to."""
    own = CODECS["prompt"]
    text = text.encode("utf-8", "replace").decode()
    shown, given_spans, _ = pieces.of_text(own, text)
    decoded, spans = pieces.of_tokens(own, own.encode_target(text)[0])
    assert shown == decoded == text
    assert [piece.end for piece in spans] == [piece.end for piece in given_spans]


def test_a_character_belongs_to_its_last_byte():
    text, found = pieces.of_tokens(CODECS["bytes"], CODECS["bytes"].encode_target("a€b")[0])
    assert [text[p.start : p.end] for p in found] == ["a", "", "", "€", "b", ""]
    assert [pieces.name(p, special=False) for p in found[1:3]] == ["⟨e2⟩", "⟨82⟩"]


def test_outer_space_that_the_judge_does_not_read_has_no_span():
    text, found = pieces.of_tokens(CODECS["bytes"], CODECS["bytes"].encode_target(" \na b ")[0])
    assert text == "a b" and [text[p.start : p.end] for p in found] == [
        "",
        "",
        "a",
        " ",
        "b",
        "",
        "",
    ]


def test_words_take_the_space_before_them():
    text, found, _ = pieces.of_text(CODECS["words"], "the dog  sat .")
    assert [text[p.start : p.end] for p in found] == ["the", " dog", "  sat", " .", ""]
    assert [p.string for p in found] == ["the", "<unk>", "sat", ".", "</s>"]
    assert pieces.name(found[-1], special=True) == "</s>"


def test_what_is_cut_has_no_span():
    text, found, cut = pieces.of_text(codec("words", 3), "the cat sat .")
    assert cut and together(text, found) == "the cat sat"


def test_a_tokenizer_without_offsets_shows_what_it_decodes():
    class Slow:
        is_fast = False

        def __init__(self, fast: Any):
            self._fast = fast

        def __call__(self, *text: str, **options: Any) -> Any:
            return self._fast(*text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._fast, name)

    slow: Any = Slow(build_tokenizer(["the", "cat"]))
    own = Codec(slow, True, "", "", "", 9, 9)
    text, found, _ = pieces.of_text(own, "the dog cat")
    assert text == "the cat" and together(text, found) == text
