"""Sampling and greedy decoding: each source is read once, only unfinished rows are decoded.

A generation's randomness is a stream of its own (`ops.sampling.uniforms`), one number a token, so
what is sampled depends on neither batch size nor order. Left out: beam search, repetition
penalties; the method samples, and the paper decodes greedily.

Where a batch does not fit into the memory, batches are halved for the rest of the process, and that
is said once.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgtg.errors import DivergedError, PgtgError
from pgtg.models.language import LanguageModel
from pgtg.ops.masking import length_sorted, pad
from pgtg.ops.sampling import candidates, draw, restrict, uniforms
from pgtg.runtime.device import free_cached_memory
from pgtg.types import TokenIds

NO_ROOM = ("allocate memory", "not enough memory", "out of memory")  # in a RuntimeError's text
COMPACT_AT = 0.25  # rows are dropped from the cache once this share of them has finished


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Greedy decoding ignores temperature, top-k and top-p."""

    greedy: bool
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


_share = 1.0  # of the token budget; less once a batch did not fit


def _to_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def generate(
    lm: LanguageModel,
    sources: Sequence[TokenIds],
    keys: Sequence[str],
    *,
    k: int,
    eos_ids: Sequence[int],
    decoding: Decoding,
    batch_tokens: int,
    seed_key: Sequence[int | str],
    warn: Callable[[str], None] = _to_stderr,
) -> Iterator[tuple[int, list[TokenIds]]]:
    """K generations of each source, as (row of the source, its K token lists), batch by batch.

    Args:
        lm: The policy, in eval mode.
        sources: Token ids of the sources.
        keys: One name a source (its id); with `seed_key` and the generation's number it fixes the
            random stream.
        k: Generations of each source; 1 for greedy decoding.
        eos_ids: Tokens that end a generation; the end token is kept as the last token.
        decoding: How tokens are chosen.
        batch_tokens: Token budget of a batch: rows times (source + new tokens).
        seed_key: (seed, round, purpose, ...).
        warn: Takes the warning that batches do not fit.

    Raises:
        DivergedError: The policy's logits are not finite.
        PgtgError: Not even the generations of one source fit into the memory.
    """
    new = decoding.max_new_tokens

    def batches(rows: Sequence[int]) -> list[list[int]]:
        lengths, budget = [len(sources[i]) for i in rows], int(batch_tokens * _share)
        found = length_sorted(lengths, budget=budget, extra=new, copies=k)
        return [[rows[place] for place in batch] for batch in found]

    def tokens_of(rows: Sequence[int]) -> list[TokenIds]:
        noise = None
        if not decoding.greedy:
            noise = streams(new, k, seed_key, [keys[i] for i in rows]).to(lm.device)
        source, mask = (part.to(lm.device) for part in pad([sources[i] for i in rows]))
        return generate_batch(lm, source, mask, noise, k, eos_ids, decoding)

    waiting = deque(batches(range(len(sources))))
    while waiting:
        rows = waiting.popleft()
        tokens = _fitting(tokens_of, rows, lm.device)
        if tokens is not None:
            for place, i in enumerate(rows):
                yield i, tokens[place * k : (place + 1) * k]
        elif len(rows) == 1:
            raise PgtgError(
                f"{k} generations of a source of {len(sources[rows[0]])} tokens do not fit into "
                "the memory: lower sample.k, sample.max_new_tokens or policy.max_source_tokens"
            )
        else:
            _halve(batch_tokens, len(rows), warn)
            rest = [i for batch in [rows, *waiting] for i in batch]
            waiting = deque(batches(rest))


def _fitting(
    make: Callable[[Sequence[int]], list[TokenIds]], rows: Sequence[int], device: torch.device
) -> list[TokenIds] | None:
    """What `make` returns, None where the memory does not suffice."""
    try:
        return make(rows)
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if not any(text in str(error) for text in NO_ROOM):
            raise
    free_cached_memory(device)  # the error is gone, and with it the frames that held tensors
    return None


def _halve(batch_tokens: int, rows: int, warn: Callable[[str], None]) -> None:
    """Halve the budget of this process's batches; the first time, say so."""
    global _share
    if _share == 1.0:
        warn(
            f"out of memory with {rows} sources in a batch (sample.batch_tokens={batch_tokens}): "
            "from here on batches are halved until they fit"
        )
    _share /= 2


def streams(
    length: int, k: int, seed_key: Sequence[int | str], keys: Sequence[str]
) -> Float[Tensor, "N T"]:
    """The random numbers of k generations for each of `keys`, those of a key side by side."""
    rows = [uniforms(length, *seed_key, key, j) for key in keys for j in range(k)]
    return torch.from_numpy(np.stack(rows))


@torch.no_grad()
def generate_batch(
    lm: LanguageModel,
    source: Int[Tensor, "B S"],
    mask: Bool[Tensor, "B S"],
    noise: Float[Tensor, "N T"] | None,
    k: int,
    eos_ids: Sequence[int],
    decoding: Decoding,
) -> list[TokenIds]:
    """Token lists of the N = B * k generations of one batch, the k of a source side by side."""
    reading = lm.prefill(source, mask, logits=True)
    live = torch.arange(len(source) * k, device=source.device)  # generation of each cache row
    reading = reading.select(live // k)
    done: list[TokenIds] = [[] for _ in live]
    ends = torch.tensor(list(eos_ids), device=source.device)
    finished = torch.zeros(len(live), dtype=torch.bool, device=source.device)
    for t in range(decoding.max_new_tokens):
        logits = reading.output[:, -1]
        require_finite(logits, t)
        chosen = choose(logits, None if noise is None else noise[live, t], decoding)
        for row, token in zip(live[~finished].tolist(), chosen[~finished].tolist(), strict=True):
            done[row].append(token)
        finished = finished | torch.isin(chosen, ends)
        if finished.all() or t + 1 == decoding.max_new_tokens:
            break
        if finished.double().mean() >= COMPACT_AT:
            kept = (~finished).nonzero().squeeze(-1)
            reading, live, chosen = reading.select(kept), live[kept], chosen[kept]
            finished = finished[kept]
        lm.extend(reading, chosen[:, None], torch.ones_like(chosen[:, None]).bool(), logits=True)
    return done


def require_finite(logits: Float[Tensor, "N V"], t: int) -> None:
    """Raises a DivergedError if token t of a generation cannot be drawn."""
    if not logits.amax(-1).isfinite().all():  # NaN, or nothing is allowed
        raise DivergedError(
            f"the policy's logits at token {t} of a generation are not finite: its weights "
            "have diverged; what is saved stays. Try a lower learning rate"
        )


def choose(
    logits: Float[Tensor, "N V"], noise: Float[Tensor, " N"] | None, decoding: Decoding
) -> Int[Tensor, " N"]:
    """The next token of N generations.

    Args:
        noise: One number in [0, 1) for each; None for greedy decoding.
    """
    if noise is None:
        return logits.argmax(-1)
    tokens, restricted = drawable(logits, decoding)
    place = draw(restricted, noise)
    return place if tokens is None else tokens.gather(-1, place[:, None]).squeeze(-1)


def drawable(
    logits: Float[Tensor, "N V"], decoding: Decoding
) -> tuple[Int[Tensor, "N C"] | None, Float[Tensor, "N C"]]:
    """The tokens that may be drawn (None: the whole vocabulary) and their logits."""
    temperature, top_p = decoding.temperature, decoding.top_p
    if not decoding.top_k:
        return None, restrict(logits, temperature=temperature, top_p=top_p)
    return candidates(logits, temperature=temperature, top_k=decoding.top_k, top_p=top_p)
