"""The paper's two tables, its rows next to ours. Each data set is a comparison of its own.

Published rows are marked, in every form; ours name the data and the model they are about. A number
on other data or from another model is no counterpart of a published one, and stands in no column of
theirs.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import yaml

from pgtg.report.build import Report, Result
from pgtg.report.collect import Run
from pgtg.report.tables import Table, mean_text

PUBLISHED, OURS = "published", "ours"
NONE = "-"


def published() -> dict[str, Any]:
    """What stands in published.yaml."""
    text = files("pgtg.report").joinpath("published.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def by_data(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one task on the same examples."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        data = next(iter(run.systems.values())).data
        found.setdefault((str(run.config.get("task")), data), []).append(run)
    return list(found.values())


def poster(reports: Sequence[Report]) -> list[Table]:
    """Both tables, each with the rows of the reports of its task.

    Args:
        reports: One per data set, each of runs that may be compared.
    """
    known = published()
    made = []
    for task in ("prompt", "summarize"):
        entry = known[task]
        own = [report for report in reports if report.runs[0].config.get("task") == task]
        other = [] if task == "summarize" else _other_data(entry, own)
        rows = [[row["name"], PUBLISHED, *map(_cell, row["cells"])] for row in entry["rows"]]
        rows = [row + [NONE] * len(other) for row in rows]
        marked = frozenset(range(len(rows)))
        columns = [*entry["columns"], *other]
        rows += (
            _summary_rows(entry, own) if task == "summarize" else _prompt_rows(entry, own, columns)
        )
        about = _about(entry, own) if own else "no run of this task was given."
        note = f"Published rows: {known['source']}. {entry['note']} Ours: {about}"
        if task == "summarize" and not all(_is_theirs(entry, r.runs[0]) for r in own):
            note += " Columns are empty where data or model are others: --layout full has them."
        title = f"{entry['title']}: mean (sd)"
        made.append(Table(f"poster_{task}", title, ["row", "source", *columns], rows, note, marked))
    return made


def _other_data(entry: Mapping[str, Any], own: Sequence[Report]) -> list[str]:
    """Our data sets that the paper's table has no column for."""
    names = [_other(entry, r.runs[0]) for r in own if _heading(entry, r.runs[0]) is None]
    return list(dict.fromkeys(names))


def _other(entry: Mapping[str, Any], run: Run) -> str:
    """The column of a run that none of the paper's is for: its data; its model if that is why."""
    return _data(run) if _known(entry, run) is None else f"{_data(run)}, {_model(run, entry)}"


def _prompt_rows(
    entry: Mapping[str, Any], own: Sequence[Report], columns: Sequence[str]
) -> list[list[str]]:
    """One line per label, a column per data set."""
    lines: dict[str, list[str]] = {}
    for report in own:
        run = report.runs[0]
        place = columns.index(_heading(entry, run) or _other(entry, run))
        for row in report.rows:
            line = lines.setdefault(row.label, [NONE] * len(columns))
            line[place] = _first(report, row.label, entry["metric"], entry["decodings"])
    return [[label, OURS, *cells] for label, cells in lines.items()]


def _summary_rows(entry: Mapping[str, Any], own: Sequence[Report]) -> list[list[str]]:
    several = len(own) > 1
    return [
        [
            row.label + (f" on {_data(report.runs[0])}" if several else ""),
            OURS,
            *(
                _first(report, row.label, names, [next(iter(report.metrics))])
                if _is_theirs(entry, report.runs[0])
                else NONE
                for names in entry["columns"].values()
            ),
        ]
        for report in own
        for row in report.rows
    ]


def _first(report: Report, label: str, names: Sequence[str], decodings: Sequence[str]) -> str:
    """The first of the named metrics that the row has, under the first of the decodings."""
    found: list[Result] = [
        r
        for decoding in decodings
        for name in names
        for r in report.results
        if (r.row.label, r.decoding, r.metric) == (label, decoding, name)
    ]
    return mean_text(found[0].summary) if found else NONE


def _heading(entry: Mapping[str, Any], run: Run) -> str | None:
    """The column of the paper's table that a run belongs to, by its data and its model."""
    return _known(entry, run) if _has_model(entry, run) else None


def _known(entry: Mapping[str, Any], run: Run) -> str | None:
    """The column of the paper's table that a run's data belongs to."""
    columns = entry["columns"].items()
    return next((h for h, words in columns if any(w in _about_data(run) for w in words)), None)


def _is_theirs(entry: Mapping[str, Any], run: Run) -> bool:
    """Whether a run's data and model are those of the paper's table of one data set."""
    return any(w in _about_data(run) for w in entry["data"]) and _has_model(entry, run)


def _has_model(entry: Mapping[str, Any], run: Run) -> bool:
    key, *words = entry["model"]
    return any(word in str(run.config.get(key)).lower() for word in words)


def _about_data(run: Run) -> str:
    keys = ("data.name", "data.path", "experiment")
    return " ".join(str(run.config.get(key)) for key in keys).lower()


def _about(entry: Mapping[str, Any], own: Sequence[Report]) -> str:
    """Data, size, model, and the BERTScore model, without which its numbers mean nothing."""
    said = []
    for report in own:
        run = report.runs[0]
        said.append(
            f"{_data(run)}, {report.split} ({report.examples} examples), from {_model(run, entry)}"
        )
        model = report.first.metrics.get("bertscore", {}).get("model")
        said[-1] += f", BERTScore by {PurePath(str(model)).name}" if model else ""
    return "; ".join(said) + "."


def _data(run: Run) -> str:
    name, path = run.config.get("data.name"), run.config.get("data.path")
    return f"{name} {PurePath(str(path)).name}" if path else str(name)


def _model(run: Run, entry: Mapping[str, Any]) -> str:
    path = run.config.get(entry["model"][0])
    return PurePath(str(path)).name if path else "a tiny model"


def _cell(cell: Sequence[float] | None) -> str:
    if cell is None:
        return NONE
    decimals = 1 if cell[0] == round(cell[0], 1) else 2
    return f"{cell[0]:.{decimals}f}" + (f" ({cell[1]:.{decimals}f})" if len(cell) > 1 else "")
