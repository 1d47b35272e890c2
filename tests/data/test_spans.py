"""Marked errors next to preferences, on small files in the shapes of what is published."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.data.spans import SPANNED, Spanned, read_spanned
from pgtg.errors import ConfigError, DataError
from pgtg.types import DataCounts

REAL = Path(__file__).parents[3] / "shared/data"
COLUMNS = ColumnsConfig(
    source="prompt",
    references=[],
    chosen="chosen",
    rejected="rejected",
    completions="completions",
    ranks="ranks",
    scores="scores",
    pairs="pairs",
    margin="margin",
    tools="tools",
)


def read(name: str, path: Path, **more: Any) -> tuple[list[Spanned], list[DataCounts]]:
    return read_spanned(name, DataConfig(name="files", path=str(path), columns=COLUMNS, **more))


def marked(one: Spanned, which: int) -> list[tuple[str, str]]:
    """Texts and labels of the spans of a completion."""
    spans = one.spans[which]
    assert spans is not None
    return [(one.ranking.completions[which][start:end], label) for start, end, label in spans]


# --- qa_feedback


def answered(**changes: Any) -> dict[str, Any]:
    errors = [
        {"error type": "Irrelevant", "explanation": "", "start": 4, "end": 9},
        {"error type": "Redundant", "explanation": "", "start": 7, "end": 12},
    ]
    row = {
        "question": "Who  sang it?",
        "passages": [["Song", "Ann sang.", "Bob did not."], ["Bob"]],
        "gold": "Ann.",
        **{f"prediction {n}": f"It is name{n}." for n in range(1, 5)},
        "feedback": {"errors": errors, "missing-info": []},
        "preference": [1, 0, 2, 2, 0, 1],
    }
    return row | changes


def qa_feedback(folder: Path, *rows: Mapping[str, Any]) -> Path:
    (folder / "dev_feedback.json").write_text(json.dumps(rows))
    return folder


def test_qa_feedback_has_comparisons_of_four_and_spans_of_the_first(tmp_path: Path):
    (one,), (counts,) = read("qa_feedback", qa_feedback(tmp_path, answered()))
    assert one.ranking.prompt == (
        "context: wikipage: Song text: Ann sang. Bob did not. wikipage: Bob text: "
        "question: Who sang it? answer:"
    )
    assert one.ranking.completions == tuple(f" It is name{n}." for n in range(1, 5))
    assert one.ranking.pairs == ((0, 1), (3, 0), (2, 1), (2, 3))
    assert one.ranking.scores == (0.0, -2.0, 2.0, 0.0)
    assert marked(one, 0) == [("s nam", "Irrelevant"), ("ame1.", "Redundant")]
    assert one.spans[1:] == (None, None, None)
    assert (counts.rows, counts.kept) == (1, 1) and not counts.truncated


def test_spans_that_hold_no_character_of_their_text_are_counted(tmp_path: Path):
    places = [(0, 3), (3, 3), (5, 6), (5, 99), (-2, 1), (4, 2)]
    errors = [{"error type": "E", "start": start, "end": end} for start, end in places]
    row = answered(feedback={"errors": errors}, **{"prediction 1": "abcd efgh"})
    row["prediction 1"] = "abcde fgh"  # 5 is white space
    (one,), (counts,) = read("qa_feedback", qa_feedback(tmp_path, row))
    assert marked(one, 0) == [("abc", "E")]
    assert counts.truncated == {
        "empty spans left out": 2,
        "spans outside their text left out": 3,
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": " "}, "missing question with passages"),
        ({"prediction 3": None}, "missing completion"),
        ({"preference": [1, 0, 2, 2, 0, 7]}, "comparisons that are not six of 0, 1, 2"),
        ({"preference": None}, "comparisons that are not six of 0, 1, 2"),
        ({"feedback": {}}, "missing errors"),
        (
            {"feedback": {"errors": [{"error type": "E", "start": "1", "end": 2}]}},
            "a span that is no [start, end, label]",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_counted(
    tmp_path: Path, change: Mapping[str, Any], reason: str
):
    found, (counts,) = read("qa_feedback", qa_feedback(tmp_path, answered(), answered(**change)))
    assert len(found) == 1
    assert counts.dropped == {reason: 1} and counts.examples == {reason: "1"}


def test_a_group_in_which_nothing_is_preferred_keeps_its_spans(tmp_path: Path):
    (one,), _ = read("qa_feedback", qa_feedback(tmp_path, answered(preference=[0] * 6)))
    assert one.ranking.pairs == () and set(one.ranking.scores) == {0.0}
    assert len(marked(one, 0)) == 2


def test_prompts_can_be_turns_of_a_conversation_and_rows_be_limited(tmp_path: Path):
    path = qa_feedback(tmp_path, answered(), answered(question="Why?"))
    (one,), _ = read("qa_feedback", path, as_chat=True, limit={"train": 1})
    (turn,) = json.loads(one.ranking.prompt)["messages"]
    assert turn["role"] == "user" and turn["content"].endswith("question: Who sang it? answer:")


# --- prmbench


def solved(**changes: Any) -> dict[str, Any]:
    row = {
        "question": "1 + 1?",
        "original_process": ["One and one.", "So 2."],
        "modified_process": ["One and one.", "That is 3.", "So 3."],
        "error_steps": [2, 3],
        "classification": "confidence",
    }
    return row | changes


def prmbench(folder: Path, *rows: Mapping[str, Any]) -> Path:
    path = folder / "target_data.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_prmbench_prefers_the_original_and_marks_wrong_steps(tmp_path: Path):
    (one,), _ = read("prmbench", prmbench(tmp_path, solved()))
    assert one.ranking.prompt == "1 + 1?\n\n"
    assert one.ranking.completions == ("One and one.\nSo 2.", "One and one.\nThat is 3.\nSo 3.")
    assert one.ranking.scores == (1.0, 0.0) and one.spans[0] is None
    assert marked(one, 1) == [("That is 3.", "confidence"), ("So 3.", "confidence")]


def test_prmbench_drops_what_names_no_wrong_step(tmp_path: Path):
    rows = [
        solved(error_steps=[4, 2]),
        solved(error_steps=[]),
        solved(error_steps=[9]),
        solved(modified_process=["One and one.", "So 2."]),
        solved(original_process="One"),
        solved(original_process=None),
    ]
    found, (counts,) = read("prmbench", prmbench(tmp_path, *rows))
    assert [marked(one, 1)[0][0] for one in found] == ["That is 3."]
    assert counts.truncated == {"wrong steps beyond the last one left out": 1}
    assert counts.dropped == {
        "no wrong step": 1,
        "no wrong step among the steps": 1,
        "original equals modified": 1,
        "a process that is no list of steps": 2,
    }


# --- mqm_ted_zhen

MQM = ["system", "doc", "doc_id", "seg_id", "rater", "source", "target", "category", "severity"]


def mqm(folder: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = MQM) -> Path:
    lines = ["\t".join(cells) for cells in [header, *rows]]
    (folder / "mqm_ted_zhen.tsv").write_text("\n".join(lines) + "\n")
    return folder


def rated(system: str, target: str, category: str, severity: str, segment: str = "1") -> list[str]:
    return [system, "talk", "1", segment, "rater", "源", target, category, severity]


def test_mqm_ranks_by_weighed_errors_and_reads_marks(tmp_path: Path):
    rows = [
        rated("A", 'a <v>"bad"</v> text.', "Accuracy/X", "Major"),
        rated("B", "fine", "No-error", "No-error"),
        rated("A", 'a "bad" text<v>.</v>', "Fluency/Punctuation", "Minor"),
        rated("C", "short", "Fluency/Punctuation", "Major"),
        rated("C", "<v>sh</v>ort", "Style/X", "Minor"),
        rated("C", "sh<v>ort", "Style/X", "Minor"),
        rated("D", "alone", "No-error", "No-error", segment="2"),
    ]
    (one,), (counts,) = read("mqm_ted_zhen", mqm(tmp_path, rows))
    assert one.ranking.id == "talk:1" and one.ranking.prompt == "Chinese: 源\nEnglish:"
    assert one.ranking.completions == (' a "bad" text.', " fine", " short")
    assert one.ranking.scores == pytest.approx((-5.1, 0.0, -7.0))
    assert marked(one, 0) == [('"bad"', "Major"), (".", "Minor")]
    assert one.spans[1] == () and marked(one, 2) == [("sh", "Minor")]
    assert counts.truncated == {
        "errors without a place count in the ranking alone": 1,
        "marks that are no <v>...</v> left out": 1,
    }
    assert counts.dropped == {"fewer than 2 translations": 1}


def test_mqm_refuses_what_it_cannot_weigh_or_tell_apart(tmp_path: Path):
    rows = [
        rated("A", "one", "X", "Dreadful"),
        rated("B", "two", "X", "Minor"),
        rated("A", "one", "X", "Minor", segment="2"),
        rated("A", "other", "X", "Minor", segment="2"),
        rated("A", "good", "No-error", "No-error", segment="3"),
        rated("B", "well", "No-error", "No-error", segment="3"),
    ]
    (one,), (counts,) = read("mqm_ted_zhen", mqm(tmp_path, rows))
    assert one.ranking.id == "talk:3" and one.ranking.scores == (0.0, 0.0)
    assert counts.dropped == {
        "unknown severity 'Dreadful'": 1,
        "a system with several translations of a segment": 1,
    }


# --- xsum_hallucination

XSUM = (
    "bbcid,system,summary,hallucination_type,hallucinated_span,"
    "hallucinated_span_start,hallucinated_span_end,worker_id"
)


def xsum(folder: Path, *lines: str) -> Path:
    path = folder / "hallucination_annotations_xsum_summaries.csv"
    path.write_text("\n".join([XSUM, *lines]) + "\n")
    return folder


def test_xsum_takes_what_most_annotators_mark(tmp_path: Path):
    text = "ann saw ann and bob"
    lines = [
        f"7,Gold,{text},extrinsic,saw ann,5,12,w0",  # "saw ann" 4-11
        f"7,Gold,{text},extrinsic,ann,9,12,w1",  # the second "ann"
        f"7,Gold,{text},intrinsic,\\nann,-1,3,w1",  # the first, by its words
        f"7,Gold,{text},intrinsic,d bob,99,7,w2",  # by its words, wherever it says
        f"7,Gold,{text},intrinsic,not there,1,9,w2",
        *(f"7,BERTS2S,all well,NULL,NULL,-1,-1,w{n}" for n in range(3)),
    ]
    (one,), (counts,) = read("xsum_hallucination", xsum(tmp_path, *lines))
    assert one.ranking.prompt == "" and one.ranking.completions == ("all well", text)
    # of 5 words w0 marks 2, w1 2, w2 1 whole one
    assert one.ranking.scores == pytest.approx((1.0, 2 / 3))
    assert one.spans[0] == () and one.spans[1] == ((8, 11, "extrinsic"),)
    assert counts.truncated == {"spans that are not in their text left out": 1}


def test_xsum_labels_by_most_votes_or_as_mixed(tmp_path: Path):
    lines = [
        "7,Gold,one two,extrinsic,one two,1,8,w0",
        "7,Gold,one two,intrinsic,one,1,4,w1",
        "7,Gold,one two,extrinsic,two,5,8,w2",
        "7,PtGen,x,NULL,NULL,-1,-1,w0",
    ]
    (one,), _ = read("xsum_hallucination", xsum(tmp_path, *lines))
    assert one.ranking.completions == ("x", "one two")
    assert one.spans[1] == ((0, 3, "mixed"), (4, 7, "extrinsic"))


# --- own


def own(folder: Path, *rows: Mapping[str, Any]) -> Path:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


RANKED = {"prompt": "p", "completions": [" a", " b", " c"], "ranks": [2, 1, 2]}
TRUTH = {"prompt": "p", "completion": " a bad", "spans": [[3, 6, "bad"], [3, 5, "worse"]]}


def test_own_rows_are_preferences_or_truth(tmp_path: Path):
    path = own(tmp_path, TRUTH, RANKED, TRUTH | {"prompt": "q", "spans": []}, {"prompt": "r"})
    found, (preferences, truth) = read("own", path)
    assert [one.ranking.prompt for one in found] == ["p", "p", "q"]
    assert found[0].spans == (None, None, None) and found[0].ranking.best == 1
    assert marked(found[1], 0) == [("bad", "bad"), ("ba", "worse")]
    assert found[2].spans == ((),) and found[2].ranking.completions == (" a bad",)
    assert (preferences.kept, truth.kept) == (1, 2)
    assert preferences.dropped == {"missing completions": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([RANKED], "no row has spans"),
        ([TRUTH], "no row says what is preferred"),
        ([RANKED, TRUTH | {"spans": "all"}], "1 a span that is no \\[start, end, label\\]"),
        ([RANKED, TRUTH | {"completion": ""}], "1 empty completion"),
    ],
)
def test_own_rows_must_hold_both(tmp_path: Path, rows: Sequence[Mapping[str, Any]], message: str):
    with pytest.raises(DataError, match=message):
        read("own", own(tmp_path, *rows))


def test_own_conversations_need_one_form(tmp_path: Path):
    turns = [{"role": "user", "content": "p"}]
    chat = {
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    with pytest.raises(DataError, match=r"data\.as_chat=true"):
        read("own", own(tmp_path, chat, TRUTH))
    found, _ = read("own", own(tmp_path, chat, TRUTH), as_chat=True)
    assert found[0].ranking.prompt == found[1].ranking.prompt


# --- what is not there


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match="'qa_feedbak'; did you mean 'qa_feedback'"):
        read("qa_feedbak", tmp_path)


@pytest.mark.parametrize("name", SPANNED)
def test_data_that_are_not_there_are_said_with_where_they_are_published(name: str, tmp_path: Path):
    data = SPANNED[name]
    with pytest.raises(DataError) as error:
        read(name, tmp_path)
    for part in (str(tmp_path), data.file, data.source, data.licence):
        assert part in str(error.value)
    with pytest.raises(DataError, match="no such file or folder"):
        read(name, tmp_path / "elsewhere")


def test_a_file_with_other_columns_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no column 'passages'"):
        read("qa_feedback", qa_feedback(tmp_path, {"question": "q"}))
    with pytest.raises(DataError, match="no column 'severity'"):
        read("mqm_ted_zhen", mqm(tmp_path, [["A"] * 8], MQM[:-1]))


# --- as published


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "groups", "dropped", "spans"),
    [
        ("qa_feedback", 500, 0, 1373),
        ("prmbench", 384, 10, 868),
        ("mqm_ted_zhen", 529, 0, 5268),
        ("xsum_hallucination", 500, 0, 3522),
    ],
)
def test_published_data_are_read_whole(name: str, groups: int, dropped: int, spans: int):
    if not (REAL / name).is_dir():
        pytest.skip(f"needs {REAL / name}")
    found, (counts,) = read(name, REAL / name)
    assert (len(found), sum(counts.dropped.values())) == (groups, dropped)
    assert sum(len(own) for one in found for own in one.spans if own is not None) == spans
