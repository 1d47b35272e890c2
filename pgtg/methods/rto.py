"""PPO whose token rewards are what DPO has learned (RTO: arXiv:2404.18922).

A run of `method=dpo` comes first; c (log pi_DPO - log pi_start), clipped, is each token's reward,
the judge's score the last token's in addition.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pgtg.methods import options as named
from pgtg.methods.method import Improving, Method
from pgtg.methods.ppo import PPOTrainer
from pgtg.ops.actor_critic import log_ratio_rewards
from pgtg.types import TokenIds


class RTOTrainer(PPOTrainer):
    kind: ClassVar[type[Any]] = named.RTO

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        (path,) = self.options.models
        self.dpo = self.ctx.load(path)[0].requires_grad_(False).eval()

    @property
    def judges(self) -> bool:
        return True

    def dense(self, sources: Sequence[TokenIds], tokens: Sequence[TokenIds]) -> list[np.ndarray]:
        assert self.start is not None  # this method keeps it
        own, start = (
            self._read(self._log_probs_of(lm), sources, tokens) for lm in (self.dpo, self.start)
        )
        scale, clip = self.options.dpo_scale, self.options.dpo_clip
        pairs = [map(torch.from_numpy, pair) for pair in zip(own, start, strict=True)]
        return [
            log_ratio_rewards(dpo, ref, torch.ones(len(dpo)).bool(), scale=scale, clip=clip).numpy()
            for dpo, ref in pairs
        ]

    def shaped(self, dense: Tensor, mask: Tensor) -> Tensor:
        return dense

    def of_score(self, scores: Tensor) -> Tensor:
        return super().of_score(scores).clamp(-self.options.score_clip, self.options.score_clip)


RTO = Method("rto", ("improve",), RTOTrainer, needs_reward=False)
