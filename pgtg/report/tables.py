"""The report's tables, as texts. What they become (Markdown, LaTeX, HTML) only escapes them."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgtg.config.registry import controls_of
from pgtg.ops.statistics import (
    ALPHA,
    SAME,
    SEEDS,
    UNDIRECTED,
    Comparison,
    Summary,
    answer,
    word_of,
)
from pgtg.report.build import Report
from pgtg.report.diagnostics import COLUMNS
from pgtg.report.rows import Row

ABSENT = "n/a"
SELDOM = ("trained texts", "gradient sequences", "forward equivalents")  # shown where there are any
BUDGETED = ("judged generations", "forward equivalents")  # in which rows are to be equal
OVER = "†"
JUDGED = (40, 80, 160, 320)  # prompts after which searches are compared


@dataclass(frozen=True)
class Table:
    """Texts in cells; the first column names the row."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    marked: frozenset[int] = frozenset()  # rows that are not ours (published)


def tables(report: Report) -> list[Table]:
    """All tables, in reading order."""
    made = []
    for decoding in report.metrics:
        made.append(_results(report, decoding))
        if any(len(row.systems) > 1 for row in report.rows):
            made.append(_intervals(report, decoding))
        if report.baseline is not None:
            made.append(_tests(report, decoding))
    questions = _questions(report)
    made += [questions] if questions.rows else []
    if (searches := _searches(report)).rows:
        made.append(searches)
    made.append(_costs(report))
    if report.quality:
        made.append(_quality(report))
    if len(report.groups) > 1:
        made.append(_differences(report))
    made.append(_runs(report))
    return made


def _results(report: Report, decoding: str) -> Table:
    return _wide(
        report,
        decoding,
        f"results_{decoding}",
        "mean (sd) over seeds",
        mean_text,
        "Each seed's value is a mean over the examples; sd with n - 1. One seed has no sd.",
    )


def _intervals(report: Report, decoding: str) -> Table:
    return _wide(
        report,
        decoding,
        f"intervals_{decoding}",
        "95 % interval of the mean over seeds",
        interval_text,
        "Student's t with n - 1 degrees of freedom: what further seeds of the same config would "
        "average to.",
    )


def _wide(
    report: Report,
    decoding: str,
    name: str,
    what: str,
    text: Callable[[Summary], str],
    note: str,
) -> Table:
    """A row per system, a column per metric."""
    names = report.metrics[decoding]
    rows = []
    for row in report.rows:
        found = [report.result(row, decoding, metric) for metric in names]
        if any(found) and (text is not interval_text or len(row.systems) > 1):
            cells = [ABSENT if result is None else text(result.summary) for result in found]
            rows.append([row.label, str(len(row.systems)), *cells])
    title = f"{report.split}, {decoding} decoding, {report.examples} examples: {what}"
    return Table(name, title, ["row", "seeds", *names], rows, note)


def mean_text(summary: Summary) -> str:
    """`86.54 (0.31)`."""
    return f"{summary.mean:.2f}" + (f" ({summary.sd:.2f})" if summary.sd is not None else "")


def interval_text(summary: Summary, sign: str = "") -> str:
    """`[85.77, 87.31]`; with `sign` "+" `[+0.77, +2.31]`."""
    if summary.low is None or summary.high is None:
        return ABSENT
    return f"[{summary.low:{sign}.2f}, {summary.high:{sign}.2f}]"


def _tests(report: Report, decoding: str) -> Table:
    assert report.baseline is not None
    rows, same = [], dict[tuple[str, str], list[str]]()
    for metric in report.metrics[decoding]:
        for row in report.rows:
            result = report.result(row, decoding, metric)
            if result is None or result.comparison is None:
                continue
            if word_of(result.comparison, metric) == SAME:
                said = row.label, result.comparison.verdict
                same.setdefault(said, []).append(metric)
            else:
                rows.append([row.label, metric, *_tested(result.comparison)])
    folded = [[row, ", ".join(names), *[""] * 8, said] for (row, said), names in same.items()]
    return Table(
        f"tests_{decoding}",
        f"{report.split}, {decoding} decoding: difference to {report.baseline.label}, paired over "
        "the same examples and seeds",
        [
            "row",
            "metric",
            "difference",
            "95 % over seeds",
            "95 % over texts",
            "effect d_z",
            "p seeds",
            "p texts",
            "p (Holm)",
            "seeds above",
            "says",
        ],
        rows + folded,
        "Over seeds: Student's t on one difference a seed. Over texts: scores of an example are "
        "averaged over the common seeds; p is a two-sided sign-flip permutation test. A verdict "
        f"needs both: p (Holm) below {ALPHA}, where Holm's correction of the larger p runs over "
        "all rows, metrics, decodings and splits. Below "
        f"{SEEDS} common seeds there is no verdict: 'on these texts' is about these seeds alone, "
        "and another seed may turn it. Rows without a difference are folded; report.csv and "
        "report.json have their numbers.",
    )


def _questions(report: Report) -> Table:
    """What the controls ask of the method that they stand alongside, where it is the baseline."""
    rows = []
    for row in report.rows:
        base = None if report.baseline is None else report.baseline.of.get(row.label)
        spec = controls_of(report.runs[0].config["task"]).get(row.system)
        if spec is None or not spec.question or base is None or not base.trained:
            continue
        found = {
            (decoding, metric): result.comparison.turned()
            for decoding, metrics in report.metrics.items()
            for metric in metrics
            if metric not in UNDIRECTED
            and (result := report.result(row, decoding, metric))
            and result.comparison
        }
        if not found:
            continue
        words = [word_of(one, metric) for (_, metric), one in found.items()]
        evidence = "; ".join(
            f"{metric} ({decoding}) {one.difference:+.2f} {word}"
            + (f", beyond ±{one.excluded:.2f} excluded" if word == SAME and one.excluded else "")
            for ((decoding, metric), one), word in zip(found.items(), words, strict=True)
        )
        few = any(one.seeds < SEEDS for one in found.values())
        said = f"on these texts: {answer(words)}" if few else answer(words)
        rows.append([spec.question, row.label, said, evidence])
    return Table(
        "questions",
        f"{report.split}: what the controls ask",
        ["question", "control", "answer", "evidence: method minus control"],
        rows,
        "Better and worse by the tests above; yes: better on all that is shown, in part: on some. "
        "Excluded: by two one-sided t-tests, over seeds and over texts, corrected (Bonferroni) "
        "for all comparisons of the report.",
    )


def _tested(found: Comparison) -> list[str]:
    over_seeds = Summary(found.seeds, found.difference, None, found.seeds_low, found.seeds_high)
    return [
        f"{found.difference:+.2f}",
        interval_text(over_seeds, "+"),
        f"[{found.low:+.2f}, {found.high:+.2f}]",
        f"{found.effect:+.2f}",
        ABSENT if found.p_seeds is None else p_text(found.p_seeds),
        p_text(found.p),
        p_text(found.p_holm),
        f"{found.seeds_above} of {found.seeds}",
        found.verdict,
    ]


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _searches(report: Report) -> Table:
    """How searches for prompts went, since one that ends first may not be the one that leads."""
    rows = []
    for row in report.rows:
        curves = [system.found for system in row.systems.values()]
        if any(curves):
            best = [_mean([_best(curve, most) for curve in curves]) for most in JUDGED]
            rows.append([row.label, *(ABSENT if b is None else f"{b:.2f}" for b in best)])
    return Table(
        "searches",
        "best score on train after so many judged prompts, mean over seeds",
        ["row", *map(str, JUDGED)],
        rows,
        "As the search saw it: what it had judged on the training texts until then, a prompt as "
        f"often as it asked. {ABSENT}: it had not yet judged any, or (a method in rounds) not yet "
        "ended one.",
    )


def _best(curve: Sequence[tuple[int, float]], most: int) -> float | None:
    """The best score of a search that had at most so many prompts judged."""
    return max((best for prompts, best in curve if prompts <= most), default=None)


def _costs(report: Report) -> Table:
    found = {row.label: _spent(report, row) for row in report.rows}
    names = [name for spent in found.values() for name, value in spent.items() if value]
    every = dict.fromkeys(name for spent in found.values() for name in spent)
    shown = [name for name in every if name not in SELDOM or name in names]
    base = {} if report.baseline is None else report.baseline.of

    def cell(label: str, name: str) -> str:
        value = found[label].get(name)
        if value is None:
            return ABSENT
        text = f"{value:.0f}" if value == round(value) else f"{value:.1f}"
        other = base.get(label)
        budget = None if other is None else found[other.label].get(name)
        over = name in BUDGETED and budget is not None and value > budget
        return f"{text} {OVER}" if over else text

    rows = [[label, *(cell(label, name) for name in shown)] for label in found]
    return Table(
        "costs",
        "cost of a run, mean over seeds",
        ["row", *shown],
        rows,
        "Judged generations: scored to learn from and to check what was learned. Trained texts: "
        "read with gradients by policy and reward model, each as often as it was. Gradient "
        "sequences (searches of prompts): texts that the judge's model read with gradients. "
        "Forward equivalents: of prompts, sequences judged during the search and three for each "
        "gradient sequence; of texts, generations judged and three for each trained one. "
        f"{OVER} more than the row that it is compared with. Seconds: wall time of "
        "sampling with judging and of reward and policy training; n/a where a stage was stopped "
        "and resumed, or made by a pgtg that kept no seconds. Stages taken from the cache count 0 "
        "there; 'seconds in cache' is what they took when they were made. The warm start and the "
        "evaluation are in no row.",
    )


def _spent(report: Report, row: Row) -> dict[str, float | None]:
    """What a row cost, by column, mean over seeds; None where a seed does not say."""
    costs = list(report.costs[row.label].values())
    systems = list(row.systems.values())
    extra = {
        name: _mean([system.extra.get(name) for system in systems])
        for name in sorted({name for system in systems for name in system.extra})
    }
    judged, gradient = _mean([cost.judged for cost in costs]), _mean([c.gradient for c in costs])
    trained = _mean([cost.trained for cost in costs])
    searched = "judged_sequences" in extra
    once, thrice = (extra["judged_sequences"], gradient) if searched else (judged, trained)
    forward = None if once is None or thrice is None else once + 3 * thrice
    return {
        "policy updates": _mean([cost.policy_updates for cost in costs]),
        "reward updates": _mean([cost.reward_updates for cost in costs]),
        "judged generations": judged,
        "trained texts": trained,
        "gradient sequences": gradient,
        "forward equivalents": forward,
        "seconds": _mean([cost.seconds for cost in costs]),
        "seconds in cache": _mean([cost.cached_seconds for cost in costs]),
        **{name.replace("_", " "): value for name, value in extra.items()},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


HEADINGS = {
    "pair_accuracy": "pairs %",
    "kendall_tau": "Kendall τ",
    "top1_accuracy": "top-1 %",
    "pl_nll": "PL NLL",
    "longer_wins": "longer wins %",
    "shorter_wins": "shorter wins %",
    "log_prob_wins": "log-prob wins %",
    "fresh_pairs": "fresh pairs %",
    "effective_tokens": "effective tokens",
    "top_token_share": "top token %",
    "evaluation_length_correlation": "r(e, length)",
    "judge_length_correlation": "r(judge, length)",
    "calibration_error": "calibration error",
}
PERCENT = ("pair_accuracy", "top1_accuracy", "longer_wins", "shorter_wins", "log_prob_wins")
PERCENT += ("top_token_share", "fresh_pairs")


def _quality(report: Report) -> Table:
    rows = []
    names = [name for name in COLUMNS if any(name in found.values for found in report.quality)]
    for found in report.quality:
        label = found.label + (f", {found.head} head" if found.head else "")
        cells = [_measure(name, found.values.get(name)) for name in names]
        rows.append([label, str(found.round), found.part, str(found.seeds), *cells])
    return Table(
        "rewards",
        "token rewards against the judge: mean over seeds",
        ["row", "round", "on", "seeds", *(HEADINGS[name] for name in names)],
        rows,
        "on: held-out sources, or the generations that the reward model learned from. "
        "pairs: share of the judge's ordered pairs that the evaluation orders alike; chance is 50, "
        "and 'longer', 'shorter' and 'log-prob wins' are what baselines without learning reach. "
        "fresh pairs: the former round's reward model on this round's samples (staleness). "
        "Effective tokens exp(H(w)) and top token: how the aggregator's gradient spreads. "
        "r: correlation within a source's generations. Calibration error of P(i above j) = "
        "sigmoid(e_i - e_j), 0 is best.",
    )


def _measure(name: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{100 * value:.1f}" if name in PERCENT else f"{value:.3f}"


def _differences(report: Report) -> Table:
    keys = list(dict.fromkeys(key for group in report.groups for key in group.differs))
    rows = [[key, *(group.differs.get(key, ABSENT) for group in report.groups)] for key in keys]
    return Table(
        "differences",
        "what differs between the groups of runs (config minus seed)",
        ["key", *(group.label for group in report.groups)],
        rows,
    )


def _runs(report: Report) -> Table:
    rows = [
        [group.label or run.method, seed, run.shown]
        for group in report.groups
        for seed, run in group.runs.items()
    ]
    return Table("runs", "runs", ["row", "seed", "folder"], rows)
