"""One way to read a plug table: an unknown name answers with the nearest known one."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from pgtg.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str:
    """The hint that ends a message about an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def look_up(table: Mapping[str, T], name: str, key: str) -> T:
    """The table's entry `name`.

    Args:
        key: The config key that holds the name, for the message.

    Raises:
        ConfigError: No such entry; the message names the nearest one.
    """
    if name not in table:
        raise ConfigError(f"{key}: unknown name {name!r}, {nearest(name, list(table))}")
    return table[name]
