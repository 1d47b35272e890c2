"""RLPrompt: the policy of prompts trained by soft Q-learning on the judge's scores.

The policy's logits are values Q. For each update prompts are drawn and judged on all training
texts, the scores standardised among them, and the policy's values held against a target network
that follows it (`ops.soft_q`). There is no token reward, no entropy bonus and no constraint; all
else is the policy, the sampling and the judge of the other methods.

A policy that starts from a language model's own logits (`policy.adaptor.residual`) has them at an
arbitrary level. `method.prior` takes the start policy's log-probabilities from the values instead,
so that the optimum is the start policy times e^reward.

Source: Deng et al. 2022 (arXiv:2205.12548) and its released code.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pgtg.config import FitConfig
from pgtg.judges.record import Record, write_judged
from pgtg.methods.fresh import PROMPT, draw, judge, prompt_task, validations
from pgtg.methods.method import Improving, Method, PolicyTrainer
from pgtg.methods.prompt_options import RLPrompt
from pgtg.models.adaptor import AdaptedLanguageModel, Drawn, read_again
from pgtg.models.batch import token_batch
from pgtg.models.language import LanguageModel
from pgtg.ops.gap import gap_scores
from pgtg.ops.soft_q import follow, shaped, soft_q_loss
from pgtg.types import Loss, TokenBatch, TokenIds, Window


class Networks(nn.Module):
    """The policy, and its target network, whose weights are kept with it but never learned: they
    get no gradient, so the optimiser passes them over."""

    def __init__(self, policy: LanguageModel):
        super().__init__()
        kept = {id(policy.model): policy.model}  # what is frozen is shared
        frozen = not any(p.requires_grad for p in policy.model.parameters())
        self.policy = policy
        self.target: LanguageModel = copy.deepcopy(policy, dict(kept) if frozen else {})

    def follow(self, rate: float) -> None:
        follow(self.target, self.policy, rate)


@dataclass(frozen=True)
class Judged:
    """N prompts with their shaped rewards and, for a policy on a frozen model, its states."""

    batch: TokenBatch
    rewards: Float[Tensor, " N"]
    score: float  # mean of the judge's
    drawn: Drawn | None


@dataclass(frozen=True)
class SoftQ:
    """L = mean over prompts of the soft consistency losses of `method.loss`."""

    networks: Networks
    start: LanguageModel | None  # whose log-probabilities are taken from the values
    options: RLPrompt

    def count(self, batch: Judged) -> Window:
        read, tokens = batch.batch.counted()
        return Window(len(batch.rewards), tokens, tokens, read, batch.batch.source.numel())

    def __call__(self, batch: Judged, window: Window) -> Loss:
        values, prior = _values(self.networks.policy, batch), None
        with torch.no_grad():
            target = _values(self.networks.target, batch)
            start = None if self.start is None else _values(self.start, batch)
        if start is not None:
            level = start.logsumexp(-1, keepdim=True)
            own = start.gather(-1, batch.batch.tokens[..., None]) - level
            values, target, prior = values - level, target - level, own.squeeze(-1)
        loss = soft_q_loss(
            values,
            target,
            batch.batch.tokens,
            batch.rewards,
            batch.batch.mask,
            variant=self.options.loss,
            coefficient=self.options.coefficient,
            prior=prior,
        )
        share = len(batch.rewards) / window.sequences
        score = torch.tensor(batch.score * share)
        return Loss(loss * share, {"soft_q_loss": loss.detach() * share, "train_score": score})


def _values(lm: LanguageModel, batch: Judged) -> Float[Tensor, "N T V"]:
    """Q: logits of all words before each token."""
    if batch.drawn is not None:
        assert isinstance(lm, AdaptedLanguageModel)
        return lm.speak(batch.drawn.states).float()
    return lm.logits(batch.batch).float()


class RLPromptTrainer(PolicyTrainer):
    """Prompts drawn and judged for every update; the greedy prompt checked on dev."""

    validates = True
    heldout = "judge's score of the greedy prompt on held-out examples"

    def __init__(self, method: Method, given: Improving):
        super().__init__(given)
        self.task, self.options = prompt_task(given.ctx), RLPrompt.of(given.ctx.cfg.method)
        self.networks = Networks(given.lm)
        self.module: Any = self.networks
        start = given.ctx.load_start()[0] if self.options.prior else None
        if start is not None:
            start.requires_grad_(False).eval()
        self.objective = SoftQ(self.networks, start, self.options)
        length = given.ctx.cfg.sample.max_new_tokens
        self.record = Record(given.working / "judged.train", self.options.prompts, length)

    def fit_config(self) -> FitConfig:
        return replace(
            super().fit_config(),
            lr=self.options.lr,
            schedule="constant",
            patience=0,
            micro_batch=self.options.prompts,
            accumulate=1,
            validate_every=self.options.check_every,
        )

    def begin(self, step: int) -> None:
        self.networks.follow(self.options.target_rate)

    def window(self, step: int) -> list[Callable[[], Judged]]:
        ctx, codec, number = self.ctx, self.given.codec, self.options.prompts
        key = (ctx.cfg.seed, "improve", "rlprompt", step)
        found, drawn = draw(ctx, self.given.lm, codec, number, [key])
        gaps = judge(ctx, codec, found, "train").mean(-1, dtype=np.float64)
        self.record.put(step, found, gaps)
        rewards = torch.tensor(self._released(found) if self.options.released else gaps)
        rewards = shaped(
            rewards, (0, 1, 0, self.options.scale), standardize=self.options.standardize
        )
        source = codec.encode_source("")[0]
        batch = token_batch([source], found, [0] * number, ctx.device)
        if drawn is not None and drawn.narrow:
            assert isinstance(self.given.lm, AdaptedLanguageModel)
            drawn = read_again(self.given.lm, batch)
        made = Judged(batch, rewards.float().to(ctx.device), float(gaps.mean()), drawn)
        return [lambda: made]

    def validate(self) -> Mapping[str, float]:
        """The judge's score of the greedy prompt on the dev examples, negated."""
        sampler = self.ctx.sampler(self.given.lm, self.given.codec, greedy=True)
        with self.ctx.reading(self.given.lm):
            ((_, found),) = sampler([self.given.codec.encode_source("")[0]], [PROMPT])
        score = judge(self.ctx, self.given.codec, found, "dev").mean()
        return {"improve/negative_heldout_score": -float(score)}

    def judged_prompts(self, steps: int) -> Mapping[str, float]:
        own = write_judged(self.given.working, {"train": self.record}, {"train": steps}, "improve")
        return {**own, "improve/dev_judged_prompts": float(validations(steps, self.fit_config()))}

    def save(self, folder: Path) -> None:
        self.ctx.save_policy(self.given.lm, self.given.codec, folder)

    def _released(self, found: list[TokenIds]) -> np.ndarray:
        """float64 [P] scores as released, where a word that ties with the label's is left out."""
        texts = [self.given.codec.decode(ids) for ids in found]
        values = self.task.log_probs(self.task.prompts(found, texts), "train")
        labels = torch.tensor([example.label for example in self.task.labelled("train") or []])
        how = self.task.classifier
        gaps = gap_scores(torch.from_numpy(values), labels, how.correct, how.wrong, ties=True)
        return gaps.double().mean(-1).numpy()


METHOD = Method("rlprompt", ("improve",), RLPromptTrainer, needs_reward=False)
