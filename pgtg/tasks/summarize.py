"""The summarization task: texts with references, generations judged against them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

from pgtg.config import RunConfig
from pgtg.data.examples import Examples
from pgtg.data.splits import Tally, has_split, load_split
from pgtg.data.worlds import newswire
from pgtg.errors import ConfigError
from pgtg.judges.pool import JudgePool
from pgtg.metrics import unread_line
from pgtg.models.codec import Codec
from pgtg.tasks.task import Columns, Sampled
from pgtg.tasks.texts import TextTask
from pgtg.types import DataCounts, Example, TokenIds

LOOKED_AT = 500  # examples whose references the judge is held against before a run
NOTED = 0.02  # share of the references' letters that it may miss without a word


class ReferenceJudge:
    """A text judge in its processes: scores of texts against their sources' references."""

    def __init__(self, pool: JudgePool):
        self.pool = pool

    def __call__(
        self,
        tokens: Sequence[TokenIds],
        texts: Sequence[str],
        examples: Sequence[Example],
        codec: Codec,
    ) -> Future[Columns]:
        how = self.pool.reference
        references = [scored_against(example, codec, how) for example in examples]
        return then(self.pool.submit(texts, references), lambda found: {"score": found})

    def describe(self) -> Mapping[str, Any]:
        return self.pool.describe()


class SummarizeTask(TextTask):
    """Data and checks of one summarization run.

    Args:
        cfg: The run's config.
        pool: The true preference; None where nothing is judged: in `pgtg eval`.
    """

    def __init__(self, cfg: RunConfig, pool: JudgePool | None = None):
        super().__init__(cfg)
        self._pool = pool

    @property
    def judge(self) -> ReferenceJudge | None:
        return None if self._pool is None else ReferenceJudge(self._pool)

    @property
    def preferences(self) -> Sampled:
        return Sampled(self.cfg.sample.k)

    def open_judge(self) -> None:
        metrics = self.cfg.metrics
        self._pool = JudgePool(self.cfg.judge, metrics.sentence_splitter, metrics.tokenizer)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def read(self) -> None:
        there = [s for s in self.cfg.evaluate.splits if has_split(self.cfg.data, s)]
        for split in dict.fromkeys(["train", "validation", *there]):
            self.examples(split)
        if self._pool is not None:
            self._require_readable(self._pool)

    def _require_readable(self, judge: JudgePool) -> None:
        """The judge sees the references, or most of them.

        Raises:
            ConfigError: It reads less than half of their letters.
        """
        examples = self.examples("train")[:LOOKED_AT]
        share = judge.unread(text for example in examples for text in example.references)
        name = f"judge.name={self.cfg.judge.name}"
        if share > 0.5:
            raise ConfigError(f"{unread_line(name, share)} (judge=chrf)")
        self.remarks = [unread_line(name, share)] if share >= NOTED else []

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


def make(cfg: RunConfig, run_dir: Path) -> SummarizeTask:
    return SummarizeTask(cfg)


def scored_against(example: Example, codec: Codec, how: str) -> tuple[str, ...]:
    """The references that a text is scored against.

    Args:
        how: "as_given", or "as_trained": each as it reads where it is the policy's target, that is
            cut to fit, encoded and decoded again.
    """
    if how == "as_given":
        return example.references
    return tuple(codec.decode(codec.encode_target(text)[0]) for text in example.references)


def then(future: Future, function: Callable[[Any], Columns]) -> Future[Columns]:
    """The future of `function` of a future's result; its failure is its failure."""
    made: Future[Columns] = Future()

    def settle(done: Future) -> None:
        if done.cancelled():
            made.cancel()
        elif error := done.exception():
            made.set_exception(error)
        else:
            made.set_result(function(done.result()))

    future.add_done_callback(settle)
    return made
