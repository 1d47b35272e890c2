"""Preferences that exist already: what each format is read as, and why a row is dropped."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.config.groups import CONF
from pgtg.data.pairs import Chosen, Ranking, Rankings, read_rankings
from pgtg.errors import DataError
from pgtg.types import DataCounts

Row = dict[str, Any]
COLUMNS = ColumnsConfig(**yaml.safe_load((CONF / "data/pairs.yaml").read_text())["columns"])


def system(text: str) -> Row:
    return {"role": "system", "content": text}


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


def read(
    folder: Path, rows: Sequence[Row] | str, split: str = "train", **more: Any
) -> tuple[Rankings, DataCounts]:
    """The rankings of a file of rows, or of the text of a csv."""
    if isinstance(rows, str):
        (folder / "train.csv").write_text(rows, encoding="utf-8")
    else:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = DataConfig("files", str(folder), columns=COLUMNS, format="auto")
    return read_rankings(replace(cfg, **more), split)


def one(folder: Path, rows: Sequence[Row] | str, **more: Any) -> Ranking:
    found, counts = read(folder, rows, **more)
    assert (counts.kept, counts.dropped) == (1, {})
    return found[0]


def messages(ranking: Ranking) -> list[Row]:
    whole = json.loads(ranking.prompt)
    assert set(whole) <= {"messages", "tools"}
    return whole["messages"]


# --- formats


def test_pairs(tmp_path: Path):
    row = {"prompt": "Why?", "chosen": " So.", "rejected": " No.", "source": "x"}
    assert one(tmp_path, [row]) == Ranking("0", "Why?", (" So.", " No."), (1.0, 0.0))


def test_a_prompt_that_both_texts_begin_with(tmp_path: Path):
    """Up to the last white space before they differ, so that no word is cut."""
    row = {"chosen": "Q: why? A: because", "rejected": "Q: why? A: before"}
    found = one(tmp_path, [row])
    assert (found.prompt, found.completions) == ("Q: why? A:", (" because", " before"))


TALK = [system("Be brief."), user("Hi"), answer("Hello"), user("Why?")]


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        (TALK, []),
        (TALK, TALK),
        (TALK[:2], TALK[2:]),
        (None, TALK),
        ("Hi", TALK),
        (" Hi\n", TALK),
        ("", TALK),
    ],
    ids=["answers", "whole", "history", "implicit", "text", "text with space", "empty text"],
)
@pytest.mark.parametrize("format", ["pairs", "rankings"])
def test_a_conversation_is_the_same_however_it_is_divided(
    prompt: Any, before: list[Row], format: str, tmp_path: Path
):
    """Among them TRL's whole conversations that begin with the prompt, and those with a prompt in
    text that is their first user turn, as in ultrafeedback_binarized."""
    texts = [[*before, answer("So.")], [*before, answer("No.")]]
    row = {"chosen": texts[0], "rejected": texts[1]}
    if format == "rankings":
        row = {"completions": texts, "scores": [1, 0]}
    found = one(tmp_path, [row if prompt is None else {"prompt": prompt, **row}])
    assert messages(found) == TALK
    assert (found.completions, found.scores) == (("So.", "No."), (1.0, 0.0))


def test_one_completion_may_be_whole_and_the_other_an_answer(tmp_path: Path):
    row = {"prompt": [user("q")], "chosen": [user("q"), answer("a")], "rejected": [answer("b")]}
    assert messages(one(tmp_path, [row])) == [user("q")]


def test_rankings_with_ties_and_null(tmp_path: Path):
    row = {"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [2, None, 1, 2]}
    found, counts = read(tmp_path, [row])
    assert found.format == "rankings" and not found.conversational
    assert found[0] == Ranking("0", "p", ("a", "c", "d"), (-2.0, -1.0, -2.0))
    assert counts.truncated == {"completions that nobody judged left out": 1}
    assert Chosen(found)[0].target == "c"


def test_rankings_by_scores(tmp_path: Path):
    row = {"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.5, 2, 0.5], "ranks": None}
    assert one(tmp_path, [row]).scores == (0.5, 2.0, 0.5)


def test_comparisons(tmp_path: Path):
    pairs = [[0, 1, -3], [2, 0, 1], [1, 2, 0], [1, 2, 0.5]]
    row = {"prompt": "p", "completions": ["a", "b", "c"], "pairs": pairs}
    found, counts = read(tmp_path, [row])
    assert found.format == "comparisons"
    expected = ((1, 0), (2, 0), (1, 2))
    assert found[0] == Ranking("0", "p", ("a", "b", "c"), (-2.0, 2.0, 0.0), expected)
    assert counts.truncated == {"tied pairs left out": 1}


@pytest.mark.parametrize("form", ["list", "text", "none"])
def test_tools_stand_with_the_messages(form: str, tmp_path: Path):
    tools = [{"name": "größe", "parameters": {"b": 1, "a": 2}}]
    given = {"list": tools, "text": json.dumps(tools), "none": None}[form]
    row = {"prompt": [user("q")], "chosen": [answer("a")], "rejected": [answer("b")]}
    found = one(tmp_path, [{**row, "tools": given}])
    assert json.loads(found.prompt).get("tools") == (None if form == "none" else tools)


def test_turns_of_tools_are_kept(tmp_path: Path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    reply = {"role": "tool", "content": "1", "tool_call_id": "c", "name": "f", "weight": 0}
    row = {"chosen": [user("q"), call, reply, answer("a")]}
    row["rejected"] = [*row["chosen"][:-1], answer("b")]
    kept = {key: reply[key] for key in ("role", "content", "tool_call_id", "name")}
    without = {"role": "assistant", "tool_calls": call["tool_calls"]}
    assert messages(one(tmp_path, [row])) == [user("q"), without, kept]


def test_repeats_and_further_preferences(tmp_path: Path):
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "c"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    ]
    found, counts = read(tmp_path, rows)
    assert found.ids() == ["0", "1"] and counts.dropped == {"duplicate row": 1}
    assert counts.truncated == {"prompt of an earlier row: further preferences": 1}
    found, counts = read(tmp_path, rows, repeats={"train": "keep"})
    assert len(found) == 3 and counts.truncated["duplicate row kept"] == 1


def test_a_plain_prompt_as_a_users_turn(tmp_path: Path):
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    assert messages(one(tmp_path, [row], as_chat=True)) == [user("Why?")]


# --- rows that are dropped


GOOD = {"prompt": "good", "chosen": "a", "rejected": "b"}
GOOD_TALK = {"prompt": [user("good")], "chosen": [answer("a")], "rejected": [answer("b")]}
ANSWERS = {key: GOOD_TALK[key] for key in ("chosen", "rejected")}


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        # conversations
        (GOOD_TALK, {**ANSWERS, "prompt": 3}, "a prompt that is no list of turns"),
        (GOOD_TALK, {**ANSWERS, "prompt": {"a": 1}}, "a prompt that is no list of turns"),
        (
            GOOD_TALK,
            {**ANSWERS, "prompt": "q"},
            "a prompt in text that is not the first user turn of its completions",
        ),
        (
            GOOD_TALK,
            {"prompt": "q", "chosen": [user("x"), answer("a")], "rejected": [user("x")]},
            "a prompt in text that is not the first user turn of its completions",
        ),
        (
            GOOD_TALK,
            {**ANSWERS, "prompt": [user("q")], "rejected": [user("x"), answer("b")]},
            "a completion that begins otherwise than its prompt",
        ),
        (GOOD_TALK, {"prompt": [user("q")], "chosen": None, "rejected": None}, "missing chosen"),
        (
            GOOD_TALK,
            {"prompt": [user("q")], "chosen": [], "rejected": []},
            "prompt and completions partly in turns",
        ),
        (GOOD_TALK, {"chosen": None, "rejected": None}, "missing chosen"),
        (
            GOOD_TALK,
            {"chosen": "", "rejected": ""},
            "no prompt: chosen and rejected begin differently",
        ),
        (GOOD_TALK, {**GOOD_TALK, "chosen": "a"}, "prompt and completions partly in turns"),
        (GOOD_TALK, {**GOOD_TALK, "chosen": [answer("b")]}, "chosen equals rejected"),
        (GOOD_TALK, {**GOOD_TALK, "chosen": [answer(" ")]}, "empty completion"),
        (
            GOOD_TALK,
            {**GOOD_TALK, "chosen": [answer("a"), user("x")]},
            "the last turn is the user's, not the assistant's",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_counted(good: Row, bad: Row, reason: str, tmp_path: Path):
    """It does not end the reading, before the sound row or after it."""
    for rows in ([good, bad], [bad, good]):
        found, counts = read(tmp_path, rows)
        assert (len(found), counts.rows, counts.dropped) == (1, 2, {reason: 1})


# --- files that are refused


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([GOOD, GOOD_TALK], "row 0 is plain text and row 1 a conversation"),
        ([GOOD_TALK, GOOD], "row 1 is plain text and row 0 a conversation"),
        (
            [GOOD, {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}],
            "row 0 has pairs and row 1 rankings",
        ),
        ([{"prompt": "p", "completion": "a", "label": True}], "unpaired feedback"),
        ([{"prompt": "p", "answer": "a"}], "no preferences in its columns"),
        ([{"prompt": "p", "completions": ["a", "b"]}], "no preferences in its columns"),
    ],
)
def test_a_file_of_several_kinds_or_of_none_is_refused(rows: list[Row], said: str, tmp_path: Path):
    with pytest.raises(DataError, match=said):
        read(tmp_path, rows)
