"""`--config FILE`: a yaml file of config keys, as the overrides that it stands for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pgtg.config.groups import CONF, SECTIONS, groups, option_files
from pgtg.config.overrides import quoted
from pgtg.errors import ConfigError

CONSTANTS = {None: "null", True: "true", False: "false"}


def overrides_of(path: Path, task: str) -> list[str]:
    """What a file says as `key=value`: groups first, then values; the command line comes after.

    A section's `name` chooses the group's option (`method: {name: mle}` is method=mle), whose other
    values are defaults. So a run's own config.yaml can be given, and a file of two lines too.

    Raises:
        ConfigError: There is no such file, it is no mapping of keys, or it is of another task.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config: {path} is not readable yaml: {reason}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--config: {path}: expected keys and values, e.g. `seed: 1`")
    own = found.pop("task", task)
    if own != task:
        raise ConfigError(f"--config: {path} is of the task '{own}': pgtg train {own} --config ...")
    options = []
    for group in groups():
        section = found.get(SECTIONS.get(group, group))
        if isinstance(section, dict) and "name" in section:
            option = _option(group, task, section)
            if option is not None:
                options.append(f"{group}={option}")
                del section["name"]
    return options + [f"{key}={_written(value)}" for key, value in _leaves(found)]


def _option(group: str, task: str, section: Mapping[str, Any]) -> str | None:
    """The option of a group that a section names; of several, the one with most of its parts."""
    name, found = section["name"], {}
    for file in [*option_files(group), *sorted((CONF / group / task).glob("*.yaml"))]:
        option = yaml.safe_load(file.read_text(encoding="utf-8"))
        if name in (file.stem, option.get("name")):
            found[file.stem] = (_common(option, section), file.stem == name)
    return max(found, key=lambda stem: found[stem], default=None)


def _common(option: Mapping[str, Any], section: Mapping[str, Any]) -> int:
    """How many parts with keys of their own both have."""
    both = [key for key, value in section.items() if isinstance(value, dict)]
    parts = [(option[key], section[key]) for key in both if isinstance(option.get(key), dict)]
    return len(parts) + sum(_common(*pair) for pair in parts)


def _leaves(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key; an empty mapping says nothing."""
    for key, value in tree.items():
        here = f"{place}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{here}.")
        elif here not in ("run_dir", "sweep_dir") or value is not None:
            yield here, value


def _written(value: Any) -> str:
    """A value in the grammar of overrides."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        return quoted(value)
    return CONSTANTS[value] if value is None or isinstance(value, bool) else str(value)
