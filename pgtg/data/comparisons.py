"""Which generations are compared with each other, and what the judge prefers among them.

Everything after a task's choice of comparisons is shared: alignment, diagnostics, reports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.config import FitConfig
from pgtg.ops.order import dealt
from pgtg.ops.ranking import informative
from pgtg.ops.sampling import derive_seed
from pgtg.types import Generations


@dataclass(frozen=True)
class Comparisons:
    """G groups of J candidates each.

    Args:
        groups: Rows into the generations; -1 where a group has fewer candidates.
        preference: The judge's scores of the candidates, higher is better; NaN where there is none.
        tied: Groups that were left out, since the judge tells none of their candidates apart.
        margin: Of groups of two, what the better one is to be above the other [nats].
    """

    groups: Int[Tensor, "G J"]
    preference: Float[Tensor, "G J"]
    tied: int = 0
    margin: Float[Tensor, " G"] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    def split(self, size: int) -> list["Comparisons"]:
        """Consecutive parts of at most `size` groups."""
        return [self.chosen(slice(i, i + size)) for i in range(0, len(self), size)]

    def chosen(self, which: "slice | Sequence[int] | Tensor") -> "Comparisons":
        """Some of the groups; those that were left out are not counted again."""
        margin = None if self.margin is None else self.margin[which]
        return Comparisons(self.groups[which], self.preference[which], margin=margin)


def telling(
    groups: Int[Tensor, "G J"],
    preference: Float[Tensor, "G J"],
    margin: Float[Tensor, " G"] | None = None,
) -> Comparisons:
    """The groups that hold a preference; the others are counted."""
    keep = informative(preference)
    margin = None if margin is None else margin[keep]
    return Comparisons(groups[keep], preference[keep], int((~keep).sum()), margin)


def of_sources(generations: Generations) -> Comparisons:
    """Each source's own generations are compared with each other: all at once by their scores, or
    two by two where only pairs were compared."""
    if generations.pairs is not None:
        better = torch.tensor([1.0, 0.0], dtype=torch.float64)
        return Comparisons(generations.pairs, better.expand(len(generations.pairs), 2))
    groups = generations.groups
    scores = torch.tensor(generations.scores, dtype=torch.float64)[groups]
    return telling(groups, scores.masked_fill(groups < 0, math.nan), generations.margins)


def in_passes(comparisons: Comparisons, size: int, seed: int, step: int) -> Comparisons:
    """The groups of update `step`: passes over all groups, each in a random order of its own."""
    chosen: list[int] = []
    total, place = len(comparisons), step * size
    while len(chosen) < min(size, total):
        epoch, offset = divmod(place + len(chosen), total)
        order = np.random.default_rng(derive_seed(seed, epoch)).permutation(total)
        chosen += order[offset : offset + size - len(chosen)].tolist()
    return comparisons.chosen(chosen)


def parts_in_passes(
    generations: Generations, comparisons: Comparisons, cfg: FitConfig, seed: int, step: int
) -> list[Comparisons]:
    """Micro-batches of update `step`: those of `in_passes`, where cfg.bucket > 1 with sources of
    similar length together (`ops.order`)."""
    size = cfg.micro_batch * cfg.accumulate
    if cfg.bucket <= 1:
        return in_passes(comparisons, size, seed, step).split(cfg.micro_batch)
    number, own = divmod(step, cfg.bucket)
    steps = range(number * cfg.bucket, (number + 1) * cfg.bucket)
    found = [in_passes(comparisons, size, seed, other) for other in steps]
    whole = Comparisons(
        torch.cat([one.groups for one in found]),
        torch.cat([one.preference for one in found]),
        margin=torch.cat([one.margin for one in found if one.margin is not None])
        if comparisons.margin is not None
        else None,
    )
    first = whole.groups[:, 0].tolist()
    lengths = [len(generations.sources[generations.origin[row]]) for row in first]
    parts = dealt(
        lengths,
        micro_batch=min(cfg.micro_batch, len(comparisons)),
        updates=cfg.bucket,
        seed=derive_seed(seed, "bucket", number),
    )
    return [whole.chosen(part) for part in parts[own]]


def distinct(generations: Generations) -> list[int]:
    """Rows of the generations without repetitions: the first of each token sequence."""
    first: dict[tuple[int, ...], int] = {}
    for row, tokens in enumerate(generations.tokens):
        first.setdefault(tuple(tokens), row)
    return list(first.values())


def all_at_once(generations: Generations) -> Comparisons:
    """One group of all distinct generations."""
    rows = torch.tensor([distinct(generations)])
    scores = torch.tensor(generations.scores, dtype=torch.float64)
    return telling(rows, scores[rows])


def from_pool(
    generations: Generations, size: int, seed: int, step: int, *, k: int, pool: int, share: float
) -> Comparisons:
    """Random groups of update `step`: `pool` distinct generations, `size` groups of `k` of them.

    The preference is the judge's mean over a random `share` of the examples that it judged with,
    the same ones for all groups of the update.

    Args:
        generations: With `example_scores`, the judge's score on every example.
        k: Candidates of a group, drawn without replacement.
        pool: Generations that the groups of one update are drawn from.
        share: Of the judge's examples, in (0, 1].

    Source: arXiv:2306.00398, Sec. 2.1; the released code's prompt reward step: 16
    prompts, 64 groups of 5, 80 % of the training examples (docs/method.md, "Preference loss").
    """
    assert generations.example_scores is not None
    rng = np.random.default_rng(derive_seed(seed, step))
    rows = np.array(distinct(generations))
    rows = rng.permutation(rows)[:pool]
    k = min(k, len(rows))
    groups = np.stack([rng.permutation(rows)[:k] for _ in range(size)])
    scores = _on_a_share(generations.example_scores, rng, share)
    chosen = torch.from_numpy(groups)
    return telling(chosen, scores[chosen])


def from_fresh(
    example_scores: Float[np.ndarray, "P E"],
    size: int,
    seed: int,
    step: int,
    *,
    k: int,
    share: float,
) -> Comparisons:
    """`size` groups of `k` of the P prompts that were sampled and judged for update `step`.

    Prompts that were drawn twice stay two candidates. Where no group holds a preference, one of
    them is returned as it is, so that the update has something to read; its loss is 0.

    Args:
        example_scores: The judge's score of each prompt on every example.
        k: Candidates of a group, drawn without replacement, at most P.
        share: Of the judge's examples, in (0, 1].

    Source: the released code's `RewardModelTrainer.get_loss`.
    """
    rng = np.random.default_rng(derive_seed(seed, step))
    scores = _on_a_share(example_scores, rng, share)
    rows = [rng.permutation(len(example_scores))[:k] for _ in range(size)]
    groups = torch.from_numpy(np.stack(rows))
    found = telling(groups, scores[groups])
    return found if len(found) else Comparisons(groups[:1], scores[groups[:1]], found.tied)


def examples_in(share: float, examples: int) -> int:
    """How many examples a share of them is, rounded up: 0.8 of 64 is 52 (the released code)."""
    return max(math.ceil(Fraction(str(share)) * examples), 1)


def _on_a_share(
    example_scores: Float[np.ndarray, "P E"], rng: np.random.Generator, share: float
) -> Float[Tensor, " P"]:
    """Mean scores over a random share of the examples, the same ones for all prompts."""
    examples = example_scores.shape[1]
    seen = rng.permutation(examples)[: examples_in(share, examples)]
    return torch.from_numpy(example_scores[:, np.sort(seen)].mean(-1))
