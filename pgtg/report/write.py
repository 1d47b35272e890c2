"""`pgtg report`: read, compute, write all forms to one folder, print the main table."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgtg.config.registry import nearest
from pgtg.errors import ArtifactError, ConfigError
from pgtg.report import collect
from pgtg.report.build import Report, build, load
from pgtg.report.collect import Run
from pgtg.report.forms import as_csv, as_json, as_latex, as_markdown, one_line
from pgtg.report.page import as_page
from pgtg.report.plots import as_png, as_svg, figures
from pgtg.report.poster import by_data, poster
from pgtg.report.tables import Table, tables
from pgtg.runs.files import atomic, read_json, write_json
from pgtg.runs.layout import counted, folded, shown, tabled

LAYOUTS = {"full": "all tables and figures", "poster": "the paper's two tables with ours"}


def report(
    places: Sequence[Path],
    out: Path,
    *,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    split: str | None = None,
    layout: str = "full",
) -> list[str]:
    """Write report.md, .tex, .csv, .json, .html and plots/ to `out`; returns lines to print.

    Args:
        places: Folders with runs below them.
        baseline: What the rows are tested against; see `rows.pick_baseline`.
        metrics: Columns to show; all without it.
        split: Split of the results; test if all runs have it, else validation.
        layout: Key of LAYOUTS.

    Raises:
        ConfigError: Nothing to report, or runs that cannot be compared.
        ArtifactError: A run folder is damaged.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout: there is no '{layout}'{nearest(layout, LAYOUTS)}")
    if layout == "poster":
        runs, left_out = _each_on_its_split(places, split)
        reports = [
            build(part, left_out, baseline="none", metrics=metrics) for part in by_data(runs)
        ]
        return _write_poster(reports, left_out, out)
    runs, left_out = load(places, split)
    made = build(runs, left_out, baseline=baseline, metrics=metrics)
    return _write_full(made, out)


def _write_full(made: Report, out: Path) -> list[str]:
    heading = f"{_names(made.runs)}: {counted(len(made.runs), 'run')}, {made.split}"
    drawn = tables(made)
    remarks = remarks_on(made)
    drawings = {name: (c, as_svg(f), as_png(f)) for name, (c, f) in figures(made).items()}
    _forget(out)
    _text(out / "report.md", as_markdown(drawn, heading, remarks))
    _text(out / "report.tex", as_latex(drawn, heading))
    _text(out / "report.csv", as_csv([made]))
    names = [_file(name) for name in drawings]
    write_json(out / "report.json", as_json(made) | {"figures": names})
    for name, (_, svg, png) in drawings.items():
        _text(out / "plots" / f"{_file(name)}.svg", svg)
        with atomic(out / "plots" / f"{_file(name)}.png") as temporary:
            temporary.write_bytes(png)
    svgs = {name: (caption, svg) for name, (caption, svg, _) in drawings.items()}
    _text(out / "report.html", as_page(heading, remarks, drawn, svgs))
    lines = [heading, *(f"- {remark}" for remark in remarks)]
    return [*(folded(shown(line), sys.stdout) for line in lines), *_printed(drawn[0])]


def _write_poster(reports: Sequence[Report], left_out: Mapping[str, str], out: Path) -> list[str]:
    drawn = poster(reports)
    heading = "the paper's tables and ours"
    remarks = [f"left out: {path} ({reason})" for path, reason in left_out.items()]
    remarks += [note for each in reports for note in each.notes]
    _text(out / "poster.md", as_markdown(drawn, heading, remarks))
    _text(out / "poster.tex", as_latex(drawn, heading))
    _text(out / "poster.csv", as_csv(reports))
    write_json(out / "poster.json", [as_json(each) for each in reports])
    _text(out / "poster.html", as_page(heading, remarks, drawn, {}))
    lines = [folded(shown(f"- {remark}"), sys.stdout) for remark in remarks]
    for table in drawn:
        lines += [*_printed(table), "", folded(shown(table.note), sys.stdout)]
    return lines


def _forget(out: Path) -> None:
    """Deletes the figures of the report that stood here before: it may have had others."""
    try:
        names = read_json(out / "report.json")["figures"]
    except (ArtifactError, KeyError, TypeError):
        return
    for name in names:
        for kind in ("svg", "png"):
            (out / "plots" / f"{_file(str(name))}.{kind}").unlink(missing_ok=True)


def _printed(table: Table) -> list[str]:
    """A table for the terminal, columns aligned."""
    rows = [[one_line(cell) for cell in row] for row in table.rows]
    title = folded(shown(table.title), sys.stdout)
    return ["", title, "", tabled(table.columns, rows, sys.stdout)]


def remarks_on(made: Report) -> list[str]:
    """What a reader must know before the tables."""
    said = [f"data {made.data[:8]}, {made.examples} examples of the split {made.split}"]
    if made.baseline is not None:
        said.append(f"baseline of the paired tests: {made.baseline.label}")
    if all(len(row.systems) < 2 for row in made.rows):
        said.append("one seed each: what another seed would do is not known from these runs")
    said += [f"metric {name} is absent in some runs: {why}" for name, why in made.absent.items()]
    said += [f"left out: {path} ({reason})" for path, reason in made.left_out.items()]
    return said + list(made.notes)


def _each_on_its_split(
    places: Sequence[Path], split: str | None
) -> tuple[list[Run], Mapping[str, str]]:
    """Runs of several tasks need not share a split: each is read on its own best one."""
    found = collect.find(places)
    runs = [collect.read(path, collect.common_split([path], split)) for path in found.finished]
    return runs, found.left_out


def _names(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(str(run.config.get("name")) for run in runs)
    return ", ".join(names)[:100]


def _file(name: str) -> str:
    """A figure's name as a file name: metric names come from run folders."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)


def _text(path: Path, content: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
