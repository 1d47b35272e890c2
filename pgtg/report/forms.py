"""Forms of the report for people and machines: Markdown, LaTeX (booktabs), CSV, JSON.

Numbers for machines are in CSV and JSON, unrounded.
"""

import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pgtg.report.build import Report, Result
from pgtg.report.tables import Table


def as_markdown(made: Sequence[Table], heading: str, remarks: Sequence[str]) -> str:
    """One document."""
    parts = [f"# {markdown(heading)}"]
    parts += ["\n".join(f"- {markdown(remark)}" for remark in remarks)] if remarks else []
    for table in made:
        parts.append(f"## {markdown(table.title)}")
        parts.append(markdown_table(table))
        if table.note:
            parts.append(markdown(table.note))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """Pipes; numbers to the right."""
    lines = [_pipes(table.columns), _pipes(["---", *["---:"] * (len(table.columns) - 1)], raw=True)]
    for number, row in enumerate(table.rows):
        cells = [markdown(cell) for cell in row]
        if number in table.marked:
            cells = [f"*{cell}*" if cell else "" for cell in cells]
        lines.append(_pipes(cells, raw=True))
    return "\n".join(lines)


def _pipes(cells: Sequence[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cells if raw else [markdown(cell) for cell in cells]) + " |"


def markdown(text: str) -> str:
    """Any text as text: nothing in it becomes markup, a link, a cell or a line."""
    escaped = "".join(f"\\{char}" if char in "\\`*_[]|~" else char for char in one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # bidirectional overrides
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after \\ a bracket would be an argument
    "]": "{]}",
    "τ": r"$\tau$",
    "−": "$-$",
    "±": r"$\pm$",
}


def latex(text: str) -> str:
    """Any text as text in LaTeX. Letters beyond Latin need XeLaTeX or LuaLaTeX and a font."""
    return "".join(LATEX.get(char, char) for char in one_line(text))


def as_latex(made: Sequence[Table], heading: str) -> str:
    """A file to \\input: one table environment each. Needs \\usepackage{booktabs,textcomp}."""
    parts = [f"% {one_line(heading)}\n% \\usepackage{{booktabs}} \\usepackage[T1]{{fontenc}}"]
    for table in made:
        columns = "l" + "r" * (len(table.columns) - 1)
        lines = [" & ".join(latex(c) for c in table.columns) + r" \\", r"\midrule"]
        for number, row in enumerate(table.rows):
            cells = [latex(cell) for cell in row]
            if number in table.marked:
                cells = [rf"\textit{{{cell}}}" for cell in cells]
            lines.append(" & ".join(cells) + r" \\")
        body = "\n".join(lines)
        caption = latex(table.title + (f". {table.note}" if table.note else ""))
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
            f"\\label{{tab:{latex_label(table.name)}}}\n\\begin{{tabular}}{{{columns}}}\n"
            f"\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def latex_label(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in name)


def one_line(text: str) -> str:
    """Without line ends; control characters, and those that turn the direction of what follows,
    are shown as escapes. Right-to-left letters stay as they are."""
    return "".join(
        " " if char in "\n\r\t" else char if _harmless(char) else ascii(char)[1:-1] for char in text
    )


def _harmless(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cs") and char not in TURNS


CSV = ("data", "split", "decoding", "metric", "row", "system", "n", "mean", "sd", "low", "high")
CSV += ("baseline", "difference", "difference_low", "difference_high", "effect", "p", "p_holm")
CSV += ("common_seeds", "seeds_above", "seeds_low", "seeds_high", "p_seeds", "says")


def as_csv(reports: Sequence[Report]) -> str:
    """A line per row, decoding and metric; numbers unrounded, empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV)
    for report in reports:
        for r in report.results:
            s, c = r.summary, r.comparison
            line = [report.data, report.split, r.decoding, r.metric, cell(r.row.label)]
            line += [cell(r.row.system), s.n, s.mean, s.sd, s.low, s.high]
            if c is not None and report.baseline is not None:
                line += [cell(report.baseline.of[r.row.label].label), c.difference, c.low, c.high]
                line += [c.effect, c.p, c.p_holm, c.seeds, c.seeds_above]
                line += [c.seeds_low, c.seeds_high, c.p_seeds, c.verdict]
            writer.writerow(line + [""] * (len(CSV) - len(line)))
    return out.getvalue()


def cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def as_json(report: Report) -> dict[str, Any]:
    """All numbers with what they rest on."""
    first = report.first
    return {
        "schema": 1,
        "split": report.split,
        "examples": report.examples,
        "data": report.data,
        "metrics": dict(first.metrics),
        "decodings": {name: dict(scores.decoding) for name, scores in first.scores.items()},
        "baseline": report.baseline.label if report.baseline else None,
        "rows": [
            {
                "label": row.label,
                "system": row.system,
                "differs": dict(row.config),
                "runs": {seed: run.shown for seed, run in row.runs.items()},
                "costs": {seed: asdict(cost) for seed, cost in report.costs[row.label].items()},
            }
            for row in report.rows
        ],
        "results": [_json_result(result) for result in report.results],
        "rewards": [asdict(found) for found in report.quality],
        "reward_curves": {label: asdict(c) for label, c in report.reward_curves.items()},
        "policy_curves": {label: asdict(c) for label, c in report.policy_curves.items()},
        "sampled_curves": {label: asdict(c) for label, c in report.sampled_curves.items()},
        "searches": {
            row.label: {seed: system.found for seed, system in row.systems.items() if system.found}
            for row in report.rows
        },
        "absent": dict(report.absent),
        "left_out": dict(report.left_out),
        "notes": list(report.notes),
    }


def _json_result(result: Result) -> dict[str, Any]:
    return {
        "row": result.row.label,
        "decoding": result.decoding,
        "metric": result.metric,
        "values": dict(result.values),
        "summary": asdict(result.summary),
        "comparison": asdict(result.comparison) if result.comparison else None,
        "says": result.comparison.verdict if result.comparison else None,
    }
