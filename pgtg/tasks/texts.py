"""What tasks of texts share: splits of examples, their tokens, and in what order a policy trains.

Everything that depends on chance here (which sources a round samples, the order of an epoch) is a
function of the seed and of what it is for, so any stage can be run again alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from pgtg.config import FitConfig, RunConfig
from pgtg.data.comparisons import Comparisons, of_sources, parts_in_passes
from pgtg.data.examples import Examples
from pgtg.data.splits import EMPTY_SOURCE
from pgtg.data.tokens import Encoded, Tokens, encoded, tokenized
from pgtg.errors import DataError
from pgtg.judges.judge import Judge, open_judge
from pgtg.models.codec import Codec
from pgtg.ops.order import of_epoch
from pgtg.ops.sampling import derive_seed
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.tasks.task import examples_hash
from pgtg.training.schedule import segments, updates_per_epoch
from pgtg.types import DataCounts, Example, Generations, TokenIds


class TextTask(ABC):
    """A task whose policy reads a source and writes a text, with a target for each source.

    Args:
        cfg: The run's config.
    """

    def __init__(self, cfg: RunConfig):
        self.cfg = cfg
        self.counts: dict[str, DataCounts] = {}
        self.seen: dict[str, frozenset[bytes]] = {}
        self.remarks: list[str] = []
        self.about = ""
        self._splits: dict[str, Examples] = {}
        self._hashes: dict[str, str] = {}
        self._tokens: dict[str, Tokens] = {}
        self._codec: Codec | None = None
        self._judge: Judge | None = None
        self.trained = "train"  # the split whose targets a policy is trained on
        self._folder: RunFolder | None = None
        self._log: RunLog | None = None

    @abstractmethod
    def load(self, split: str) -> Mapping[str, Examples]:
        """Read a split, and count what became of its rows; with others that come with it."""

    @property
    def judge(self) -> Judge | None:
        return self._judge

    def open_judge(self) -> None:
        self._judge = open_judge(self.cfg)

    def close(self) -> None:
        if self._judge is not None:
            self._judge.close()

    @property
    def targets(self) -> "TextTask":
        return self

    @property
    def search(self) -> None:
        return None

    def codec(self, tokenizer: Any, is_encoder_decoder: bool, ends: Sequence[int] = ()) -> Codec:
        self._codec = Codec.of(self.cfg.policy, tokenizer, is_encoder_decoder, ends)
        self.require_readable(self._codec)
        return self._codec

    def require_readable(self, codec: Codec) -> None:
        """A causal LM has nothing to start from where a source and what surrounds it are empty.

        Raises:
            DataError: A split that was read kept such rows.
        """
        for split, counts in self.counts.items():
            rows = counts.truncated.get(EMPTY_SOURCE, 0)
            if rows and not codec.encode_source("")[0]:
                first = counts.examples[EMPTY_SOURCE]
                raise DataError(
                    f"data {split}: {rows} sources are empty (first: {first}) and leave the policy "
                    "nothing to read: give policy.prefix or policy.suffix, or "
                    f"data.empty.{split}=drop"
                )

    def keep_in(self, folder: RunFolder, log: RunLog) -> None:
        """Tokens of large splits are kept in the run's folder, which this process has locked."""
        self._folder, self._log = folder, log
        if self._judge is not None:
            self._judge.keep_in(folder, log)

    def tokens(self, split: str, codec: Codec) -> Tokens:
        """Token ids of all examples of a split, made once a run."""
        if split not in self._tokens:
            kept = None if self._folder is None else self._folder.artifact("tokens", split)
            examples, contents = self.examples(split), self.contents(split)
            found = tokenized(examples, codec, contents=contents, kept=kept, log=self._log)
            self._tokens[split] = found
        return self._tokens[split]

    def lengths(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of sources and of targets [tokens], by row of the split; no text is read.

        Those of the codec that was asked for last: a run has one.
        """
        assert self._codec is not None
        tokens = self.tokens(split, self._codec)
        return tokens.source_lengths, tokens.target_lengths

    def sources(self, examples: Sequence[Example], codec: Codec) -> Encoded:
        if isinstance(examples, Examples):
            return self.tokens(examples.split, codec).encoded(examples.rows)
        return encoded(examples, codec)

    def allowed(self, tokenizer: Any) -> Sequence[int] | None:
        return None

    def comparisons(
        self, generations: Generations, cfg: FitConfig, seed: int, step: int
    ) -> list[Comparisons]:
        """The generations of each source are compared; passes over the sources."""
        return parts_in_passes(generations, self.all_comparisons(generations), cfg, seed, step)

    def grouping(self) -> Mapping[str, Any]:
        return {}

    def all_comparisons(self, generations: Generations) -> Comparisons:
        return of_sources(generations)

    def examples(self, split: str) -> Examples:
        """All examples of a split, each read when it is asked for.

        Raises:
            DataError: The split is missing, unreadable or empty.
        """
        if split not in self._splits:
            self._splits |= self.load(split)
            if not self._splits[split]:
                raise DataError(f"the {split} split has no examples: check data.limit.{split}")
        return self._splits[split]

    def segments(self) -> list[int]:
        """Policy updates after each reward training, one number a round."""
        cfg = self.cfg.improve
        epoch = 0
        if self.cfg.schedule.unit == "epochs":
            examples = len(self.examples(self.trained))
            epoch = updates_per_epoch(examples, cfg.micro_batch, cfg.accumulate)
        return segments(self.cfg.schedule, epoch)

    def to_sample(self, round: int) -> dict[str, Examples]:
        """Sources of a round: "train" for the reward model to learn from, "heldout" to check it.

        Held-out sources come from the validation split and are the same in every round.
        """
        return {
            "train": self._pick("train", self.cfg.sample.sources, "sources", round),
            "heldout": self.heldout(),
        }

    def heldout(self) -> Examples:
        return self._pick("validation", self.cfg.sample.heldout_sources, "heldout", 0)

    def _pick(self, split: str, size: int, *key: int | str) -> Examples:
        examples = self.examples(split)
        order = np.random.default_rng(derive_seed(self.cfg.seed, *key)).permutation(len(examples))
        return examples.chosen(order[:size])

    def window(self, update: int, among: np.ndarray | None = None) -> list[Examples]:
        """Micro-batches of the policy's update number `update`, counted over all rounds."""
        examples, cfg = self.examples(self.trained), self.cfg.improve
        size = len(examples) if among is None else len(among)
        epoch, place = divmod(update, updates_per_epoch(size, cfg.micro_batch, cfg.accumulate))
        if among is None:
            order = self._epoch_order(epoch)
        else:
            rng = np.random.default_rng(derive_seed(self.cfg.seed, "epoch", "among", epoch))
            order = among[rng.permutation(size)]
        parts = of_epoch(
            self.lengths(self.trained)[0][order] if cfg.bucket > 1 else order,
            place,
            micro_batch=cfg.micro_batch,
            accumulate=cfg.accumulate,
            bucket=cfg.bucket,
            seed=derive_seed(self.cfg.seed, "bucket", epoch),
        )
        return [examples.chosen(order[part]) for part in parts]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng(derive_seed(self.cfg.seed, "epoch", epoch))
            self._orders.clear()  # one epoch at a time
            self._orders[epoch] = rng.permutation(len(self.examples(self.trained)))
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def contents(self, split: str) -> str:
        if split not in self._hashes:  # of a large split it takes seconds
            self._hashes[split] = examples_hash(self.examples(split))
        return self._hashes[split]

    def to_evaluate(self, split: str) -> Examples:
        """The examples that the evaluation reads: the first evaluate.examples of the split."""
        return self.examples(split)[: self.cfg.evaluate.examples]

    def check_texts(self, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, list]:
        """Scores against planted truth, per example, in [0, 100]; empty for ordinary data."""
        return {}

    def target_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        return None

    def reference_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        return None

    def target_flaws(self, example: Example, tokens: TokenIds) -> list[bool] | None:
        return None
