"""Supervised improvement: the stream of weighted targets, and of the policy's own samples.

Token rewards of the targets do not change while the policy learns, so those that a round uses are
computed once, in length-sorted batches. A control trains on the same batches from the same start
with other weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pgtg import processes
from pgtg.config import FitConfig
from pgtg.methods.method import Improving, Method
from pgtg.methods.objective import Improvement, Sampled, SupervisedBatch, sampled_log_probs
from pgtg.models.batch import token_batch
from pgtg.models.generate import generate
from pgtg.models.language import evaluating
from pgtg.ops.aggregate import AGGREGATORS
from pgtg.ops.objectives import advantages
from pgtg.store import read_table, write_table
from pgtg.tasks.summarize import SummarizeTask
from pgtg.training import Where
from pgtg.types import Example, TokenIds


class SupervisedGuide:
    """Targets with token weights, and with the policy-gradient term also the policy's samples."""

    validates = True

    def __init__(self, method: Method, given: Improving):
        ctx = given.ctx
        assert isinstance(ctx.task, SummarizeTask)
        self.task = ctx.task
        self.ctx, self.method, self.lm, self.codec = ctx, method, given.lm, given.codec
        self.model, self.working, self.cut = given.model, given.working, 0
        self.first, self.updates = given.first, given.updates
        self.heldout = f"{ctx.cfg.judge.name} of greedy text on held-out sources"
        extra = ctx.cfg.method if method.samples else replace(ctx.cfg.method, reinforce=0.0)
        self.options = extra if method.needs_reward else replace(extra, entropy=0.0)
        self.objective = Improvement(self.lm, self.options, ctx.sampling())
        self.start = ctx.load_start()[0] if self.options.reinforce * self.options.kl > 0 else None
        self._encoded: dict[str, tuple[TokenIds, TokenIds]] = {}
        used = self._used()
        for example in used.values():  # now, so that a resumed run counts the same cuts
            self.encoded(example)
        self._rewards = self._target_rewards(used) if self.model is not None else {}

    def fit_config(self) -> FitConfig:
        return replace(self.ctx.cfg.improve, updates=self.updates)

    def judged_prompts(self, steps: int) -> Mapping[str, float]:
        return {}  # only the prompt search counts its judge's work

    def _used(self) -> dict[str, Example]:
        """The examples of the round, by id."""
        windows = (self.task.window(self.first + step) for step in range(self.updates))
        return {e.id: e for window in windows for part in window for e in part}

    def encoded(self, example: Example) -> tuple[TokenIds, TokenIds]:
        """Ids of source and target; how many had to be cut is counted."""
        if example.id not in self._encoded:
            source, source_cut = self.codec.encode_source(example.source)
            target, target_cut = self.codec.encode_target(example.target)
            self.cut += source_cut or target_cut
            self._encoded[example.id] = (source, target)
        return self._encoded[example.id]

    def window(self, step: int) -> list[Callable[[], SupervisedBatch]]:
        """What makes each micro-batch of the round's update number `step`."""
        update = self.first + step
        parts = enumerate(self.task.window(update))
        return [partial(self._batch, part, update, place) for place, part in parts]

    def _batch(self, examples: Sequence[Example], update: int, place: int) -> SupervisedBatch:
        pairs = [self.encoded(example) for example in examples]
        batch = token_batch(
            [source for source, _ in pairs],
            [target for _, target in pairs],
            range(len(pairs)),
            self.ctx.device,
        )
        values = None
        if self.model is not None:
            values = torch.zeros(batch.mask.shape)
            for row, example in enumerate(examples):
                values[row, : len(pairs[row][1])] = torch.from_numpy(self._rewards[example.id])
            values = values.to(self.ctx.device)
        seed = Where(self.ctx.cfg.seed, "improve", 0).seed_at(update, "weights", place)
        assert self.method.weigh is not None
        weights = self.method.weigh(values, batch.mask, self.ctx.cfg.method, seed)
        sampled = self._sampled(examples, update) if self.options.reinforce > 0 else None
        return SupervisedBatch(batch, weights, sampled)

    def _target_rewards(self, used: dict[str, Example]) -> dict[str, np.ndarray]:
        """Token rewards of the targets that the round uses, kept in a file for a resume."""
        path = self.working / "target_rewards.parquet"
        if not path.is_file():
            pairs = [self.encoded(example) for example in used.values()]
            assert self.model is not None
            values = self.ctx.per_token(
                self.model,
                [source for source, _ in pairs],
                [target for _, target in pairs],
                range(len(pairs)),
            )
            columns = {"source_id": list(used), "reward": [row.tolist() for row in values]}
            write_table(path, columns)
        table = read_table(path)
        return {
            i: np.array(row, np.float32)
            for i, row in zip(table["source_id"], table["reward"], strict=True)
        }

    @torch.no_grad()
    def _sampled(self, examples: Sequence[Example], update: int) -> Sampled:
        """Samples of the policy as it is now, with their advantages under the reward model."""
        assert self.model is not None
        sources = [self.encoded(example)[0] for example in examples]
        with evaluating(self.lm):
            found = dict(
                generate(
                    self.lm,
                    sources,
                    [example.id for example in examples],
                    k=self.options.samples,
                    eos_ids=self.codec.eos_ids,
                    decoding=self.ctx.sampling(),
                    batch_tokens=self.ctx.cfg.sample.batch_tokens,
                    seed_key=(self.ctx.cfg.seed, "improve", update),
                )
            )
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
        cfg = self.ctx.cfg.aggregator
        aggregator = AGGREGATORS[cfg.name]
        evaluations = aggregator(token_rewards, mask, cfg.temperature, cfg.length_normalized)
        return advantages(
            token_rewards,
            evaluations,
            mask,
            origin,
            baseline=self.options.baseline,
            token_share=self.options.token_share,
            to_go=self.options.reward_to_go,
        )

    def validate(self) -> dict[str, float]:
        """The judge's mean score [its unit] of greedy text on the held-out sources, negated."""
        scores = processes.spread(self._judged, self.ctx.task.heldout())
        return {"improve/negative_heldout_score": -sum(scores) / len(scores)}

    def _judged(self, examples: Sequence[Example]) -> list[float]:
        """The judge's scores of greedy text."""
        found = dict(
            generate(
                self.lm,
                [self.codec.encode_source(example.source)[0] for example in examples],
                [example.id for example in examples],
                k=1,
                eos_ids=self.codec.eos_ids,
                decoding=self.ctx.greedy(),
                batch_tokens=self.ctx.cfg.sample.batch_tokens,
                seed_key=(),
            )
        )
        tokens = [found[i][0] for i in range(len(examples))]
        texts = [self.codec.decode(ids) for ids in tokens]
        return self.ctx.task.judged(tokens, texts, examples, self.codec).result()["score"]
