"""ROUGE-1/2/L/Lsum by Google's rouge-score: Porter stemmer on, F-measure, in [0, 100].

rougeL reads the text as one sequence; rougeLsum reads it as lines, one sentence a line, cut by the
named splitter ("ROUGE-L" in many papers' tables is rougeLsum). With several references each score
is that of the best one by its own F-measure (`RougeScorer.score_multi`).

rouge-score reads the letters a-z and digits only. Where no reference of a text has any of them, the
score is not defined: `pair` gives nan, `score` 0 and `unread` says how much is not seen.
`metrics.tokenizer` reads other scripts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pgtg.config import MetricsConfig
from pgtg.metrics.meteor import CachedStemmer
from pgtg.metrics.sentences import build_splitter, describe_splitter
from pgtg.metrics.words import (
    LETTER,
    ROUGE_READS,
    Words,
    build_words,
    share_unread,
    without_signs,
)

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
    tokenizer: str = "default"
    protocol: str = "pgtg"  # rl4lms: texts are one line each, references a sentence a line

    def under(self, protocol: str) -> "Rouge":
        """The same as another protocol of the evaluation has it."""
        return replace(self, protocol=protocol)

    def describe(self) -> Mapping[str, Any]:
        return {
            "implementation": f"rouge_score {version('rouge_score')}",
            "stemmer": "Porter" if self.tokenizer != "char" else "none",
            "measure": "F",
            **({"tokenizer": self.tokenizer} if self.tokenizer != "default" else {}),
            **({"protocol": self.protocol} if self.protocol != "pgtg" else {}),
            **describe_splitter(self.splitter),
            "several_references": "the best one by F, for each score by itself",
            "scale": self.scale,
        }

    def pair(self, text: str, references: Sequence[str]) -> dict[str, float]:
        """Scores of one text by column, in [0, 100]; an empty text scores 0.

        nan where the references have letters, and none that is read.
        """
        seen = self.tokenizer != "default" or any(map(ROUGE_READS.search, references))
        if not seen and any(map(LETTER.search, references)):
            return dict.fromkeys(self.columns, math.nan)
        lines = [self.lines(reference) for reference in references]
        own = self.lines(text) if self.protocol == "pgtg" else text.replace("\n", " ")
        best = self.scorer.score_multi(lines, own)
        return {column: 100.0 * float(best[column].fmeasure) for column in self.columns}

    def score(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, list[float]]:
        rows = [self.pair(text, refs) for text, refs in zip(texts, references, strict=True)]
        return {column: [_defined(row[column]) for row in rows] for column in self.columns}

    def unread(self, texts: Iterable[str]) -> float:
        """Share of the letters and digits of texts that is not read, in [0, 1]."""
        return share_unread(texts, ROUGE_READS) if self.tokenizer == "default" else 0.0


def _defined(score: float) -> float:
    return 0.0 if math.isnan(score) else score


class _Words:
    """A tokenizer of `words` as rouge-score calls it, with Porter's stems of longer words."""

    def __init__(self, words: Words, *, stem: bool) -> None:
        stemmer = CachedStemmer()

        def tokenize(text: str) -> list[str]:
            found = words(text)
            return [stemmer.stem(w) if len(w) > 3 else w for w in found] if stem else found

        self.tokenize = lru_cache(maxsize=8192)(tokenize)


class _CachedTokenizer:
    """rouge-score's default tokenizer, remembering stems and the last texts."""

    def __init__(self) -> None:
        from rouge_score.tokenize import tokenize

        stemmer = CachedStemmer()
        self.tokenize = lru_cache(maxsize=8192)(lambda text: tokenize(text, stemmer))


def build_rouge(
    splitter: str, columns: tuple[str, ...] = TYPES, tokenizer: str = "default"
) -> Rouge:
    """ROUGE for the given columns.

    Args:
        splitter: Sentence splitter, see `sentences`.
        tokenizer: What is a word, see `words`.

    Raises:
        ConfigError: Unknown splitter or tokenizer.
        MissingResourceError: The splitter's model is not on this machine.
    """
    split, own = build_splitter(splitter), build_words(tokenizer)
    from rouge_score.rouge_scorer import RougeScorer

    lines = lru_cache(maxsize=4096)(lambda text: "\n".join(split(text)))
    words = _Words(without_signs(own), stem=tokenizer != "char") if own else _CachedTokenizer()
    scorer = RougeScorer(list(columns), tokenizer=words)
    return Rouge(splitter, scorer, lines, columns, tokenizer=tokenizer)


def make(cfg: MetricsConfig, device: str | None) -> Rouge:
    return build_rouge(cfg.sentence_splitter, tokenizer=cfg.tokenizer)
