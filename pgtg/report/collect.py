"""Finished runs as data: which systems a run evaluated, and their score on every example.

Only what the run folder holds is read, and nothing in it is changed: config.yaml, the evaluation's
artifacts (checked against their checksums), and no model. A run counts as finished once its
summary.json is there, which training writes last.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgtg.errors import ArtifactError, ConfigError
from pgtg.runs.files import content_hash, read_json, read_jsonl
from pgtg.runs.folder import CONFIG, NEUTRAL, Artifact, RunFolder

SEEDS = ("seed", "data_seed", "data.seed")
FOLD = "data.validation_fold"  # this and seeds make two runs replicates of one another
NO_PART_OF_A_METRIC = ("truncated_texts",)  # counts of one evaluation, not its definition


@dataclass(frozen=True)
class Scores:
    """Scores of one system under one decoding."""

    ids: tuple[str, ...]  # of the examples; none where only means were kept
    columns: Mapping[str, np.ndarray]  # [examples] by metric
    means: Mapping[str, float]  # over the examples, by metric
    decoding: Mapping[str, Any]
    digest: str  # of the per-example file, or of the means


@dataclass(frozen=True)
class System:
    """What a run says about one policy: the trained one, the start, or a control."""

    name: str
    data: str  # hash of ids, sources and references
    metrics: Mapping[str, Any]  # name -> what its numbers depend on
    absent: Mapping[str, str]  # name -> reason
    extra: Mapping[str, float]  # what a search spent, e.g. judged_prompts
    scores: Mapping[str, Scores]  # by decoding
    # of a search: how many prompts it had had judged on train, and the best score until then
    found: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Run:
    """One finished run on one split."""

    path: Path
    shown: str  # the path as a person would write it
    config: Mapping[str, Any]  # leaves by dotted key
    seed: str
    split: str
    systems: Mapping[str, System]

    @property
    def method(self) -> str:
        return str(self.config.get("method.name"))

    @property
    def fold(self) -> int:
        """Which share of the data validates: on it runs of other folds have other texts."""
        return (self.config.get(FOLD) or 0) if self.split == "validation" else 0

    @property
    def identity(self) -> tuple[tuple[str, str], ...]:
        """The config minus seeds and minus what changes no result.

        A folder that is named by the run's own seed, as a sweep names its runs, is the same folder
        for all seeds.
        """
        kept = {key: value for key, value in self.config.items() if not _neutral(key)}
        own = re.compile(rf"\bseed={re.escape(str(self.config.get('seed')))}\b")
        return tuple(sorted((key, own.sub("seed=*", plain(value))) for key, value in kept.items()))


@dataclass(frozen=True)
class Found:
    """Run folders below the given places, sorted, and the ones left out, with the reason."""

    finished: tuple[Path, ...]
    left_out: Mapping[str, str]


def find(places: Sequence[Path]) -> Found:
    """All runs at or below the given folders, each once.

    Raises:
        ConfigError: A place that is no folder, or no finished run at all.
    """
    missing = [f"there is no folder {place}" for place in places if not place.is_dir()]
    if missing:
        raise ConfigError(*missing)
    finished: dict[Path, None] = {}
    left_out: dict[str, str] = {}
    for place in places:
        for folder in _run_folders(place):
            reason = _unfinished(folder)
            if reason:
                left_out[_shown(folder)] = reason
            else:
                finished[folder.resolve()] = None
    if not finished:
        named = ", ".join(f"{path} ({reason})" for path, reason in left_out.items())
        where = ", ".join(map(str, places))
        raise ConfigError(f"no finished run below {where}" + (f"; left out: {named}" * bool(named)))
    return Found(tuple(sorted(finished)), left_out)


def _run_folders(place: Path) -> Iterable[Path]:
    """Folders that hold a run, or in which one was about to begin; never through a link."""
    for parent, folders, files in os.walk(place):
        here = Path(parent)
        if CONFIG in files and "provenance.json" in files:
            folders.clear()
            yield here
        elif ".hydra" in folders or "provenance.json" in files:
            folders[:] = [name for name in folders if not name.startswith(".")]
            if not _holds_runs(here, folders):
                folders.clear()
                yield here
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _holds_runs(here: Path, folders: Sequence[str]) -> bool:
    return any((here / name / ".hydra").is_dir() for name in folders)


def _unfinished(folder: Path) -> str | None:
    if not (folder / CONFIG).is_file():
        return "stopped before it began"
    if not (folder / "summary.json").is_file():
        return "not finished"
    return None


def splits(folder: Path) -> list[str]:
    """Splits that a run has results of."""
    names = (folder / "eval").glob("results_*.json")
    return sorted(path.stem.removeprefix("results_") for path in names)


def common_split(folders: Sequence[Path], asked: str | None) -> str:
    """The split to report: the one asked for, else test or validation, whichever all runs have.

    Raises:
        ConfigError: Some runs lack it; names them.
    """
    have = {folder: splits(folder) for folder in folders}
    wanted = [asked] if asked else ["test", "validation"]
    wanted += [] if asked else sorted({name for names in have.values() for name in names})
    for split in wanted:
        if all(split in names for names in have.values()):
            return split
    lines = [f"{_shown(folder)} has {', '.join(names) or 'none'}" for folder, names in have.items()]
    what = f"not every run was evaluated on {asked}" if asked else "the runs share no split"
    raise ConfigError(f"{what}: report them apart, or choose --split", *lines)


def read(path: Path, split: str) -> Run:
    """One finished run.

    Raises:
        ArtifactError: A file is missing or damaged; names it.
    """
    folder = RunFolder(path)
    config = flat(folder.config())
    names = read_json(path / "eval" / f"results_{split}.json")
    if not isinstance(names, dict) or not names:
        raise ArtifactError(f"{path}/eval/results_{split}.json holds no results: evaluate it again")
    systems = {}
    for name in names:
        try:
            systems[name] = _system(folder, split, name, config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path}/eval/{split}/{name} holds no scores as this pgtg writes them "
                f"({type(error).__name__}: {error}): delete that folder and finish the run"
            ) from error
    seed = "/".join(plain(config[key]) for key in SEEDS if config.get(key) is not None)
    fold = config.get(FOLD) or 0
    seed += f" fold {fold}" if fold else ""
    return Run(path, _shown(path), config, seed, split, systems)


def _system(folder: RunFolder, split: str, name: str, config: Mapping[str, Any]) -> System:
    artifact = folder.artifact("eval", split, name)
    manifest = artifact.verify()
    results = manifest["extra"].get("results")
    if not isinstance(results, dict) or not isinstance(results.get("decodings"), dict):
        raise ArtifactError(f"{artifact.path} holds no results: delete it and finish the run")
    scores = {
        decoding: _scores(artifact, manifest["files"], decoding, found)
        for decoding, found in results["decodings"].items()
    }
    absent = dict(results.get("absent") or {})
    spent = {**results, **(results.get("search") or {})}
    extra = {k: v for k, v in spent.items() if k.startswith("judged_") and isinstance(v, int)}
    described = _metrics(results.get("metrics") or [], config, absent)
    curve = spent.get("curve") or []
    found = [(int(point["prompts"]), float(point["best"])) for point in curve]
    return System(name, str(results.get("data")), described, absent, extra, scores, found)


def _scores(
    artifact: Artifact, files: Mapping[str, Any], decoding: str, found: Mapping[str, Any]
) -> Scores:
    """Per-example scores where a file has them, else the means of the results."""
    file, how = f"samples_{decoding}.jsonl", found.get("decoding") or {}
    if file not in files:
        means = {name: float(value) for name, value in found["mean"].items()}
        return Scores((), {}, means, how, content_hash(means))
    rows = read_jsonl(artifact.file(file))
    if not rows:
        raise ArtifactError(f"{artifact.path / file} holds no example")
    columns = {
        name: np.array([row["scores"][name] for row in rows], float) for name in rows[0]["scores"]
    }
    means = {name: float(np.nanmean(values)) for name, values in columns.items()}
    ids = tuple(str(row["id"]) for row in rows)
    return Scores(ids, columns, means, how, files[file]["sha256"])


def _metrics(
    described: Sequence[Any], config: Mapping[str, Any], absent: Mapping[str, str]
) -> dict[str, Any]:
    """Descriptions by name. They stand in the order of metrics.names, the absent left out."""
    names = [n for n in dict.fromkeys(config.get("metrics.names") or []) if n not in absent]
    if len(names) != len(described):
        names = [str(entry.get("metric", f"metric {i}")) for i, entry in enumerate(described)]
    return {
        name: {key: value for key, value in entry.items() if key not in NO_PART_OF_A_METRIC}
        for name, entry in zip(names, described, strict=True)
    }


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a config by dotted key; lists and empty groups count as leaves."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def plain(value: Any) -> str:
    """A config value as a person would write it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(plain(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _neutral(key: str) -> bool:
    return key in (*SEEDS, FOLD) or any(
        key == name or key.startswith(f"{name}.") for name in NEUTRAL
    )


def _shown(path: Path) -> str:
    """Relative where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
