"""A run of seconds on preferences that exist already: the example's pairs, a barely trained LM."""

from pathlib import Path

from pgtg.config import RunConfig
from tests.support.tiny import config_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "preferences"
TINY_PREFERENCES = [
    "experiment=preferences_example",
    f"data.path={EXAMPLE}",
    "data.limit={train: 24, validation: 8}",
    "policy.tiny_lm.d_model=16",
    "policy.tiny_lm.heads=2",
    "policy.tiny_lm.layers=1",
    "policy.tiny_lm.fit.updates=4",
    "sample.max_new_tokens=10",
    "sample.chunk=10",
    "reward.mlp_width=8",
    "reward.compare_heads=[]",
    "reward.fit.updates=4",
    "reward.fit.micro_batch=4",
    "reward.fit.validate_every=2",
    "reward.fit.checkpoint_every=1",
    "improve.micro_batch=4",
    "improve.lr=0.005",
    "improve.validate_every=2",
    "improve.checkpoint_every=1",
    "schedule.total=4",
    "schedule.retrain_every=2",
    "schedule.retrain_until=2",
    "method.controls=[uniform]",
    "evaluate.decodings=[greedy,sample]",
    "cache=off",
]


def tiny_preferences(*overrides: str) -> RunConfig:
    """The config of a tiny run, with further overrides."""
    return config_of("preferences", *TINY_PREFERENCES, *overrides)
