"""The report's figures, drawn with matplotlib's objects (no pyplot, no global state).

Colours come with markers and line styles, so that nothing is told by colour alone. `INK` and `GRID`
and the series' colours are fixed hex codes: the page puts its own light and dark ones in their
place.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pgtg.report.build import NOT_TESTED, Report
from pgtg.report.curves import Curve
from pgtg.report.forms import one_line

INK, GRID = "#1a1b1c", "#c9cacb"
SERIES = ("#0067a5", "#c24f00", "#007a5a", "#a8447f", "#6b4fa0", "#7a6200", "#4a6a7a", "#8a3a3a")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
MAIN_METRICS = 6  # figures of means; --metrics chooses others
LABEL = 44  # characters of a row's label in a figure; tables have all of it
BANDS = 4  # with more lines, bands would hide one another
STYLE: Any = {
    "text.parse_math": False,  # a label may hold a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "pgtg",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def figures(report: Report) -> dict[str, tuple[str, Figure]]:
    """Name -> (caption, figure), in reading order."""
    with mpl.rc_context(STYLE):
        return {**_means(report), **_curves(report), **_lengths(report)}


def as_png(figure: Figure) -> bytes:
    """On white, 160 dots per inch."""
    return _saved(figure, "png", dpi=160, facecolor="white")


def as_svg(figure: Figure) -> str:
    """Transparent, text as text; the same figure gives the same bytes."""
    return _saved(figure, "svg", transparent=True, metadata={"Date": None}).decode("utf-8")


def _saved(figure: Figure, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # a label in a script that DejaVu Sans lacks: boxes in the png, text in the svg
        warnings.filterwarnings(
            "ignore", message=r"Glyph .* missing from font", category=UserWarning
        )
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(out, format=kind, bbox_inches="tight", **how)
    return out.getvalue()


def _figure(height: float = 3.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _means(report: Report) -> dict[str, tuple[str, Figure]]:
    """A dot and an interval per row, one figure per metric of the first decoding."""
    made = {}
    decoding = next(iter(report.metrics))
    names = [name for name in report.metrics[decoding] if name not in NOT_TESTED]
    for metric in names[:MAIN_METRICS]:
        found = [report.result(row, decoding, metric) for row in report.rows]
        shown = [result for result in found if result is not None]
        figure, axes = _figure(0.9 + 0.32 * len(shown))
        for y, result in enumerate(shown):
            s = result.summary
            color = _color(report, result.row.label)
            if s.low is not None and s.high is not None:
                axes.plot([s.low, s.high], [y, y], color=color, linewidth=1.6)
            values = list(result.values.values())
            axes.plot(values, [y] * len(values), "|", color=color, markersize=9)
            axes.plot([s.mean], [y], MARKERS[y % len(MARKERS)], color=color, markersize=6)
        axes.set_yticks(range(len(shown)), [short(result.row.label) for result in shown])
        axes.invert_yaxis()
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(short(f"{metric}, {report.split}, {decoding}"))
        caption = f"{metric}: mean over seeds (marker), 95 % interval (line), each seed (tick)"
        made[f"means_{decoding}_{metric}"] = caption, figure
    return made


def _curves(report: Report) -> dict[str, tuple[str, Figure]]:
    """Three figures: reward model, policy's greedy text, policy's samples; each where it exists."""
    held = "on held-out sources"
    pairs = f"Reward model {held} (by round: on samples it has not seen): share of pairs ordered as"
    kinds: list[tuple[str, Mapping[str, Curve], str, str, float | None, str]] = [
        (
            "reward_curve",
            report.reward_curves,
            "reward model's updates",
            "pairs in the judge's order",
            0.5,
            f"{pairs} the judge does. Dotted: chance",
        ),
        (
            "policy_curve",
            report.policy_curves,
            "policy's updates",
            "judge's score, greedy text",
            None,
            f"Policy {held}: the judge's mean score of the greedy text",
        ),
        (
            "sampled_curve",
            report.sampled_curves,
            "round",
            "judge's score, samples",
            None,
            "Sampled generations: the judge's mean score as a round begins",
        ),
    ]
    return {
        name: (f"{caption}. {BAND}", _lines(report, curves, x, y, chance))
        for name, curves, x, y, chance, caption in kinds
        if curves
    }


BAND = "Mean over seeds (band, with few lines: lowest to highest); upright lines: a round ends."


def _lines(
    report: Report, curves: Mapping[str, Curve], x: str, y: str, chance: float | None
) -> Figure:
    figure, axes = _figure()
    for number, (label, curve) in enumerate(curves.items()):
        color = _color(report, label)
        how = {"marker": MARKERS[number % len(MARKERS)], "markersize": 3.5, "linewidth": 1.3}
        line = LINES[number % len(LINES)]
        axes.plot(curve.x, curve.mean, line, color=color, label=short(label), **how)
        if len(curves) <= BANDS:
            band = {"color": color, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(curve.x, curve.low, curve.high, **band)
    for end in sorted({end for curve in curves.values() for end in curve.rounds}):
        axes.axvline(end, color=GRID, linewidth=1.2)
    if chance is not None:
        axes.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
    if all(curve.by_round for curve in curves.values()):
        x = "round"
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _legend(axes)
    return figure


def _lengths(report: Report) -> dict[str, tuple[str, Figure]]:
    """Mean in ten bins of length, and the middle half, per group."""
    if not report.lengths:
        return {}
    kinds: Mapping[str, tuple[str, Callable]] = {
        "reward_length": ("mean token reward", lambda found: found.token_reward),
        "evaluation_length": ("sequence evaluation e", lambda found: found.evaluation),
    }
    made = {}
    for name, (title, values) in kinds.items():
        figure, axes = _figure()
        for number, (label, found) in enumerate(report.lengths.items()):
            color = _color(report, label)
            x, mean, low, high = binned(found.tokens, values(found))
            marker, line = MARKERS[number % len(MARKERS)], LINES[number % len(LINES)]
            axes.plot(x, mean, line, marker=marker, color=color, label=short(label), markersize=4)
            if len(report.lengths) <= BANDS:
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xlabel("length of the generation [tokens]")
        axes.set_ylabel(title)
        _legend(axes)
        caption = (
            f"{title} against length, scored generations of the last round: mean in bins of "
            "equal numbers (band, with few lines: the middle half)"
        )
        made[name] = caption, figure
    return made


def binned(
    x: np.ndarray, y: np.ndarray, bins: int = 10
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Mean x, mean y and y's quartiles in bins of about equal numbers; equal x stay together."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
    number = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    parts = [number == k for k in np.unique(number)]
    low, high = zip(*(np.quantile(y[part], [0.25, 0.75]) for part in parts), strict=True)
    means = [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts]
    return *means, [float(v) for v in low], [float(v) for v in high]


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=1, borderaxespad=0)


def _color(report: Report, label: str) -> str:
    """One colour per row, the same in every figure."""
    labels = [row.label for row in report.rows]
    return SERIES[(labels.index(label) if label in labels else 0) % len(SERIES)]


def short(label: str) -> str:
    """A label that fits a figure."""
    label = one_line(label)
    return label if len(label) <= LABEL else label[: LABEL - 1] + "…"
