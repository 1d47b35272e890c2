"""ROUGE-1/2/L/Lsum by Google's rouge-score: Porter stemmer on, F-measure, in [0, 100].

rougeL reads the text as one sequence; rougeLsum reads it as lines, one sentence a line, cut by the
named splitter ("ROUGE-L" in many papers' tables is rougeLsum). With several references each score
is that of the best one by its own F-measure (`RougeScorer.score_multi`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pgtg.metrics.meteor import CachedStemmer
from pgtg.metrics.sentences import build_splitter, describe_splitter

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class Rouge:
    """ROUGE of a text against its references. Build it by `build_rouge`."""

    splitter: str
    scorer: Any  # a rouge_score RougeScorer
    lines: Callable[[str], str]  # the text with one sentence a line
    columns: tuple[str, ...]
    name: str = "rouge"
    scale: str = "[0, 100]"

    def describe(self) -> Mapping[str, Any]:
        return {
            "implementation": f"rouge_score {version('rouge_score')}",
            "stemmer": "Porter",
            "measure": "F",
            **describe_splitter(self.splitter),
            "several_references": "the best one by F, for each score by itself",
            "scale": self.scale,
        }

    def pair(self, text: str, references: Sequence[str]) -> dict[str, float]:
        """Scores of one text by column, in [0, 100]; an empty text scores 0."""
        lines = [self.lines(reference) for reference in references]
        best = self.scorer.score_multi(lines, self.lines(text))
        return {column: 100.0 * float(best[column].fmeasure) for column in self.columns}

    def score(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, list[float]]:
        rows = [self.pair(text, refs) for text, refs in zip(texts, references, strict=True)]
        return {column: [row[column] for row in rows] for column in self.columns}


class _CachedTokenizer:
    """rouge-score's default tokenizer, remembering stems and the last texts."""

    def __init__(self) -> None:
        from rouge_score.tokenize import tokenize

        stemmer = CachedStemmer()
        self.tokenize = lru_cache(maxsize=8192)(lambda text: tokenize(text, stemmer))


def build_rouge(splitter: str, columns: tuple[str, ...] = TYPES) -> Rouge:
    """ROUGE for the given columns.

    Raises:
        ConfigError: Unknown splitter.
        MissingResourceError: The splitter's model is not on this machine.
    """
    split = build_splitter(splitter)
    from rouge_score.rouge_scorer import RougeScorer

    lines = lru_cache(maxsize=4096)(lambda text: "\n".join(split(text)))
    scorer = RougeScorer(list(columns), tokenizer=_CachedTokenizer())
    return Rouge(splitter, scorer, lines, columns)
