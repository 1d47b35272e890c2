"""Models that a run makes in its set-up: the embedded defaults' own, trained from scratch.

Each recipe leaves Transformers folders in its artifact (`policy`, perhaps `judge`) and is made once
per content: the cache is shared by runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pgtg.config import RunConfig
from pgtg.pipeline.context import Context
from pgtg.pipeline.recipes import tiny_lms, tiny_t5, tiny_text
from pgtg.runs.folder import Artifact


@dataclass(frozen=True)
class Recipe:
    """How models of the set-up are made.

    Args:
        name: In the cache.
        about: In messages.
        version: Part of the cache's key: raise it when the result would change.
        depends_on: All that the result depends on apart from code and threads.
        make: Trains them and commits the artifact.
    """

    name: str
    about: str
    version: int
    depends_on: Callable[[Context], Mapping[str, Any]]
    make: Callable[[Context, Artifact, str], None]


TINY_T5 = Recipe(
    "warm start of a tiny T5",
    "teaching a tiny T5 to summarise",
    2,
    tiny_t5.depends_on,
    tiny_t5.make,
)
TINY_LMS = Recipe(
    "training of the tiny language models",
    "teaching a tiny policy and a tiny judge",
    1,
    tiny_lms.depends_on,
    tiny_lms.make,
)
TINY_TEXT = Recipe(
    "training of a tiny language model",
    "teaching a tiny policy to write",
    1,
    tiny_text.depends_on,
    tiny_text.make,
)


def recipe_for(cfg: RunConfig) -> Recipe | None:
    """The recipe that the config asks for; None where all models are pretrained."""
    if cfg.policy.tiny_t5 is not None:
        return TINY_T5
    if cfg.policy.tiny_lm is None:
        return None
    return TINY_LMS if cfg.data.reviews is not None else TINY_TEXT
