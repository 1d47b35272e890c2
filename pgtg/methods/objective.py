"""What improvement minimises: weighted MLE with its options, and the policy gradient alone.

The policy-gradient term is one function for both.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.methods.options import WeightedMLE
from pgtg.models.adaptor import AdaptedLanguageModel, Drawn
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.ops.masking import masked_sum
from pgtg.ops.objectives import kl_to_start, reinforce, unlikelihood, weighted_nll
from pgtg.ops.sampling import entropy, log_probability, restrict
from pgtg.types import Loss, TokenBatch, Window


@dataclass(frozen=True)
class Sampled:
    """The policy's own samples, with what their policy gradient needs, all without gradient."""

    batch: TokenBatch
    advantage: Float[Tensor, "N T"]
    start_log_probs: Float[Tensor, "N T"] | None  # under the start policy, for the KL term
    drawn: Drawn | None = None  # how they were drawn, for a policy on a frozen model


@dataclass(frozen=True)
class SupervisedBatch:
    """N targets with their token weights, and samples if the policy-gradient term is on."""

    batch: TokenBatch
    weights: Float[Tensor, "N T"]
    sampled: Sampled | None = None


@dataclass(frozen=True)
class Improvement:
    """L = m [mean over targets of -sum_t w_t log pi(y_t|s_t) - alpha H] + c L_PG.

    Where w_t < 0, its term is -|w_t| log(1 - pi(y_t|s_t)) instead, which is bounded below.

    Where m is 0, targets are not read. H is the mean entropy over the targets' tokens and L_PG the
    mean over sampled tokens of -A_t log pi(a_t|s_t) + kl * KL(pi || pi_start).
    """

    policy: LanguageModel
    cfg: WeightedMLE
    decoding: Decoding  # the distribution that samples were drawn from

    def count(self, batch: SupervisedBatch) -> Window:
        sampled = 0 if batch.sampled is None else batch.sampled.batch.counted()[1]
        read, tokens = batch.batch.counted()
        places, number = batch.batch.source.numel(), len(batch.batch.tokens)
        texts = number if self.cfg.mle else 0
        texts += 0 if batch.sampled is None else len(batch.sampled.batch.tokens)
        return Window(number, tokens, sampled, read, places, texts)

    def __call__(self, batch: SupervisedBatch, window: Window) -> Loss:
        found = self._of_targets(batch, window) if self.cfg.mle else None
        if batch.sampled is None:
            assert found is not None  # one of both weights is above 0
            return found
        term, metrics = policy_gradient(
            self.policy, batch.sampled, self.decoding, window, kl=self.cfg.kl
        )
        term = self.cfg.reinforce * term
        return (
            Loss(term, metrics)
            if found is None
            else Loss(found.value + term, {**found.metrics, **metrics})
        )

    def _of_targets(self, batch: SupervisedBatch, window: Window) -> Loss:
        logits = self.policy.logits(batch.batch).float() if self.cfg.entropy > 0 else None
        log_probs = (
            self.policy.log_probabilities(batch.batch)
            if logits is None
            else log_probability(logits, batch.batch.tokens)
        )
        mask, weights = batch.batch.mask, batch.weights
        terms = weighted_nll(log_probs, weights.clamp(min=0), mask)
        if self.cfg.below < 0:
            terms = terms + unlikelihood(log_probs, -weights.clamp(max=0), mask)
        nll = terms.sum() / window.sequences
        mean_nll = -masked_sum(log_probs.detach(), mask) / window.tokens
        metrics = {"weighted_nll": nll.detach(), "token_nll": mean_nll}
        value = nll
        if logits is not None:
            found = entropy(logits)
            bonus = masked_sum(entropy_bonus(found, self.cfg.entropy_target), mask)
            value = value - self.cfg.entropy * bonus / window.tokens
            metrics["entropy"] = masked_sum(found.detach(), mask) / window.tokens
        return Loss(value if self.cfg.mle == 1 else self.cfg.mle * value, metrics)


@dataclass(frozen=True)
class PolicyGradient:
    """L = L_PG - alpha H, both means over the policy's own sampled tokens; no targets.

    H is the mean entropy of the distribution that was sampled, that of each state at most
    `entropy_target` where one is given.
    """

    policy: LanguageModel
    kl: float
    entropy: float
    decoding: Decoding
    entropy_target: float | None = None

    def count(self, batch: Sampled) -> Window:
        _, tokens = batch.batch.counted()
        return Window(len(batch.batch.tokens), tokens, tokens)

    def __call__(self, batch: Sampled, window: Window) -> Loss:
        value, metrics = policy_gradient(
            self.policy,
            batch,
            self.decoding,
            window,
            kl=self.kl,
            alpha=self.entropy,
            target=self.entropy_target,
        )
        return Loss(value, metrics)


def policy_gradient(
    policy: LanguageModel,
    sampled: Sampled,
    decoding: Decoding,
    window: Window,
    *,
    kl: float,
    alpha: float = 0.0,
    target: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Mean over sampled tokens of -A_t log pi(a_t|s_t) + kl * KL(pi || pi_start) - alpha * H.

    Returns:
        The term, and what to log of it.

    Source: arXiv:2306.00398, Sec. 2.2, REINFORCE with max-entropy.
    """
    restricted, log_probs = _of_sampled(policy, sampled.batch, decoding, sampled.drawn)
    mask = sampled.batch.mask
    term = masked_sum(reinforce(log_probs, sampled.advantage), mask) / window.sampled
    metrics = {
        "reinforce": term.detach(),
        "advantage": masked_sum(sampled.advantage, mask) / window.sampled,
    }
    if sampled.start_log_probs is not None:
        divergence = masked_sum(kl_to_start(log_probs, sampled.start_log_probs), mask)
        divergence = divergence / window.sampled
        term = term + kl * divergence
        metrics["kl"] = divergence.detach()
    if alpha > 0:
        found = entropy(restricted)
        term = term - alpha * masked_sum(entropy_bonus(found, target), mask) / window.sampled
        metrics["entropy"] = masked_sum(found.detach(), mask) / window.sampled
    return term, metrics


def entropy_bonus(entropies: Float[Tensor, "*N"], target: float | None) -> Float[Tensor, "*N"]:
    """What the entropies of states earn: themselves (the paper), or no more than `target` [nats].

    With a target the bonus keeps a policy from collapsing, and does not keep it from learning: it
    has no gradient above the target.
    """
    return entropies if target is None else entropies.clamp(max=target)


def sampled_log_probs(
    policy: LanguageModel, batch: TokenBatch, decoding: Decoding, drawn: Drawn | None = None
) -> Float[Tensor, "N T"]:
    """log pi(a_t|s_t) [nats] of the distribution that was sampled.

    A sampled token that this policy would cut off (top-k, top-p) keeps its unrestricted value, so
    that its log-probability stays finite. Why: docs/method.md, "Corrections to the reference", 4.

    Args:
        drawn: What drawing the tokens computed, where this or another adaptor on the same frozen
            model did; its candidates are those of the policy that drew.
    """
    return _of_sampled(policy, batch, decoding, drawn)[1]


def _of_sampled(
    policy: LanguageModel, batch: TokenBatch, decoding: Decoding, drawn: Drawn | None
) -> tuple[Float[Tensor, "N T C"], Float[Tensor, "N T"]]:
    """Logits of the distribution that is sampled, and log-probabilities of the sampled tokens."""
    if drawn is None:
        return of_logits(policy.logits(batch), batch.tokens, decoding)
    assert isinstance(policy, AdaptedLanguageModel)
    logits = policy.speak(drawn.states, drawn.candidates)
    if drawn.candidates is None:
        return of_logits(logits, batch.tokens, decoding)
    places = (drawn.candidates == drawn.tokens[..., None]).int().argmax(-1)
    return of_logits(logits, places, replace(decoding, top_k=0))


def of_logits(
    logits: Float[Tensor, "N T C"], places: Int[Tensor, "N T"], decoding: Decoding
) -> tuple[Float[Tensor, "N T C"], Float[Tensor, "N T"]]:
    """Logits of the distribution that is sampled, and log-probabilities of the sampled tokens.

    Args:
        logits: A policy's, of all tokens or of candidates.
        places: Where among them each sampled token stands.
        decoding: How it was drawn.
    """
    logits, temperature = logits.float(), decoding.temperature
    restricted = restrict(
        logits, temperature=temperature, top_k=decoding.top_k, top_p=decoding.top_p
    )
    inside = log_probability(restricted, places)
    # on the CPU it costs nothing to look first; a GPU would have to be waited for
    if inside.device.type == "cpu" and bool(inside.isfinite().all()):
        return restricted, inside
    whole = log_probability(logits / temperature, places)
    return restricted, torch.where(inside.isfinite(), inside, whole)
