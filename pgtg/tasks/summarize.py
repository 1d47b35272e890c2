"""The summarization task: texts with references, generations judged against them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pgtg.config import RunConfig
from pgtg.data.examples import Examples
from pgtg.data.splits import Tally, has_split, load_split
from pgtg.data.worlds import flaws, newswire
from pgtg.data.worlds.world import FLAWS, World
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
        if split == "train" and self.cfg.data.flaws is not None:
            self.about = flaws.describe(self.cfg.data.flaws, self.counts[split])
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

    @cached_property
    def world(self) -> World | None:
        """Where flaws of the targets are known; None for ordinary data."""
        if self.cfg.data.name == "newswire":
            return newswire.Newswire()
        planted = self.cfg.data.flaws
        return None if planted is None else flaws.FlawedReferences(planted)

    def check_texts(self, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, list]:
        """Scores against planted truth, per example, in [0, 100]; empty for ordinary data."""
        if self.world is None or not examples:
            return {}
        return dict(self.world.check_texts(texts, examples))

    def target_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        if self.world is None:
            return None
        assert self._codec is not None  # it made the tokens
        return self.world.target_labels(example, tokens, self._codec)

    def reference_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        if self.world is None:
            return None
        assert self._codec is not None
        return self.world.reference_labels(example, tokens, self._codec)

    def target_flaws(self, example: Example, tokens: TokenIds) -> list[bool] | None:
        labels = self.target_labels(example, tokens)
        return None if labels is None else [label in FLAWS for label in labels]


def make(cfg: RunConfig, run_dir: Path) -> SummarizeTask:
    return SummarizeTask(cfg)
