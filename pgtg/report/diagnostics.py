"""How good a run's token rewards are, from what its folder holds. No model is loaded.

Ranking measures stand in the aggregate stage's manifests. From the held-out token rewards and
evaluations come: the aggregator's weights (effective number of tokens, share of the top token),
correlations with length, and the calibration of the pairwise Plackett–Luce probabilities.
Left out, because they need the models: staleness over more than one round, token deletion and
leave-one-out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgtg.config import AggregatorConfig
from pgtg.ops.credit import relations, spread
from pgtg.report.collect import Run
from pgtg.runs.folder import Artifact, read_table

PARTS = ("heldout", "train")  # the first one that a run has
FRESH = "align/fresh_pair_accuracy"
RANKING = {  # column of the report -> name in the manifest
    "pair_accuracy": "pair_accuracy",
    "kendall_tau": "kendall_tau",
    "top1_accuracy": "top1_accuracy",
    "pl_nll": "nll",
    "longer_wins": "longer_wins",
    "shorter_wins": "shorter_wins",
    "log_prob_wins": "log_prob_wins",
}
COLUMNS = (
    *RANKING,
    "fresh_pairs",  # the last round's reward model on this round's samples
    "effective_tokens",
    "top_token_share",
    "evaluation_length_correlation",
    "judge_length_correlation",
    "calibration_error",
)


def diagnostics(run: Run) -> dict[tuple[int, str, str], dict[str, float]]:
    """Measures by (round, head, part). Head "" is the one that guides; part is "heldout", or
    "train" where a run has no held-out generations."""
    found = {}
    for number, head, folder in reward_rounds(run.path):
        aggregate, score = Artifact(folder / "aggregate"), Artifact(folder / "score")
        metrics = aggregate.manifest()["metrics"]
        part = next((p for p in PARTS if f"aggregate/{p}_pair_accuracy" in metrics), PARTS[0])
        values = {
            name: metrics[f"aggregate/{part}_{key}"]
            for name, key in RANKING.items()
            if f"aggregate/{part}_{key}" in metrics
        }
        aligned = Artifact(folder / "align")
        fresh = aligned.manifest()["metrics"].get(FRESH) if aligned.exists() else None
        tables = generations(aggregate, score, part)
        if tables is not None:
            values |= _weights(run, tables["reward"]) | _relations(tables)
        found[number, head, part] = values | ({} if fresh is None else {"fresh_pairs": fresh})
    return found


def reward_rounds(path: Path) -> list[tuple[int, str, Path]]:
    """(round, head, folder) of every reward model that was held against the judge."""
    found = []
    for folder in sorted((path / "rounds").glob("[0-9]*")):
        heads = sorted((folder / "heads").glob("*")) if (folder / "heads").is_dir() else []
        for head, place in [("", folder), *((each.name, each) for each in heads)]:
            if Artifact(place / "aggregate").exists():
                found.append((int(folder.name), head, place))
    return found


def generations(aggregate: Artifact, score: Artifact, part: str) -> dict[str, list] | None:
    """A part's generations: source_id, evaluation, judge's score, token rewards. None if none."""
    file = f"{part}.parquet"
    for artifact in (aggregate, score):
        if not artifact.exists() or not artifact.file(file).is_file():
            return None
    evaluations = read_table(aggregate.file(file), ["source_id", "evaluation", "score"])
    rewards = read_table(score.file(file), ["reward"])["reward"]
    if not rewards or len(rewards) != len(evaluations["score"]):
        return None  # nothing was held out, or made from other samples
    return {**evaluations, "reward": rewards}


@dataclass(frozen=True)
class Lengths:
    """Scored generations of the last round, one entry each."""

    tokens: np.ndarray  # length
    token_reward: np.ndarray  # mean over its tokens
    evaluation: np.ndarray  # e of the sequence


def lengths(runs: Sequence[Run]) -> Lengths | None:
    """All generations of the given runs together; None where some run has no table of them,
    or where all are of one length."""
    parts = []
    for run in runs:
        own = [folder for _, head, folder in reward_rounds(run.path) if not head]
        if not own:
            return None
        places = Artifact(own[-1] / "aggregate"), Artifact(own[-1] / "score")
        tables = (generations(*places, part) for part in PARTS)
        table = next((found for found in tables if found is not None), None)
        if table is None:
            return None
        parts += [
            (len(rewards), float(np.mean(rewards)), evaluation)
            for rewards, evaluation in zip(table["reward"], table["evaluation"], strict=True)
            if len(rewards)
        ]
    tokens, reward, evaluation = np.array(parts, float).T
    if len(np.unique(tokens)) < 2:
        return None
    return Lengths(tokens, reward, evaluation)


def _weights(run: Run, rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    from pgtg.ops.aggregate import Aggregator  # here: a report that shows none needs no torch

    name, beta = str(run.config["aggregator.name"]), float(run.config["aggregator.temperature"])
    return spread(Aggregator.of(AggregatorConfig(name, beta, False)).weights_of(rewards))


def _relations(table: Mapping[str, list]) -> dict[str, float]:
    lengths = [float(len(row)) for row in table["reward"]]
    return relations(table["source_id"], lengths, table["evaluation"], table["score"])
