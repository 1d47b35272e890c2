"""What judges generations, as the stages see it, and how the judge of a config is had.

Judges of texts against references score in worker processes (`pool`, `reference`). Those whose spec
says `main` judge in this process: their code opens a `Judge` of the run's config.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from pgtg.config import RunConfig
from pgtg.config.registry import JUDGES, resolve
from pgtg.errors import DataError
from pgtg.models.codec import Codec
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.types import Example, TokenIds

Columns = dict[str, list[Any]]  # of a table, by name


class Judge(ABC):
    """The true preference between generations, as scores: higher is better, NaN is not judged."""

    alone = True  # a text's score is the same whatever else is judged with it

    @abstractmethod
    def __call__(
        self,
        tokens: Sequence[TokenIds],
        texts: Sequence[str],
        examples: Sequence[Example],
        codec: Codec,
    ) -> Future[Columns]:
        """What it says of generations, each of an example: a column "score", and perhaps more."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """All that its scores depend on."""

    def look_at(self, examples: Sequence[Example], *, conversations: bool) -> list[str]:
        """What is to be said of the data before anything is judged, a line each.

        Args:
            conversations: Sources are the canonical JSON of `data/pairs.py`.

        Raises:
            ConfigError: It cannot judge them.
        """
        return []

    def keep_in(self, folder: RunFolder, log: RunLog) -> None:  # noqa: B027 (need not do anything)
        """The run's folder, which is locked, and its log; not called where nothing is kept."""

    def tell(self) -> None:  # noqa: B027
        """Say in the log what is to be known of its work since it was last asked to."""

    def close(self) -> None:  # noqa: B027
        """Let go of what it holds."""


def judged(scores: Sequence[float], what: str) -> list[float]:
    """The scores without those of texts that were not judged.

    Args:
        what: What the texts are, for the message.

    Raises:
        DataError: None was judged.
    """
    found = [score for score in scores if not math.isnan(score)]
    if not found:
        raise DataError(f"the judge has judged none of the {len(scores)} {what}: see the log above")
    return found


def open_judge(cfg: RunConfig) -> Judge | None:
    """The judge of texts that the config names; None where nothing is judged.

    Raises:
        MissingResourceError: What it needs is not on this machine.
    """
    spec = JUDGES[cfg.judge.name]
    if spec.absent:
        return None
    if spec.main:
        return spec.load()(cfg)
    from pgtg.judges.pool import JudgePool
    from pgtg.judges.reference import ReferenceJudge

    pool = JudgePool(cfg.judge, cfg.metrics.sentence_splitter, cfg.metrics.tokenizer)
    return ReferenceJudge(pool)


def check_judge(cfg: RunConfig, *, fetch: bool = False) -> list[str]:
    """Refuse a judge that could not be opened here; returns what else is to be said of it.

    Args:
        fetch: Whether a model's config and tokenizer may be fetched; weights never are.

    Raises:
        ConfigError: Something does not fit.
        MissingResourceError: Something is not on this machine; says what fixes it.
    """
    spec = JUDGES[cfg.judge.name]
    if spec.check:
        return list(resolve(spec.check)(cfg, fetch=fetch))
    if not spec.absent and not spec.main:
        from pgtg.judges.text import build_judge

        build_judge(cfg.judge, cfg.metrics.sentence_splitter, cfg.metrics.tokenizer)
    return []
