"""A prompt run of seconds: two rounds in a small generated world with barely trained models."""

from pgtg.config import RunConfig
from tests.support.tiny import config_of

TINY_PROMPT = [
    "data.reviews.shots=3",
    "data.reviews.test=10",
    "data.reviews.words=16",
    "data.reviews.strong=2",
    "data.reviews.weak=2",
    "data.reviews.harmful=2",
    "data.reviews.pairs=1",
    "policy.adaptor.width=8",
    "policy.tiny_lm.d_model=16",
    "policy.tiny_lm.heads=2",
    "policy.tiny_lm.layers=1",
    "policy.tiny_lm.fit.updates=3",
    "policy.tiny_lm.fit.validate_every=0",
    "policy.tiny_lm.fit.schedule=constant",
    "judge.classifier.tiny.d_model=16",
    "judge.classifier.tiny.heads=2",
    "judge.classifier.tiny.layers=1",
    "judge.classifier.tiny.fit.updates=3",
    "judge.classifier.tiny.fit.validate_every=0",
    "judge.classifier.tiny.fit.schedule=constant",
    "sample.sources=6",
    "prompt.group=3",
    "prompt.first=8",
    "prompt.pool=6",
    "prompt.candidates=3",
    "prompt.tested=4",
    "prompt.top=2",
    "reward.mlp_width=8",
    "reward.fit.updates=3",
    "reward.fit.micro_batch=4",
    "improve.micro_batch=8",
    "improve.lr=0.05",
    "schedule.total=4",
    "schedule.retrain_every=2",
    "schedule.retrain_until=2",
    "cache=off",
    "threads=1",
]


def tiny_prompt(*overrides: str) -> RunConfig:
    """The config of a tiny prompt run, with further overrides."""
    return config_of("prompt", *TINY_PROMPT, *overrides)
