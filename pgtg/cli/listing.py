"""`pgtg ls`: the names that a config may choose from; how far a sweep is; what the cache holds."""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pgtg.config import expected_type
from pgtg.config.checks import choices
from pgtg.config.comments import rows
from pgtg.config.groups import CONF, LISTS, NOT_OURS, SECTIONS, options
from pgtg.config.registry import METHODS, METRICS, REGISTRIES, TASKS, nearest
from pgtg.config.schema import known_keys
from pgtg.config.sizes import parse_size, show_size
from pgtg.errors import ConfigError
from pgtg.runs import entries
from pgtg.runs.layout import folded, listed, tabled


def show(group: str | None, config_dir: Path | None = None) -> None:
    """Print one group with its descriptions, all groups in short, a sweep's status, or the cache.

    Args:
        group: One of LISTS, a sweep's folder, "cache", "keys", a key of the config or a section of
            it; None for all groups.
        config_dir: The user's own config files, if any.

    Raises:
        ConfigError: There is no such group and no such folder, or no `config_dir`.
        ArtifactError: The folder is no sweep's.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: there is no folder {config_dir}")
    if group is None:
        _print({name: ", ".join(names(name, config_dir)) for name in LISTS})
        more = "pgtg ls GROUP says more on each; also: ls keys, ls KEY, ls cache, ls SWEEP_FOLDER"
        print(f"\n{folded(more, sys.stderr)}", file=sys.stderr)
        return
    if group == "cache":
        show_cache(entries.default_cache())
        return
    own = {key: name for name, key in LISTS.items()} | {"task": "tasks", "metric": "metrics"}
    group = own.get(group, group)  # as the config calls it
    if group == "keys" or (group not in LISTS and group in _sections()):
        _show_keys("" if group == "keys" else group)
        return
    if group not in LISTS:
        if Path(group).is_dir():  # after the config's names: `./reward` is a folder of that name
            from pgtg.runs import sweeps  # not read where names are listed

            sweeps.show(Path(group))
            return
        known = [*LISTS, *own, "keys", *_sections()]
        raise ConfigError(f"there is no group '{group}'{nearest(group, known)}, and no such folder")
    _print(names(group, config_dir))
    if group == "metrics":
        print("\nnames for metrics.names=[...] and eval --metrics:")
        _print(METRICS.about())


def explain(word: str | None) -> None:
    """Print a key of the config or all keys of a section; for other words, what `show` prints.

    Raises:
        ConfigError: There is nothing of that name.
    """
    if word is not None and word in _sections():
        _show_keys(word)
    else:
        show(word)


def _sections() -> set[str]:
    """All keys of the config, and the sections that hold them."""
    return {".".join(key.split(".")[:n]) for key in known_keys() for n in range(1, 10)}


def _show_keys(within: str) -> None:
    """Print each key below a section, or a key: its values in the yaml files, comment, type."""
    found: dict[str, tuple[dict[str, None], str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        folder = file.relative_to(CONF).parts[0] if file.parent != CONF else ""
        if folder in (*NOT_OURS, "experiment"):
            continue
        for key, value, comment in rows(file, SECTIONS.get(folder, folder)):
            if key == within or key.startswith(f"{within}." if within else ""):
                found.setdefault(key, ({}, comment))[0][value] = None
    if not found:
        raise ConfigError(f"{within}: a section of a map, whose keys are yours")
    for key, (values, comment) in found.items():
        if expected := expected_type(key):
            given = ", ".join(value for value in values if value)
            print(folded(f"{key}{f' = {given}' if given else ''}", sys.stdout))
            print(folded(f"    {comment} [{expected}]", sys.stdout, indent="    "))


def show_cache(folder: Path) -> None:
    """Print what the cache holds, by the run that made it, last used first, and its size."""
    found, limit = entries.entries(folder), entries.size_limit()
    made: dict[str, list[entries.Entry]] = {}
    for entry in found:
        made.setdefault(entry.label.split(": ")[0] or "set-up of models", []).append(entry)
    rows = []
    for run, own in made.items():
        kinds = Counter(entry.kind for entry in own)
        size, used = sum(entry.size for entry in own), max(entry.last_use for entry in own)
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        rows.append([run, show_size(size), entries.show_age(used), what])
    if rows:
        print(tabled(["first made by", "size", "last use", "entries"], rows, sys.stdout, left=True))
    total = show_size(sum(entry.size for entry in found))
    most = "no limit" if limit is None else f"limit {show_size(limit)}"
    number = "1 entry" if len(found) == 1 else f"{len(found)} entries"
    print(folded(f"{folder}: {number}, {total} ({most}, {entries.SIZE})", sys.stdout))


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
    print(listed(rows.items(), sys.stdout))
