"""Token rewards and baselines against marked errors: figures with intervals, and their table."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgtg.benchmark.texts import Texts, shown, under
from pgtg.models.kept import KeptTexts
from pgtg.ops.aggregate import Aggregator, padded
from pgtg.ops.detection import (
    Estimate,
    Marked,
    auc,
    auc_within_texts,
    average_precision,
    draws,
    quantiles,
    share_right,
)

ALL = "all errors"
LOGPROB = "log-probability"
METRICS = {
    "auc": "AUC",
    "auc_within_strata": "strata",
    "auc_within_texts": "text",
    "average_precision": "AP",
    "pairs": "pairs",
}
WIDTH = 24  # of a row's name in the table [characters]


@dataclass(frozen=True)
class Row:
    """Something that gives each token a value, lower where it suspects an error.

    Args:
        values: Of the tokens of each text.
        evaluations: Of each text, higher is better; None where it says nothing of whole texts.
    """

    name: str
    values: Sequence[np.ndarray]
    evaluations: np.ndarray | None


@dataclass(frozen=True)
class Figure:
    """One number of the table.

    Args:
        errors: Label of the errors, or `ALL`.
        tokens: Tokens that it is of: those under such an error, and those under none.
        error_tokens: Those under such an error.
        above: The same less that of the policy's log-probability, on the same draws.
    """

    errors: str
    row: str
    metric: str
    estimate: Estimate
    above: Estimate
    tokens: int
    error_tokens: int


def learned(name: str, rewards: Sequence[np.ndarray], aggregator: Aggregator) -> Row:
    """A reward model's row: token rewards, and what its aggregator makes of them."""
    evaluations = aggregator(*padded([values.tolist() for values in rewards]))
    return Row(name, rewards, evaluations.numpy())


def baselines(kept: KeptTexts) -> list[Row]:
    """What costs nothing: the policy's log-probability and entropy, the position, the length."""
    log_probs = [values.numpy() for values in kept.by_text(kept.log_probs)]
    entropies = [-values.numpy() for values in kept.by_text(kept.entropies)]
    lengths = kept.lengths.numpy().astype(float)
    left = [np.arange(length)[::-1].astype(float) for length in kept.lengths.tolist()]
    return [
        Row(LOGPROB, log_probs, np.array([values.mean() for values in log_probs])),
        Row("entropy", entropies, np.array([values.mean() for values in entropies])),
        Row("position", left, None),
        Row("length", [np.full(int(n), -n) for n in lengths], -lengths),
    ]


def figures(texts: Texts, rows: Sequence[Row], *, seed: int) -> list[Figure]:
    """All figures of all rows, for all errors together and for each label.

    A label's tokens are held against tokens under no error at all: other errors are left out. The
    strata are tenths of the policy's log-probability.
    """
    taken, found = draws(len(texts.sources), seed=seed), list[Figure]()
    order = [row.name for row in rows].index(LOGPROB)
    for label, (error, tokens) in _by_label(texts).items():
        text, place = tokens[:, 0], tokens[:, 1]
        question = np.array([texts.texts[row].question for row in text])
        drawn: list[Mapping[str, np.ndarray]] = []
        strata = quantiles(_values(rows[order], text, place))
        for row in rows:
            marked = Marked(_values(row, text, place), error, question)
            own = {
                "auc": auc(marked, taken),
                "auc_within_strata": auc(marked, taken, strata),
                "auc_within_texts": auc_within_texts(marked, taken, text),
                "average_precision": average_precision(marked, taken),
            }
            if label == ALL and row.evaluations is not None:
                won, pairs = pairs_right(texts, row.evaluations)
                own["pairs"] = share_right(won, pairs, taken)
            drawn.append(own)
        for row, own in zip(rows, drawn, strict=True):
            for metric, values in own.items():
                above = Estimate.of(values - drawn[order][metric])
                counts = len(error), int(error.sum())
                estimate = Estimate.of(values)
                found.append(Figure(label, row.name, metric, estimate, above, *counts))
    return found


def _values(row: Row, text: np.ndarray, place: np.ndarray) -> np.ndarray:
    return np.array([row.values[t][p] for t, p in zip(text, place, strict=True)], float)


def _by_label(texts: Texts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of all errors and of each label, most frequent first: whether each token is under one, and
    (text, place) of the tokens."""
    spans = [span for row in texts.annotated for span in texts.texts[row].spans or ()]
    places, errors = list[np.ndarray](), list[np.ndarray]()
    labels = [label for label, _ in Counter(label for _, _, label in spans).most_common()]
    of_label: dict[str, list[np.ndarray]] = {label: [] for label in labels}
    for row in texts.annotated:
        text = texts.texts[row]
        seen = np.flatnonzero(shown(text))
        places.append(np.stack([np.full_like(seen, row), seen], axis=1))
        errors.append(under(text)[seen])
        for label, own in of_label.items():
            own.append(under(text, label)[seen])
    tokens, error = np.concatenate(places), np.concatenate(errors)
    found = {ALL: (error, tokens)}
    for label, own in of_label.items():
        here = np.concatenate(own)
        keep = here | ~error
        found[label] = (here[keep], tokens[keep])
    return found


def pairs_right(texts: Texts, evaluations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each question: pairs that are ordered as they are preferred, and all pairs that are
    preferred one way; a tie counts one half."""
    won, pairs = np.zeros(len(texts.sources)), np.zeros(len(texts.sources))
    for group in texts.groups:
        scores, given = group.ranking.scores, group.ranking.pairs
        ordered = given
        if ordered is None:
            places = range(len(scores))
            ordered = tuple((i, j) for i in places for j in places if scores[i] > scores[j])
        for i, j in ordered:
            gap = evaluations[group.rows[i]] - evaluations[group.rows[j]]
            won[group.question] += 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
            pairs[group.question] += 1
    return won, pairs


def table(found: Sequence[Figure]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows, at most 80 characters: percent and half the width of the interval. The
    first row of each kind of errors says what chance gives."""
    rows = list[list[str]]()
    for label, of_label in _grouped(found, lambda figure: figure.errors):
        one = of_label[0]
        chance = dict.fromkeys(METRICS, "50") | {"pairs": "50" if label == ALL else ""}
        chance["average_precision"] = f"{100 * one.error_tokens / one.tokens:.1f}"
        rows.append([_short(f"{label} ({one.error_tokens})"), *chance.values()])
        for name, of_row in _grouped(of_label, lambda figure: figure.row):
            cells = {figure.metric: _cell(figure.estimate) for figure in of_row}
            rows.append([_short(f"  {name}"), *(cells.get(metric, "") for metric in METRICS)])
    return ["%", *METRICS.values()], rows


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _grouped(
    found: Sequence[Figure], key: Callable[[Figure], str]
) -> Iterator[tuple[str, list[Figure]]]:
    groups: dict[str, list[Figure]] = {}
    for figure in found:
        groups.setdefault(key(figure), []).append(figure)
    yield from groups.items()


def _cell(estimate: Estimate) -> str:
    half = (estimate.high - estimate.low) / 2
    return "-" if np.isnan(estimate.value) else f"{100 * estimate.value:.1f}±{100 * half:.0f}"


def as_rows(found: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures with both ends of their intervals, None where there is no number."""
    return [
        {
            "errors": figure.errors,
            "row": figure.row,
            "metric": figure.metric,
            **{key: _number(value) for key, value in vars(figure.estimate).items()},
            **{f"above_{key}": _number(value) for key, value in vars(figure.above).items()},
            "tokens": figure.tokens,
            "error_tokens": figure.error_tokens,
        }
        for figure in found
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
