"""Improvement without supervised data: the policy gradient on the policy's own samples.

`PGTG` weighs each token by the learned reward (arXiv:2306.00398, Sec. 2.2, REINFORCE with
max-entropy). Its controls spend the same number of judged prompts:

- `SPARSE`: REINFORCE on the judge's own score of the sampled prompts, no reward model: what dense
  guidance has to be worth its cost against;
- `SHUFFLED`: PGTG whose reward model learns from the judge's scores in random order;
- `RANDOM`: no learning; prompts of the start policy.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pgtg.config import FitConfig
from pgtg.generations import read_generations
from pgtg.methods.method import STAGES, Improving, Method
from pgtg.methods.objective import PolicyGradient, Sampled, sampled_log_probs
from pgtg.models.batch import token_batch
from pgtg.models.generate import generate
from pgtg.ops.aggregate import AGGREGATORS
from pgtg.ops.objectives import advantages, standardized
from pgtg.tasks.prompt import PromptTask
from pgtg.types import TokenBatch, TokenIds


class PromptGuide:
    """What dense and sparse guidance share: the policy, its samples, its validation."""

    cut = 0  # nothing is read that could be too long

    def __init__(self, method: Method, given: Improving):
        self.ctx, self.given = given.ctx, given
        assert isinstance(given.ctx.task, PromptTask)
        self.task = given.ctx.task
        self.options = given.ctx.cfg.method
        self.start = given.ctx.load_start()[0] if self.options.kl > 0 else None
        self.objective = PolicyGradient(
            given.lm, self.options.kl, self.options.entropy, given.ctx.sampling()
        )
        self.validates = self.task.options.validation_prompts > 0
        self.heldout = "judge's mean score of sampled prompts on held-out examples"

    def fit_config(self) -> FitConfig:
        return replace(self.ctx.cfg.improve, updates=self.given.updates)

    def validate(self) -> Mapping[str, float]:
        """The judge's mean score of prompts sampled now, on the dev examples, negated."""
        number = self.task.options.validation_prompts
        prompts = self._prompts(number, "validate", 0)
        texts = [self.given.codec.decode(ids) for ids in prompts]
        scores = self.task.gaps(self.task.prompts(prompts, texts), "dev")
        return {"improve/negative_heldout_score": -float(scores.mean())}

    @torch.no_grad()
    def _prompts(self, number: int, *purpose: int | str) -> list[TokenIds]:
        """Prompts drawn from the policy as it is now."""
        lm = self.given.lm
        training = lm.training
        lm.eval()
        ((_, found),) = generate(
            lm,
            [self.given.codec.encode_source("")[0]],
            ["prompt"],
            k=number,
            eos_ids=self.given.codec.eos_ids,
            decoding=self.ctx.sampling(),
            batch_tokens=self.ctx.cfg.sample.batch_tokens,
            seed_key=(self.ctx.cfg.seed, "improve", *purpose),
        )
        lm.train(training)
        return found

    def _sampled(self, batch: TokenBatch, advantage: Tensor) -> Sampled:
        start = None
        if self.start is not None:
            with torch.no_grad():
                start = sampled_log_probs(self.start, batch, self.ctx.sampling())
        if self.options.standardize:
            advantage = standardized(advantage, batch.mask)
        return Sampled(batch, advantage, start)

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


class DenseGuide(PromptGuide):
    """Fresh samples for every update, weighed by the round's reward model."""

    def window(self, step: int) -> list[Sampled]:
        update, cfg = self.given.first + step, self.ctx.cfg.improve
        return [self._batch(update, part, cfg.micro_batch) for part in range(cfg.accumulate)]

    @torch.no_grad()
    def _batch(self, update: int, part: int, size: int) -> Sampled:
        model = self.given.model
        assert model is not None
        source = self.given.codec.encode_source("")[0]
        found = self._prompts(size, update, part)
        batch = token_batch([source], found, [0] * size, self.ctx.device)
        rewards, cfg = model(batch), self.ctx.cfg.aggregator
        evaluations = AGGREGATORS[cfg.name](
            rewards, batch.mask, cfg.temperature, cfg.length_normalized
        )
        share = self.options.token_share
        return self._sampled(batch, self._mixed(rewards, evaluations, batch, share))


class SparseGuide(PromptGuide):
    """The round's judged samples, every token weighed by its prompt's score."""

    def fit_config(self) -> FitConfig:
        cfg = self.ctx.cfg.improve
        return replace(cfg, updates=self.options.sparse_updates, lr=self.options.sparse_lr)

    def window(self, step: int) -> list[Sampled]:
        assert self.given.samples is not None
        generations = read_generations(self.given.samples, "train")
        batch = token_batch(
            generations.sources, generations.tokens, generations.origin, self.ctx.device
        )
        scores = torch.tensor(generations.scores, device=self.ctx.device)
        centred = scores - scores.mean()
        advantage = centred[:, None].expand(batch.mask.shape).where(batch.mask, 0.0)
        return [self._sampled(batch, advantage)]


PGTG = Method("pgtg", STAGES, DenseGuide)
SHUFFLED = Method("shuffled", ("sample", "align", "improve"), DenseGuide, shuffle_scores=True)
RANDOM_REWARD = Method(
    "random_reward_model",
    ("sample", "improve"),
    DenseGuide,
    random_reward=True,
    needs_reward=False,
)
SPARSE = Method(
    "sparse", ("sample", "improve"), SparseGuide, needs_reward=False, needs_samples=True
)
RANDOM = Method("random", ("sample",), None, needs_reward=False)
