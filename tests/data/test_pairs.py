"""Preferences that exist already: what each format is read as, and why a row is dropped."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.config.groups import CONF
from pgtg.data.adapters import COLUMNS
from pgtg.data.pairs import Chosen, Ranking, Rankings, read_rankings
from pgtg.errors import ConfigError, DataError
from pgtg.types import DataCounts

Row = dict[str, Any]


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


def test_columns_of_the_yaml_are_those_of_adapters():
    named = yaml.safe_load((CONF / "data/pairs.yaml").read_text(encoding="utf-8"))["columns"]
    assert ColumnsConfig(**named) == COLUMNS


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


def test_errors_that_are_marked_stay_with_their_completions(tmp_path: Path):
    """What nobody ranked goes with its marks; what marks nothing of its text is noted."""
    spans = [[[0, 1, "x"], [1, 1, "x"], [0, 9, "y"]], [[0, 1, "z"]], None, []]
    row = {"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [1, None, 2, 3]}
    found, counts = read(tmp_path, [row | {"spans": spans}, row | {"prompt": "q"}])
    assert [one.marks for one in found] == [(((0, 1, "x"),), None, ()), None]
    assert counts.truncated["spans outside their text left out"] == 1
    assert counts.truncated["empty spans left out"] == 1
    csv = 'prompt,completions,scores,spans\np,"[""a"", ""b""]","[1, 0]","[null, [[0, 1, ""x""]]]"\n'
    (tmp_path / "csv").mkdir()
    assert one(tmp_path / "csv", csv).marks == (None, ((0, 1, "x"),))


def test_numbers_and_lists_in_text(tmp_path: Path):
    """A csv knows nothing else; a list in a cell is JSON."""
    table = "prompt,chosen,rejected,margin\np,a,b,1.5\nq,a,b,\nr,a,b,x\ns,a,b, 2 \n"
    found, counts = read(tmp_path, table)
    assert [ranking.margin for ranking in found] == [1.5, None, 2.0]
    assert counts.dropped == {"a margin that is no number": 1}
    rows = ['p,"[""a"", ""b""]","[1, ""2""]",,', 'q,"[""a"", ""b""]",,"[1, 2]",0.5', "r,a b,[1],,"]
    found, counts = read(tmp_path, "\n".join(["prompt,completions,ranks,scores,margin", *rows]))
    assert [(ranking.scores, ranking.margin) for ranking in found] == [
        ((-1.0, -2.0), None),
        ((1.0, 2.0), 0.5),
    ]
    assert counts.dropped == {"completions are no list": 1}


def test_numbers_in_text_within_lists(tmp_path: Path):
    row = {"prompt": "p", "completions": ["a", "b"], "scores": ["1e1", " 2 "]}
    assert one(tmp_path, [row]).scores == (10.0, 2.0)
    row = {"prompt": "p", "completions": ["a", "b"], "pairs": [[0.0, "1", "-1"]]}
    assert one(tmp_path, [row]).pairs == ((1, 0),)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "a", "rejected": "b"},
        {"completions": ["b", "a"], "ranks": [2, 1]},
        {"completions": ["b", "x", "a"], "scores": [0, None, 1]},
    ],
)
def test_a_margin_is_of_two_ranked_completions(row: Row, tmp_path: Path):
    found, _ = read(tmp_path, [{"prompt": "p", **row, "margin": 0.5}])
    assert (found[0].completions[found[0].best], found[0].margin) == ("a", 0.5)


@pytest.mark.parametrize("form", ["list", "text", "none", "empty text"])
def test_tools_stand_with_the_messages(form: str, tmp_path: Path):
    tools = [{"name": "größe", "parameters": {"b": 1, "a": 2}}]
    given = {"list": tools, "text": json.dumps(tools), "none": None, "empty text": ""}[form]
    row = {"prompt": [user("q")], "chosen": [answer("a")], "rejected": [answer("b")]}
    found = one(tmp_path, [{**row, "tools": given}])
    assert json.loads(found.prompt).get("tools") == (tools if form in ("list", "text") else None)


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
TWO = {"prompt": "p", "completions": ["a", "b"]}
GOOD_TWO, THREE = (
    {**TWO, "prompt": "good", "ranks": [1, 2]},
    {**TWO, "completions": ["a", "b", "c"]},
)
CALL = {"role": "assistant", "tool_calls": [{"name": "\ud800"}]}
NO_JSON = "messages or tools that are no JSON in UTF-8"
NO_MARGIN = "a margin that is not of two ranked completions"
NO_PAIR = "a pair of completions that are not there"


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (GOOD, {**GOOD, "prompt": None}, "missing prompt"),
        (GOOD, {**GOOD, "prompt": " "}, "empty prompt"),
        (GOOD, {**GOOD, "prompt": "\ud800"}, "broken Unicode prompt"),
        (GOOD, {**GOOD, "chosen": None}, "missing chosen"),
        (GOOD, {**GOOD, "rejected": 3}, "non-string rejected"),
        (GOOD, {**GOOD, "chosen": "\n"}, "empty completion"),
        (GOOD, {**GOOD, "chosen": "b"}, "chosen equals rejected"),
        (GOOD, {**GOOD, "margin": -0.5}, "a negative margin"),
        (GOOD, {**GOOD, "margin": "high"}, "a margin that is no number"),
        (GOOD, {**GOOD, "margin": math.nan}, "a margin that is no number"),
        (GOOD, {**GOOD, "margin": "inf"}, "a margin that is no number"),
        # rankings
        (GOOD_TWO, {**TWO, "completions": None}, "missing completions"),
        (GOOD_TWO, {**TWO, "completions": "a, b"}, "completions are no list"),
        (GOOD_TWO, {**TWO, "completions": "[" * 10**5}, "completions are no list"),
        (GOOD_TWO, {**TWO, "completions": ["a", None], "scores": [1, 2]}, "missing completion"),
        (GOOD_TWO, {**TWO, "completions": ["a"], "scores": [1]}, "fewer than 2 completions"),
        (GOOD_TWO, {**TWO, "completions": [], "scores": []}, "fewer than 2 completions"),
        (GOOD_TWO, {**TWO, "completions": ["a", "a"], "ranks": [1, 2]}, "equal completions only"),
        (GOOD_TWO, {**TWO, "scores": [1, None]}, "fewer than 2 completions"),
        (GOOD_TWO, {**TWO, "scores": [1, 1]}, "all tied: nothing is preferred"),
        (GOOD_TWO, {**TWO, "scores": [1, 2, 3]}, "not as many ranks or scores as completions"),
        (GOOD_TWO, TWO, "missing ranks and scores"),
        (GOOD_TWO, {**TWO, "scores": 3}, "missing ranks and scores"),
        (GOOD_TWO, {**TWO, "scores": [1, 10**400]}, "a score that is no number"),
        (GOOD_TWO, {**TWO, "scores": [1, "9" * 400]}, "a score that is no number"),
        (GOOD_TWO, {**TWO, "scores": [1, ""]}, "a score that is no number"),
        (GOOD_TWO, {**TWO, "ranks": [1, True]}, "a rank that is no number"),
        (GOOD_TWO, {**TWO, "ranks": [1, [2]]}, "a rank that is no number"),
        (GOOD_TWO, {**THREE, "ranks": [1, 2, 3], "margin": 1}, NO_MARGIN),
        (GOOD_TWO, {**TWO, "pairs": [[0, 1, 1]], "margin": 1}, NO_MARGIN),
        # comparisons
        (GOOD_TWO, {**TWO, "pairs": 3}, "a pair that is no [i, j, who]"),
        (GOOD_TWO, {**TWO, "pairs": [[0, 1]]}, "a pair that is no [i, j, who]"),
        (GOOD_TWO, {**TWO, "pairs": [[0, 2, 1]]}, NO_PAIR),
        (GOOD_TWO, {**TWO, "pairs": [[0, -1, 1]]}, NO_PAIR),
        (GOOD_TWO, {**TWO, "pairs": [[0, 0.5, 1]]}, NO_PAIR),
        (GOOD_TWO, {**TWO, "pairs": [[1, 1, 1]]}, NO_PAIR),
        (GOOD_TWO, {**TWO, "pairs": [[0, 1, None]]}, "a part of a pair that is no number"),
        (GOOD_TWO, {**TWO, "pairs": [[0, 1, 0]]}, "all tied: nothing is preferred"),
        # conversations
        (GOOD_TALK, {**GOOD_TALK, "prompt": [user("\ud800")]}, "broken Unicode turn"),
        (GOOD_TALK, {**GOOD_TALK, "prompt": [user("q"), CALL]}, NO_JSON),
        (GOOD_TALK, {**GOOD_TALK, "tools": [{"name": "\ud800"}]}, NO_JSON),
        (GOOD_TALK, {**GOOD_TALK, "tools": "none"}, "tools that are no list"),
        (GOOD_TALK, {**GOOD_TALK, "tools": "3"}, "tools that are no list"),
        (GOOD_TALK, {**GOOD_TALK, "tools": {"name": "f"}}, "tools that are no list"),
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
        *[
            (
                {"prompt": "p", "completions": ["a", "b"], "scores": [1, 0]},
                {"prompt": "q", "completions": ["a", "b"], "scores": [1, 0], "spans": spans},
                reason,
            )
            for spans, reason in (
                ([None], "not as many lists of spans as completions"),
                ("x", "not as many lists of spans as completions"),
                ([None, [[0, "1", "x"]]], "a span that is no [start, end, label]"),
                ([[[0, 1]], None], "a span that is no [start, end, label]"),
            )
        ],
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


IMPLICIT = {"chosen": "Q: why? A: so", "rejected": "Q: why? A: no"}


@pytest.mark.parametrize("row", [IMPLICIT, {"completions": ["a", "b"], "ranks": [1, 2]}])
@pytest.mark.parametrize("name", ["promt", "prompts", "Prompt", "PROMPT", "pormpt"])
def test_a_misspelt_prompt_is_named(name: str, row: Row, tmp_path: Path):
    """And never read as if there were none."""
    said = f"has no column 'prompt': did you mean {name!r}\\? data.columns.source={name}; columns: "
    with pytest.raises(DataError, match=said):
        read(tmp_path, [{name: "q", **row}])


def test_a_column_of_prompts_that_was_asked_for_must_be_there(tmp_path: Path):
    columns = replace(COLUMNS, source="question")
    with pytest.raises(DataError, match="has no column 'question': columns: chosen, rejected"):
        read(tmp_path, [IMPLICIT], columns=columns)
    assert one(tmp_path, [{"question": "q", **IMPLICIT}], columns=columns).prompt == "q"
    nested = replace(COLUMNS, source="ask.question")
    row = {"ask": {"question": "q"}, **IMPLICIT}
    assert one(tmp_path, [row], columns=nested).prompt == "q"


def test_a_prompt_that_one_row_lacks_is_missing_and_not_implicit(tmp_path: Path):
    prompted = {**IMPLICIT, "prompt": "p"}
    found, counts = read(tmp_path, [prompted, IMPLICIT])
    assert len(found) == 1 and counts.dropped == {"missing prompt": 1}
    with pytest.raises(DataError, match="row 1 has a prompt, and rows before it have none"):
        read(tmp_path, [IMPLICIT, prompted])
    columns, row = replace(COLUMNS, source="ask.question"), {"ask": {"question": None}, **IMPLICIT}
    with pytest.raises(DataError, match="1 rows, 1 missing prompt"):
        read(tmp_path, [row], columns=columns)


def test_other_columns_are_no_prompts(tmp_path: Path):
    row = {"prompt_id": "7", "source": "web", "score_chosen": 1.0, **IMPLICIT}
    assert one(tmp_path, [row]).prompt == "Q: why? A:"


# --- a share of the prompts validates


def sides(folder: Path, rows: Sequence[Row], **more: Any) -> tuple[Rankings, Rankings]:
    """What trains and what validates; every row is accounted for on both sides."""
    found: list[Rankings] = []
    for split in ("train", "validation"):
        part, counts = read(folder, rows, split, validation_share=0.3, **more)
        assert counts.rows == len(rows) == counts.kept + sum(counts.dropped.values())
        assert counts.dropped["on the other side of data.validation_share"] == len(rows) - len(part)
        found.append(part)
    return found[0], found[1]


def validates(prompt: Any) -> bool:
    """The documented rule."""
    digest = hashlib.blake2b(json.dumps(prompt, sort_keys=True).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < 0.3


def test_ids_are_row_numbers_of_the_file_on_both_sides(tmp_path: Path):
    rows = [{"prompt": f"p{i // 2}", "chosen": f"a{i}", "rejected": "b"} for i in range(100)]
    train, held = sides(tmp_path, rows)
    assert sorted(map(int, train.ids() + held.ids())) == list(range(100))
    for ranking in [*train, *held]:
        assert ranking.completions[0] == f"a{ranking.id}"
    assert {r.id for r in held} == {str(i) for i in range(100) if validates(f"p{i // 2}")}
    assert 15 < len(held) < 45


def test_folds_share_out_all_prompts(tmp_path: Path):
    """Each prompt validates in one fold, and trains in the others; fold 0 is what no fold is."""
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(60)]
    folds = []
    for fold in range(5):
        train, held = (
            set(read(tmp_path, rows, split, validation_share=0.2, validation_fold=fold)[0].ids())
            for split in ("train", "validation")
        )
        assert not train & held and len(train | held) == 60 and held
        folds.append(held)
    assert sorted(id for held in folds for id in held) == sorted(map(str, range(60)))
    assert set(read(tmp_path, rows, "validation", validation_share=0.2)[0].ids()) == folds[0]
    with pytest.raises(ConfigError, match="validation_fold=1: no share of the training prompts"):
        read(tmp_path, rows, validation_fold=1)


def test_a_prompt_is_on_one_side_however_its_row_is_written(tmp_path: Path):
    """A function of the prompt alone: not of what else a message holds, of tools or of as_chat."""
    asked = [[system("s"), user(f"q{i}")] for i in range(40)]
    expected = [i for i, turns in enumerate(asked) if validates(turns)]
    assert 4 < len(expected) < 20

    def held(rows: list[Row]) -> list[int]:
        return [int(i) for i in sides(tmp_path, rows)[1].ids()]

    def row(turns: list[Row], *before: Row) -> Row:
        answers = [[*before, answer("a")], [*before, answer("b")]]
        return {"prompt": turns, "chosen": answers[0], "rejected": answers[1]}

    def implicit(turns: list[Row]) -> Row:
        return {"completions": [[*turns, answer("a")], [*turns, answer("b")]], "ranks": [1, 2]}

    assert held([row(turns) for turns in asked]) == expected
    assert held([row(turns, *turns) for turns in asked]) == expected
    assert held([row(turns) | {"tools": [{"name": "f"}]} for turns in asked]) == expected
    assert (
        held([row([{**t, "weight": 1, "name": None} for t in turns]) for turns in asked])
        == expected
    )
    assert held([implicit(turns) for turns in asked]) == expected
    plain = [{**GOOD, "prompt": f"p{i}"} for i in range(40)]
    ids = [sides(tmp_path, plain, as_chat=as_chat)[1].ids() for as_chat in (False, True)]
    assert ids[0] == ids[1] == [str(i) for i in range(40) if validates(f"p{i}")]


def test_what_no_json_holds_is_dropped_before_it_is_divided(tmp_path: Path):
    """Parquet knows dates and bytes."""
    call = {"role": "assistant", "tool_calls": [{"when": datetime(2026, 1, 1)}]}
    turns = [[user(f"q{i}"), *([call] if i else []), answer("a")] for i in range(2)]
    table = pa.table({"chosen": turns, "rejected": [[*t[:-1], answer("b")] for t in turns]})
    parquet.write_table(table, tmp_path / "train.parquet")
    side = "validation" if validates([user("q0")]) else "train"
    cfg = DataConfig("files", str(tmp_path), columns=COLUMNS, validation_share=0.3)
    found, counts = read_rankings(cfg, side)
    assert found.ids() == ["0"] and counts.dropped == {NO_JSON: 1}


def test_no_prompt_on_one_side_is_said(tmp_path: Path):
    prompt = next(f"p{i}" for i in range(9) if not validates(f"p{i}"))
    said = "for the validation split: 1 rows, 1 on the other side of data.validation_share"
    with pytest.raises(DataError, match=said):
        read(tmp_path, [{**GOOD, "prompt": prompt}], "validation", validation_share=0.3)
