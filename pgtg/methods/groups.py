"""The policy gradient on groups of judged generations: sparse rewards, a baseline of the group.

`GRPO` (arXiv:2402.03300) and `RLOO` (arXiv:2402.14740) read the generations that the round's policy
sampled, K a source, with the judge's scores. Over the round's updates the policy moves away from
the one that sampled, so ratios of the two are clipped; in the first update they are 1, and the
gradient is REINFORCE's. Log-probabilities are those of the distribution that was sampled.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pgtg.data.comparisons import Comparisons
from pgtg.methods import options as named
from pgtg.methods.method import Improving, Method
from pgtg.methods.objective import sampled_log_probs
from pgtg.methods.preferred import JudgedTrainer
from pgtg.models.batch import moved
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.ops.masking import masked_sum
from pgtg.ops.objectives import kl_to_start
from pgtg.ops.preferences import clipped_surrogate, group_normalized, leave_one_out, sums_of_rows
from pgtg.types import Loss, TokenBatch, Window


@dataclass(frozen=True)
class GroupBatch:
    """N generations of some sources, with what does not change in the round."""

    batch: TokenBatch
    advantage: Tensor  # [N] of a whole text, or [N, T] of each of its tokens
    sampled: Float[Tensor, "N T"]  # log-probabilities under the policy that sampled
    start: Float[Tensor, "N T"] | None  # under the start policy, for the KL term


@dataclass(frozen=True)
class ClippedGradient:
    """L = mean over generations of the mean over tokens of [clipped surrogate + kl KL(pi||start)].

    With `whole` a generation has one ratio, that of its probabilities, so its tokens' terms are
    equal and their mean is one of them (RLOO).
    """

    policy: LanguageModel
    decoding: Decoding  # the distribution that was sampled
    clip: float
    kl: float
    whole: bool

    def count(self, batch: GroupBatch) -> Window:
        read, tokens = batch.batch.counted()
        return Window(len(batch.batch.tokens), tokens, tokens, read, batch.batch.source.numel())

    def __call__(self, batch: GroupBatch, window: Window) -> Loss:
        mask = batch.batch.mask
        log_probs = sampled_log_probs(self.policy, batch.batch, self.decoding)
        advantage = batch.advantage
        if advantage.dim() == 1:
            advantage = advantage[:, None].expand(mask.shape)
        loss = clipped_surrogate(
            log_probs,
            batch.sampled,
            advantage,
            mask,
            clip=self.clip,
            whole=self.whole,
        )
        lengths = mask.sum(-1).clamp(min=1)
        value = (sums_of_rows(loss, mask) / lengths).sum() / window.sequences
        change = (log_probs.detach() - batch.sampled).where(mask, 0.0)
        if self.whole:
            change = sums_of_rows(change, mask)[:, None].expand(mask.shape)
        outside = ((change.exp() - 1).abs() > self.clip).float()
        metrics = {
            "surrogate": value.detach(),
            "clipped": masked_sum(outside, mask) / window.sampled,
        }
        if batch.start is not None:
            divergence = kl_to_start(log_probs, batch.start)
            means = sums_of_rows(divergence, mask) / lengths
            value = value + self.kl * means.sum() / window.sequences
            metrics["kl"] = masked_sum(divergence.detach(), mask) / window.sampled
        return Loss(value, metrics)


class GroupTrainer(JudgedTrainer):
    """All generations of some sources in each micro-batch; a group's advantages add up to 0.

    The divergence from the start policy is a term of the loss, token by token (GRPO), or with
    `whole` a part of each generation's score, -kl (log pi - log pi_start) (RLOO).
    """

    kind = named.GroupGradient
    advantage: Callable[[Tensor, Tensor], Tensor]
    whole: bool

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        decoding, options = given.ctx.sampling(), self.options
        self.objective = ClippedGradient(self.lm, decoding, options.clip, options.kl, self.whole)
        # the policy as the round begins is the one that sampled
        self.sampled = self.read_once(lambda batch: sampled_log_probs(self.lm, batch, decoding))
        self.start = None
        if options.keeps_start:
            start = given.ctx.load_start()[0].requires_grad_(False).eval()
            self.start = self.read_once(lambda batch: sampled_log_probs(start, batch, decoding))

    def chosen(self, groups: Comparisons) -> Comparisons:
        return groups

    def batch(self, part: Comparisons) -> GroupBatch:
        found = [
            [int(row) for row, score in zip(*group, strict=True) if score == score]  # not NaN
            for group in zip(part.groups.tolist(), part.preference.tolist(), strict=True)
        ]
        rows = [row for own in found for row in own]
        group = torch.tensor([i for i, own in enumerate(found) for _ in own])
        scores = torch.tensor([self.pool.scores[row] for row in rows], dtype=torch.float64)
        start = None
        if self.start is not None and self.whole:
            ratios = [float((self.sampled[row] - self.start[row]).sum()) for row in rows]
            scores = scores - self.options.kl * torch.tensor(ratios, dtype=torch.float64)
        elif self.start is not None:
            start = self.looked_up(self.start, rows)
        advantage = moved(type(self).advantage(scores, group).float(), self.ctx.device)
        return GroupBatch(self.texts(found), advantage, self.looked_up(self.sampled, rows), start)


class GRPOTrainer(GroupTrainer):
    advantage = staticmethod(group_normalized)
    whole = False


class RLOOTrainer(GroupTrainer):
    advantage = staticmethod(leave_one_out)
    whole = True


GRPO = Method("grpo", ("sample", "improve"), GRPOTrainer, needs_reward=False, needs_samples=True)
RLOO = Method("rloo", ("sample", "improve"), RLOOTrainer, needs_reward=False, needs_samples=True)
