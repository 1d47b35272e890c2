"""A run of seconds, for the pipeline's tests: some bulletins and a T5 of some hundred weights."""

import copy
import hashlib
from functools import cache
from pathlib import Path

import pytest

from pgtg.config import FitConfig, RunConfig
from pgtg.config.compose import run_config

# rouge1 and K = 3: a policy this small seldom gets METEOR's stages to tell its generations apart.
# Large rates, so that four updates change what is sampled and decoded.
TINY = [
    "data.newswire.train=40",
    "data.newswire.validation=12",
    "data.newswire.test=8",
    "data.newswire.noise=0.7",
    "data.newswire.tails=16",
    "policy.tiny_t5.d_model=16",
    "policy.tiny_t5.d_kv=8",
    "policy.tiny_t5.heads=2",
    "policy.tiny_t5.d_ff=32",
    "policy.tiny_t5.encoder_layers=1",
    "policy.tiny_t5.decoder_layers=1",
    "policy.tiny_t5.copy_updates=2",
    "policy.tiny_t5.warm_start.updates=10",
    "policy.tiny_t5.warm_start.lr=0.02",
    "policy.tiny_t5.warm_start.checkpoint_every=1",
    "sample.sources=8",
    "sample.heldout_sources=6",
    "sample.k=3",
    "sample.max_new_tokens=12",
    "sample.chunk=4",
    "reward.head=state_action",
    "reward.mlp_width=8",
    "reward.compare_heads=[]",
    "reward.fit.updates=4",
    "reward.fit.micro_batch=4",
    "reward.fit.lr=0.01",
    "reward.fit.validate_every=2",
    "reward.fit.checkpoint_every=1",
    "schedule.total=4",
    "schedule.retrain_every=2",
    "schedule.retrain_until=2",
    "improve.micro_batch=4",
    "improve.lr=0.005",
    "improve.validate_every=2",
    "improve.checkpoint_every=1",
    "judge=rouge1",
    "judge.workers=0",
    "method.controls=[uniform]",
    "evaluate.splits=[test]",
    "cache=off",
    "logger=none",
    "threads=1",
]

FIT = FitConfig(
    updates=4,
    micro_batch=8,
    accumulate=1,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.01,
    clip=1.0,
    schedule="plateau",
    plateau_factor=0.7,
    plateau_patience=0,
    validate_every=2,
    patience=0,
    keep="best",
    checkpoint_every=0,
    precision="no",
    gradient_checkpointing=False,
)

# one round, nothing else
SHORT = ("schedule.total=2", "method.controls=[]", "evaluate.start_policy=false")


def tiny(*overrides: str) -> RunConfig:
    """The config of a tiny run, with further overrides."""
    return config_of("summarize", *TINY, *overrides)


def config_of(task: str, *overrides: str) -> RunConfig:
    """A run's config, composed once for all tests of a process that ask for the same."""
    return copy.deepcopy(_composed(task, overrides))


@cache
def _composed(task: str, overrides: tuple[str, ...]) -> RunConfig:
    return run_config(task, overrides)


def contents(folder: Path, *parts: str) -> dict[str, str]:
    """sha256 by relative name of all files below the named parts of a folder, links and all.

    Manifests are left out: they hold the position in metrics.jsonl, which may differ where the
    order of stages does.
    """
    found = {}
    for part in parts or (".",):
        start = folder / part
        for path in [start] if start.is_file() else sorted(start.rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                name = str(path.relative_to(folder))
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found, f"nothing to compare in {folder}"
    return found


RESULTS = ("start", "rounds", "controls", "policy", "reward", "eval", "metrics.jsonl")


def results(run: Path) -> dict[str, str]:
    """All that a run made which must not depend on how often it was stopped."""
    return contents(run, *(part for part in RESULTS if (run / part).exists()))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTG_QUIET", "1")
