"""What a large model's answer says: a ranking of labels, or a score.

The JSON may stand in prose or in a fence, or behind what a reasoning model thought aloud. Nothing
is guessed: a ranking holds each label once, a score is within its range, or the answer says none.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

THOUGHT = re.compile(r"^.*?</think(?:ing)?>", re.DOTALL)
BEGINS = re.compile(r"[{\[]")
MOST_BEGINS = 100  # places where a value may begin that are looked at: text can be all brackets
DECLINES = re.compile(
    r"\W*(?:i(?:['’]m| am) (?:very |so |really )?(?:sorry|unable|not able)|sorry\b|"
    r"i (?:can(?:['’]t|not| not)|won['’]t|must decline)|as an ai\b)",
    re.IGNORECASE,
)


def ranking_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON schema of a ranking, in the part of the language that servers know."""
    items = {"type": "string", "enum": list(labels)}
    return _object("ranking", {"type": "array", "items": items})


def score_schema(lowest: float, highest: float) -> dict[str, Any]:
    """JSON schema of a score."""
    return _object("score", {"type": "number", "minimum": lowest, "maximum": highest})


def _object(name: str, value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "properties": {name: value}}
    return found | {"required": [name], "additionalProperties": False}


def ranking(answer: str, labels: Sequence[str]) -> list[float] | None:
    """The place of each label, 0 is best, the mean place of those that tie; None: it says none.

    Read are {"ranking": ["B", "A"]}, the list alone, and ranks, 1 is best: {"A": 2, "B": 1}.
    """
    for found in _values(answer):
        order = found.get("ranking") if isinstance(found, dict) else found
        if isinstance(order, list):
            named = [str(one).strip() for one in order]
            if sorted(named) == sorted(labels):
                return [float(named.index(label)) for label in labels]
        elif isinstance(found, dict) and all(_is_number(found.get(label)) for label in labels):
            ranks = [found[label] for label in labels]
            below = [sum(other < rank for other in ranks) for rank in ranks]
            return [n + (ranks.count(rank) - 1) / 2 for n, rank in zip(below, ranks, strict=True)]
    return None


def score(answer: str, lowest: float, highest: float) -> float | None:
    """The number in {"score": 7}, or the number that is the whole answer; None if there is none
    within the range."""
    found = [
        value["score"] for value in _values(answer) if isinstance(value, dict) and "score" in value
    ]
    if not found:
        with suppress(ValueError):
            found = [float(THOUGHT.sub("", answer))]
    good = bool(found) and _is_number(found[0]) and lowest <= found[0] <= highest
    return float(found[0]) if good else None


def declines(answer: str) -> bool:
    """Whether a text without a verdict is a refusal in words."""
    return bool(DECLINES.match(THOUGHT.sub("", answer)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _values(answer: str) -> Iterator[Any]:
    """The JSON objects and lists in an answer, the outer ones alone."""
    text, end, decoder = THOUGHT.sub("", answer), 0, json.JSONDecoder()
    for found in islice(BEGINS.finditer(text), MOST_BEGINS):
        if found.start() >= end:
            with suppress(ValueError, RecursionError):
                value, end = decoder.raw_decode(text, found.start())
                yield value
