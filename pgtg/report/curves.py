"""Learning curves from metrics.jsonl and manifests: reward model and policy over all rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pgtg.report.collect import Run
from pgtg.report.diagnostics import FRESH, reward_rounds
from pgtg.report.rows import Row
from pgtg.runs.files import read_jsonl
from pgtg.runs.folder import Artifact

REWARD = "align/heldout_pair_accuracy"
POLICY = "improve/negative_heldout_score"
SAMPLED = ("sample/heldout_mean_score", "sample/train_mean_score")

Series = Mapping[int, tuple[float, int]]  # x -> (value, round)


@dataclass(frozen=True)
class Curve:
    """Mean over seeds at each x that all of them have, with the spread."""

    x: tuple[int, ...]  # updates, or rounds
    mean: tuple[float, ...]
    low: tuple[float, ...]  # smallest of the seeds
    high: tuple[float, ...]
    rounds: tuple[int, ...]  # last x of each round but the last
    by_round: bool


def reward_curve(row: Row) -> Curve | None:
    """Pair accuracy [0, 1] of the reward model: on held-out sources by reward update; or, without
    such sources, of the former round's model on each round's fresh samples, by round."""
    runs = list(row.runs.values())
    found = _curve([_logged(run, "align", REWARD, 1.0) for run in runs])
    return found or _curve([_fresh(run) for run in runs], by_round=True)


def policy_curve(row: Row) -> Curve | None:
    """Judge's score of the greedy text on held-out sources, by policy update."""
    stage = _stage("improve", row)
    return _curve([_logged(run, stage, POLICY, -1.0) for run in row.runs.values()])


def sampled_curve(row: Row) -> Curve | None:
    """Judge's mean score of what the policy samples when a round begins, by round."""
    stage = _stage("sample", row)
    for name in SAMPLED:
        found = _curve([_per_round(run, stage, name) for run in row.runs.values()], by_round=True)
        if found is not None and len(found.x) > 1:
            return found
    return None


def _stage(name: str, row: Row) -> str:
    return name if row.trained else f"{name}.{row.system}"


def _logged(run: Run, stage: str, name: str, sign: float) -> Series:
    """What metrics.jsonl has, by step."""
    return {
        int(line["step"]): (sign * float(line[name]), int(line["round"]))
        for line in _lines(run)
        if line.get("stage") == stage and name in line
    }


def _per_round(run: Run, stage: str, name: str) -> Series:
    """What metrics.jsonl has, by round."""
    return {
        int(line["round"]): (float(line[name]), int(line["round"]))
        for line in _lines(run)
        if line.get("stage") == stage and name in line
    }


def _lines(run: Run) -> list[dict]:
    path = run.path / "metrics.jsonl"
    return read_jsonl(path) if path.is_file() else []


def _fresh(run: Run) -> Series:
    """From the manifests of the align stage."""
    found = {}
    for number, head, folder in reward_rounds(run.path):
        aligned = Artifact(folder / "align")
        if not head and aligned.exists() and FRESH in aligned.manifest()["metrics"]:
            found[number] = (aligned.manifest()["metrics"][FRESH], number)
    return found


def _curve(series: Sequence[Series], *, by_round: bool = False) -> Curve | None:
    common = sorted(set.intersection(*(set(each) for each in series))) if series else []
    if not common:
        return None
    values = np.array([[each[x][0] for x in common] for each in series])
    rounds = [series[0][x][1] for x in common]
    ends = [common[i] for i in range(len(common) - 1) if rounds[i + 1] != rounds[i]]
    return Curve(
        tuple(common),
        tuple(values.mean(0).tolist()),
        tuple(values.min(0).tolist()),
        tuple(values.max(0).tolist()),
        () if by_round else tuple(ends),
        by_round,
    )
