"""`pgtg ls`: the names that a config may choose from; how far a sweep is; what the cache holds."""

import sys
from collections.abc import Mapping
from pathlib import Path

from pgtg.config.checks import choices
from pgtg.config.groups import LISTS, options
from pgtg.config.registry import METHODS, METRICS, REGISTRIES, TASKS, nearest
from pgtg.config.sizes import parse_size, show_size
from pgtg.errors import ConfigError
from pgtg.runs import entries, sweeps
from pgtg.runs.console import aligned


def show(group: str | None, config_dir: Path | None = None) -> None:
    """Print one group with its descriptions, all groups in short, a sweep's status, or the cache.

    Args:
        group: One of LISTS, a sweep's folder, or "cache"; None for all groups.
        config_dir: The user's own config files, if any.

    Raises:
        ConfigError: There is no such group and no such folder, or no `config_dir`.
        ArtifactError: The folder is no sweep's.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: there is no folder {config_dir}")
    if group is None:
        _print({name: ", ".join(names(name, config_dir)) for name in LISTS})
        print("\npgtg ls GROUP says more on each; also: ls SWEEP_FOLDER, ls cache", file=sys.stderr)
        return
    if group == "cache":
        show_cache(entries.default_cache())
        return
    if group not in LISTS and Path(group).is_dir():
        sweeps.show(Path(group))
        return
    if group not in LISTS:
        raise ConfigError(f"there is no group '{group}'{nearest(group, LISTS)}, and no such folder")
    _print(names(group, config_dir))
    if group == "metrics":
        print("\nnames for metrics.names=[...] and eval --metrics:")
        _print(METRICS.about())


def show_cache(folder: Path) -> None:
    """Print what the cache holds, last used first, and how much that is."""
    found, limit = entries.entries(folder), entries.size_limit()
    rows = [
        [entry.kind, show_size(entry.size), entries.show_age(entry.last_use), entry.label]
        for entry in found
    ]
    if rows:
        print(aligned(["kind", "size", "last use", "first made by"], rows, left=True))
    total = show_size(sum(entry.size for entry in found))
    most = "no limit" if limit is None else f"limit {show_size(limit)}"
    print(f"{folder}: {len(found)} entries, {total} ({most}, {entries.SIZE})")


def prune_cache(folder: Path, *, everything: bool, max_size: str | None) -> None:
    """Delete entries, those used longest ago first; say what went.

    Raises:
        ConfigError: `max_size` is not a size.
    """
    limit = entries.size_limit()
    if max_size is not None:
        try:
            limit = parse_size(max_size)
        except ValueError as error:
            raise ConfigError(f"--max-size: {error}") from error
    entries.clear_leftovers(folder)
    gone = entries.clear_answers(folder) if everything else []
    if everything or limit is not None:
        gone += entries.prune(folder, 0 if everything or limit is None else limit)
    freed = show_size(sum(entry.size for entry in gone))
    left = len(entries.entries(folder))
    print(f"{folder}: {len(gone)} entries deleted ({freed}), {left} left")


def names(group: str, config_dir: Path | None = None) -> dict[str, str]:
    """Name -> what it is, of one of the groups in LISTS."""
    key = LISTS[group]
    if group == "tasks":
        return TASKS.about()
    if group == "methods":
        return _of_methods()
    plugged = {s.name: s.about for r in REGISTRIES if r.key == f"{key}.name" for s in r.others}
    return choices().get(key) or options(key, config_dir) | plugged


def _of_methods() -> dict[str, str]:
    """Methods and controls: what each is, for which tasks, and what it needs of them."""
    found: dict[str, str] = {}
    for spec in METHODS.specs:
        tasks = [name for name, task in TASKS.items() if spec.needs <= task.gives]
        role = "" if spec.alone else ", a control"
        needs = ", ".join(sorted(spec.needs))
        line = f"{spec.about} ({', '.join(tasks)}{role}; needs {needs})"
        found[spec.name] = f"{found[spec.name]}; {line}" if spec.name in found else line
    return found


def _print(rows: Mapping[str, str]) -> None:
    width = max((len(name) for name in rows), default=0)
    for name, text in rows.items():
        print(f"{name:<{width}}  {text}")
