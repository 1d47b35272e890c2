"""Is the learned credit the judge's? Measures by hand, and the stage against planted truth."""

import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pgtg.data.generations import read_generations
from pgtg.judges.judge import Judge
from pgtg.ops.credit import spearman
from pgtg.pipeline.run import session, train
from pgtg.pipeline.stages import diagnose as stage
from pgtg.runs.folder import RunFolder
from tests.support.finished import finished_run
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, tiny
from tests.support.tiny_prompt import tiny_prompt


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed: int):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, 30), rng.normal(size=30)
    expected = float(stats.spearmanr(a, b)[0])  # type: ignore[arg-type]
    assert spearman(a.tolist(), b.tolist()) == pytest.approx(expected)


def test_spearman_of_a_constant_is_not_a_number():
    assert np.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny(), tmp_path_factory)


@pytest.mark.slow
def test_staleness_is_each_reward_model_on_each_rounds_samples(finished: Path):
    """The diagonal is what the aggregate stage found of the same reward model and samples."""
    rows = json.loads((finished / "diagnostics/staleness.json").read_text())
    assert {(row["reward_round"], row["sample_round"]) for row in rows} == {
        (i, j) for i in (0, 1) for j in (0, 1)
    }
    for row in rows:
        i, j = row["reward_round"], row["sample_round"]
        if i == j:
            found = RunFolder(finished).artifact("rounds", f"{i:02d}", "aggregate").manifest()
            expected = found["metrics"]["aggregate/heldout_pair_accuracy"]
            assert row["pair_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("truthful", [True, False])
def test_faithfulness_finds_a_planted_truth(
    finished: Path, monkeypatch: pytest.MonkeyPatch, truthful: bool
):
    """A judge that adds up the tokens' ids, and a reward that is the id, or its opposite."""
    sign = 1.0 if truthful else -1.0
    with session(tiny(), finished, False) as ctx:
        samples = ctx.artifact(1, "sample")
        generations = read_generations(samples, "heldout")
        special = set(ctx.load_start()[1].tokenizer.all_special_ids)

        class Adds(Judge):
            def __call__(self, tokens, texts, examples, codec):
                done: Future = Future()
                worth = [sum(t for t in ids if t not in special) for ids in tokens]
                done.set_result({"score": [float(w) for w in worth]})
                return done

            def describe(self):
                return {}

        monkeypatch.setattr(
            type(ctx),
            "per_token",
            lambda self, value, sources, tokens, origin: [
                sign * np.array(ids, np.float32) for ids in tokens
            ],
        )
        monkeypatch.setattr(
            stage,
            "read_generations",
            lambda artifact, part: _rescored(generations, special),
        )
        found = stage.faithfulness(ctx, Adds(), ctx.artifact(1, "align"), samples)
    for row in found["curve"]:
        assert (row["highest"] < row["random"]) is truthful or row["highest"] == row["random"]
    assert any(row["highest"] != row["random"] for row in found["curve"])
    assert found["means"]["leave_one_out_spearman"] == pytest.approx(sign)


def _rescored(generations, special):
    from dataclasses import replace

    scores = [float(sum(t for t in ids if t not in special)) for ids in generations.tokens]
    return replace(generations, scores=scores)


def test_it_is_off_where_no_text_is_asked_for(tmp_path: Path):
    few = [
        "method.controls=[]",
        "schedule.total=2",
        "schedule.retrain_until=0",
        "evaluate.splits=[]",
    ]
    train(tiny_prompt("evaluate.diagnose=0", *few), tmp_path)
    assert not (tmp_path / "diagnostics").exists()


@pytest.mark.slow
def test_a_reward_model_that_was_never_trained_is_a_control(tmp_path: Path):
    """It guides from the same start for as many updates, and is a row of the results."""
    own = ["method.controls=[random_reward_model]", "evaluate.diagnose=0"]
    cfg = tiny(*SHORT, *own, "evaluate.decodings=[greedy]")
    train(cfg, tmp_path)
    found = json.loads((tmp_path / "eval/results_test.json").read_text())
    assert [*found] == ["pgtg", "random_reward_model"]
    made = {path.name for path in (tmp_path / "controls/random_reward_model/00").iterdir()}
    assert made == {"improve", "targets"}  # no reward model of its own was trained
    own = RunFolder(tmp_path).artifact("rounds", "00", "improve").file("policy/model.safetensors")
    other = RunFolder(tmp_path).artifact("controls", "random_reward_model", "00", "improve")
    assert own.read_bytes() != other.file("policy/model.safetensors").read_bytes()
