"""Guidance of whole targets: the learned reward, without its places within a target.

`SEQUENCE` weighs every token of a target by the target's evaluation f(r); `FILTER` trains on the
best evaluated targets, uniformly. Both read the reward model that guides the main line. If one does
as well, tokens need not be told apart.
"""

import numpy as np
import torch
from torch import Tensor

from pgtg.data.examples import Examples
from pgtg.methods.method import Improving, Method
from pgtg.methods.supervised import SupervisedTrainer
from pgtg.ops.aggregate import Aggregator, padded
from pgtg.ops.objectives import uniform_weights
from pgtg.types import TokenBatch

AT_ONCE = 4096  # targets


class _Evaluating(SupervisedTrainer):
    """Knows the evaluation of every target that it has token rewards of."""

    def evaluations(self) -> np.ndarray:
        """f(r), not multiplied by a group's C, of the targets `used`, float64."""
        assert self.rewards is not None  # its method needs a reward model
        f = Aggregator.of(self.ctx.cfg.aggregator)
        found = [np.empty(0)]
        for start in range(0, len(self.used), AT_ONCE):
            rows = [self.rewards(row).tolist() for row in self.used[start : start + AT_ONCE]]
            found.append(f(*padded(rows)).numpy())
        return np.concatenate(found)


class SequenceTrainer(_Evaluating):
    """w_it = e_i / |y_i|, e = g(f(r)) over its mean in the round, so that the mean e is 1.

    By sign or threshold e_i = 1 where f(r) is at least `method.threshold`, by default its mean.
    """

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        values = self.evaluations()
        if self.options.weights != "share" and len(values):
            level = self.options.threshold
            level = values.mean() if level is None else level
            values = np.where(values >= level, 1.0, self.options.below)
        elif self.options.transform == "exp":  # less the largest: the same weights, no overflow
            values = np.exp(values - values.max(initial=-np.inf))
        self._factor = np.zeros(len(self.tokens))
        scale = values.mean() if len(values) and self.options.weights == "share" else 1.0
        self._factor[self.used] = values / scale

    def weights(
        self, examples: Examples, batch: TokenBatch, rewards: Tensor | None, seed: int
    ) -> Tensor:
        factor = torch.from_numpy(self._factor[examples.rows]).float().to(batch.mask.device)
        return factor[:, None] * uniform_weights(batch.mask)


class FilterTrainer(_Evaluating):
    """Full batches of the best `method.filter_share` of all targets of the training split."""

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        cfg = given.ctx.cfg.improve
        least = min(cfg.micro_batch * cfg.accumulate, len(self.used))
        kept = max(round(self.options.filter_share * len(self.used)), least)
        order = np.argsort(-self.evaluations(), kind="stable")
        self.among = np.sort(self.used[order[:kept]])

    def weights(
        self, examples: Examples, batch: TokenBatch, rewards: Tensor | None, seed: int
    ) -> Tensor:
        return uniform_weights(batch.mask)


SEQUENCE = Method("sequence", ("improve",), SequenceTrainer)
FILTER = Method("filter", ("improve",), FilterTrainer, all_targets=True)
