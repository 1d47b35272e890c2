"""chrF by sacrebleu: F-measure of character n-grams, for any script and without a tokenizer.

chrF2 (n-grams of 1 to 6 characters, white space left out, recall weighs twice) of each text against
its best reference, in [0, 100]. Source: Popović 2015, chrF: character n-gram F-score.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pgtg.config import MetricsConfig


@dataclass(frozen=True)
class ChrF:
    """chrF2 of a text against its references. Build it by `build_chrf`."""

    scorer: Any  # a sacrebleu CHRF
    name: str = "chrf"
    columns: tuple[str, ...] = ("chrf",)
    scale: str = "[0, 100]"

    def describe(self) -> Mapping[str, Any]:
        return {
            "implementation": f"sacrebleu {version('sacrebleu')}",
            "measure": "chrF2: characters 1 to 6, no words, beta 2, case kept",
            "several_references": "the best one",
            "scale": self.scale,
        }

    def pair(self, text: str, references: Sequence[str]) -> float:
        """Score of one text, in [0, 100]; an empty text scores 0."""
        return float(self.scorer.sentence_score(text, list(references)).score)

    def score(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, list[float]]:
        scores = [self.pair(text, refs) for text, refs in zip(texts, references, strict=True)]
        return {self.name: scores}

    def unread(self, texts: Iterable[str]) -> float:
        return 0.0


def build_chrf() -> ChrF:
    from sacrebleu.metrics.chrf import CHRF

    return ChrF(CHRF())


def make(cfg: MetricsConfig, device: str | None) -> ChrF:
    return build_chrf()
