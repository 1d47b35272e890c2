"""The whole alternation on a tiny world: resumed, refused, forced, published, evaluated."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from pgtg.errors import ArtifactError, ConfigError, MissingResourceError
from pgtg.metrics import build_metrics, compute
from pgtg.models.reward import load_reward_model
from pgtg.ops.statistics import REFERENCES
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.run import train
from pgtg.runs.folder import RunFolder, load_tensors, read_jsonl
from tests.support.finished import finished_run
from tests.support.tiny import _quiet, results, tiny  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; tests only read it, or work on a copy."""
    return finished_run(tiny(), tmp_path_factory)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def unique(run: Path) -> bool:
    """Whether no line of the log was written twice, by stage, round, step and names."""
    keys = [(r["stage"], r["round"], r["step"], tuple(sorted(r))) for r in lines(run)]
    return len(keys) == len(set(keys))


def stamps(run: Path) -> dict[str, int]:
    """When each file of the artifacts was last written [ns]."""
    parts = ("start", "rounds", "controls", "eval")
    files = [p for part in parts for p in (run / part).rglob("*") if p.is_file()]
    made = [p for p in files if p.parent.name != "eval"]  # results_<split>.json is a summary
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in made}


def test_the_log_tells_the_order_of_the_work(finished: Path):
    """start; per round sample, align, aggregate, improve, control; then diagnostics, results."""
    stages = list(dict.fromkeys((r["stage"], r["round"]) for r in lines(finished)))
    per_round = ["sample", "align", "aggregate", "improve", "improve.uniform"]
    assert stages == [
        ("start", 0),
        *((stage, number) for number in (0, 1) for stage in per_round),
        ("diagnose", 1),
        *((f"eval.{name}.test", 0) for name in ("start", "pgtg", "uniform")),
    ]
    updates = [
        r["step"] for r in lines(finished) if "improve/loss" in r and r["stage"] == "improve"
    ]
    assert updates == [1, 2, 3, 4]
    assert unique(finished)


def test_resuming_a_finished_run_does_nothing(finished: Path):
    before, written = results(finished), stamps(finished)
    train(tiny(), finished)
    assert results(finished) == before
    assert stamps(finished) == written


@pytest.mark.slow
def test_the_seed_is_all_the_chance_there_is(finished: Path, tmp_path: Path):
    """The same bytes from another global random state; others with another seed."""
    torch.manual_seed(99)
    train(tiny(), tmp_path / "same")
    assert results(tmp_path / "same") == results(finished)
    train(tiny("seed=1"), tmp_path / "other")
    other, expected = results(tmp_path / "other"), results(finished)
    for name in ("policy/model.safetensors", "reward/model.safetensors", "metrics.jsonl"):
        assert other[name] != expected[name]


def test_what_changes_no_result_may_change_on_resume(finished: Path, tmp_path: Path):
    written = stamps(finished)
    changes = ["logger.project=other", "keep_rounds=all", f"cache={tmp_path / 'nowhere'}"]
    train(tiny(*changes, "judge.workers=2"), finished)
    assert stamps(finished) == written


def stopped_after(run: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """A run that ended, as by a kill, before its second round's policy training."""
    import pgtg.pipeline.stages.improve as stage

    original = stage._train

    def killed(ctx: Any, trainer: Any, round: int, *more: Any) -> Any:
        if round == 1:
            raise KeyboardInterrupt
        return original(ctx, trainer, round, *more)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_train", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(*overrides), run)


def test_another_config_is_refused_with_its_difference(finished: Path, tmp_path: Path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = results(run)
    with pytest.raises(ConfigError) as caught:
        train(tiny("improve.lr=0.1", "aggregator=max"), run)
    text = str(caught.value)
    assert "improve.lr: 0.005 -> 0.1" in text and 'aggregator.name: "avg" -> "max"' in text
    assert "--force" in text
    assert results(run) == before  # refused without a trace
    train(tiny(), run)
    assert results(run) == results(finished)


@pytest.mark.parametrize(
    "change",
    [
        "improve.lr=0.1",
        "aggregator=max",
        "sample.temperature=0.9",
    ],
)
@pytest.mark.slow
def test_forced_it_is_the_run_of_the_new_config(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
):
    """Whatever no longer fits is made again, the rest kept; nothing of the old is left in the log,
    and what comes out is what the new config gives from nothing."""
    run = tmp_path / "run"
    few = ("method.controls=[]", "evaluate.start_policy=false", "evaluate.diagnose=0")
    stopped_after(run, monkeypatch, *few)
    train(tiny(*few, change), run, force=True)
    assert unique(run)
    train(tiny(*few, change), tmp_path / "new")
    assert results(run) == results(tmp_path / "new")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert not RunFolder(tmp_path / "new").config_diff(saved)


@pytest.mark.slow
def test_forced_on_a_finished_run_too(tmp_path: Path):
    run = tmp_path / "run"
    train(tiny(), run)
    train(tiny("improve.lr=0.1"), run, force=True)
    train(tiny("improve.lr=0.1"), tmp_path / "new")
    assert results(run) == results(tmp_path / "new")
    assert unique(run)


def test_a_run_folder_in_use_is_refused_with_the_process(finished: Path):
    holder = (
        "import fcntl, os, sys, time; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.truncate(0); f.write('{\"pid\": %d}' % os.getpid()); f.flush();"
        "print('held', flush=True); time.sleep(60)"
    )
    lock = finished / "run.lock"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "held\n"
            with pytest.raises(ArtifactError, match=f"in use by process {child.pid}"):
                train(tiny(), finished)
        finally:
            child.kill()
    train(tiny(), finished)  # the lock went with its process


def test_published_folders_load_with_plain_transformers(finished: Path):
    """The policy, and the backbone of the reward model; their tokenizer reads the world's words."""
    for name in ("policy", "reward"):
        model = AutoModelForSeq2SeqLM.from_pretrained(finished / name)
        tokenizer = AutoTokenizer.from_pretrained(finished / name)
        ids = tokenizer("the", return_tensors="pt").input_ids
        assert model(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()
        RunFolder(finished).artifact(name).verify()
    reward = load_reward_model(finished / "reward")
    last = load_reward_model(finished / "rounds" / "01" / "align" / "reward")
    for a, b in zip(reward.parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_published_policy_is_the_best_by_the_judge(finished: Path):
    """Among all validations of all rounds; the first of equals."""
    found = [
        (-r["improve/negative_heldout_score"], r["round"])
        for r in lines(finished)
        if r["stage"] == "improve" and "improve/negative_heldout_score" in r
    ]
    assert len({score for score, _ in found}) > 1, "the tiny world no longer tells policies apart"
    best = max(score for score, _ in found)
    number = next(round for score, round in found if score == best)
    folder = finished / "rounds" / f"{number:02d}" / "improve"
    kept = folder / ("best" if (folder / "best").is_dir() else "policy")
    expected = load_tensors(kept / "model.safetensors")
    published = load_tensors(finished / "policy" / "model.safetensors")
    assert all(torch.equal(published[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_keep_last_publishes_the_last(tmp_path: Path):
    train(tiny("improve.keep=last"), tmp_path)
    last = load_tensors(tmp_path / "rounds/01/improve/policy/model.safetensors")
    published = load_tensors(tmp_path / "policy/model.safetensors")
    assert all(torch.equal(published[name], last[name]) for name in last)


@pytest.mark.slow
def test_rate_and_patience_run_through_all_rounds(tmp_path: Path):
    """The plateau of one training, by hand over the logged validations of both rounds."""
    options = ["schedule=plateau", "plateau_patience=0", "plateau_factor=0.5", "validate_every=1"]
    changes = ["method=mle", "method.controls=[]", "schedule.total=6"]
    cfg = tiny(*changes, *[f"improve.{option}" for option in options])
    train(cfg, tmp_path)
    best, rate, places, rounds = math.inf, cfg.improve.lr, [], set()
    for line in lines(tmp_path):
        if "improve/lr" in line:
            assert line["improve/lr"] == rate
        if "improve/negative_heldout_score" in line:
            value = line["improve/negative_heldout_score"]
            rate, best = (rate, value) if value < best else (rate / 2, best)
            places.append((value, line["step"]))
            rounds.add(line["round"])
    assert rounds == {0, 1} and rate < cfg.improve.lr / 2
    last = RunFolder(tmp_path).artifact("rounds", "01", "improve").manifest()["metrics"]
    assert (-last["improve/best_heldout_score"], last["improve/best_update"]) == min(places)


@pytest.mark.slow
def test_keep_rounds_last_changes_no_result(finished: Path, tmp_path: Path):
    train(tiny("keep_rounds=last"), tmp_path)
    some, every = results(tmp_path), results(finished)
    parts = ("policy/", "reward/", "eval/", "metrics.jsonl")
    assert {n: h for n, h in some.items() if n.startswith(parts)} == {
        n: h for n, h in every.items() if n.startswith(parts)
    }
    train(tiny("keep_rounds=last"), tmp_path)  # and a finished run stays finished
    assert results(tmp_path) == some


def test_results_are_means_over_the_kept_samples(finished: Path):
    """Recomputed from samples_*.jsonl: each score from its text, each mean from the scores."""
    found = json.loads((finished / "eval" / "results_test.json").read_text())
    assert set(found) == {"start", "pgtg", "uniform"}
    metrics, absent = build_metrics(tiny().metrics)
    assert not absent
    for system, result in found.items():
        assert result["examples"] == 8
        for decoding, part in result["decodings"].items():
            rows = read_jsonl(finished / "eval" / "test" / system / f"samples_{decoding}.jsonl")
            assert len(rows) == len({row["id"] for row in rows}) == 8
            for name, mean in part["mean"].items():
                values = [row["scores"][name] for row in rows if row["scores"][name] is not None]
                assert mean == pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-12)
            if decoding == REFERENCES:  # no text of the policy's own
                continue
            again = compute(
                metrics, [row["text"] for row in rows], [row["references"] for row in rows]
            )
            for name, values in again.items():
                assert [row["scores"][name] for row in rows] == pytest.approx(values, abs=1e-9)
            assert part["mean"]["tokens"] == sum(len(row["tokens"]) for row in rows) / 8


def test_eval_of_a_run_and_of_its_policy_folder_say_what_the_run_said(
    finished: Path, tmp_path: Path
):
    finished = Path(shutil.copytree(finished, tmp_path / "run"))
    expected = json.loads((finished / "eval" / "results_test.json").read_text())["pgtg"]
    before = results(finished)
    of_run = evaluate_saved(finished, split="test", metrics=None, overrides=[], cfg=None)
    plain = finished / "policy"
    of_folder = evaluate_saved(plain, split="test", metrics=None, overrides=[], cfg=tiny())
    assert of_run["decodings"] == of_folder["decodings"] == expected["decodings"]
    after = results(finished)  # the run's own results stay
    assert {name: after.get(name) for name in before} == before


def test_eval_of_an_older_run_takes_todays_defaults_and_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    finished = Path(shutil.copytree(finished, tmp_path / "of today"))
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(re.sub(r"\n  (diagnose|token_share):.*", "", config))
    found = evaluate_saved(copied, split="test", metrics=None, overrides=[], cfg=None)
    assert found == evaluate_saved(finished, split="test", metrics=None, overrides=[], cfg=None)
    said = "today's defaults (2): method.token_share, evaluate.diagnose"
    assert said in capsys.readouterr().err


def test_eval_takes_another_split_and_other_metrics(finished: Path, tmp_path: Path):
    finished = Path(shutil.copytree(finished, tmp_path / "run"))
    found = evaluate_saved(finished, split="validation", metrics=["rouge"], overrides=[], cfg=None)
    assert found["examples"] == 12 and found["split"] == "validation"
    columns = set(found["decodings"]["greedy"]["mean"])
    assert {"rouge1", "rougeLsum"} <= columns and "meteor_stem" not in columns


def test_eval_of_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no run folder"):
        evaluate_saved(tmp_path / "none", split="test", metrics=None, overrides=[], cfg=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingResourceError, match="cannot be loaded"):
        evaluate_saved(tmp_path / "empty", split="test", metrics=None, overrides=[], cfg=tiny())


@pytest.mark.slow
def test_a_damaged_artifact_is_named_and_a_deleted_one_made_again(finished: Path, tmp_path: Path):
    run = tmp_path / "run"
    train(tiny(), run)
    table = run / "rounds" / "01" / "sample" / "train" / "00000.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"train/00000\.parquet is damaged"):
        train(tiny(), run)
    RunFolder(run).artifact("rounds", "01", "sample").remove()
    train(tiny(), run)
    assert results(run) == results(finished)
    assert unique(run)
