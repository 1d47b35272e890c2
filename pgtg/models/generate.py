"""Sampling and greedy decoding: each source is read once, only unfinished rows are decoded.

A generation's randomness is a stream of its own (`ops.sampling.uniforms`), one number a token, so
what is sampled depends on neither batch size nor order. Left out: beam search, repetition
penalties; the method samples, and the paper decodes greedily.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgtg.models.language import LanguageModel
from pgtg.ops.masking import length_sorted, pad
from pgtg.ops.sampling import draw, restrict, uniforms
from pgtg.types import TokenIds

COMPACT_AT = 0.25  # rows are dropped from the cache once this share of them has finished


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Greedy decoding ignores temperature, top-k and top-p."""

    greedy: bool
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


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
    """
    new = decoding.max_new_tokens
    lengths = [len(source) for source in sources]
    for rows in length_sorted(lengths, budget=batch_tokens, extra=new, copies=k):
        noise = None
        if not decoding.greedy:
            streams = [uniforms(new, *seed_key, keys[i], j) for i in rows for j in range(k)]
            noise = torch.from_numpy(np.stack(streams)).to(lm.device)
        source, mask = pad([sources[i] for i in rows])
        tokens = generate_batch(
            lm, source.to(lm.device), mask.to(lm.device), noise, k, eos_ids, decoding
        )
        for place, i in enumerate(rows):
            yield i, tokens[place * k : (place + 1) * k]


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
        chosen = _choose(reading.output[:, -1], None if noise is None else noise[live, t], decoding)
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


def _choose(logits: Tensor, noise: Tensor | None, decoding: Decoding) -> Int[Tensor, " N"]:
    if noise is None:
        return logits.argmax(-1)
    restricted = restrict(
        logits, temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p
    )
    return draw(restricted, noise)
