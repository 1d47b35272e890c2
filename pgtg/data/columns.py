"""Columns of a row, by name, and what is said of one that is not there."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pgtg.data.tables import Row
from pgtg.errors import DataError


def cell(row: Row, column: str) -> Any:
    """The value of a column, or of a field within one, as `article.text`; None where it is not."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for name in column.split("."):
        if isinstance(value, list | tuple):
            value = [item.get(name) for item in value if isinstance(item, Mapping)]
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def require_columns(named: Sequence[str], columns: Sequence[str], where: str) -> None:
    """Raises DataError, with the likely name, where a column is not among those there are."""
    for name in named:
        if name not in columns and name.split(".")[0] not in columns:
            close = difflib.get_close_matches(name, columns, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            if f'"{name}"' in columns:
                hint = "its cells stand in quotes: data.quoting=standard; "
            elif len(columns) == 1 and (mark := next((c for c in "\t;|," if c in columns[0]), "")):
                hint = f"cells are separated by {mark!r}: a .csv needs commas, a .tsv tabs; "
            raise DataError(f"{where} has no column {name!r}: {hint}columns: {', '.join(columns)}")
