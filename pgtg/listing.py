"""`pgtg ls`: the names that a config may choose from, with one line on each."""

import sys
from collections.abc import Mapping

from pgtg.checks import CHOICES, nearest
from pgtg.errors import ConfigError
from pgtg.groups import LISTS, option_files, title


def show(group: str | None) -> None:
    """Print one group with its descriptions, or all groups in short, to stdout.

    Raises:
        ConfigError: There is no such group.
    """
    if group is None:
        _print({name: ", ".join(names(name)) for name in LISTS})
        print("\npgtg ls GROUP says more on each.", file=sys.stderr)
        return
    if group not in LISTS:
        raise ConfigError(f"there is no group '{group}'{nearest(group, LISTS)}")
    _print(names(group))
    if group == "metrics":
        print("\nnames for metrics.names=[...] and eval --metrics:")
        _print(CHOICES["metrics.names"])


def names(group: str) -> dict[str, str]:
    """Name -> what it is, of one of the groups in LISTS."""
    key = LISTS[group]
    if key in CHOICES:
        return CHOICES[key]
    return {path.stem: title(path) for path in option_files(key)}


def _print(rows: Mapping[str, str]) -> None:
    width = max((len(name) for name in rows), default=0)
    for name, text in rows.items():
        print(f"{name:<{width}}  {text}")
