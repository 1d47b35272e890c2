"""Judges: the true preference between generations.

A judge scores one generation against its references, higher is better. If what it needs is not on
this machine, building it raises, so that a run refuses before it starts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextJudge:
    """A judge by a text metric's score of a pair, in [0, 100]."""

    name: str
    pair: Callable[[str, Sequence[str]], float]
    details: Mapping[str, Any]
    unread: Callable[[Iterable[str]], float] = lambda texts: 0.0

    def describe(self) -> Mapping[str, Any]:
        return {"judge": self.name, **self.details}

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """A score per text, in [0, 100]; several references: the best one counts."""
        return [self.pair(text, refs) for text, refs in zip(texts, references, strict=True)]
