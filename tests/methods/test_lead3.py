"""The first three sentences, alone and as a control; the protocols of the evaluation."""

import json
from pathlib import Path

import pytest

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError
from pgtg.methods.lead3 import lead
from pgtg.metrics.rouge import build_rouge
from pgtg.metrics.sentences import build_splitter, split_regex
from pgtg.pipeline.run import train
from pgtg.report.build import load
from pgtg.report.comparable import check
from pgtg.runs.files import read_jsonl
from pgtg.tasks import open_task
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)

QUICK = ("method.controls=[]", "evaluate.decodings=[greedy]")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("One ran. Two sat! Three? Four fell.", "One ran. Two sat! Three?"),
        ("Dr. Who came. He left.", "Dr. Who came. He left."),
        ("", ""),
    ],
)
def test_three_sentences(source: str, expected: str):
    assert lead(source, split_regex) == expected


@pytest.mark.slow
def test_alone_nothing_is_trained(tmp_path: Path):
    cfg = tiny(*SHORT, "method=lead3", *QUICK)
    final = train(cfg, tmp_path / "run")
    assert {*final} >= {"test/greedy/rouge1"} and not (tmp_path / "run/rounds").exists()
    split = build_splitter("regex")
    rows = read_jsonl(tmp_path / "run/eval/test/lead3/samples_greedy.jsonl")
    with open_task(cfg, tmp_path / "other") as task:
        assert task.targets is not None
        examples = task.targets.to_evaluate("test")
        assert [row["text"] for row in rows] == [lead(e.source, split) for e in examples]
    log = (tmp_path / "run/log.txt").read_text()
    assert "all figures: pgtg report" in log
    assert "pgtg explain" not in log and "policy: " not in log  # there is neither


@pytest.mark.slow
def test_as_a_control_it_stands_in_the_tables(tmp_path: Path):
    with pytest.raises(ConfigError, match="itself the control"):
        tiny("method=mle", "method.controls=[lead3]")
    cfg = tiny(*SHORT, "method=best_of_k", "method.controls=[lead3]", "evaluate.decodings=[greedy]")
    train(cfg, tmp_path / "run")
    results = json.loads((tmp_path / "run/eval/results_test.json").read_text())
    assert {*results} == {"best_of_k", "lead3"}
    assert "greedy" in results["lead3"]["decodings"]


def test_rl4lms_leaves_predictions_in_one_line():
    """Its ROUGE-Lsum of a text that is right, but in one line, is below 100."""
    text = ["the cat sat on the mat . a dog ran in the park ."]
    reference = [["The cat sat on the mat.\nA dog ran in the park."]]
    ours = build_rouge("regex")
    theirs = ours.under("rl4lms")
    own, others = (rouge.score(text, reference) for rouge in (ours, theirs))
    assert own["rouge1"] == others["rouge1"] == [100.0]
    swapped = [["A dog ran in the park.\nThe cat sat on the mat."]]
    whole = theirs.score([" ".join(text[0].split())], swapped)["rougeLsum"][0]
    assert whole <= ours.score([text[0].replace(" . a", " .\na")], swapped)["rougeLsum"][0] == 100.0
    assert theirs.describe()["protocol"] == "rl4lms" and "protocol" not in ours.describe()


@pytest.mark.slow
def test_a_protocol_is_sampled_as_it_says_and_stands_apart(tmp_path: Path):
    words = ["evaluate.protocol=rl4lms", "evaluate.decodings=[sample]"]
    train(tiny(*SHORT, "method=mle", *words, "sample.max_new_tokens=12"), tmp_path / "theirs")
    train(tiny(*SHORT, "method=mle", "evaluate.decodings=[sample]"), tmp_path / "ours")
    results = json.loads((tmp_path / "theirs/eval/results_test.json").read_text())
    decoding = results["mle"]["decodings"]["sample"]["decoding"]
    assert decoding == {
        "greedy": False, "max_new_tokens": 100, "temperature": 0.7, "top_k": 0, "top_p": 1.0,
        "min_new_tokens": 49,
    }  # fmt: skip
    rows = read_jsonl(tmp_path / "theirs/eval/test/mle/samples_sample.jsonl")
    assert all(50 <= len(row["tokens"]) <= 100 for row in rows)
    ours = json.loads((tmp_path / "ours/eval/results_test.json").read_text())
    assert "min_new_tokens" not in ours["mle"]["decodings"]["sample"]["decoding"]
    with pytest.raises(ConfigError, match="cannot be compared"):
        check(load([tmp_path / "ours", tmp_path / "theirs"], "test")[0])


def test_what_a_protocol_needs_is_said():
    with pytest.raises(ConfigError, match=r"evaluate\.decodings: .* protocol=rl4lms samples"):
        run_config("summarize", ["evaluate.protocol=rl4lms"])
    with pytest.raises(ConfigError, match=r"evaluate\.protocol: found rl4lms; only summaries"):
        run_config("prompt", ["evaluate.protocol=rl4lms", "evaluate.decodings=[sample]"])
