"""Text metrics: thin over the libraries, one score per example, all in [0, 100].

A metric whose resource is not on this machine is reported as absent, with the reason and what fixes
it; nothing is replaced by something else. Importing this module imports none of the libraries.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pgtg.config import MetricsConfig
from pgtg.config.registry import METRICS
from pgtg.errors import ConfigError, MissingResourceError, PgtgError


class TextMetric(Protocol):
    """Scores of texts against their references."""

    @property
    def name(self) -> str:
        """As in `metrics.names`."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its scores in tables of results."""
        ...

    @property
    def scale(self) -> str:
        """Where its scores lie, e.g. "[0, 100]"."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What its numbers depend on; runs that differ in it are not compared."""
        ...

    def unread(self, texts: Iterable[str]) -> float:
        """Share of the texts' letters that it does not read, in [0, 1]."""
        ...

    def score(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Mapping[str, list[float]]:
        """A score per text by column; several references: the best one counts."""
        ...


def build_metrics(
    cfg: MetricsConfig, device: str | None = None
) -> tuple[list[TextMetric], dict[str, str]]:
    """The metrics at hand, in the config's order, and the absent ones.

    Args:
        device: Torch device of the metrics that use a model; the first GPU if there is one when
            None.

    Returns:
        Metrics, and name -> reason with what fixes it for those whose resource is missing.

    Raises:
        ConfigError: Unknown names (all of them together) or wrong options.
    """
    problems: list[str] = []
    present: list[TextMetric] = []
    absent: dict[str, str] = {}
    for name in dict.fromkeys(cfg.names):
        try:
            present.append(METRICS[name].load()(cfg, device))
        except ConfigError as error:
            problems.extend(error.problems)
        except MissingResourceError as error:
            absent[name] = str(error)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return present, absent


def unread(metrics: Sequence[TextMetric], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Share of the references' letters that each metric does not read, where there is such."""
    texts = [text for row in references for text in row]
    found = {metric.name: metric.unread(texts) for metric in metrics}
    return {name: share for name, share in found.items() if share}


def unread_line(name: str, share: float) -> str:
    """What to say of a metric or judge that does not read all."""
    fix = "metrics.tokenizer=char or word_boundaries reads any script, so does chrf"
    return f"{name} does not read {100 * share:.0f} % of the references' letters: {fix}"


def compute(
    metrics: Sequence[TextMetric], texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """Scores per example by column; means over examples are the caller's.

    Raises:
        PgtgError: A score is not finite; names metric and row.
    """
    columns: dict[str, list[float]] = {}
    for metric in metrics:
        for column, scores in metric.score(texts, references).items():
            for row, score in enumerate(scores):
                if not math.isfinite(score):
                    raise PgtgError(f"metric {metric.name}: {column} of example {row} is {score}")
            columns[column] = scores
    return columns
