"""What the yaml files say of each key: their comments, by key. Imports nothing of Hydra."""

import re
from collections.abc import Iterator
from pathlib import Path

LINE = re.compile(r"^( *)([\w\"]+):(?: ((?:\"[^\"]*\"|[^#])*?))?(?: *# (.+))?$")


def rows(file: Path, section: str) -> Iterator[tuple[str, str, str]]:
    """Key, value and comment of each commented line of a yaml file.

    Args:
        section: Where the file's keys stand in the config; "" for the top.
    """
    path: list[tuple[int, str]] = [(-1, section)] if section else []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not (found := LINE.match(line)):
            continue
        indent, key, value, comment = found.groups()
        while path and path[-1][0] >= len(indent):
            path.pop()
        path.append((len(indent), key.strip('"')))
        if comment:
            yield ".".join(name for _, name in path), (value or "").strip(), comment
