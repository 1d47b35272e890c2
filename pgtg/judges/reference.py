"""Judging by references: a text judge in its processes, as the stages see it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from pgtg.errors import ConfigError
from pgtg.judges.judge import Columns, Judge
from pgtg.judges.pool import JudgePool
from pgtg.metrics import unread_line
from pgtg.models.codec import Codec
from pgtg.types import Example, TokenIds

LOOKED_AT = 500  # examples whose references the judge is held against before a run
NOTED = 0.02  # share of the references' letters that it may miss without a word


class ReferenceJudge(Judge):
    """Scores of texts against their sources' references."""

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

    def look_at(self, examples: Sequence[Example], *, conversations: bool) -> list[str]:
        """The judge sees the references, or most of them.

        Raises:
            ConfigError: It reads less than half of their letters.
        """
        texts = (text for example in examples[:LOOKED_AT] for text in example.references)
        share = self.pool.unread(texts)
        name = f"judge.name={self.pool.name}"
        if share > 0.5:
            raise ConfigError(f"{unread_line(name, share)} (judge=chrf)")
        return [unread_line(name, share)] if share >= NOTED else []

    def close(self) -> None:
        self.pool.close()


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


def done(columns: Columns) -> Future[Columns]:
    """The future of what is there already."""
    made: Future[Columns] = Future()
    made.set_result(columns)
    return made
