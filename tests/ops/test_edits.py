"""Phrases and edits of an instruction: the released replacements, and edits of one place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtg.ops import edits
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases

TEXT = "Read the review, and decide if it is good or bad; answer in one word ."
texts = st.text(alphabet="ab ,.;:!?()", max_size=60)


@pytest.mark.parametrize("case", cases("grips_edits", RIVALS))
def test_the_released_edits(case: dict[str, Any]):
    text = case["text"]
    edit = {
        "del": lambda: edits.delete_released(text, case["phrase"]),
        "add": lambda: edits.add_released(text, case["phrase"], case["after"]),
        "swap": lambda: edits.swap_released(text, *case["phrases"]),
        "sub": lambda: edits.substitute_released(text, case["phrase"], case["paraphrase"]),
    }[case["edit"]]
    assert edit() == case["result"]
    assert edits.normalized(edit()) == case["after_acceptance"]


@given(texts, st.sampled_from(["rules", "words"]))
def test_pieces_make_up_the_text(text: str, how: str):
    assert edits.text_of(edits.pieces_of(text, how)) == " ".join(text.split())


def test_phrases_by_rules():
    assert edits.pieces_of(TEXT) == [
        "Read the review",
        ",",
        "and decide",
        "if it",
        "is good",
        "or bad",
        ";",
        "answer in one word",
        " .",
    ]
    long = "one two three four five six seven"
    assert edits.pieces_of(long) == ["one two three four five six", "seven"]
    assert edits.pieces_of(long, "words") == long.split()


@given(texts, st.data())
def test_edits_of_one_place_can_be_taken_back(text: str, data: st.DataObject):
    pieces = edits.pieces_of(text)
    if not pieces:
        return
    one, other = (data.draw(st.integers(0, len(pieces) - 1)) for _ in range(2))
    assert edits.added(edits.deleted(pieces, one), one, pieces[one]) == pieces
    assert edits.swapped(edits.swapped(pieces, one, other), one, other) == pieces
    assert edits.substituted(edits.substituted(pieces, one, "x"), one, pieces[one]) == pieces
    swapped = edits.swapped(pieces, one, other)
    assert sorted(swapped) == sorted(pieces) and swapped[one] == pieces[other]
