"""Drawing tokens: the distribution that is sampled, and its log-probability and entropy.

Log-probability and entropy belong to the distribution that was sampled (after temperature, top-k
and top-p), never to the full softmax of the model:
docs/method.md, "Corrections to the reference", 4.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniforms(length: int, *key: int | str) -> np.ndarray:
    """`length` numbers in [0, 1) that depend on `key` alone.

    Every generation has its own stream, so what is sampled does not depend on the batch it was in,
    on the order of batches, or on what was drawn before.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64))).random(
        length
    )


def derive_seed(*key: int | str) -> int:
    """A seed in [0, 2**63) that depends on `key` alone, for torch's generators."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators (dropout, initial weights) seeded inside, left as they were."""
    found = torch.accelerator.current_accelerator()
    kind = "cpu" if found is None else found.type
    devices = range(0 if found is None else torch.accelerator.device_count())
    with torch.random.fork_rng(devices=list(devices), device_type=kind):
        torch.manual_seed(seed)
        yield


def restrict(
    logits: Float[Tensor, "*N V"], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "*N V"]:
    """Logits of the distribution to sample: -inf outside the top k and the nucleus.

    Args:
        logits: Unnormalised log-probabilities [nats]; used in float32 or wider.
        temperature: Divides the logits, > 0.
        top_k: Tokens kept, 0 for all; ties at the border are kept.
        top_p: Smallest set of most likely tokens with at least this probability; 1 for all.
    """
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    if 0 < top_k < logits.shape[-1]:
        border = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < border, -math.inf)
    if top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= top_p)
        logits = logits.masked_fill(dropped, -math.inf)
    return logits


def candidates(
    logits: Float[Tensor, "N V"], *, temperature: float = 1.0, top_k: int, top_p: float = 1.0
) -> tuple[Int[Tensor, "N C"], Float[Tensor, "N C"]]:
    """The C = top_k tokens that may be drawn, in the vocabulary's order, and their `restrict`ed
    logits; of ties at the border only as many as there is room for."""
    tokens = logits.topk(min(top_k, logits.shape[-1]), dim=-1).indices.sort(dim=-1).values
    kept = logits.gather(-1, tokens)
    return tokens, restrict(kept, temperature=temperature, top_p=top_p)


def draw(restricted: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """One token a row by inverting the cumulative distribution at `uniform` in [0, 1)."""
    cumulative = restricted.double().softmax(-1).cumsum(-1)
    target = uniform.double() * cumulative[:, -1]
    # first token whose cumulative probability exceeds the target: never one of probability 0
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)


def log_probability(
    restricted: Float[Tensor, "*N V"], tokens: Int[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """log pi(token) [nats] under the (restricted) logits."""
    chosen = restricted.gather(-1, tokens[..., None]).squeeze(-1)
    return chosen - restricted.logsumexp(-1)


def entropy(restricted: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """H = -sum_a pi(a) log pi(a) [nats] of the (restricted) logits; 0 log 0 = 0.

    Excluded tokens are set to logit 0 for the product only, so that no gradient is NaN.
    """
    log_pi = restricted - restricted.logsumexp(-1, keepdim=True)
    inside = log_pi > -math.inf
    return -(log_pi.exp() * log_pi.where(inside, torch.zeros_like(log_pi))).sum(-1)
