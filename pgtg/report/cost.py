"""What a row cost, as far as the run folder recorded it. None means: not recorded.

Updates and judged generations are sums over the manifests of the rounds. Seconds are the stages'
own last progress lines in log.txt: sampling with judging, reward and policy training; without
warm start, loading and evaluation. A run that was stopped in between, was run stage by stage, or
took a stage from a cache has no honest number there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pgtg.report.collect import Run
from pgtg.runs.files import read_bytes
from pgtg.runs.folder import Artifact

GUIDED = ("shuffled",)  # controls that may use the run's own reward model
DONE = re.compile(r"^\S+ (.+ round \d+): (\d+)/\2 in ([\d.]+ (?:s|h|min)(?: \d+ (?:s|min))?)", re.M)
UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}


@dataclass(frozen=True)
class Cost:
    """Of one system in one run."""

    policy_updates: float | None
    reward_updates: float | None
    judged: float | None  # generations that the judge scored to train and check models
    seconds: float | None


def cost(run: Run, system: str) -> Cost:
    """What a system of a run cost. The start and what needs no training cost nothing in the run."""
    main = run.path / "rounds"
    own = main if system == run.method else run.path / "controls" / system
    if not own.is_dir() or system == "start":
        return Cost(0.0, 0.0, 0.0, 0.0)
    improved, aligned, sampled = (_manifests(own, s) for s in ("improve", "align", "sample"))
    judging = [*improved.values(), *_manifests(own, "match").values()]
    suffix, shared = "" if own == main else f".{system}", ""
    if system in GUIDED and not aligned:  # its weights come from the run's own reward model
        aligned, sampled = _manifests(main, "align"), _manifests(main, "sample")
    else:
        shared = suffix
    expected = [f"improve{suffix} round {number}" for number in improved]
    expected += [f"align{shared} round {number}" for number in aligned]
    judging += aligned.values()
    for number, found in sampled.items():
        expected += [f"sample{shared} {part} round {number}" for part in _parts(found)]
    return Cost(
        policy_updates=float(sum(found.get("improve/updates", 0) for found in improved.values())),
        reward_updates=float(sum(found.get("align/updates", 0) for found in aligned.values())),
        judged=float(sum(sum(_parts(found).values()) for found in sampled.values()))
        + sum(value for found in judging for name, value in found.items() if _judged(name)),
        seconds=_seconds(run.path / "log.txt", expected),
    )


def _manifests(folder: Path, stage: str) -> dict[int, Mapping[str, float]]:
    """Metrics of a stage by round."""
    found = {}
    for path in sorted(folder.glob("[0-9]*")):
        artifact = Artifact(path / stage)
        if artifact.exists():
            found[int(path.name)] = artifact.manifest()["metrics"]
    return found


def _judged(metric: str) -> bool:
    """Whether a metric counts prompts that a stage had judged, beside the round's samples."""
    return metric.endswith("_judged_prompts")


def _parts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Number of generations by part ("train", "heldout")."""
    names = {key: re.match(r"sample/(\w+)_generations$", key) for key in metrics}
    return {match[1]: metrics[key] for key, match in names.items() if match}


def _seconds(log: Path, expected: list[str]) -> float | None:
    """Sum over the named stages, each of which must have run once, in one go."""
    if not log.is_file():
        return None
    text = read_bytes(log).decode("utf-8", errors="replace")
    sessions = len(re.findall(r"^\S+ run folder ", text, re.MULTILINE))  # first and last line
    if sessions != 2 or "resumed at update" in text:
        return None
    lines = [(title, duration) for title, _, duration in DONE.findall(text)]
    names = [title for title, _ in lines]
    if any(names.count(name) != 1 for name in expected):
        return None
    return sum(_in_seconds(duration) for title, duration in lines if title in expected)


def _in_seconds(duration: str) -> float:
    """Of "6.2 s", "1 min 05 s" or "2 h 10 min"."""
    parts = duration.split()
    return sum(float(parts[i]) * UNITS[parts[i + 1]] for i in range(0, len(parts), 2))
