"""Published preference data, in the shapes of their cards, become rankings."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgtg.config import DataConfig
from pgtg.config.groups import CONF
from pgtg.data.adapters import ADAPTERS, COLUMNS
from pgtg.data.pairs import Rankings, read_rankings
from pgtg.errors import DataError
from pgtg.types import DataCounts

Row = Mapping[str, Any]
NAMES = [name for name in ADAPTERS if name != "auto"]
REAL = Path(__file__).parents[3] / "shared/data/qa_feedback/dev_feedback.json.gz"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rated(text: str, *ratings: str) -> Row:
    """A completion of UltraFeedback."""
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    notes = {a: {"Rating": r, "Rationale": ""} for a, r in zip(aspects, ratings, strict=False)}
    return {"model": "m", "response": text, "annotations": notes, "overall_score": 10.0}


ULTRAFEEDBACK = {
    "source": "sharegpt",
    "instruction": "Hi, why?",
    "models": ["m"] * 4,
    "completions": [
        rated("a", "5", "4", "N/A", "3"),
        rated("b", "4", "4", "4", "4"),
        rated("c", "1", "2"),
        rated("d", "N/A"),
    ],
}
ASKED = "\n\nHuman: Hi\n\nAssistant: Hello\nHuman: no turn\n\nand more\n\nHuman: Bye \n\nAssistant:"
HH = {"chosen": f"{ASKED} See you", "rejected": f"{ASKED} No.\n"}
NECTAR = {
    "prompt": "\n\nHuman: Hi\n\nAssistant: ",
    "answers": [
        {"answer": "one", "model": "m", "rank": 2.0},
        {"answer": "two", "model": "m", "rank": 1.0},
        {"answer": "three", "model": "m", "rank": 7.0},
    ],
    "turns": 1,
}
TAGS = "Hi c#\n\n<extra_id_1>Assistant\nA language.\n\n<extra_id_1>User\nSince when?"
HELPSTEER2 = [
    {"prompt": TAGS, "response": "2000", "helpfulness": 4, "verbosity": 0},
    {"prompt": TAGS, "response": "1900", "helpfulness": 1, "verbosity": 3},
]
HELPSTEER3 = {
    "domain": "general",
    "language": "english",
    "context": [user("Hi"), answer("Hello"), user("Bye")],
    "response1": "one",
    "response2": "two",
    "overall_preference": 2,
}
TLDR = {
    "info": {"id": "t3", "post": "Hi. I left.", "title": "Was it right?", "subreddit": "advice"},
    "summaries": [{"text": " left", "policy": "ref"}, {"text": "stayed", "policy": "sup"}],
    "choice": 1,
    "split": "train",
}
QA = {
    "question": "Hi, who  won? ",
    "passages": [["Cup", "Cup. ", "Won."], ["Us"]],
    "prediction 1": "We did.",
    "prediction 2": "They did.",
    "prediction 3": "Nobody.",
    "prediction 4": "You.",
    "preference": [1, 0, 2, 2, 1, 0],
}
# a row or rows as published -> prompt, completions, scores, pairs
SHAPES = {
    "ultrafeedback": (ULTRAFEEDBACK, "Hi, why?", ("a", "b", "c"), (4.0, 4.0, 1.5), None),
    "hh_rlhf": (
        HH,
        [user("Hi"), answer("Hello\nHuman: no turn\n\nand more"), user("Bye")],
        ("See you", "No."),
        (1.0, 0.0),
        None,
    ),
    "nectar": (NECTAR, [user("Hi")], ("one", "two", "three"), (-2.0, -1.0, -7.0), None),
    "helpsteer2": (
        HELPSTEER2,
        [user("Hi c#"), answer("A language."), user("Since when?")],
        ("2000", "1900"),
        (4.0, 1.0),
        None,
    ),
    "helpsteer3": (HELPSTEER3, HELPSTEER3["context"], ("one", "two"), (-1.0, 1.0), ((1, 0),)),
    "tldr_comparisons": (
        TLDR,
        "SUBREDDIT: r/advice\n\nTITLE: Was it right?\n\nPOST: Hi. I left.\n\nTL;DR:",
        (" left", " stayed"),
        (0.0, 1.0),
        None,
    ),
    "qa_feedback": (
        QA,
        "context: wikipage: Cup text: Cup. Won. wikipage: Us text: question: Hi, who won? answer:",
        (" We did.", " They did.", " Nobody.", " You."),
        (0.0, -1.0, 1.0, 0.0),
        ((0, 1), (3, 0), (2, 1), (1, 3)),
    ),
}


def read(folder: Path, name: str, rows: Sequence[Row], **more: Any) -> tuple[Rankings, DataCounts]:
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cfg = DataConfig("files", str(folder), format=name, **{"columns": COLUMNS, **more})
    return read_rankings(cfg, "train")


def rows_of(name: str) -> list[Row]:
    given: Any = SHAPES[name][0]
    return given if isinstance(given, list) else [given]


def test_every_format_is_tried_here_and_has_its_yaml():
    assert set(SHAPES) == set(NAMES)
    for name in NAMES:
        content = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert content["format"] == name


@pytest.mark.parametrize("name", NAMES)
def test_a_row_as_published(name: str, tmp_path: Path):
    _, prompt, completions, scores, pairs = SHAPES[name]
    found, counts = read(tmp_path, name, rows_of(name))
    assert counts.kept == 1 and counts.dropped == {}
    one = found[0]
    if isinstance(prompt, list):
        assert found.conversational and json.loads(one.prompt) == {"messages": prompt}
    else:
        assert not found.conversational and one.prompt == prompt
    assert (one.completions, one.scores, one.pairs) == (completions, scores, pairs)


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_the_config_are_of_no_concern(name: str, tmp_path: Path):
    other = replace(COLUMNS, id="id", source="question", chosen="good", completions="answers")
    as_usual, renamed = (read(tmp_path, name, rows_of(name), columns=c) for c in (COLUMNS, other))
    assert list(renamed[0]) == list(as_usual[0])


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_another_format_name_the_column_that_is_missing(name: str, tmp_path: Path):
    other = {"question_id": 3, "text": "nothing of this kind"}
    with pytest.raises(DataError, match=f"data.format={name}.* has no column"):
        read(tmp_path, name, [other])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("junk", [None, 3, "", "text", [], [None], [3], {}, {"a": 1}, [[]]])
def test_a_cell_that_is_something_else_is_dropped_and_counted(
    name: str, junk: object, tmp_path: Path
):
    """Each column in turn holds something else; the good rows stay, and nothing raises."""
    good = rows_of(name)
    unread = {"source", "models", "turns", "verbosity", "domain", "language", "split"}
    for column in good[0]:
        if column in unread:
            continue
        bad = [{**row, column: junk} for row in asked(good, "Ho")]
        found, counts = read(tmp_path, name, [*good, *bad, *asked(good, "He")])
        assert counts.kept + sum(counts.dropped.values()) == counts.rows
        prompts = [one.prompt for one in found]
        assert "Hi" in prompts[0] and "He" in prompts[-1]


def asked(rows: Sequence[Row], word: str) -> list[Row]:
    """The same of another prompt."""
    return json.loads(json.dumps(rows).replace("Hi", word))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("ultrafeedback", {"completions": [rated("a", "5"), rated("b", "N/A")]}, "fewer than 2"),
        ("hh_rlhf", {"chosen": HH["rejected"]}, "chosen equals rejected"),
        ("hh_rlhf", {"rejected": HH["rejected"].replace("more", "less")}, "turns before the last"),
        ("hh_rlhf", {"rejected": HH["rejected"].replace("No.", "")}, "empty completion"),
        ("hh_rlhf", {"rejected": "\n\nHuman: Hi"}, "the last turn is the user's"),
        ("helpsteer3", {"overall_preference": 0}, "all tied"),
        ("helpsteer3", {"overall_preference": None}, "no number"),
        ("tldr_comparisons", {"choice": None}, "missing ranks and scores"),
        ("tldr_comparisons", {"choice": 2}, "missing ranks and scores"),
        ("qa_feedback", {"preference": [0] * 6}, "all tied"),
        ("qa_feedback", {"preference": [1] * 5}, "no \\[i, j, who\\]"),
        ("qa_feedback", {"preference": [1, 1, 1, 1, 1, 3]}, "no number"),
        ("qa_feedback", {"prediction 3": None}, "missing completion"),
        ("qa_feedback", {"passages": None}, "missing prompt"),
        ("qa_feedback", {"passages": [["Cup"], None]}, "missing prompt"),
    ],
)
def test_what_says_nothing_is_dropped_with_its_reason(
    name: str, change: dict[str, Any], reason: str, tmp_path: Path
):
    good = rows_of(name)
    _, counts = read(tmp_path, name, [*good, *asked([{**good[0], **change}], "Ho")])
    assert counts.kept == 1
    ((found, number),) = counts.dropped.items()
    assert re.search(reason, found) and number == 1


def test_a_row_without_its_second_is_dropped(tmp_path: Path):
    alone = {"prompt": "other", "response": "x", "helpfulness": 3}
    found, counts = read(tmp_path, "helpsteer2", [alone, *HELPSTEER2, alone])
    assert len(found) == 1 and counts.dropped == {"fewer than 2 completions": 2}


def test_all_rows_of_a_prompt_are_on_one_side(tmp_path: Path):
    """Of transcripts too, whose prompt is not a column of its own."""
    asked = [f"\n\nHuman: question {i}\n\nAssistant:" for i in range(40)]
    rows = [
        {"chosen": f"{prompt} good {n}", "rejected": f"{prompt} bad {n}"}
        for prompt in asked
        for n in range(3)
    ]
    train, _ = read(tmp_path, "hh_rlhf", rows, validation_share=0.3)
    cfg = DataConfig(
        "files", str(tmp_path), columns=COLUMNS, format="hh_rlhf", validation_share=0.3
    )
    held, _ = read_rankings(cfg, "validation")
    sides = [{one.prompt for one in part} for part in (train, held)]
    assert len(train) + len(held) == 120 and not sides[0] & sides[1]
    assert [len(train), len(held)] == [3 * len(side) for side in sides]


def test_transcripts_are_read_in_linear_time(tmp_path: Path):
    """Paragraph by paragraph, a text of 4 MB would be copied some 400 000 times."""
    long = "a\n\n" * 1_000_000
    row = {key: f"\n\nHuman: {long}\n\nAssistant: {key}" for key in ("chosen", "rejected")}
    found, _ = read(tmp_path, "hh_rlhf", [row])
    assert json.loads(found[0].prompt)["messages"][0]["content"] == long.strip()


@pytest.mark.real
def test_the_published_qa_feedback():
    """384 of its 3000 comparisons are ties, and 12 of its 500 groups hold nothing else."""
    cfg = DataConfig("files", str(REAL), columns=COLUMNS, format="qa_feedback")
    found, counts = read_rankings(cfg, "train")
    assert (counts.rows, counts.kept) == (500, 488)
    assert sum(len(one.pairs or ()) for one in found) == 3000 - 384
    assert all(len(one.completions) == 4 for one in found)
    marks = [one.marks for one in found if one.marks is not None]
    assert len(marks) == 488 and all(own[0] is not None and not any(own[1:]) for own in marks)
