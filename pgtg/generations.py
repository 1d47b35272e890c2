"""The generations that a round sampled, read back from its artifact."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from pgtg.store import Artifact, read_table
from pgtg.types import Generations


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
        groups=torch.cat([one.groups + rows[n] for n, one in enumerate(rounds)]),
        example_scores=np.concatenate(scored) if scored else None,
    )


def shuffled_scores(generations: Generations, seed: int) -> Generations:
    """The same generations with the judge's scores in random order: a control."""
    order = np.random.default_rng(seed).permutation(len(generations.scores))
    scores = [generations.scores[i] for i in order]
    details = generations.example_scores
    return replace(
        generations, scores=scores, example_scores=None if details is None else details[order]
    )


def read_part(folder: Path, part: str) -> Generations:
    """The generations of a part in a folder that may not be finished yet."""
    tables = [read_table(path) for path in sorted((folder / part).glob("*.parquet"))]
    columns = {name: [v for table in tables for v in table[name]] for name in tables[0]}
    rows_of: dict[str, list[int]] = {}
    for row, source_id in enumerate(columns["source_id"]):
        rows_of.setdefault(source_id, []).append(row)
    place = {source_id: i for i, source_id in enumerate(rows_of)}
    return Generations(
        source_ids=list(rows_of),
        sources=[columns["source"][rows[0]] for rows in rows_of.values()],
        origin=[place[source_id] for source_id in columns["source_id"]],
        tokens=columns["tokens"],
        texts=columns["text"],
        scores=columns["score"],
        groups=torch.tensor(list(rows_of.values())),
        example_scores=np.array(columns["example_scores"], np.float32)
        if "example_scores" in columns
        else None,
    )
