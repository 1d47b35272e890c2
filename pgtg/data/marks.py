"""Errors that somebody marked in a text: characters, and what kind of error they are."""

from collections.abc import Iterable, Sequence
from typing import Any

Span = tuple[int, int, str]  # first character, one after the last, label
NO_SPAN = "a span that is no [start, end, label]"


def spans_of(given: Any) -> tuple[Span, ...] | None:
    """The spans in a cell; None where it is no list of [start, end, label]."""
    if not isinstance(given, list | tuple):
        return None
    found = list[Span]()
    for one in given:
        if not isinstance(one, list | tuple) or len(one) != 3:
            return None
        start, end, label = one
        if type(start) is not int or type(end) is not int or not isinstance(label, str):
            return None
        found.append((start, end, label))
    return tuple(found)


def within(text: str, spans: Iterable[Span], notes: list[str]) -> tuple[Span, ...]:
    """Only spans that hold a character of their text; the others are noted."""
    found = list[Span]()
    for start, end, label in spans:
        if not 0 <= start <= end <= len(text):
            notes.append("spans outside their text left out")
        elif not text[start:end].strip():
            notes.append("empty spans left out")
        else:
            found.append((start, end, label))
    return tuple(found)


def covered(length: int, spans: Iterable[Span]) -> Sequence[bool]:
    """Whether each character of a text lies under one of the spans."""
    found = [False] * length
    for start, end, _ in spans:
        found[start:end] = [True] * (end - start)
    return found
