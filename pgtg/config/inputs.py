"""Which keys of the config each stage's result depends on: for a run's hashes and for the cache.

A stage is made again when a key that it reads has changed (after `--force`), and an entry of the
cache is taken only by a run that agrees in them. Keys that no stage reads stand in `NEUTRAL`, each
with the reason. A test changes every key of the schema in turn.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

from pgtg.config.schema import RunConfig

START = ("task", "seed", "data_seed", "data", "policy")
JUDGED = ("judge", "metrics.sentence_splitter", "metrics.tokenizer")
SAMPLED = (*START, *JUDGED, "sample", "prompt.first", "prompt.group", "prompt.pool")
FRESH = ("prompt.fresh", "prompt.fresh_checks")
TRAINED = (*SAMPLED, *FRESH, "prompt.validation_prompts", "method", "improve", "schedule")

# sections, or single keys, by stage; what only its parents read is in their hashes
STAGES: Mapping[str, tuple[str, ...]] = {
    "sample": SAMPLED,
    "align": (*SAMPLED, *FRESH, "reward", "aggregator"),
    "score": ("reward.score",),
    "aggregate": (
        "aggregator",
        "reward.score",
        "sample.k",
        "prompt.group",
        "prompt.pool",
        "judge.classifier.share",
    ),
    "improve": TRAINED,  # of a line without a reward model
    "guided": (*TRAINED, "reward", "aggregator"),  # the same with one
    "targets": (*START, "reward", "sample", "improve", "schedule"),
    "match": SAMPLED,
    "evaluate": (*START, *JUDGED, "sample", "evaluate", "metrics", "prompt"),
    "diagnose": (*START, *JUDGED, "sample", "aggregator", "prompt.pool", "evaluate.diagnose"),
}
NEUTRAL: Mapping[str, str] = {
    "name": "a label",
    "experiment": "a label: its values stand in the other keys",
    "run_dir": "a place",
    "cache": "a place",
    "logger": "who is told",
    "keep_rounds": "which weights stay, not what they are",
    "judge.workers": "any number gives the same scores",
    "judge.key_env": "who pays",
    "judge.concurrency": "how many wait at once",
    "judge.timeout": "how long is waited",
    "judge.retries": "how often is asked again",
    "judge.price_input": "what is said of the cost",
    "judge.price_output": "what is said of the cost",
    "policy.frozen_cache": "last bits of sums; whether there is one is part of the cache's key",
    "judge.batch_tokens": "last bits of sums; part of the cache's key",
    "device": "last bits of sums; part of the cache's key",
    "tf32": "last bits of sums; part of the cache's key",
    "deterministic": "last bits of sums; part of the cache's key",
    "threads": "last bits of sums; part of the cache's key",
}
# in a run's hashes only: a place whose contents are in the cache's key, and what runs alongside
LOCAL = ("data.path", "judge.template", "method.controls")


def settings(cfg: RunConfig, stage: str) -> dict[str, Any]:
    """Value of each key that a stage's result depends on, by dotted name.

    Args:
        stage: Key of `STAGES`.
    """
    reads = STAGES[stage]
    return {k: v for k, v in _leaves(cfg) if _within(k, reads) and not _within(k, NEUTRAL)}


def portable(part: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without what may differ between runs that share a result."""
    return {key: value for key, value in part.items() if key not in LOCAL}


def _within(key: str, names: Container[str]) -> bool:
    """Whether a dotted key or one of the sections around it is among the names."""
    return any(map(names.__contains__, _around(key)))


@lru_cache(maxsize=4096)
def _around(key: str) -> tuple[str, ...]:
    parts = key.split(".")
    return tuple(".".join(parts[: i + 1]) for i in range(len(parts)))


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    entries = section if isinstance(section, dict) else vars(section)
    for name, value in entries.items():
        if value and (is_dataclass(value) or isinstance(value, dict)):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
