"""The summarization task: texts with references, generations judged against them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pgtg.config import RunConfig
from pgtg.data.examples import Examples
from pgtg.data.splits import Tally, has_split, load_split
from pgtg.data.worlds import newswire
from pgtg.tasks.task import Sampled
from pgtg.tasks.texts import TextTask
from pgtg.types import DataCounts, Example, TokenIds


class SummarizeTask(TextTask):
    """Data and checks of one summarization run.

    Args:
        cfg: The run's config.
    """

    @property
    def preferences(self) -> Sampled:
        return Sampled(self.cfg.sample.k)

    def read(self) -> None:
        there = [s for s in self.cfg.evaluate.splits if has_split(self.cfg.data, s)]
        for split in dict.fromkeys(["train", "validation", *there]):
            self.examples(split)
        if self.judge is not None:
            self.remarks = self.judge.look_at(self.examples("train"), conversations=False)

    def load(self, split: str) -> Mapping[str, Examples]:
        if self.cfg.data.name == "newswire":
            return self._newswire
        tally = Tally()
        stored, self.counts[split] = load_split(self.cfg.data, split, tally)
        self.seen[split] = frozenset(tally.seen)
        return {split: Examples(split, stored)}

    @cached_property
    def _newswire(self) -> dict[str, Examples]:
        world = self.cfg.data.newswire
        assert world is not None  # config check
        made = newswire.generate(world)
        self.about = newswire.describe(world)
        limits = self.cfg.data.limit
        made = {split: rows[: limits.get(split)] for split, rows in made.items()}
        for split, rows in made.items():
            self.counts[split] = DataCounts(split, len(rows), len(rows))
        return {split: Examples(split, rows) for split, rows in made.items()}

    @property
    def vocabulary(self) -> list[str]:
        """Words of the generated world, for the tiny T5's tokenizer."""
        assert self.cfg.data.newswire is not None
        return newswire.vocabulary(self.cfg.data.newswire)

    def check_texts(self, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, list]:
        """Scores against planted truth, per example, in [0, 100]; empty for ordinary data."""
        if not examples or examples[0].truth is None:
            return {}
        checked = [newswire.check(t, e.truth) for t, e in zip(texts, examples, strict=True)]
        return {
            "fact_accuracy": [100 * c.fact_accuracy for c in checked],
            "well_formed": [100.0 * c.well_formed for c in checked],
            "boilerplate": [100.0 * c.boilerplate for c in checked],
        }

    def target_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        """A planted label for each token of the example's target; None for ordinary data.

        The end token, which has no word, is labelled "end".
        """
        if example.truth is None:
            return None
        labels = [*example.truth.target_labels, "end"]
        return labels if len(labels) == len(tokens) else None

    def reference_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        if example.truth is None:
            return None
        labels = [*newswire.label_words(example.truth, example.references[0].split()), "end"]
        return labels if len(labels) == len(tokens) else None

    def target_flaws(self, example: Example, tokens: TokenIds) -> list[bool] | None:
        labels = self.target_labels(example, tokens)
        return None if labels is None else [label in newswire.FLAWS for label in labels]


def make(cfg: RunConfig, run_dir: Path) -> SummarizeTask:
    return SummarizeTask(cfg)
