"""Supervised improvement: the stream of weighted targets, and of the policy's own samples.

Token rewards of the targets do not change while the policy learns, so those that a round uses are
computed once, in length-sorted batches, for all lines that the reward model guides. A control
trains on the same batches from the same start with other weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pgtg.data.examples import Examples
from pgtg.data.rows import BATCH, mapped_rows, write_rows
from pgtg.errors import DataError
from pgtg.methods.method import Improving, Method
from pgtg.methods.objective import Improvement, Sampled, SupervisedBatch, sampled_log_probs
from pgtg.methods.options import WeightedMLE
from pgtg.methods.texts import TextTrainer
from pgtg.models.batch import moved, token_batch
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.objectives import advantages, effective_share
from pgtg.runtime import distributed
from pgtg.training.update import Where
from pgtg.types import TokenBatch

MEASURED = 512  # targets whose weights are measured
REWARDS = "rewards.arrow"
SCHEMA = pa.schema({"source_id": pa.large_string(), "reward": pa.list_(pa.float32())})


class SupervisedTrainer(TextTrainer):
    """Targets with token weights, and with the policy-gradient term also the policy's samples."""

    among: np.ndarray | None = None  # rows of the training split that it draws from; None: all

    def __init__(self, method: Method, given: Improving):
        super().__init__(given)
        ctx = given.ctx
        self.method, self.model = method, given.model
        self.first, self.updates = given.first, given.updates
        given_options = WeightedMLE.of(ctx.cfg.method)
        extra = given_options if method.samples else replace(given_options, reinforce=0.0)
        self.options = extra if method.needs_reward else replace(extra, entropy=0.0)
        self.ahead = self.options.reinforce == 0  # else the policy is sampled for its update
        self.objective = Improvement(self.lm, self.options, ctx.sampling())
        self.start = ctx.load_start()[0] if self.options.keeps_start else None
        self.tokens = self.targets.tokens(self.targets.trained, self.codec)
        self.used = used = self._used()
        self.cut = int((self.tokens.source_cut | self.tokens.target_cut)[used].sum())
        self.rewards = self._target_rewards(used) if self.model is not None else None
        centred = self.rewards is not None and self.options.weights != "share"
        self.level, self.below = self._threshold() if centred else (0.0, None)

    def _used(self) -> np.ndarray:
        """Rows of the examples of the round, in the order of their first use."""
        if self.method.all_targets:
            return np.arange(len(self.tokens))
        windows = (self.targets.window(self.first + step) for step in range(self.updates))
        rows = [part.rows for window in windows for part in window]
        if not rows:
            return np.empty(0, np.int64)
        found, first = np.unique(np.concatenate(rows), return_index=True)
        return found[first.argsort()]

    def _examples(self, rows: np.ndarray) -> Examples:
        return self.targets.examples(self.targets.trained).chosen(rows)

    def window(self, step: int) -> list[Callable[[], SupervisedBatch]]:
        """What makes each micro-batch of the round's update number `step`."""
        update = self.first + step
        parts = enumerate(self.targets.window(update, self.among))
        return [partial(self._batch, part, update, place) for place, part in parts]

    def _batch(self, examples: Examples, update: int, place: int) -> SupervisedBatch:
        seed = Where(self.ctx.cfg.seed, "improve", 0).seed_at(update, "weights", place)
        batch, weights = self._weighted(examples, seed)
        sampled = self._sampled(examples, update) if self.options.reinforce > 0 else None
        return SupervisedBatch(batch, weights, sampled)

    def _weighted(self, examples: Examples, seed: int) -> tuple[TokenBatch, Tensor]:
        sources, targets = self.tokens.sources(examples.rows), self.tokens.targets(examples.rows)
        own, device = range(len(examples)), self.ctx.device
        batch = token_batch(list(sources), list(targets), own, device, recurring=True)
        values = None
        if self.rewards is not None:
            values = torch.zeros(batch.mask.shape)
            for line, row in zip(values, examples.rows.tolist(), strict=True):
                rewards = self.rewards(row)
                line[: len(rewards)] = torch.from_numpy(rewards - np.float32(self.level))
            values = moved(values, self.ctx.device)
        return batch, self.weights(examples, batch, values, seed)

    def measured(self) -> dict[str, float]:
        """How the weights of the round's first targets are spread (1: all the same), and their part
        on planted flaws, where these are known; and the threshold, where there is one."""
        rows = self.used if self.among is None else self.among
        if not len(rows) or not self.options.mle:
            return {}
        examples = self._examples(rows[:MEASURED])
        batch, weights = self._weighted(examples, self.ctx.cfg.seed)
        mask, weights = batch.mask.cpu(), weights.double().cpu()
        found = {"improve/effective_share": effective_share(weights, mask)}
        if self.below is not None:
            found |= {"improve/threshold": self.level, "improve/below_threshold": self.below}
        tokens = self.tokens.targets(examples.rows)
        flaws = [self.task.target_flaws(e, t) for e, t in zip(examples, tokens, strict=True)]
        known = [row for row in flaws if row is not None]
        if len(known) == len(flaws):
            on_flaws = sum(
                float(line[: len(row)][torch.tensor(row)].sum())
                for line, row in zip(weights, known, strict=True)
            )
            found["improve/weight_on_flaws"] = on_flaws / float(weights.where(mask, 0.0).sum())
        return found

    def _threshold(self) -> tuple[float, float]:
        """The token reward from which a token is good, and the share of the round's tokens below.

        Raises:
            DataError: None reaches it.
        """
        found = [self.rewards(row) for row in self.used.tolist()] if self.rewards else []
        values = np.concatenate([*found, np.empty(0, np.float32)])
        level = self.options.threshold
        if level is None:
            level = float(values.mean(dtype=np.float64)) if len(values) else 0.0
        below = float((values - np.float32(level) < 0).mean()) if len(values) else 0.0
        if below == 1:
            raise DataError(
                f"method.threshold={level:g}: no token of the round's targets has such a reward; "
                f"the highest is {values.max():.4g}, the mean {values.mean(dtype=np.float64):.4g}"
            )
        return level, below

    def weights(
        self, examples: Examples, batch: TokenBatch, rewards: Tensor | None, seed: int
    ) -> Tensor:
        """[N, T] weight of each token of the examples' targets.

        Args:
            rewards: Less the threshold, where tokens are told apart by one (method.weights).
        """
        assert self.method.weigh is not None
        return self.method.weigh(rewards, batch.mask, self.ctx.cfg.method, seed)

    def _target_rewards(self, used: np.ndarray) -> Callable[[int], np.ndarray]:
        """Token rewards of the targets that the round uses, by the example's row."""
        model, shared = self.model, self.given.targets
        assert shared is not None and model is not None

        def write(path: Path) -> None:
            sources, targets = self.tokens.sources(used), self.tokens.targets(used)
            values = self.ctx.per_token(model, sources, targets, range(len(used)))
            _write(path, self._examples(used).ids(), values)

        table = mapped_rows(shared.file(REWARDS, write), SCHEMA)
        place = np.full(len(self.tokens), -1)
        place[used] = np.arange(len(used))
        return lambda row: table.numbers("reward", int(place[row])).copy()

    @torch.no_grad()
    def _sampled(self, examples: Examples, update: int) -> Sampled:
        """Samples of the policy as it is now, with their advantages under the reward model."""
        assert self.model is not None
        sources = list(self.tokens.sources(examples.rows))
        with self.ctx.reading(self.lm):
            names, key = [e.id for e in examples], (self.ctx.cfg.seed, "improve", update)
            sampler = self.ctx.sampler(self.lm, self.codec)
            found = dict(sampler(sources, names, k=self.options.samples, seed_key=key))
        rows = [(i, tokens) for i in range(len(examples)) for tokens in found[i]]
        batch = token_batch(
            sources, [tokens for _, tokens in rows], [i for i, _ in rows], self.ctx.device
        )
        start = None
        if self.start is not None:
            start = sampled_log_probs(self.start, batch, self.ctx.sampling())
        advantage = self._advantage(self.model(batch), batch.mask, batch.origin)
        return Sampled(batch, advantage, start)

    def _advantage(self, token_rewards: Tensor, mask: Tensor, origin: Tensor) -> Tensor:
        evaluations = Aggregator.of(self.ctx.cfg.aggregator)(token_rewards, mask)
        return advantages(
            token_rewards,
            evaluations,
            mask,
            origin,
            baseline=self.options.baseline,
            token_share=self.options.token_share,
            to_go=self.options.reward_to_go,
        )


@distributed.first
def _write(path: Path, names: Sequence[str], values: Sequence[np.ndarray]) -> None:
    starts = range(0, len(names), BATCH)
    batches = (
        pa.RecordBatch.from_pydict(
            {"source_id": names[i : i + BATCH], "reward": list(values[i : i + BATCH])}, SCHEMA
        )
        for i in starts
    )
    write_rows(path, SCHEMA, batches)
