"""Sizes as people write them: `500MB`, `2 GiB`."""

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str) -> int:
    """Bytes of "2GB" (10^9), "2GiB" (2^30), "500 MB" or "1000".

    Raises:
        ValueError: Not a size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise ValueError(f"found '{text}', expected a size such as 500MB or 2GB")
    return int(float(found[1]) * {**UNITS, **BINARY}[found[2] or ""])


def show_size(count: float) -> str:
    """Bytes with a unit of three figures or so: "1.3 GB", "42 MB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{int(count)} B"
