"""Runs become rows: replicates (config minus seed) together, one row per system they evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pgtg.config.registry import nearest
from pgtg.errors import ConfigError
from pgtg.report.collect import Run, System

Identity = tuple[tuple[str, str], ...]
ABSENT = "(absent)"  # the value of a key that a config lacks
# The keys that name an idea come first in a label; others only where these do not tell groups apart
FIRST = ("method.name", "aggregator.name", "reward.head", "judge.name", "task", "data.name")
DEFAULT_BASELINES = ("mle", "uniform", "random", "start")
LAST = ("name", "experiment", "metrics.names", "device", "threads")


@dataclass(frozen=True)
class Row:
    """One system over its replicates, by seed."""

    label: str
    system: str
    trained: bool  # the run's own method, not a control nor the start
    group: str  # label of its group; "" where groups share the row
    config: Mapping[str, str]  # what differs between the groups, by dotted key; {} if shared
    runs: Mapping[str, Run]
    systems: Mapping[str, System]


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only."""

    label: str  # "" where there is one group
    differs: Mapping[str, str]
    runs: Mapping[str, Run]


def group(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Groups with short labels that tell them apart, and what is to be said about them.

    Raises:
        ConfigError: Two runs of the same config and seed with different results.
    """
    found: dict[Identity, dict[str, Run]] = {}
    notes = []
    for run in runs:
        replicates = found.setdefault(run.identity, {})
        other = replicates.setdefault(run.seed, run)
        if other is run:
            continue
        if not _same_results(other, run):
            raise ConfigError(
                f"{other.shown} and {run.shown} have the same config and seed {run.seed}, but "
                "different results (another version or machine?): give only one of them"
            )
        notes.append(f"{run.shown} repeats {other.shown} exactly: counted once")
    differing = _differing_keys(list(found))
    labels = _labels(list(found), differing)
    groups = [
        Group(
            label,
            _chosen(identity, differing),
            {seed: replicates[seed] for seed in _by_seed(replicates)},
        )
        for label, (identity, replicates) in zip(labels, found.items(), strict=True)
    ]
    return sorted(groups, key=lambda group: group.label), notes


def rows(groups: Sequence[Group]) -> list[Row]:
    """All rows: what was trained first, then controls, then the start.

    A control or start that came out the same, text by text, in several groups (it depends on
    nothing that differs between them) is one row.
    """
    made: list[Row] = []
    for each in groups:
        for name in dict.fromkeys(n for run in each.runs.values() for n in run.systems):
            runs = {seed: run for seed, run in each.runs.items() if name in run.systems}
            systems = {seed: run.systems[name] for seed, run in runs.items()}
            trained = name in {run.method for run in runs.values()}
            label = (each.label or name) if trained else f"{name} ({each.label})"
            made.append(Row(label, name, trained, each.label, each.differs, runs, systems))
    trained = [row for row in made if row.trained]
    others: list[Row] = []
    for row in made:
        if not row.trained:
            _add_merged(others, row)
    names = [row.system for row in others]
    others = [
        replace(row, label=row.system) if names.count(row.system) == 1 else row for row in others
    ]
    return trained + sorted(others, key=lambda row: row.system == "start")


@dataclass(frozen=True)
class Baseline:
    """What the rows are tested against: one row for all, or each group's own control."""

    label: str
    of: Mapping[str, Row]  # label of a row -> its baseline; baselines have none


def pick_baseline(asked: str | None, candidates: Sequence[Row]) -> Baseline | None:
    """The row that the others are tested against.

    Args:
        asked: A row's label, a system's name, `key=value` pairs of its config joined by commas, or
            "none". Without it: the first of DEFAULT_BASELINES that the runs have. A system of
            which each group has its own is the baseline of its group.

    Raises:
        ConfigError: No row fits, or several of one group do.
    """
    if asked == "none":
        return None
    if asked is None:
        for wanted in DEFAULT_BASELINES:
            fitting = [row for row in candidates if row.system == wanted]
            baseline = _baseline(wanted, fitting, candidates)
            if baseline is not None and baseline.of:
                return baseline
        return None
    fitting = [row for row in candidates if row.label == asked]
    fitting = fitting or [row for row in candidates if _fits(row, asked)]
    labels = [row.label for row in candidates]
    if not fitting:
        raise ConfigError(
            f"--baseline: no row fits '{asked}'{nearest(asked, labels)}; rows: {', '.join(labels)}"
        )
    baseline = _baseline(asked, fitting, candidates)
    if baseline is None:
        named = ", ".join(f"'{row.label}'" for row in fitting)
        raise ConfigError(f"--baseline: '{asked}' fits several rows, name one of them: {named}")
    return baseline


def _baseline(name: str, fitting: Sequence[Row], rows: Sequence[Row]) -> Baseline | None:
    """None where it is not clear which of the fitting rows is meant."""
    if len(fitting) == 1:
        own = fitting[0]
        return Baseline(own.label, {row.label: own for row in rows if row is not own})
    by_group = {row.group: row for row in fitting}
    if not fitting or len(by_group) < len(fitting) or any(row.trained for row in fitting):
        return None
    of = {row.label: by_group[row.group] for row in rows if row.group in by_group}
    own = {row.label for row in fitting}
    return Baseline(f"{name} of the same group", {k: v for k, v in of.items() if k not in own})


def _fits(row: Row, asked: str) -> bool:
    if "=" not in asked:
        return row.system == asked
    pairs = [part.partition("=") for part in asked.split(",")]
    config = {"system": row.system, **{k: v for run in row.runs.values() for k, v in run.identity}}
    given = {key for key, _, _ in pairs}
    return ("system" in given or row.trained) and all(
        value in (config.get(key), config.get(f"{key}.name")) for key, _, value in pairs
    )


def _add_merged(into: list[Row], row: Row) -> None:
    """Adds a row, or joins it with the one of the same name and the same texts on common seeds."""
    for i, other in enumerate(into):
        common = set(row.systems) & set(other.systems)
        if other.system == row.system and common:
            pairs = [(row.systems[seed], other.systems[seed]) for seed in common]
            if all(_digests(a) == _digests(b) for a, b in pairs):
                seeds = _by_seed({**row.systems, **other.systems})
                systems = {seed: {**row.systems, **other.systems}[seed] for seed in seeds}
                runs = {seed: {**row.runs, **other.runs}[seed] for seed in seeds}
                into[i] = Row(other.label, row.system, row.trained, "", {}, runs, systems)
                return
    into.append(row)


def _by_seed(replicates: Mapping[str, object]) -> list[str]:
    return sorted(replicates, key=lambda seed: [(len(part), part) for part in seed.split("/")])


def _digests(system: System) -> dict[str, str]:
    return {name: scores.digest for name, scores in system.scores.items()}


def _same_results(a: Run, b: Run) -> bool:
    return {name: _digests(system) for name, system in a.systems.items()} == {
        name: _digests(system) for name, system in b.systems.items()
    }


def _differing_keys(identities: Sequence[Identity]) -> list[str]:
    """Keys on which not all groups agree, those that name an idea first."""
    configs = [dict(identity) for identity in identities]
    keys = dict.fromkeys(key for config in configs for key in config)
    found = [key for key in keys if len({config.get(key) for config in configs}) > 1]

    def rank(key: str) -> tuple[int, str]:
        if key in FIRST:
            return FIRST.index(key), key
        return len(FIRST) + (key in LAST), key

    return sorted(found, key=rank)


def _chosen(identity: Identity, keys: Sequence[str]) -> dict[str, str]:
    config = dict(identity)
    return {key: config.get(key, ABSENT) for key in keys}


def _labels(identities: Sequence[Identity], keys: Sequence[str]) -> list[str]:
    """`key=value` of as few differing keys as tell all groups apart, the first ones preferred."""
    chosen: list[str] = []
    for key in keys:
        before = {tuple(_chosen(identity, chosen).items()) for identity in identities}
        after = {tuple(_chosen(identity, [*chosen, key]).items()) for identity in identities}
        if len(after) > len(before):
            chosen.append(key)
    return [_label(_chosen(identity, chosen)) for identity in identities]


def _label(chosen: Mapping[str, str]) -> str:
    """A key that the group lacks, as an option of another method, is named where it alone tells."""
    own = {key: value for key, value in chosen.items() if value != ABSENT}
    return " ".join(f"{key.removesuffix('.name')}={v}" for key, v in (own or chosen).items())
