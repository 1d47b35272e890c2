"""The commands as functions: the command line's own results, and errors of pgtg.errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pgtg
from pgtg.data.generations import read_generations
from pgtg.errors import ArtifactError, ConfigError, DataError
from pgtg.models.reward import RewardModel
from pgtg.runs.folder import RunFolder, read_table
from tests.support.tiny import TINY, _quiet  # noqa: F401 (a fixture)

FEW = [*TINY, "schedule.total=2", "schedule.retrain_until=0", "evaluate.diagnose=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "run"
    found = pgtg.train("summarize", *FEW, run_dir=folder)
    assert found == json.loads((folder / "summary.json").read_text())
    return folder


def test_a_complete_run_is_taken_up_again(run: Path):
    assert pgtg.train("summarize", run_dir=run) == json.loads((run / "summary.json").read_text())
    with pytest.raises(ConfigError, match="begun with another config"):
        pgtg.train("summarize", "seed=1", run_dir=run)


def test_what_the_check_of_models_says_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("pgtg.pipeline.plan.check_resources", lambda *_, **__: ["one", "one"])
    monkeypatch.setattr("pgtg.pipeline.run.train", lambda *_, **__: {})
    assert pgtg.train("summarize", *FEW, run_dir=tmp_path / "run") == {}
    assert capsys.readouterr().err.count("warning: one") == 1


def test_evaluation_is_that_of_the_run(run: Path):
    saved = json.loads((run / "eval" / "results_test.json").read_text())
    found = pgtg.evaluate(run, split="test", metrics=["rouge"])["decodings"]["greedy"]["mean"]
    own = saved["pgtg"]["decodings"]["greedy"]["mean"]
    assert found["rougeL"] == own["rougeL"]


def test_token_rewards_are_those_that_the_run_wrote(run: Path):
    """Of the held-out generations, read again as texts; the end token is an empty text."""
    folder = RunFolder(run)
    samples = read_generations(folder.artifact("rounds", "00", "sample"), "heldout")
    stored = read_table(folder.artifact("rounds", "00", "score").file("heldout.parquet"))
    lm, tokenizer = pgtg.load_policy(run)
    assert not lm.training and tokenizer.get_vocab()
    checked = 0
    texts, ids = samples.texts, samples.tokens
    sources = [tokenizer.decode(samples.sources[o][:-1]) for o in samples.origin]
    kept = [n for n, text in enumerate(texts) if text and ids[n][-1] == tokenizer.eos_token_id]
    found = pgtg.token_rewards(run, [sources[n] for n in kept], [texts[n] for n in kept])
    for n, one in zip(kept, found, strict=True):
        if one.ids != list(ids[n]):  # the text does not say where spaces were sampled
            continue
        checked += 1
        assert "".join(one.tokens) == texts[n] and one.tokens[-1] == "" and not one.cut
        assert one.rewards.dtype == np.float32 and len(one.rewards) == len(one.ids)
        np.testing.assert_allclose(one.rewards, stored["reward"][n], rtol=1e-5)
    assert checked > 0


def test_a_reward_model_is_loaded_as_it_was_saved(run: Path):
    model = pgtg.load_reward_model(run)
    assert isinstance(model, RewardModel) and not model.training
    assert model.spec.head == "state_action"


def test_wrong_calls_are_refused(run: Path, tmp_path: Path):
    with pytest.raises(DataError, match="found 1 sources and 2 texts"):
        pgtg.token_rewards(run, ["a"], ["b", "c"])
    with pytest.raises(ArtifactError):
        pgtg.load_policy(tmp_path)
    with pytest.raises(ConfigError, match="there is no task 'sumarize'"):
        pgtg.train("sumarize")
    with pytest.raises(ConfigError, match=r"sample\.k"):
        pgtg.train("summarize", "sample.k=1", run_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pgtg.nothing  # noqa: B018


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, pgtg; assert 'train' in dir(pgtg) and pgtg.__version__\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
