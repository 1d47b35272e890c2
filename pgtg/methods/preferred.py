"""Learning from the round's judged generations themselves, without a reward model between.

The rivals of token guidance: each reads the generations that `sample` has judged (or the texts of
stored preferences) and trains for as many updates as the guided policy does, so that what differs
is what is made of the same judgements.

`BEST_OF_K` is plain MLE on each source's best generation (rejection-sampling fine-tuning, RAFT:
arXiv:2304.06767); where texts were compared two by two, on the better of each pair. `DPO`, `SIMPO`
and `TDPO` are losses on pairs (`ops.preferences`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pgtg.config import FitConfig
from pgtg.data.comparisons import Comparisons, of_sources, parts_in_passes
from pgtg.data.generations import joined, read_generations
from pgtg.errors import DataError
from pgtg.methods import options as named
from pgtg.methods.method import Improving, Method
from pgtg.methods.objective import Improvement, SupervisedBatch
from pgtg.methods.options import WeightedMLE
from pgtg.methods.texts import TextTrainer
from pgtg.models.batch import moved, token_batch
from pgtg.models.language import LanguageModel
from pgtg.ops.masking import masked_sum
from pgtg.ops.objectives import uniform_weights
from pgtg.ops.preferences import dpo, ipo, simpo, sums_of_rows, tdpo
from pgtg.ops.sampling import derive_seed, log_probability
from pgtg.types import Loss, TokenBatch, Window

ROUNDING = 1e-4  # of a margin


class JudgedTrainer(TextTrainer, ABC):
    """A stream of groups of the round's generations, in seeded passes over all of them.

    Raises:
        DataError: The judge tells no two generations of any source apart.
    """

    ahead = True
    kind: ClassVar[type[Any]]  # of its options

    def __init__(self, method: Method, given: Improving):
        super().__init__(given)
        self.method = method
        self.options = self.kind.of(given.ctx.cfg.method)
        self.pool = joined([read_generations(made, "train") for made in given.samples])
        whole = of_sources(self.pool)
        self.groups = self.chosen(whole)
        if not len(self.groups):
            raise DataError(
                f"{method.name}: no source has two texts that are told apart, so there is nothing "
                "to learn from; sample more (sample.k, sample.sources) or use another judge"
            )
        if whole.tied:
            given.ctx.log.note(
                f"improve {method.name}: {whole.tied} sources left out, all texts tied"
            )

    @abstractmethod
    def chosen(self, groups: Comparisons) -> Comparisons:
        """What is learned from: groups, or parts of them, whose candidates are told apart."""

    @abstractmethod
    def batch(self, part: Comparisons) -> Any:
        """What the objective takes, of one micro-batch of groups."""

    def fit_config(self) -> FitConfig:
        cfg = super().fit_config()
        return replace(cfg, lr=cfg.lr * self.options.lr_share)

    def window(self, step: int) -> list[Callable[[], Any]]:
        seed = derive_seed(self.ctx.cfg.seed, "improve", self.method.name, self.given.first)
        cfg = self.ctx.cfg.improve
        parts = parts_in_passes(self.pool, self.groups, cfg, seed, step)
        return [partial(self.batch, part) for part in parts]

    def texts(self, rows: Sequence[Sequence[int]]) -> TokenBatch:
        """The generations of each source, below each other; a source is read once for all."""
        pool, origin = self.pool, [i for i, own in enumerate(rows) for _ in own]
        sources = [pool.sources[pool.origin[own[0]]] for own in rows]
        tokens = [pool.tokens[row] for own in rows for row in own]
        return token_batch(sources, tokens, origin, self.ctx.device, recurring=True)

    def read_once(self, value: Callable[[TokenBatch], Tensor]) -> list[np.ndarray]:
        """A value of every token of the pool, without gradient."""
        with torch.no_grad():
            given = self.pool.sources, self.pool.tokens, self.pool.origin
            return self.ctx.per_token(value, *given, recurring=True)

    def looked_up(self, values: Sequence[np.ndarray], rows: Sequence[int]) -> Float[Tensor, "N T"]:
        """Those of some generations, on the device, 0 on padding."""
        found = torch.zeros(len(rows), max(len(values[row]) for row in rows))
        for line, row in zip(found, rows, strict=True):
            line[: len(values[row])] = torch.from_numpy(values[row])
        return moved(found, self.ctx.device)


class BestOfK(JudgedTrainer):
    """Each source's best generation as its target, each target's loss a mean over its tokens."""

    kind = named.BestOfK

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        self.objective = Improvement(
            self.lm, WeightedMLE(**WeightedMLE.NEUTRAL), given.ctx.sampling()
        )

    def chosen(self, groups: Comparisons) -> Comparisons:
        best = groups.preference.nan_to_num(-torch.inf).argmax(-1, keepdim=True)
        return Comparisons(groups.groups.gather(1, best), groups.preference.gather(1, best))

    def batch(self, part: Comparisons) -> SupervisedBatch:
        batch = self.texts(part.groups.tolist())
        return SupervisedBatch(batch, uniform_weights(batch.mask))


@dataclass(frozen=True)
class PairBatch:
    """P pairs: rows 2i and 2i + 1 of the batch are the better and the other text of pair i."""

    batch: TokenBatch
    start: Float[Tensor, "N T"] | None  # log-probabilities under the start policy


@dataclass(frozen=True)
class PairLoss:
    """The mean over pairs of a loss of both texts' log-probabilities."""

    policy: LanguageModel
    loss: Callable[[Tensor, PairBatch, Tensor | None], tuple[Tensor, Tensor]]  # see `PairTrainer`
    reads_logits: bool

    def count(self, batch: PairBatch) -> Window:
        read, tokens = batch.batch.counted()
        texts, places = len(batch.batch.tokens), batch.batch.source.numel()
        return Window(texts // 2, tokens, 0, read, places, texts)

    def __call__(self, batch: PairBatch, window: Window) -> Loss:
        if self.reads_logits:
            logits = self.policy.logits(batch.batch).float()
            log_probs = log_probability(logits, batch.batch.tokens)
        else:
            logits, log_probs = None, self.policy.log_probabilities(batch.batch)
        losses, margins = self.loss(log_probs, batch, logits)
        value, margins = losses.sum() / window.sequences, margins.detach()
        nll = -masked_sum(log_probs.detach(), batch.batch.mask) / window.tokens
        metrics = {
            "pair_loss": value.detach(),
            "pair_margin": margins.sum() / window.sequences,
            "pairs_right": _right(margins).sum() / window.sequences,
            "token_nll": nll,
        }
        return Loss(value, metrics)


def _right(margins: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """1 for a pair in the right order, 0.5 where rounding alone tells it apart."""
    return (margins > ROUNDING).float() / 2 + (margins >= -ROUNDING).float() / 2


class PairTrainer(JudgedTrainer):
    """Pairs of a source's generations: the best and the worst, or all that are told apart."""

    reads_logits = False  # whether the loss reads more than log-probabilities

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        self.objective = PairLoss(self.lm, self.loss, self.reads_logits)
        self.start: list[np.ndarray] | None = None
        if self.options.keeps_start:
            self.start = self.read_once(self.start_policy().log_probabilities)

    def start_policy(self) -> LanguageModel:
        """What the run started from, frozen."""
        lm = self.ctx.load_start()[0]
        return lm.requires_grad_(False).eval()

    @abstractmethod
    def loss(
        self, log_probs: Tensor, batch: PairBatch, logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss and reward margin of each pair, from both texts' log-probabilities, and their logits
        where it reads them."""

    def chosen(self, groups: Comparisons) -> Comparisons:
        rows, values = [], []
        for own, scores in zip(groups.groups, groups.preference, strict=True):
            real = (~scores.isnan()).nonzero().flatten()
            order = real[scores[real].argsort(descending=True, stable=True)].tolist()
            found = [(i, j) for n, i in enumerate(order) for j in order[n + 1 :]]
            if self.options.pairs == "best_worst":
                found = [(order[0], order[-1])]
            told = [pair for pair in found if scores[pair[0]] > scores[pair[1]]]
            rows += [own[list(pair)] for pair in told]
            values += [scores[list(pair)] for pair in told]
        empty = torch.empty(0, 2)
        return Comparisons(
            torch.stack(rows) if rows else empty.long(), torch.stack(values) if values else empty
        )

    def batch(self, part: Comparisons) -> PairBatch:
        pairs = part.groups.tolist()
        start = None
        if self.start is not None:
            start = self.looked_up(self.start, [row for pair in pairs for row in pair])
        return PairBatch(self.texts(pairs), start)

    def _ratios(self, log_probs: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """h of the better and of the other texts."""
        assert batch.start is not None
        found = sums_of_rows(log_probs - batch.start, batch.batch.mask)
        return found[::2], found[1::2]


class DPOTrainer(PairTrainer):
    kind = named.DPO

    def loss(
        self, log_probs: Tensor, batch: PairBatch, logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        better, worse = self._ratios(log_probs, batch)
        beta = self.options.beta
        if self.options.loss == "ipo":
            losses = ipo(better, worse, beta=beta)
        else:
            losses = dpo(better, worse, beta=beta, smoothing=self.options.smoothing)
        return losses, beta * (better - worse)


class SimPOTrainer(PairTrainer):
    kind = named.SimPO

    def loss(
        self, log_probs: Tensor, batch: PairBatch, logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        mask = batch.batch.mask
        mean = sums_of_rows(log_probs, mask) / mask.sum(-1).clamp(min=1)
        better, worse, beta = mean[::2], mean[1::2], self.options.beta
        losses = simpo(better, worse, beta=beta, gamma=self.options.gamma)
        return losses, beta * (better - worse)


class TDPOTrainer(PairTrainer):
    kind = named.TDPO
    reads_logits = True

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        self.reference = self.start_policy()

    def loss(
        self, log_probs: Tensor, batch: PairBatch, logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert logits is not None
        better, worse = self._ratios(log_probs, batch)
        with torch.no_grad():
            start = self.reference.logits(batch.batch).float().log_softmax(-1)
        kl = (start.exp() * (start - logits.log_softmax(-1))).sum(-1)
        kl = sums_of_rows(kl, batch.batch.mask)
        beta, alpha = self.options.beta, self.options.alpha
        losses = tdpo(better, worse, kl[::2], kl[1::2], beta=beta, alpha=alpha)
        return losses, beta * (better - worse)


ALONE: dict[str, Any] = {"needs_reward": False, "needs_samples": True}
BEST_OF_K = Method("best_of_k", ("sample", "improve"), BestOfK, **ALONE)
DPO = Method("dpo", ("sample", "improve"), DPOTrainer, **ALONE)
SIMPO = Method("simpo", ("sample", "improve"), SimPOTrainer, **ALONE)
TDPO = Method("tdpo", ("sample", "improve"), TDPOTrainer, **ALONE)
