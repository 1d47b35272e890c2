"""Improvement without supervised data: the policy gradient on the policy's own samples.

`PGTG` weighs each token by the learned reward (arXiv:2306.00398, Sec. 2.2, REINFORCE with
max-entropy). Its controls spend the same number of judged prompts:

- `SPARSE`: REINFORCE on the judge's own score of the sampled prompts, no reward model: what dense
  guidance has to be worth its cost against;
- `SHUFFLED`: PGTG whose reward model learns from the judge's scores in random order;
- `RANDOM`: no learning; prompts of the start policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pgtg.config import FitConfig
from pgtg.data.comparisons import distinct
from pgtg.data.generations import joined, read_generations
from pgtg.judges.record import Record, write_judged
from pgtg.methods.fresh import (
    draw,
    draw_batch,
    is_fresh,
    judge,
    prompt_task,
    validations,
)
from pgtg.methods.method import STAGES, Improving, Method, PolicyTrainer
from pgtg.methods.objective import PolicyGradient, Sampled, sampled_log_probs
from pgtg.methods.options import Reinforce
from pgtg.models.adaptor import AdaptedLanguageModel, Drawn, read_again
from pgtg.models.batch import token_batch
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.objectives import advantages, standardized
from pgtg.types import TokenBatch


class PromptTrainer(PolicyTrainer):
    """What dense and sparse guidance share: the policy, its samples, its validation."""

    spread: float | None = None  # unit of standardised advantages; None: a batch's own

    def __init__(self, method: Method, given: Improving):
        super().__init__(given)
        self.task = prompt_task(given.ctx)
        self.options = Reinforce.of(given.ctx.cfg.method)
        self.start = given.ctx.load_start()[0] if self.options.keeps_start else None
        self.objective = PolicyGradient(
            given.lm,
            self.options.kl,
            self.options.entropy,
            given.ctx.sampling(),
            self.options.entropy_target,
        )
        self.validates = self.task.options.validation_prompts > 0
        self.heldout = "judge's mean score of sampled prompts on held-out examples"

    def judged_prompts(self, steps: int) -> Mapping[str, float]:
        """The prompts that validations asked the judge for."""
        if not self.validates:
            return {}
        number = validations(steps, self.fit_config()) * self.task.options.validation_prompts
        return {"improve/dev_judged_prompts": float(number)}

    def validate(self) -> Mapping[str, float]:
        """The judge's mean score of prompts sampled now, on the dev examples, negated."""
        number = self.task.options.validation_prompts
        key = (self.ctx.cfg.seed, "improve", "validate", 0)
        prompts, _ = draw(self.ctx, self.given.lm, self.given.codec, number, [key])
        texts = [self.given.codec.decode(ids) for ids in prompts]
        scores = self.task.gaps(self.task.prompts(prompts, texts), "dev")
        return {"improve/negative_heldout_score": -float(scores.mean())}

    def _drawn(self, number: int, *purpose: int | str) -> tuple[TokenBatch, Drawn | None]:
        """Prompts from the policy as it is, and how they were drawn if it has a frozen model."""
        key = (self.ctx.cfg.seed, "improve", *purpose)
        return draw_batch(self.ctx, self.given.lm, self.given.codec, number, [key])

    def _sampled(self, batch: TokenBatch, advantage: Tensor, drawn: Drawn | None = None) -> Sampled:
        lm, start = self.given.lm, None
        if drawn is not None and drawn.narrow:
            assert isinstance(lm, AdaptedLanguageModel)
            drawn = read_again(lm, batch)
        if self.start is not None:
            states = drawn and replace(drawn, candidates=None)  # the start policy has its own
            with torch.no_grad():
                start = sampled_log_probs(self.start, batch, self.ctx.sampling(), states)
        if self.options.standardize:
            advantage = standardized(advantage, batch.mask, self.spread)
        return Sampled(batch, advantage, start, drawn)

    def _mixed(self, rewards: Tensor, evaluations: Tensor, batch: TokenBatch, share: float):
        return advantages(
            rewards,
            evaluations,
            batch.mask,
            batch.origin,
            baseline=self.options.baseline,
            token_share=share,
            to_go=self.options.reward_to_go,
        )


class DenseTrainer(PromptTrainer):
    """Fresh samples for every update, weighed by the round's reward model."""

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        self.spread = self._spread()

    @torch.no_grad()
    def _spread(self) -> float:
        """Standard deviation of the token rewards over all distinct prompts judged so far.

        Unlike a batch's own it does not shrink as the policy settles, so the entropy bonus weighs
        more and more against what is left to gain.
        """
        judged = joined([read_generations(made, "train") for made in self.given.samples])
        rows = distinct(judged)
        batch = token_batch(
            [judged.sources[judged.origin[0]]],
            [judged.tokens[row] for row in rows],
            [0] * len(rows),
            self.ctx.device,
        )
        assert self.given.model is not None
        return self.given.model(batch)[batch.mask].std(unbiased=False).item()

    def window(self, step: int) -> list[Callable[[], Sampled]]:
        update, cfg = self.given.first + step, self.ctx.cfg.improve
        parts = range(cfg.accumulate)
        return [partial(self._batch, update, part, cfg.micro_batch) for part in parts]

    @torch.no_grad()
    def _batch(self, update: int, part: int, size: int) -> Sampled:
        model = self.given.model
        assert model is not None
        batch, drawn = self._drawn(size, update, part)
        rewards = model(batch)
        evaluations = Aggregator.of(self.ctx.cfg.aggregator)(rewards, batch.mask)
        share = self.options.token_share
        return self._sampled(batch, self._mixed(rewards, evaluations, batch, share), drawn)


class SparseTrainer(PromptTrainer):
    """The round's judged samples, every token weighed by its prompt's score."""

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        self.judged = self._judged()

    def fit_config(self) -> FitConfig:
        cfg = self.ctx.cfg.improve
        return replace(cfg, updates=self.options.sparse_updates, lr=self.options.sparse_lr)

    def window(self, step: int) -> list[Callable[[], Sampled]]:
        return [lambda: self.judged]

    @torch.no_grad()
    def _judged(self) -> Sampled:
        generations = read_generations(self.given.samples[-1], "train")
        batch = token_batch(
            generations.sources, generations.tokens, generations.origin, self.ctx.device
        )
        scores = torch.tensor(generations.scores, device=self.ctx.device)
        centred = scores - scores.mean()
        advantage = centred[:, None].expand(batch.mask.shape).where(batch.mask, 0.0)
        lm, drawn = self.given.lm, None
        if isinstance(lm, AdaptedLanguageModel):
            drawn = read_again(lm, batch)
        return self._sampled(batch, advantage, drawn)


class FreshSparseTrainer(PromptTrainer):
    """Prompts sampled and judged for every update, each token weighed by its prompt's score.

    The judge's scores are standardised within the update's prompts, as in RLPrompt
    (arXiv:2205.12548, "z-score"): its loop, with REINFORCE in the place of soft Q-learning.
    """

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        length = self.ctx.cfg.sample.max_new_tokens
        self.record = Record(given.working / "judged.train", self.task.options.pool, length)

    def fit_config(self) -> FitConfig:
        return replace(super().fit_config(), lr=self.options.sparse_lr)

    def window(self, step: int) -> list[Callable[[], Sampled]]:
        number = self.task.options.pool
        key = (self.ctx.cfg.seed, "improve", "sparse", self.given.first, step)
        found, drawn = draw(self.ctx, self.given.lm, self.given.codec, number, [key])
        scores = judge(self.ctx, self.given.codec, found, "train").mean(-1, dtype=np.float64)
        self.record.put(step, found, scores)
        source = self.given.codec.encode_source("")[0]
        batch = token_batch([source], found, [0] * number, self.ctx.device)
        values = torch.tensor(scores, dtype=torch.float32, device=self.ctx.device)
        advantage = values[:, None].expand(batch.mask.shape).where(batch.mask, 0.0)
        advantage = standardized(advantage, batch.mask, None)
        return [lambda: self._sampled(batch, advantage, drawn)]

    def judged_prompts(self, steps: int) -> Mapping[str, float]:
        own = write_judged(self.given.working, {"train": self.record}, {"train": steps}, "improve")
        return {**super().judged_prompts(steps), **own}


def sparse_trainer(method: Method, given: Improving) -> FreshSparseTrainer | SparseTrainer:
    """On the round's judged prompts, or on those of each update."""
    return (FreshSparseTrainer if is_fresh(given.ctx) else SparseTrainer)(method, given)


PGTG = Method("pgtg", STAGES, DenseTrainer, needs_samples=True)
SHUFFLED = Method(
    "shuffled",
    ("sample", "align", "improve"),
    DenseTrainer,
    shuffle_scores=True,
    needs_samples=True,
)
RANDOM_REWARD = Method(
    "random_reward_model",
    ("sample", "improve"),
    DenseTrainer,
    random_reward=True,
    needs_reward=False,
    needs_samples=True,
)
SPARSE = Method(
    "sparse",
    ("sample", "improve"),
    sparse_trainer,
    needs_reward=False,
    needs_samples=True,
    judges_updates=True,
)
RANDOM = Method("random", ("sample",), None, needs_reward=False)
