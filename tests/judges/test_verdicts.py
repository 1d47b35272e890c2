"""What answers of large models say, and what they do not."""

import json
from typing import Any

import pytest

from pgtg.judges.verdicts import declines, ranking, ranking_schema, score, score_schema

ABC = "ABC"


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ('{"ranking": ["B", "A", "C"]}', [1, 0, 2]),
        ('Sure!\n```json\n{"ranking": ["B", "A", "C"]}\n```\nI like B.', [1, 0, 2]),
        ('<think>{"ranking": ["A", "B", "C"]}</think>{"ranking": ["C", "B", "A"]}', [2, 1, 0]),
        ('["C", "A", "B"]', [1, 2, 0]),
        ('{"reason": "B {is} [best]", "ranking": [" B ", "A", "C"]}', [1, 0, 2]),
        ('{"A": 2, "B": 1, "C": 3}', [1, 0, 2]),
        ('{"A": 1, "B": 1, "C": 2}', [0.5, 0.5, 2]),
        # nothing that can be used
        ('{"ranking": ["B", "A"]}', None),
        ('{"ranking": ["B", "A", "A"]}', None),
        ('{"ranking": ["B", "A", "C", "C"]}', None),
        ('{"ranking": ["B", "A", "D"]}', None),
        ('{"ranking": "BAC"}', None),
        ('{"ranking": ["B", "A", "C"', None),
        ('{"A": "first", "B": 1, "C": 2}', None),
        ('{"A": NaN, "B": 1, "C": 2}', None),
        ('{"winner": "B"}', None),
        ('{"ranking": {"A": 1}}', None),
        ("B is best, then A, then C", None),
        ('{"ranking": ["B", ["A", "C"]]}', None),
        ('{"order": ["C", "A", "B"]}', None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_rankings(answer: str, places: list[float] | None):
    assert ranking(answer, ABC) == places


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"score": 7}', 7),
        ('{"score": 7.5, "of": 10}', 7.5),
        ('```\n{"score": 1}\n```', 1),
        ("7", 7),
        ("<think>perhaps 3</think> 9", 9),
        ('{"score": 0.5}', None),
        ('{"score": 11}', None),
        ('{"score": "7"}', None),
        ("nan", None),
        ("Score: 7/10", None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ('{"a": 1, "b": 2}', None),
        ("7 of 10 people like it", None),
        ("", None),
    ],
)
def test_scores(answer: str, value: float | None):
    assert score(answer, 1, 10) == value


def test_refusals_in_words():
    for text in ("I'm sorry, but I can't", "I cannot judge this", "Sorry, no.", "As an AI, I"):
        assert declines(text), text
    for text in ("B is best", "The answer is sorry", "I can see that B is best", ""):
        assert not declines(text), text


def test_schemas_hold_what_is_read():
    """By a validator of these few words, written here."""

    def valid(value: Any, schema: dict[str, Any]) -> bool:
        kind = schema["type"]
        if kind == "object":
            known = schema["properties"]
            return set(value) == set(schema["required"]) == set(known) and all(
                valid(value[name], known[name]) for name in known
            )
        if kind == "array":
            return all(valid(one, schema["items"]) for one in value)
        if kind == "string":
            return value in schema["enum"]
        return schema["minimum"] <= value <= schema["maximum"]

    good = {"ranking": ["B", "A", "C"]}
    assert valid(good, ranking_schema(ABC)) and ranking(json.dumps(good), ABC)
    assert not valid({"ranking": ["D"]}, ranking_schema(ABC))
    assert valid({"score": 2.5}, score_schema(1, 10)) and not valid(
        {"score": 0}, score_schema(1, 10)
    )
