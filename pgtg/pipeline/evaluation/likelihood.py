"""What a policy thinks of texts that it did not write: references, and planted flaws.

A sampled score sees a policy through one draw a source, greedy text through its mode alone. The
likelihood of clean references sees all of it, and in a generated world where it is lost: at facts,
at the end, or at the words of the pattern.
"""

import math
from collections.abc import Sequence

import numpy as np

from pgtg.data.examples import Examples
from pgtg.models.codec import Codec
from pgtg.models.language import LanguageModel
from pgtg.pipeline.context import Context
from pgtg.types import TokenIds

# kind of a token -> the column of its negative log-likelihood
COLUMNS = {"fact": "nll_facts", "end": "nll_end", "content": "nll_content"}


def likelihoods(
    ctx: Context, lm: LanguageModel, codec: Codec, examples: Examples
) -> dict[str, list[float]]:
    """Per example, teacher forced.

    Returns:
        nll: -log pi of the first reference, its end included [nats a text].
        nll_facts, nll_end, nll_content: The parts of it, where tokens are labelled.
        nll_flaws: -log pi of the planted flaws of the training target, given what stands before
            each [nats a text]; NaN where there is none.
        right_over_flaw: log pi of the right token over that of the flaw's first, at the state
            before it, which both texts share [nats]; NaN where there is no flaw.
    """
    sources = ctx.task.sources(examples, codec).ids
    clean = [ids for ids, _ in codec.encode_targets([e.references[0] for e in examples])]
    log_probs = _log_probs(ctx, lm, sources, clean)
    found = {"nll": [-float(row.sum(dtype=np.float64)) for row in log_probs]}
    labels = [ctx.task.reference_labels(e, t) for e, t in zip(examples, clean, strict=True)]
    if any(row is None for row in labels):
        return found
    for kind, column in COLUMNS.items():
        found[column] = [
            -sum(float(p) for p, label in zip(row, own or (), strict=True) if label == kind)
            for row, own in zip(log_probs, labels, strict=True)
        ]
    told = [ids for ids, _ in codec.encode_targets([e.target for e in examples])]
    flaws = [ctx.task.target_flaws(e, t) or [] for e, t in zip(examples, told, strict=True)]
    if not any(any(row) for row in flaws):
        return found
    found |= {"nll_flaws": [], "right_over_flaw": []}
    theirs = _log_probs(ctx, lm, sources, told)
    for right, row, flawed in zip(log_probs, theirs, flaws, strict=True):
        places = np.flatnonzero(flawed)
        first = int(places[0]) if len(places) else -1
        none = not len(places)
        found["nll_flaws"].append(math.nan if none else -float(row[places].sum()))
        found["right_over_flaw"].append(math.nan if none else float(right[first] - row[first]))
    return found


def _log_probs(
    ctx: Context, lm: LanguageModel, sources: Sequence[TokenIds], tokens: Sequence[TokenIds]
) -> list[np.ndarray]:
    """log pi of every token [nats]."""
    rows = range(len(tokens))
    return ctx.per_token(lm.log_probabilities, sources, tokens, rows, recurring=True)
