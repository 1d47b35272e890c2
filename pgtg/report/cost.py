"""What a row cost, as far as the manifests of its stages recorded it. None means: not recorded.

Updates, texts, judged generations and seconds are sums over the rounds. Seconds are wall time of
sampling with judging, of reward and policy training, and of matching a control's budget; without
set-up, scoring and evaluation. A stage that was stopped and resumed, or was made by a version of
pgtg that kept no seconds, has no honest number, so its row has none. What was taken from a cache
cost this run nothing; the seconds that it took when it was made are counted apart.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.config.registry import controls_of
from pgtg.report.collect import Run
from pgtg.runs.folder import Artifact

CACHED = "cached_seconds"
FOREVER = 1e12  # more seconds than that are no time


@dataclass(frozen=True)
class Cost:
    """Of one system in one run."""

    policy_updates: float | None
    reward_updates: float | None
    judged: float | None  # generations that the judge scored to train and check models
    trained: float | None  # texts that policy and reward training read with gradients
    gradient: float  # sequences that a search of prompts read with gradients
    seconds: float | None  # that this run spent
    cached_seconds: float | None  # that stages taken from the cache took when they were made


def cost(run: Run, system: str) -> Cost:
    """What a system of a run cost. The start and what needs no training cost nothing in the run."""
    main = run.path / "rounds"
    own = main if system == run.method else run.path / "controls" / system
    if not own.is_dir() or system == "start":
        return Cost(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    improved, aligned, sampled, matched = (
        _manifests(own, stage) for stage in ("improve", "align", "sample", "match")
    )
    control = controls_of(run.config["task"]).get(system)
    if control is not None and control.learns_reward and not aligned:  # by the run's own model
        aligned, sampled = _manifests(main, "align"), _manifests(main, "sample")
    judging = [found["metrics"] for found in (*improved, *matched, *aligned)]
    generated = [found["metrics"] for found in sampled]
    every = [*improved, *matched, *aligned, *sampled]
    return Cost(
        policy_updates=_total(improved, "improve/updates"),
        reward_updates=_total(aligned, "align/updates"),
        judged=float(
            sum(value for found in generated for name, value in found.items() if _drawn(name))
            + sum(value for found in judging for name, value in found.items() if _judged(name))
        ),
        trained=_trained([*improved, *aligned]),
        gradient=_total(improved, "improve/gradient_sequences"),
        seconds=_seconds(every, "seconds"),
        cached_seconds=_seconds([found for found in every if CACHED in found["extra"]], CACHED),
    )


def _manifests(folder: Path, stage: str) -> list[Mapping[str, Any]]:
    """Of a stage, one a round."""
    artifacts = (Artifact(path / stage) for path in sorted(folder.glob("[0-9]*")))
    return [artifact.manifest() for artifact in artifacts if artifact.exists()]


def _total(manifests: Sequence[Mapping[str, Any]], metric: str) -> float:
    return float(sum(found["metrics"].get(metric, 0) for found in manifests))


def _trained(manifests: Sequence[Mapping[str, Any]]) -> float | None:
    """Texts of all trainings; None where one was made by a pgtg that did not count them."""
    total = 0.0
    for metrics in (found["metrics"] for found in manifests):
        for stage in ("align", "improve"):
            if metrics.get(f"{stage}/updates"):
                if f"{stage}/trained_texts" not in metrics:
                    return None
                total += metrics[f"{stage}/trained_texts"]
    return total


def _drawn(metric: str) -> bool:
    """Whether a metric counts the generations of a part ("train", "heldout")."""
    return re.fullmatch(r"sample/\w+_generations", metric) is not None


def _judged(metric: str) -> bool:
    """Whether a metric counts what a stage had judged, on top of the round's samples."""
    return metric.endswith(("_judged_prompts", "/judged_texts"))


def _seconds(manifests: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Sum of a figure under "extra"; None if a manifest has none, or no number."""
    values = [found["extra"].get(key) for found in manifests]
    if not all(isinstance(value, int | float) and 0 <= value < FOREVER for value in values):
        return None
    return float(sum(values))
