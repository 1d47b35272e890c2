"""The objective of supervised improvement: weighted MLE, entropy bonus, policy-gradient term."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pgtg.config import MethodConfig
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.ops.objectives import kl_to_start, reinforce, weighted_nll
from pgtg.ops.sampling import entropy, log_probability, restrict
from pgtg.types import Loss, TokenBatch, Window


@dataclass(frozen=True)
class Sampled:
    """The policy's own samples, with what their policy gradient needs, all without gradient."""

    batch: TokenBatch
    advantage: Float[Tensor, "N T"]
    start_log_probs: Float[Tensor, "N T"] | None  # under the start policy, for the KL term


@dataclass(frozen=True)
class SupervisedBatch:
    """N targets with their token weights, and samples if the policy-gradient term is on."""

    batch: TokenBatch
    weights: Float[Tensor, "N T"]
    sampled: Sampled | None = None


@dataclass(frozen=True)
class Improvement:
    """L = mean over targets of -sum_t w_t log pi(y_t|s_t) - alpha H + c L_PG.

    H is the mean entropy over the targets' tokens and L_PG the mean over sampled tokens of
    -A_t log pi(a_t|s_t) + kl * KL(pi || pi_start).
    """

    policy: LanguageModel
    cfg: MethodConfig
    decoding: Decoding  # the distribution that samples were drawn from

    def count(self, batch: SupervisedBatch) -> Window:
        sampled = 0 if batch.sampled is None else int(batch.sampled.batch.mask.sum())
        return Window(len(batch.batch.tokens), int(batch.batch.mask.sum()), sampled)

    def __call__(self, batch: SupervisedBatch, window: Window) -> Loss:
        logits = self.policy.logits(batch.batch).float()
        log_probs = log_probability(logits, batch.batch.tokens)
        nll = weighted_nll(log_probs, batch.weights, batch.batch.mask).sum() / window.sequences
        mean_nll = -log_probs.detach()[batch.batch.mask].sum() / window.tokens
        metrics = {"weighted_nll": nll.item(), "token_nll": mean_nll.item()}
        value = nll
        if self.cfg.entropy > 0:
            bonus = entropy(logits)[batch.batch.mask].sum() / window.tokens
            value = value - self.cfg.entropy * bonus
            metrics["entropy"] = bonus.item()
        if batch.sampled is not None:
            term, more = self._policy_gradient(batch.sampled, window)
            value, metrics = value + self.cfg.reinforce * term, metrics | more
        return Loss(value, metrics)

    def _policy_gradient(
        self, sampled: Sampled, window: Window
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        log_probs = sampled_log_probs(self.policy, sampled.batch, self.decoding)
        mask = sampled.batch.mask
        term = reinforce(log_probs, sampled.advantage)[mask].sum() / window.sampled
        metrics = {
            "reinforce": term.item(),
            "advantage": (sampled.advantage[mask].sum() / window.sampled).item(),
        }
        if sampled.start_log_probs is not None:
            kl = kl_to_start(log_probs, sampled.start_log_probs)[mask].sum() / window.sampled
            term = term + self.cfg.kl * kl
            metrics["kl"] = kl.item()
        return term, metrics


def sampled_log_probs(
    policy: LanguageModel, batch: TokenBatch, decoding: Decoding
) -> Float[Tensor, "N T"]:
    """log pi(a_t|s_t) [nats] of the distribution that was sampled (METHOD deviation 4).

    A sampled token that a later policy would cut off (top-k, top-p) keeps its unrestricted value,
    so that its log-probability stays finite.
    """
    logits = policy.logits(batch).float()
    cut = restrict(
        logits, temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p
    )
    inside = log_probability(cut, batch.tokens)
    whole = log_probability(logits / decoding.temperature, batch.tokens)
    return torch.where(inside.isfinite(), inside, whole)
