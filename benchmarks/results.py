"""Put a report's tables into docs/results.md, between the marks of a section.

python benchmarks/results.py quickstart outputs/results/quickstart-report "make results-quickstart"
python benchmarks/results.py question-head outputs/results/questions-reports/head \
    "make results-questions" --short

The commit is that of the runs, as their folders tell. Of the paired tests only those rows are shown
that show a difference; intervals of means, costs and reward diagnostics stay in the report. With
`--short` a section is one table of the two instruments of docs/log.md, with the difference to the
report's baseline, and a figure of them in docs/images; of prompt rows their own choice and their
cost as well.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "results.md"
KEPT = r"mean \(sd\)|difference"  # in the headings of what the page shows
INSTRUMENTS = {  # (decoding, metric) -> what the page calls it
    ("references", "nll"): "NLL of clean references",
    ("sample", "meteor_stem"): "METEOR of samples",
}
OF_PROMPTS = {
    ("best", "accuracy"): "accuracy of the best prompt [%]",
    ("best", "score"): "its gap",
}
OWN_CHOICE = {("policy", "accuracy"): "accuracy of what it ends with [%]"}  # by a method's own rule
ON_FLAWED_TEXT = {
    ("references", "nll"): "NLL of clean references",
    ("sample", "rouge1"): "ROUGE-1 of samples",
}
ON_MARKS = {
    ("greedy", "rest_over_errors"): "log-probability of the rest over that of errors",
    ("greedy", "errors_log_prob"): "log-probability of errors",
}


def commits(report: Path) -> str:
    """The commits that gave the runs of a report."""
    rows = json.loads((report / "report.json").read_text())["rows"]
    found = set()
    for run in {run for row in rows for run in row["runs"].values()}:
        git = json.loads((Path(run) / "provenance.json").read_text())["git"]
        found.add(git["commit"][:7] + (" with changes" if git["changed"] else ""))
    return ", ".join(sorted(found))


def without_nothing(part: str) -> str:
    """A part of the report without rows that show no difference, which are counted."""
    lines = part.rstrip().splitlines()
    found = [line for line in lines if not line.endswith("no difference shown |")]
    said = f"\n\n{len(lines) - len(found)} further rows show no difference."
    return "\n".join(found) + (said if len(found) < len(lines) else "")


def section(report: Path, command: str) -> str:
    """The report's main tables, one level deeper, with the command and the commit behind them."""
    title, *parts = (report / "report.md").read_text(encoding="utf-8").split("\n## ")
    headline = title.splitlines()[0].removeprefix("# ")
    shown = [part for part in parts if re.search(KEPT, part.splitlines()[0])]
    kept = [f"### {without_nothing(part)}\n" for part in shown]
    return "\n".join([f"`{command}`, commit {commits(report)}: {headline}.\n", *kept])


def short(name: str, report: Path, command: str) -> str:
    """One table of both instruments, a figure, the command and the commit."""
    told = json.loads((report / "report.json").read_text())
    found = {(r["decoding"], r["metric"], r["row"]): r for r in told["results"]}
    names = [row["label"] for row in told["rows"]]
    there = {(decoding, metric) for decoding, metric, _ in found}
    sets = (INSTRUMENTS, OF_PROMPTS, ON_FLAWED_TEXT, ON_MARKS)
    instruments = next(those for those in sets if those.keys() <= there)
    columns = instruments | (OWN_CHOICE if instruments is OF_PROMPTS else {})
    baseline = told["baseline"]
    said = "Mean (sd) over seeds; in brackets the 95 % interval of the difference over seeds"
    lines = [
        f"`{command}`, commit {commits(report)}. {said}, to `{_brief(baseline)}`.\n",
        "| row | seeds | " + " | ".join(columns.values()) + " | differences |",
        "|---|---:|" + "---:|" * len(columns) + "---|",
    ]
    for row in names:
        there = [found.get((*instrument, row)) for instrument in instruments]
        seeds = max((r["summary"]["n"] for r in there if r), default=0)
        cells = " | ".join(_mean(found.get((*column, row))) for column in columns)
        apart = "" if row == baseline else "; ".join(_apart(r) for r in there)
        lines.append(f"| `{_brief(row)}` | {seeds} | {cells} | {apart} |")
    picture = f"results-{name}.svg"
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pgtg"}):
        figure(told, found, names, instruments).savefig(
            DOCS / "images" / picture, bbox_inches="tight", metadata={"Date": None}
        )
    said = f"Both instruments by row: a tick a seed, the marker their mean ({name})"
    costs = _costs(report, baseline) if instruments is OF_PROMPTS else []
    return "\n".join([*lines, "", f"![{said}](images/{picture})", *costs, ""])


def _costs(report: Path, baseline: str) -> list[str]:
    """The table of the report's section on cost, with its title."""
    text = (report / "report.md").read_text(encoding="utf-8").split("\n## cost of a run")[1]
    table = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    return ["", f"What a run costs (†: more than `{_brief(baseline)}`):", "", *table]


def _brief(label: str) -> str:
    """A row's label without the controls that were run alongside."""
    return re.sub(r"method\.controls=\[.*?\] ?", "", label)


def _mean(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    s = result["summary"]
    return f"{s['mean']:.2f}" + (f" ({s['sd']:.2f})" if s["sd"] is not None else "")


def _apart(result: dict[str, Any] | None) -> str:
    """The difference to the baseline, and what the test over seeds and texts says."""
    compared = result["comparison"] if result else None
    if not result or not compared:
        return "–"
    ends = compared["seeds_low"], compared["seeds_high"]
    between = "" if None in ends else f" [{ends[0]:+.2f}, {ends[1]:+.2f}]"
    return f"{compared['difference']:+.2f}{between} {result['says']}"


def figure(
    told: dict[str, Any],
    found: dict[Any, Any],
    names: list[str],
    instruments: dict[tuple[str, str], str],
) -> Figure:
    """A panel for each instrument: rows downwards, a tick for each seed, a marker for the mean."""
    drawn = Figure(figsize=(8.4, 0.8 + 0.28 * len(names)))
    panels = drawn.subplots(1, len(instruments), sharey=True)
    for axes, (instrument, title) in zip(panels, instruments.items(), strict=True):
        for place, row in enumerate(names):
            if (result := found.get((*instrument, row))) is None:
                continue
            color = "#c24f00" if row == told["baseline"] else "#0067a5"
            values = list(result["values"].values())
            axes.plot(values, [place] * len(values), "|", color=color, markersize=9)
            axes.plot([result["summary"]["mean"]], [place], "o", color=color, markersize=5)
        axes.set_yticks(range(len(names)), [_brief(name) for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(title, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", linewidth=0.4)
    return drawn


def main(name: str, report: Path, command: str, *, is_short: bool) -> None:
    begin, end = f"<!-- results {name} -->", f"<!-- end of results {name} -->"
    text = PAGE.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        sys.exit(f"{PAGE} has no marks {begin} and {end}")
    made = short(name, report, command) if is_short else section(report, command)
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n{made}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("report", type=Path)
    parser.add_argument("command")
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args()
    main(asked.name, asked.report, asked.command, is_short=asked.short)
