"""The generations that a round sampled, read back from its artifact."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.runs.folder import Artifact, read_table
from pgtg.types import Generations, TokenIds


def read_generations(artifact: Artifact, part: str) -> Generations:
    """The generations of a part, with the groups in which they are compared."""
    return read_part(artifact.path, part)


def joined(rounds: Sequence[Generations]) -> Generations:
    """The generations of several rounds as one set; those of each source stay one group."""
    if len(rounds) == 1:
        return rounds[0]
    sources = [0, *accumulate(len(one.sources) for one in rounds)]
    rows = [0, *accumulate(len(one.tokens) for one in rounds)]
    scored = [one.example_scores for one in rounds if one.example_scores is not None]
    return Generations(
        source_ids=[i for one in rounds for i in one.source_ids],
        sources=[ids for one in rounds for ids in one.sources],
        origin=[o + sources[n] for n, one in enumerate(rounds) for o in one.origin],
        tokens=[tokens for one in rounds for tokens in one.tokens],
        texts=[text for one in rounds for text in one.texts],
        scores=[score for one in rounds for score in one.scores],
        groups=ragged(
            [[row + rows[n] for row in own] for n, one in enumerate(rounds) for own in one.members]
        ),
        pairs=_stacked(
            [None if one.pairs is None else one.pairs + rows[n] for n, one in enumerate(rounds)]
        ),
        margins=_margins(rounds),
        example_scores=np.concatenate(scored) if scored else None,
    )


def shuffled_scores(generations: Generations, seed: int) -> Generations:
    """The same generations with the judge's scores in random order: a control."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(generations.scores))
    scores = [generations.scores[i] for i in order]
    details = generations.example_scores
    pairs = generations.pairs
    if pairs is not None:  # who is the better one
        flipped = torch.from_numpy(rng.random(len(pairs)) < 0.5)
        pairs = torch.where(flipped[:, None], pairs.flip(-1), pairs)
    return replace(
        generations,
        scores=scores,
        pairs=pairs,
        example_scores=None if details is None else details[order],
    )


def ragged(rows: Sequence[Sequence[int]]) -> Int[Tensor, "G J"]:
    """Groups of rows as one tensor, -1 where a group has fewer."""
    most = max(map(len, rows), default=0)
    return torch.tensor([[*own, *[-1] * (most - len(own))] for own in rows])


def _stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One below the other; None where one is missing."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found and len(found) == len(parts) else None


def _margins(rounds: Sequence[Generations]) -> Float[Tensor, " G"] | None:
    """Those of all groups, 0 where a round has none; None where no round has any."""
    found = [
        torch.zeros(len(one.groups), dtype=torch.float64) if one.margins is None else one.margins
        for one in rounds
    ]
    return torch.cat(found) if any(one.margins is not None for one in rounds) else None


def _pairs(
    beaten: Sequence[Sequence[int]], rows_of: Mapping[str, Sequence[int]]
) -> Int[Tensor, "P 2"] | None:
    """Pairs of rows of the generations, from what each beats among its source's own."""
    if not beaten:
        return None
    found = [[row, own[i]] for own in rows_of.values() for row in own for i in beaten[row]]
    return torch.tensor(found).reshape(-1, 2)


def read_part(folder: Path, part: str) -> Generations:
    """The generations of a part in a folder that may not be finished yet.

    Chunk by chunk: each source is kept once, and equal token ids are one object in memory.
    """
    tables = (read_table(path) for path in sorted((folder / part).glob("*.parquet")))
    return of_tables(tables)


def of_tables(tables: Iterable[dict[str, list[Any]]]) -> Generations:
    """The generations in the columns of tables, those of each source one group."""
    ids: dict[int, int] = {}
    sources: dict[str, TokenIds] = {}
    rows_of: dict[str, list[int]] = {}
    origin: list[int] = []
    tokens: list[TokenIds] = []
    texts: list[str] = []
    scores: list[float] = []
    details: list[np.ndarray] = []
    beaten: list[list[int]] = []
    margins: list[float] = []
    for table in tables:
        margin_of = table.get("margin", [0.0] * len(table["source_id"]))
        for source_id, source, margin in zip(
            table["source_id"], table["source"], margin_of, strict=True
        ):
            if source_id not in sources:
                sources[source_id] = [ids.setdefault(token, token) for token in source]
                margins.append(margin)
            own = rows_of.setdefault(source_id, [])
            own.append(len(origin))
            origin.append(len(rows_of) - 1 if len(own) == 1 else origin[own[0]])
        tokens += [[ids.setdefault(token, token) for token in row] for row in table["tokens"]]
        texts += table["text"]
        scores += table["score"]
        beaten += table.get("beats", [])
        if "example_scores" in table:
            details.append(np.array(table["example_scores"], np.float32))
    return Generations(
        source_ids=list(sources),
        sources=list(sources.values()),
        origin=origin,
        tokens=tokens,
        texts=texts,
        scores=scores,
        groups=ragged(list(rows_of.values())),
        pairs=_pairs(beaten, rows_of),
        margins=torch.tensor(margins, dtype=torch.float64) if any(margins) else None,
        example_scores=np.concatenate(details) if details else None,
    )
