"""The preferences task: prompts whose completions somebody has ranked already.

The reward model learns from those rankings. The policy is trained on the preferred completions, or
with `data.targets=all` on every one, weighted by their token rewards, and with `method.reinforce`
on its own samples. Nothing is judged while it runs, unless a judge is chosen: then that says how
good held-out greedy text is.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pgtg.config import RunConfig
from pgtg.data.examples import Examples
from pgtg.data.pairs import Chosen, EveryCompletion, Rankings, read_rankings, splits_train
from pgtg.data.splits import Tally, has_split
from pgtg.data.tables import has_file
from pgtg.models.chat import ChatCodec
from pgtg.models.codec import Codec
from pgtg.runs.files import json_line
from pgtg.tasks.task import Columns
from pgtg.tasks.texts import TextTask

EVERY = "train-all"  # every completion of the training split, as a split of its own


class PreferencesTask(TextTask):
    """Rankings of one run.

    Args:
        cfg: The run's config.
    """

    def __init__(self, cfg: RunConfig):
        super().__init__(cfg)
        self.trained = EVERY if cfg.data.targets == "all" else "train"
        self._rankings: dict[str, Rankings] = {}

    @cached_property
    def preferences(self) -> "RankedTexts":
        return RankedTexts(self)

    def read(self) -> None:
        for split in dict.fromkeys(["train", "validation", *self.cfg.evaluate.splits]):
            if self.has(split):
                self.examples(split)
        if self.judge is not None:
            talk = self.rankings("train").conversational
            self.remarks = self.judge.look_at(self.examples("train"), conversations=talk)

    def has(self, split: str) -> bool:
        """Whether there is such a split: a hub's are taken to be there unless said otherwise."""
        cfg = self.cfg.data
        if split == "train":
            return True
        own = cfg.name == "hub" or has_file(cfg, split) or cfg.splits.get(split) is not None
        return has_split(cfg, split) and (own or (split == "validation" and splits_train(cfg)))

    def rankings(self, split: str) -> Rankings:
        """The preferences of a split.

        Raises:
            DataError: It is missing, unreadable or empty.
        """
        self.examples(split)
        return self._rankings[split]

    def load(self, split: str) -> Mapping[str, Examples]:
        tally = Tally()
        self._rankings[split], self.counts[split] = read_rankings(self.cfg.data, split, tally)
        self.seen[split] = frozenset(tally.seen)
        found = {split: Examples(split, Chosen(self._rankings[split]))}
        if split == "train":
            found[EVERY] = Examples(EVERY, EveryCompletion(self._rankings[split]))
        return found

    def examples(self, split: str) -> Examples:
        if split == EVERY:
            super().examples("train")  # comes with it
        return super().examples(split)

    def codec(self, tokenizer: Any, is_encoder_decoder: bool, ends: Sequence[int] = ()) -> Codec:
        """Conversations by the model's chat template; texts run straight into their completions."""
        kind = ChatCodec if self.rankings("train").conversational else Codec
        policy = self.cfg.policy
        self._codec = kind.of(policy, tokenizer, is_encoder_decoder, ends, cut_start=True)
        return self._codec

    def contents(self, split: str) -> str:
        split = "train" if split == EVERY else split
        if split not in self._hashes:
            digest = hashlib.sha256()
            for one in self.rankings(split):
                told = [value for name, value in vars(one).items() if name != "marks"]
                told += [] if one.marks is None else [one.marks]
                digest.update(json_line([one.id, *told], one.id))
            self._hashes[split] = digest.hexdigest()
        return self._hashes[split]

    def to_sample(self, round: int) -> dict[str, Examples]:
        return {part: examples for part, examples in super().to_sample(round).items() if examples}

    def heldout(self) -> Examples:
        if self.cfg.sample.heldout_sources == 0 or not self.has("validation"):
            return Examples("validation", [])
        return super().heldout()


class RankedTexts:
    """The rankings of a run's splits, as the generations of its sample stage."""

    def __init__(self, task: PreferencesTask):
        self.task = task

    def columns(self, examples: Examples, codec: Codec) -> tuple[Columns, list[str]]:
        rankings = self.task.rankings(examples.split)
        ranked = [rankings[row] for row in examples.rows.tolist()]
        sources = codec.encode_sources([one.prompt for one in ranked])
        found: Columns = {
            name: [] for name in ("source_id", "source", "tokens", "text", "score", "beats")
        }
        margins, cut = [], []
        for one, (source, _) in zip(ranked, sources, strict=True):
            texts = codec.encode_targets(one.completions)
            cut += [one.id] if any(was for _, was in texts) else []
            beats: list[list[int]] = [[] for _ in texts]
            for better, other in one.pairs or ():
                beats[better].append(other)
            found["source_id"] += [one.id] * len(texts)
            found["source"] += [source] * len(texts)
            found["tokens"] += [ids for ids, _ in texts]
            found["text"] += list(one.completions)
            found["score"] += list(one.scores)
            found["beats"] += beats
            margins += [0.0 if one.margin is None else one.margin] * len(texts)
        if ranked and ranked[0].pairs is None:
            del found["beats"]
        if any(margins):
            found["margin"] = margins
        return found, cut

    def describe(self) -> Mapping[str, Any]:
        train = self.task.rankings("train")
        return {"judge": "stored", "format": train.format, "data": self.task.contents("train")}


def make(cfg: RunConfig, run_dir: Path) -> PreferencesTask:
    return PreferencesTask(cfg)
