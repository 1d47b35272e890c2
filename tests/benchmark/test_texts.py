"""Tokens under marked errors, by counting characters; texts in a policy's order."""

from pgtg.benchmark.texts import Text, as_read, shown, under
from pgtg.data.pairs import Ranking
from pgtg.data.spans import Spanned
from pgtg.models.pieces import Piece
from tests.support.explain_codecs import CODECS


def cut(*parts: str) -> tuple[str, tuple[Piece, ...]]:
    ends = [sum(map(len, parts[: n + 1])) for n in range(len(parts))]
    pieces = [Piece(n, p, e - len(p), e) for n, (p, e) in enumerate(zip(parts, ends, strict=True))]
    return "".join(parts), tuple(pieces)


def test_a_token_is_under_an_error_by_most_of_its_characters():
    """Spaces do not count; half of them is not most; the end token is not shown."""
    text, pieces = cut(" abcd", " ef", "  ", "gh", "")
    spans = ((0, 3, "x"), (2, 4, "y"), (7, 8, "x"), (9, 11, "y"))
    own = Text(0, text, [0, 1, 2, 3, 4], pieces, spans)
    # " abcd": x has ab, y has bc; " ef": x has f; "  ": a span ends in it; "gh": y has g
    assert under(own).tolist() == [True, False, False, False, False]
    assert under(own, "x").tolist() == [False] * 5
    assert shown(own).tolist() == [True, True, False, True, False]
    longer = Text(0, text, [0, 1, 2, 3, 4], pieces, ((0, 4, "x"), (5, 12, "y")))
    assert under(longer, "x").tolist() == [True, False, False, False, False]
    assert under(longer, "y").tolist() == [False, True, False, True, False]


def test_texts_of_a_prompt_stand_together_and_an_empty_prompt_begins_as_texts_do():
    def ranked(prompt: str, *texts: str) -> Spanned:
        return Spanned(Ranking(prompt, prompt, texts, (0.0,) * len(texts)), (None,) * len(texts))

    codec = CODECS["causal"]
    found = as_read([ranked("a", "x", "y"), ranked("", "z"), ranked("a", "v")], codec)
    assert [(text.question, text.text) for text in found.texts] == [
        (0, "x"),
        (0, "y"),
        (0, "v"),
        (1, "z"),
    ]
    assert [group.rows for group in found.groups] == [(0, 1), (2,), (3,)]
    assert found.sources[0] == codec.encode_source("a")[0]
    assert found.sources[1] == [0]  # </s>: there is no token that begins
