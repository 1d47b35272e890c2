"""What the reward models say of texts, as plain data; ranks and misjudged pairs. No files here."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from pgtg.models.pieces import Piece
from pgtg.ops.aggregate import Aggregator
from pgtg.types import TokenIds


@dataclass(frozen=True)
class Passage:
    """A text to explain, before any model has read it.

    Args:
        text: As the judge read it, or as the user gave it.
        tokens: As sampled; None where the text was given and a tokenizer has to cut it.
        score: The judge's, higher is better; None where nobody judged it.
        rewards: Of the tokens, where the run has them already.
    """

    text: str
    tokens: TokenIds | None = None
    score: float | None = None
    rewards: Sequence[float] | None = None


@dataclass(frozen=True)
class Group:
    """Texts that compete with each other: those of one source, or all prompts of a round."""

    id: str
    source: str  # "" where there is none
    references: tuple[str, ...]
    passages: tuple[Passage, ...]
    source_tokens: TokenIds | None = None  # as the policy read them; None: to be cut


@dataclass(frozen=True)
class View:
    """One text under one run's reward model.

    Args:
        text: What the pieces' spans refer to.
        pieces: Its tokens.
        rewards: One a piece.
        evaluation: Of the whole text: the aggregator over its rewards, among its group.
        rank: By evaluation within the group, 1 is best; equal evaluations share the better rank.
    """

    text: str
    pieces: tuple[Piece, ...]
    rewards: tuple[float, ...]
    evaluation: float
    rank: int


@dataclass(frozen=True)
class Entry:
    """One text: what the judge says of it, and what each run does."""

    score: float | None
    score_rank: int | None
    views: tuple[View, ...]  # one a run, in the order of the runs


@dataclass(frozen=True)
class Explained:
    """One group, its entries best first by the judge (by the first run where nobody judged).

    Args:
        wrong: By run, pairs of its entries that the run does not order as the judge does.
        pairs: Pairs that the judge orders.
    """

    id: str
    source: str
    references: tuple[str, ...]
    entries: tuple[Entry, ...]
    wrong: tuple[int, ...]
    pairs: int


def evaluations(rewards: Sequence[Sequence[float]], aggregator: Aggregator) -> list[float]:
    """Sequence evaluations e of one group's texts, by the aggregator of the run."""
    values = pad_sequence([torch.tensor(row, dtype=torch.float64) for row in rewards], True)
    lengths = torch.tensor([len(row) for row in rewards])
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    found = aggregator.groups(values, mask, torch.arange(len(rewards))[None])
    return found[0].tolist()


def ranks(values: Sequence[float]) -> list[int]:
    """1 for the highest; equal values share the better rank."""
    return [1 + sum(other > value for other in values) for value in values]


def misjudged(scores: Sequence[float | None], values: Sequence[float]) -> tuple[int, int]:
    """Pairs that `values` does not order as the judge does, and all pairs that the judge orders.

    A pair of equal values counts as not ordered.
    """
    judged = [(s, v) for s, v in zip(scores, values, strict=True) if s is not None]
    ordered = [(v, w) for s, v in judged for t, w in judged if s > t]
    return sum(v <= w for v, w in ordered), len(ordered)


def explained(group: Group, views: Sequence[Sequence[View]]) -> Explained:
    """A group with what each run says of it.

    Args:
        group: The texts.
        views: By run, one view a text.
    """
    scores = [passage.score for passage in group.passages]
    found = [score for score in scores if score is not None]
    judged = ranks(found) if len(found) == len(scores) else [None] * len(scores)
    order = judged if judged[0] is not None else [view.rank for view in views[0]]
    entries = [
        Entry(scores[n], judged[n], tuple(run[n] for run in views)) for n in range(len(scores))
    ]
    best_first = sorted(range(len(entries)), key=lambda n: order[n] or 0)
    counts = [misjudged(scores, [view.evaluation for view in run]) for run in views]
    return Explained(
        group.id,
        group.source,
        group.references,
        tuple(entries[n] for n in best_first),
        tuple(wrong for wrong, _ in counts),
        counts[0][1],
    )


def views(
    cut: Sequence[tuple[str, Sequence[Piece]]],
    rewards: Sequence[Sequence[float]],
    aggregator: Aggregator,
) -> list[View]:
    """One run's views of a group's texts."""
    values = evaluations(rewards, aggregator)
    placed = ranks(values)
    return [
        View(text, tuple(pieces), tuple(rewards[n]), values[n], placed[n])
        for n, (text, pieces) in enumerate(cut)
    ]
