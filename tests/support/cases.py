"""Cases of parametrised tests that the default suite leaves to `-m slow`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def some(values: Iterable[Any], *default: Any) -> list[Any]:
    """All cases; those not named take the same paths as those that are, and run as slow ones."""
    return [value if value in default else _slow(value) for value in values]


def crossed(firsts: Sequence[Any], seconds: Sequence[Any]) -> list[Any]:
    """All pairs; by default each value is there once, with the other list's first."""
    pairs = [(a, b) for a in firsts for b in seconds]
    return some(pairs, *(pair for pair in pairs if firsts[0] == pair[0] or seconds[0] == pair[1]))


def _slow(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.slow)
