"""The report as data: every number that any of its forms shows, computed once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pgtg.config.registry import nearest
from pgtg.errors import ArtifactError, ConfigError
from pgtg.ops.statistics import (
    REFERENCES,
    RESAMPLES,
    SAME,
    UNDIRECTED,
    Comparison,
    Summary,
    compare,
    corrected,
    summarize,
    word_of,
)
from pgtg.report import collect, comparable
from pgtg.report.collect import Run, System
from pgtg.report.cost import Cost, cost
from pgtg.report.curves import Curve, policy_curve, reward_curve, sampled_curve
from pgtg.report.diagnostics import COLUMNS, Lengths, diagnostics, lengths
from pgtg.report.rows import Baseline, Group, Row, group, pick_baseline, rows
from pgtg.runs.files import read_json
from pgtg.runs.layout import counted

T = TypeVar("T")
NOT_TESTED = ("tokens",)  # described, not a quality


@dataclass(frozen=True)
class Result:
    """One metric of one row under one decoding."""

    row: Row
    decoding: str
    metric: str
    values: Mapping[str, float]  # mean over examples, by seed
    summary: Summary
    comparison: Comparison | None  # None for the baseline itself and where nothing is shared


@dataclass(frozen=True)
class Quality:
    """A reward model's measures in one round, each a mean over seeds."""

    label: str
    round: int
    head: str  # "" is the one that guides
    part: str  # "heldout", or "train": the generations that it learned from
    seeds: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """All that is shown."""

    split: str
    examples: int
    rows: Sequence[Row]
    groups: Sequence[Group]
    baseline: Baseline | None
    metrics: Mapping[str, Sequence[str]]  # columns shown, by decoding
    results: Sequence[Result]
    costs: Mapping[str, Mapping[str, Cost]]  # by row label, then seed
    quality: Sequence[Quality]
    lengths: Mapping[str, Lengths]  # by group or method, last round, all seeds
    reward_curves: Mapping[str, Curve]
    policy_curves: Mapping[str, Curve]
    sampled_curves: Mapping[str, Curve]
    absent: Mapping[str, str]  # metric -> why some run lacks it
    left_out: Mapping[str, str]  # run folder -> why
    notes: Sequence[str]

    def result(self, row: Row, decoding: str, metric: str) -> Result | None:
        """The one asked for, if the row has it."""
        key = (row.label, decoding, metric)
        fits = (r for r in self.results if (r.row.label, r.decoding, r.metric) == key)
        return next(fits, None)

    @property
    def first(self) -> System:
        """Any system: all of them agree on data, metrics and decodings."""
        return next(iter(self.runs[0].systems.values()))

    @property
    def data(self) -> str:
        """Hash of the examples."""
        return self.first.data

    @property
    def runs(self) -> list[Run]:
        """Every run that counts."""
        return [run for each in self.groups for run in each.runs.values()]


def load(places: Sequence[Path], split: str | None) -> tuple[list[Run], Mapping[str, str]]:
    """The finished runs below some folders on one split, and those left out.

    Raises:
        ConfigError: No finished run, or no split that all of them have.
        ArtifactError: A damaged file.
    """
    found = collect.find(places)
    chosen = collect.common_split(found.finished, split)
    return [collect.read(path, chosen) for path in found.finished], found.left_out


def build(
    runs: Sequence[Run],
    left_out: Mapping[str, str],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
) -> Report:
    """Everything about these runs, which must be comparable.

    Args:
        baseline: See `rows.pick_baseline`.
        metrics: Columns to show, in order; all without it.

    Raises:
        ConfigError: Runs that cannot be compared; an unknown metric or baseline.
    """
    comparable.check(runs)
    groups, notes = group(runs)
    made = rows(groups)
    base = pick_baseline(baseline, made)
    shown = _columns(made, metrics)
    results = [
        _result(row, decoding, metric)
        for decoding, names in shown.items()
        for metric in names
        for row in made
        if _scored(row, decoding, metric)
    ]
    examples = _examples(runs)
    if base is not None:
        tested = _tested(results, base, resamples, apart=len(examples) > 1)
        results = _corrected(tested, _splits(runs))
        shown = _in_order(shown, results)
    costs = {row.label: {s: cost(run, row.system) for s, run in row.runs.items()} for row in made}
    return Report(
        split=runs[0].split,
        examples=sum(examples.values()),
        rows=made,
        groups=groups,
        baseline=base,
        metrics=shown,
        results=results,
        costs=costs,
        quality=[quality for each in groups for quality in _quality(each)],
        lengths=_present({_named(each): lengths(list(each.runs.values())) for each in groups}),
        reward_curves=_present({row.label: reward_curve(row) for row in made if row.trained}),
        policy_curves=_present({row.label: policy_curve(row) for row in made}),
        sampled_curves=_present({row.label: sampled_curve(row) for row in made}),
        absent={
            n: why for row in made for s in row.systems.values() for n, why in s.absent.items()
        },
        left_out=left_out,
        notes=[*notes, *_released(groups), *_versions(runs), *_untimed(made, costs)],
    )


def _columns(made: Sequence[Row], asked: Sequence[str] | None) -> dict[str, list[str]]:
    """Metrics by decoding, in the order of first sight or as asked for."""
    there: dict[str, list[str]] = {}
    for row in made:
        for system in row.systems.values():
            for decoding, scores in system.scores.items():
                names = there.setdefault(decoding, [])
                names += [name for name in scores.means if name not in names]
    if not any(there.values()):
        why = {reason for row in made for s in row.systems.values() for reason in s.absent.values()}
        raise ConfigError("the runs hold no numbers on this split: " + ("; ".join(sorted(why))))
    if not asked:
        return there
    known = list(dict.fromkeys(name for names in there.values() for name in names))
    problems = [
        f"--metrics: no run has '{name}'{nearest(name, known)}"
        for name in asked
        if name not in known
    ]
    if problems:
        raise ConfigError(*problems)
    chosen = {decoding: [n for n in asked if n in names] for decoding, names in there.items()}
    return {decoding: names for decoding, names in chosen.items() if names}


def _in_order(metrics: Mapping[str, list[str]], results: Sequence[Result]) -> dict[str, list[str]]:
    """Decodings of own texts with the most differences first; what is only read comes last."""
    found = Counter(
        r.decoding
        for r in results
        if r.comparison is not None
        and r.metric not in UNDIRECTED
        and word_of(r.comparison, r.metric) != SAME
    )
    order = sorted(metrics, key=lambda name: (name == REFERENCES, -found[name]))
    return {name: metrics[name] for name in order}


def _scored(row: Row, decoding: str, metric: str) -> bool:
    """Whether every replicate has the metric: a mean over some of them would mislead."""
    return all(
        decoding in system.scores and metric in system.scores[decoding].means
        for system in row.systems.values()
    )


def _result(row: Row, decoding: str, metric: str) -> Result:
    values = {s: system.scores[decoding].means[metric] for s, system in row.systems.items()}
    return Result(row, decoding, metric, values, summarize(list(values.values())), None)


def _scores(row: Row, decoding: str, metric: str) -> dict[str, np.ndarray]:
    """Per-example scores by seed; `comparable.check` has seen that examples are in one order."""
    found = {seed: system.scores[decoding].columns for seed, system in row.systems.items()}
    return {seed: columns[metric] for seed, columns in found.items() if metric in columns}


def _tested(
    results: Sequence[Result], baseline: Baseline, resamples: int, *, apart: bool
) -> list[Result]:
    """Every row against its baseline."""
    skipped = NOT_TESTED
    return [r if r.metric in skipped else _compared(r, baseline, resamples, apart) for r in results]


def _compared(result: Result, baseline: Baseline, resamples: int, apart: bool) -> Result:
    base = baseline.of.get(result.row.label)
    if base is None or not _scored(base, result.decoding, result.metric):
        return result
    ours = _scores(result.row, result.decoding, result.metric)
    theirs = _scores(base, result.decoding, result.metric)
    return replace(result, comparison=compare(ours, theirs, resamples=resamples, apart=apart))


def _corrected(results: Sequence[Result], splits: int) -> list[Result]:
    """Holm over all rows, metrics and decodings; each split that could be reported gets its part
    of the chance of a false finding."""
    tested = [r.comparison for r in results if r.comparison is not None]
    found = iter(corrected(tested, splits))
    return [r if r.comparison is None else replace(r, comparison=next(found)) for r in results]


def _examples(runs: Sequence[Run]) -> dict[str, int]:
    """How many there are of each data that runs were evaluated on: of one, but for folds."""
    found: dict[str, int] = {}
    for run in runs:
        for system in run.systems.values():
            for scores in system.scores.values():
                found[system.data] = max(found.get(system.data, 0), len(scores.ids))
    return found


def _splits(runs: Sequence[Run]) -> int:
    """Number of splits that a report of these runs could be on."""
    return len(set.intersection(*(set(collect.splits(run.path)) for run in runs)))


def _quality(each: Group) -> list[Quality]:
    """Measures of a group's reward models, where all its seeds have them."""
    found = [diagnostics(run) for run in each.runs.values()]
    places = [place for place in found[0] if all(place in other for other in found)]
    label = _named(each)
    made = []
    for place in sorted(places):
        number, head, part = place
        values = {
            name: float(np.mean([other[place][name] for other in found]))
            for name in COLUMNS
            if all(name in other[place] for other in found)
        }
        made.append(Quality(label, number, head, part, len(found), values))
    return made


def _named(each: Group) -> str:
    return each.label or next(iter(each.runs.values())).method


def _present(found: Mapping[str, T | None]) -> dict[str, T]:
    return {label: value for label, value in found.items() if value is not None}


def _versions(runs: Sequence[Run]) -> list[str]:
    """A note where runs were made by different code: they are compared, but it may matter."""
    seen: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for name, value in _made_by(run.path).items():
            seen.setdefault(name, {}).setdefault(value, []).append(run.shown)
    return [
        f"{name} differs between runs: "
        + "; ".join(
            f"{value} ({counted(len(places), 'run')}, e.g. {places[0]})"
            for value, places in by.items()
        )
        for name, by in seen.items()
        if len(by) > 1
    ]


def _released(groups: Sequence[Group]) -> list[str]:
    """A note where a rival does what its released code does, and not what its paper says."""
    return [
        f"{_named(each)}: method.released=true, as the released code has it, its faults included"
        for each in groups
        if any(run.config.get("method.released") for run in each.runs.values())
    ]


def _untimed(made: Sequence[Row], costs: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    """A note where the seconds of some run are not known."""
    unknown = {
        row.runs[seed].shown
        for row in made
        for seed, found in costs[row.label].items()
        if found.seconds is None
    }
    if not unknown:
        return []
    named = ", ".join(sorted(unknown)[:3]) + (", ..." if len(unknown) > 3 else "")
    reason = "a stage was resumed, or its manifest is of a pgtg that kept no seconds"
    return [f"seconds unknown in {counted(len(unknown), 'run')} ({reason}): {named}"]


def _made_by(path: Path) -> dict[str, str]:
    try:
        found: Any = read_json(path / "provenance.json")
    except ArtifactError:
        return {}
    if not isinstance(found, dict):
        return {}
    packages = found.get("packages") or {}
    git = found.get("git") or {}
    made = {name: str(packages.get(name)) for name in ("pgtg", "torch", "transformers")}
    commit = str(git.get("commit", "unknown"))[:12] + (
        " with changes" if git.get("changed") else ""
    )
    return {**made, "commit": commit}
