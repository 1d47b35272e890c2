"""Runs that keep what frozen layers make of texts: bits of the seed alone, each text read once."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import RunConfig
from pgtg.models.frozen import FrozenLayers
from pgtg.pipeline.run import train
from pgtg.runs.files import read_json, read_jsonl
from pgtg.types import TokenIds
from tests.pipeline.test_stages_alone import causal, causal_config
from tests.support.interrupting import stopped_and_resumed
from tests.support.tiny import _quiet, results  # noqa: F401 (a fixture)

FEW = ["policy.trainable_layers=1", "reward.layers=1", "reward.fit.updates=2", "sample.sources=4"]
FEW += ["evaluate.diagnose=0", "method.controls=[uniform]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal("llama", tmp_path_factory.mktemp("model") / "lm")


def config(model: Path, *more: str) -> RunConfig:
    return causal_config(model, *FEW, *more)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, ...]]:
    """How often each text went through frozen layers."""
    counter, original = Counter[tuple[int, ...]](), FrozenLayers._read

    def counted(self: FrozenLayers, text: TokenIds, read: Callable[..., Any]) -> Any:
        counter[tuple(text)] += 1
        return original(self, text, read)

    monkeypatch.setattr(FrozenLayers, "_read", counted)
    return counter


@pytest.mark.slow
def test_a_run_reads_each_text_once_and_any_size_gives_its_bits(
    model: Path, tmp_path: Path, read: Counter[tuple[int, ...]]
):
    train(config(model), tmp_path / "whole")
    probe = {text for text in read if set(text) <= {1, 2, 3}}
    assert max(n for text, n in read.items() if text not in probe) == 1 and len(read) > 20
    read.clear()
    train(config(model, "policy.frozen_cache=0.00001"), tmp_path / "little")
    assert max(read.values()) > 2
    assert results(tmp_path / "little") == results(tmp_path / "whole")
    read.clear()
    train(config(model, "policy.frozen_cache=0"), tmp_path / "none")
    assert not read
    one, other = (read_json(tmp_path / name / "summary.json") for name in ("whole", "none"))
    likelihoods = [name for name in one if "nll" in name]
    assert likelihoods and one.keys() == other.keys()
    for name in likelihoods:
        assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    losses = [
        [
            row["improve/loss"]
            for row in read_jsonl(tmp_path / name / "metrics.jsonl")
            if "improve/loss" in row
        ]
        for name in ("whole", "none")
    ]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 10])
def test_a_run_stopped_in_the_middle_of_improve_ends_with_the_same_bits(
    at: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stopped_and_resumed(config(model), tmp_path, monkeypatch, at)


def test_with_dropout_nothing_is_kept(model: Path, tmp_path: Path, read: Counter[tuple[int, ...]]):
    more = ["policy.dropout=true", "schedule.total=2", "method.controls=[]"]
    train(config(model, *more), tmp_path / "run")
    assert not read
