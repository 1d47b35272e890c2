"""What the stages ask of a task. Everything that depends on chance in a task is a function of the
seed and of what it is for, so any stage can be run again alone."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pgtg.config import FitConfig, RunConfig
from pgtg.data.comparisons import Comparisons
from pgtg.data.examples import Examples
from pgtg.data.tokens import Encoded, Tokens
from pgtg.judges.judge import Columns, Judge
from pgtg.models.codec import Codec
from pgtg.runs.files import json_line
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.types import DataCounts, Example, Generations, Labelled, TokenIds

if TYPE_CHECKING:
    from pgtg.tasks.prompt import PromptTask


@dataclass(frozen=True)
class Sampled:
    """Preferences by the task's judge, over texts that the policy generates.

    Args:
        copies: Generations of each source that a round samples.
    """

    copies: int


class Stored(Protocol):
    """Preferences that exist already: somebody has ranked these texts."""

    def columns(self, examples: Examples, codec: Codec) -> tuple[Columns, list[str]]:
        """The ranked texts of sources, below each other: source_id, source, tokens, text, score.

        The sources in the order of `examples`; token ids are cut as the policy's are.

        Returns:
            The columns, and the ids of rows with a text that was cut.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """What the preferences are, in words and figures."""
        ...


class Task(Protocol):
    """Data of a run, how its generations are judged and compared, and in what order it trains."""

    cfg: RunConfig
    counts: dict[str, DataCounts]  # of the splits that were read
    seen: dict[str, frozenset[bytes]]  # the same splits' texts, as fingerprints
    remarks: list[str]  # what reading them found, to be said as warnings
    about: str  # what is known of generated data, to be said at once; "" for other data

    @property
    def preferences(self) -> Sampled | Stored:
        """What the reward model learns from."""
        ...

    @property
    def judge(self) -> Judge | None:
        """What judges generations, once it is open; None where nothing does."""
        ...

    @property
    def targets(self) -> "Targets | None":
        """Its supervised data; None where there is none."""
        ...

    @property
    def search(self) -> "PromptTask | None":
        """What a search for prompts reads; None where texts are generated."""
        ...

    def open_judge(self) -> None:
        """Load what judges generations, or find that it cannot be loaded.

        Raises:
            MissingResourceError: What it needs is not on this machine.
        """
        ...

    def close(self) -> None:
        """Let the judge go."""
        ...

    def read(self) -> None:
        """Read the splits that the run uses.

        Raises:
            DataError: A split is missing, unreadable or empty.
        """
        ...

    def codec(self, tokenizer: Any, is_encoder_decoder: bool, ends: Sequence[int] = ()) -> Codec:
        """How the policy's sources and targets become token ids.

        Args:
            ends: End tokens that the model's configs name.
        """
        ...

    def keep_in(self, folder: RunFolder, log: RunLog) -> None:
        """What takes long to derive from the data is kept in a run's folder, which is locked."""
        ...

    def sources(self, examples: Sequence[Example], codec: Codec) -> Encoded:
        """Token ids of the examples' sources."""
        ...

    def allowed(self, tokenizer: Any) -> Sequence[int] | None:
        """The only tokens that the policy may use; None for all."""
        ...

    def segments(self) -> list[int]:
        """Policy updates after each reward training, one number a round."""
        ...

    def to_sample(self, round: int) -> Mapping[str, Sequence[Example]]:
        """Sources of a round: "train" to learn from, and perhaps "heldout" to check."""
        ...

    def comparisons(
        self, generations: Generations, cfg: FitConfig, seed: int, step: int
    ) -> list[Comparisons]:
        """Groups for the micro-batches of update number `step` of the reward model."""
        ...

    def grouping(self) -> Mapping[str, Any]:
        """The part of the config that the comparisons depend on."""
        ...

    def all_comparisons(self, generations: Generations) -> Comparisons:
        """All groups, to check a reward model with."""
        ...

    def heldout(self) -> Sequence[Example]:
        """Examples that no training reads; the same in every round."""
        ...

    def contents(self, split: str) -> str:
        """Hash of a split's examples, and of all others that judging or ranking reads with them."""
        ...

    def target_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        """A planted label for each token of an example's target; None for ordinary data."""
        ...

    def reference_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        """A label for each token of an example's first reference; None for ordinary data."""
        ...

    def target_flaws(self, example: Example, tokens: TokenIds) -> list[bool] | None:
        """Which tokens of an example's target are planted flaws; None where nothing is planted."""
        ...


class Targets(Protocol):
    """Supervised data: what texts are trained on, in which order, and what is evaluated."""

    trained: str  # the split whose targets a policy is trained on

    def examples(self, split: str) -> Examples:
        """All examples of a split."""
        ...

    def tokens(self, split: str, codec: Codec) -> Tokens:
        """Token ids of all examples of a split."""
        ...

    def window(self, update: int, among: np.ndarray | None = None) -> list[Examples]:
        """Micro-batches of the policy's update number `update`, counted over all rounds.

        Args:
            among: Rows of the split `trained` to draw from; None: all of it.
        """
        ...

    def to_evaluate(self, split: str) -> Examples:
        """The examples that the evaluation reads."""
        ...

    def check_texts(self, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, list]:
        """Scores against planted truth, per example; empty for ordinary data."""
        ...


def described(task: Task) -> dict[str, Any]:
    """What the preferences of a round's samples rest on."""
    if isinstance(task.preferences, Sampled):
        assert task.judge is not None  # it is open where something is judged
        return dict(task.judge.describe())
    return dict(task.preferences.describe())


def examples_hash(rows: Iterable[Example | Labelled]) -> str:
    """sha256 of examples, one after the other. Planted truth is left out: its world is config."""
    digest = hashlib.sha256()
    for row in rows:
        if isinstance(row, Labelled):
            part = [row.id, row.text, row.label]
        else:
            part = [row.id, row.source, row.target, list(row.references)]
        digest.update(json_line(part, row.id))
    return digest.hexdigest()
