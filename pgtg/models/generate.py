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
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgtg.errors import DivergedError, PgtgError
from pgtg.models.backends.attention import few_queries
from pgtg.models.backends.compiled import size
from pgtg.models.budget import token_budget
from pgtg.models.language import LanguageModel, evaluating
from pgtg.models.sharing import WASTE, indices
from pgtg.ops.masking import length_sorted, pad
from pgtg.ops.sampling import candidates, draw, restrict, uniforms
from pgtg.runs.layout import folded
from pgtg.runtime.device import free_cached_memory
from pgtg.types import TokenIds

NO_ROOM = ("allocate memory", "not enough memory", "out of memory")  # in a RuntimeError's text
LOOK_EVERY = 8  # tokens that an accelerator decodes before the host looks, and waits for it
COMPACT_AT = 0.25  # rows are dropped from the cache once this share of them has finished


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Greedy decoding ignores temperature, top-k and top-p."""

    greedy: bool
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0  # tokens before which a generation does not end


_share = 1.0  # of the token budget; less once a batch did not fit


def _to_stderr(text: str) -> None:
    print(folded(f"warning: {text}", sys.stderr), file=sys.stderr)


@dataclass(frozen=True)
class Sampler:
    """How a run's policy writes: `generate` with what does not change from call to call.

    Args:
        lm: The policy; in eval mode when it is called.
        eos_ids: Tokens that end a generation.
        decoding: How tokens are chosen.
        batch_tokens: Token budget of a batch, or "auto".
        warn: Takes the warning that batches do not fit.
        compiled: Whether the step that decodes a token is compiled; see `require_compiled`.
    """

    lm: LanguageModel
    eos_ids: Sequence[int]
    decoding: Decoding
    batch_tokens: int | str
    warn: Callable[[str], None] = _to_stderr
    compiled: bool = False

    def __call__(
        self,
        sources: Sequence[TokenIds],
        keys: Sequence[str],
        *,
        k: int = 1,
        seed_key: Sequence[int | str] = (),
    ) -> Iterator[tuple[int, list[TokenIds]]]:
        """K generations of each source, as (row of the source, its K token lists)."""
        return generate(
            self.lm,
            sources,
            keys,
            k=k,
            eos_ids=self.eos_ids,
            decoding=self.decoding,
            batch_tokens=self.batch_tokens,
            seed_key=seed_key,
            warn=self.warn,
            compiled=self.compiled,
        )


def generate(
    lm: LanguageModel,
    sources: Sequence[TokenIds],
    keys: Sequence[str],
    *,
    k: int,
    eos_ids: Sequence[int],
    decoding: Decoding,
    batch_tokens: int | str,
    seed_key: Sequence[int | str],
    warn: Callable[[str], None] = _to_stderr,
    compiled: bool = False,
) -> Iterator[tuple[int, list[TokenIds]]]:
    """K generations of each source, as (row of the source, its K token lists), batch by batch.

    Args:
        lm: The policy, in eval mode.
        sources: Token ids of the sources.
        keys: One name a source (its id); with `seed_key` and the generation's number it fixes the
            random stream.
        k: Generations of each source; 1 for greedy decoding.
        eos_ids: Tokens that end a generation; the end token is kept as the last token.
        batch_tokens: Token budget of a batch (`tokens_held`); "auto": what the device has room for.
        seed_key: (seed, round, purpose, ...).

    Raises:
        DivergedError: The policy's logits are not finite.
        PgtgError: Not even the generations of one source fit into the memory.
    """
    new, most = decoding.max_new_tokens, token_budget(batch_tokens, lm)
    held = partial(tokens_held, new=new, k=k, once=lm.reads_sources_once and not compiled)

    def batches(rows: Sequence[int]) -> list[list[int]]:
        lengths, budget = [len(sources[i]) for i in rows], int(most * _share)
        found = length_sorted(lengths, budget=budget, held=held)
        return [[rows[place] for place in batch] for batch in found]

    def tokens_of(rows: Sequence[int]) -> list[TokenIds]:
        noise = None
        if not decoding.greedy:
            noise = streams(new, k, seed_key, [keys[i] for i in rows]).to(lm.device)
        source, mask = (part.to(lm.device) for part in pad([sources[i] for i in rows]))
        return generate_batch(lm, source, mask, noise, k, eos_ids, decoding, compiled=compiled)

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
            _halve(most, len(rows), warn)
            rest = [i for batch in [rows, *waiting] for i in batch]
            waiting = deque(batches(rest))


def tokens_held(source: int, new: int, k: int, *, once: bool) -> int:
    """The most tokens that k generations of a source hold keys and values of.

    Args:
        source: Tokens of the source.
        new: Tokens of a generation.
        once: Whether generations share their source's keys and values, as they do until the rows
            that are left of a batch are so few that each has its own.
    """
    apart = k * (source + new)
    return max(source + k * new, -(-apart // WASTE)) if once else apart


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
    *,
    compiled: bool = False,
) -> list[TokenIds]:
    """Token lists of the N = B * k generations of one batch, the k of a source side by side.

    Tokens stay on the device; the host looks at those of several steps at once. A row that has
    ended continues until the host has seen it, and what it says after its end is left out. A
    compiled step has few numbers of rows: it reads the last one several times.
    """
    last = decoding.max_new_tokens
    live = list(range(len(source) * k))  # generation of each cache row, but for repeated ones
    rows = _repeated(live, compiled)
    reading = lm.prefill(source, mask, logits=True).select([row // k for row in rows])
    if compiled:
        reading.fix(last - 1)
        noise = None if noise is None else noise[indices(rows, source.device)]
    else:
        reading.reserve(last - 1)
        lm.lay_out_for_few_queries(reading)
    done: list[TokenIds] = [[] for _ in live]
    every = 1 if source.device.type == "cpu" else LOOK_EVERY
    ends, unseen = frozenset(eos_ids), Unseen()
    for t in range(last):
        logits = reading.output[:, -1]
        if t < decoding.min_new_tokens:
            logits = logits.index_fill(-1, indices(sorted(ends), source.device), -torch.inf)
        chosen = choose(logits, None if noise is None else noise[:, t], decoding)
        unseen.add(chosen, logits)
        if (t + 1) % every == 0 or t + 1 == last:
            for row, tokens in zip(live, unseen.look(t), strict=False):
                if not done[row] or done[row][-1] not in ends:
                    done[row] += _until(ends, tokens)
            kept = [place for place, row in enumerate(live) if done[row][-1] not in ends]
            if not kept or t + 1 == last:
                break
            rows = _repeated(kept, compiled)
            if len(chosen) - len(rows) >= COMPACT_AT * len(chosen):
                index = indices(rows, source.device)
                reading, chosen = reading.select(rows), chosen[index]
                noise = None if noise is None else noise[index]
                live = [live[place] for place in kept]
        token = chosen[:, None]
        with nullcontext() if compiled else few_queries():
            lm.extend(reading, token, torch.ones_like(token).bool(), logits=True)
    return done


def _repeated(places: list[int], compiled: bool) -> list[int]:
    """For a compiled step the last of the places as often as makes their number one of few."""
    return places + places[-1:] * (size(len(places)) - len(places)) if compiled else places


@torch.no_grad()
def growing_cache(lm: LanguageModel) -> str:
    """What of a model's cache cannot be written in place, in words; empty if there is nothing."""
    name = type(lm.model).__name__
    if not lm.structure.caches:
        return f"{name} has no cache of keys and values: each new token reads its text again"
    token = torch.ones(1, 1, dtype=torch.long, device=lm.device)
    with evaluating(lm):
        kinds = lm.prefill(token, token.bool(), logits=False).reserve(1)
    if not kinds:
        return ""
    return (
        f"{name}: room in the cache is not made before decoding for layers of the kind "
        f"{', '.join(kinds)}; Transformers makes their keys and values again at every token"
    )


def _until(ends: frozenset[int], tokens: TokenIds) -> TokenIds:
    """The tokens up to and with the first that ends a generation."""
    for n, token in enumerate(tokens):
        if token in ends:
            return tokens[: n + 1]
    return tokens


class Unseen:
    """Tokens of N rows that wait on their device for the host to look at them."""

    def __init__(self) -> None:
        self._chosen: list[Tensor] = []
        self._finite: list[Tensor] = []

    def add(self, chosen: Int[Tensor, " N"], logits: Float[Tensor, "N V"]) -> None:
        """The next token of each row, and the logits that it was drawn from."""
        self._chosen.append(chosen)
        self._finite.append(finite(logits))

    def look(self, t: int) -> list[TokenIds]:
        """The tokens of each row since the last look, the last of them number t, in one transfer.

        Raises:
            DivergedError: Logits were not finite.
        """
        # a column for each token; below the rows' tokens whether its logits were finite
        columns = [torch.cat([c, f[None]]) for c, f in zip(self._chosen, self._finite, strict=True)]
        *rows, good = torch.stack(columns, 1).tolist()
        if 0 in good:
            raise diverged(t + 1 - len(good) + good.index(0))
        self._chosen, self._finite = [], []
        return rows


def finite(logits: Float[Tensor, "N V"]) -> Int[Tensor, ""]:
    """1 if each row has a token that can be drawn, else 0: NaN, or nothing is allowed."""
    return logits.amax(-1).isfinite().all().long()


def require_finite(logits: Float[Tensor, "N V"], t: int) -> None:
    """Raises a DivergedError if token t of a generation cannot be drawn; the host waits for it."""
    if not finite(logits):
        raise diverged(t)


def diverged(t: int) -> DivergedError:
    return DivergedError(
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
