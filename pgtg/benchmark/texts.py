"""Texts with marked errors as a policy reads them: their tokens, and which are under an error."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from pgtg.data.generations import ragged
from pgtg.data.marks import Span
from pgtg.data.pairs import Ranking
from pgtg.data.spans import Spanned
from pgtg.models import pieces
from pgtg.models.codec import Codec
from pgtg.models.pieces import Piece, of_text
from pgtg.runs.files import content_hash
from pgtg.types import Generations, TokenIds


@dataclass(frozen=True)
class Text:
    """A completion.

    Args:
        question: Number of its prompt.
        tokens: Its tokens, with the one that ends it.
        pieces: What each of them is of the text.
        spans: Errors in characters of the text; None where nobody looked for any.
    """

    question: int
    text: str
    tokens: TokenIds
    pieces: tuple[Piece, ...]
    spans: tuple[Span, ...] | None


@dataclass(frozen=True)
class Group:
    """Texts of one prompt that were compared with each other, if they were.

    Args:
        rows: Of the texts.
    """

    question: int
    rows: tuple[int, ...]
    ranking: Ranking


@dataclass(frozen=True)
class Texts:
    """All texts of a data set.

    Args:
        sources: Tokens of each question's prompt, at least one.
        texts: Those of a question one after another.
        cut: How many prompts, and how many completions, were cut to fit.
    """

    sources: list[TokenIds]
    texts: list[Text]
    groups: list[Group]
    cut: tuple[int, int]

    @cached_property
    def tokens(self) -> list[TokenIds]:
        """Of each text."""
        return [text.tokens for text in self.texts]

    @property
    def annotated(self) -> list[int]:
        """Rows of the texts in which somebody looked for errors."""
        return [row for row, text in enumerate(self.texts) if text.spans is not None]

    def contents(self) -> str:
        """Hash of what is learned from."""
        rankings = [[group.question, group.rows, vars(group.ranking)] for group in self.groups]
        return content_hash([self.sources, self.tokens, rankings])


def as_read(spanned: Sequence[Spanned], codec: Codec) -> Texts:
    """The texts in a policy's tokens. A prompt without a token begins as texts do: with the
    tokenizer's begin-of-text token, or its end-of-text token where it has none."""
    prompts = dict.fromkeys(one.ranking.prompt for one in spanned)
    questions = {prompt: number for number, prompt in enumerate(prompts)}
    texts, groups, cut = list[Text](), list[Group](), 0
    for one in sorted(spanned, key=lambda one: questions[one.ranking.prompt]):
        ranking = one.ranking
        question = questions[ranking.prompt]
        rows = range(len(texts), len(texts) + len(ranking.completions))
        for completion, spans in zip(ranking.completions, one.spans, strict=True):
            text, parts, was_cut = of_text(codec, completion)
            tokens = [part.id for part in parts]
            texts.append(Text(question, text, tokens, tuple(parts), spans))
            cut += was_cut
        groups.append(Group(question, tuple(rows), ranking))
    found = codec.encode_sources(list(questions))
    begin: Any = getattr(codec.tokenizer, "bos_token_id", None)
    start = codec.eos_ids[:1] if begin is None else [begin]
    sources = [ids or start for ids, _ in found]
    return Texts(sources, texts, groups, (sum(was for _, was in found), cut))


def under(text: Text, label: str | None = None) -> Bool[np.ndarray, " T"]:
    """Tokens that are under an error (`models.pieces.under`).

    Args:
        label: Of the errors that count; None: all.
    """
    spans = [span for span in text.spans or () if label in (None, span[2])]
    return pieces.under(text.text, text.pieces, spans)


def shown(text: Text) -> Bool[np.ndarray, " T"]:
    """Tokens that hold a character."""
    return pieces.shown(text.text, text.pieces)


def compared(texts: Texts, questions: set[int], *, kept: bool) -> Generations:
    """What was preferred among the texts of some questions, as a reward model learns it.

    Args:
        kept: Each text is its own source, its number in the place of ids (`models.kept`).
    """
    groups = [group for group in texts.groups if group.question in questions]
    rows = [row for group in groups for row in group.rows]
    place = {row: n for n, row in enumerate(rows)}
    members = [[place[row] for row in group.rows] for group in groups]
    pairs = [
        (own[better], own[other])
        for group, own in zip(groups, members, strict=True)
        for better, other in group.ranking.pairs or ()
    ]
    by_pairs = any(group.ranking.pairs is not None for group in groups)
    margins = torch.tensor([group.ranking.margin or 0.0 for group in groups], dtype=torch.float64)
    if kept:
        sources, origin = [[row] for row in rows], list(range(len(rows)))
    else:
        sources = [texts.sources[group.question] for group in groups]
        origin = [n for n, group in enumerate(groups) for _ in group.rows]
    return Generations(
        source_ids=[str(row) for row in rows] if kept else [group.ranking.id for group in groups],
        sources=sources,
        origin=origin,
        tokens=[texts.texts[row].tokens for row in rows],
        texts=[texts.texts[row].text for row in rows],
        scores=[score for group in groups for score in group.ranking.scores],
        groups=ragged(members),
        pairs=torch.tensor(pairs).reshape(-1, 2) if by_pairs else None,
        margins=margins if not by_pairs and margins.any() else None,
    )
