"""Refuses to put numbers side by side that do not measure the same."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pgtg.errors import ConfigError
from pgtg.report.collect import Run, System


def check(runs: Sequence[Run]) -> None:
    """All runs must share data, examples, decoding, and the definition of each common metric; those
    of another fold have data and examples of their own.

    Decodings and metrics are held against those of the same kind of system: what was trained, or a
    control or baseline of one name. (A baseline may have a template of its own.)

    Raises:
        ConfigError: With every difference, and the runs on either side of it.
    """
    problems = _differences(runs, "data", lambda system: {"": system.data})
    problems += _differences(runs, "metric", lambda system: system.metrics)
    problems += _differences(runs, "decoding", _decodings)
    if not problems:
        problems += _differences(runs, "examples", _examples)
    if problems:
        raise ConfigError(
            "these runs cannot be compared; give only those that agree (or --split):", *problems
        )


def _decodings(system: System) -> dict[str, Any]:
    return {name: dict(scores.decoding) for name, scores in system.scores.items()}


def _examples(system: System) -> dict[str, Any]:
    return {name: list(scores.ids) for name, scores in system.scores.items() if scores.ids}


def _differences(
    runs: Sequence[Run], what: str, part: Callable[[System], Mapping[str, Any]]
) -> list[str]:
    """One line for each named part that not all systems agree on."""
    variants: dict[tuple[str, str, int], dict[str, list[str]]] = {}
    values: dict[str, Any] = {}
    for run in runs:
        for system in run.systems.values():
            kind = "" if what == "data" or system.name == run.method else system.name
            fold = run.fold if what in ("data", "examples") else 0
            for name, value in part(system).items():
                text = json.dumps(value, sort_keys=True, default=str)
                values[text] = value
                places = variants.setdefault((name, kind, fold), {}).setdefault(text, [])
                if run.shown not in places:
                    places.append(run.shown)
    lines = []
    for (name, *_), found in variants.items():
        if len(found) > 1:
            keys = _differing([values[text] for text in found])
            sides = [
                f"{_named(places)} {'have' if len(places) > 1 else 'has'} {_brief(values[t], keys)}"
                for t, places in found.items()
            ]
            lines.append(f"{what} {name}".strip() + " differs: " + "; ".join(sides))
    return list(dict.fromkeys(lines))


def _differing(values: Sequence[Any]) -> list[str] | None:
    """Keys on which mappings differ; None for other values."""
    if not all(isinstance(value, dict) for value in values):
        return None
    keys = {key: None for value in values for key in value}
    missing = object()
    return [k for k in keys if any(v.get(k, missing) != values[0].get(k, missing) for v in values)]


def _brief(value: Any, keys: Sequence[str] | None) -> str:
    if keys is not None:
        return ", ".join(f"{key}={value.get(key, '(absent)')}" for key in keys)[:200]
    if isinstance(value, list):
        return f"{len(value)} examples, first {value[0]}"
    return f"{str(value)[:12]}…"


def _named(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
