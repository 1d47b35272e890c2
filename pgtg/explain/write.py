"""`pgtg explain`: gather texts, have the runs read them, and show or write what they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgtg.errors import ConfigError
from pgtg.explain.gather import Credit, Options, gather
from pgtg.runs.folder import atomic, write_jsonl, write_table
from pgtg.runs.log import RunLog

FORMATS = ("jsonl", "parquet")


def explain(path: Path, options: Options) -> None:
    """Show token credit in the terminal, or write it where the options name a file.

    Raises:
        ConfigError: Options that do not go together, runs without a reward model.
        ArtifactError: A run that is missing, unfinished or damaged.
        DataError: No text to explain.
    """
    form = _check(options)
    log = RunLog(None, quiet=options.quiet)
    credit = gather(path, options, log)
    if options.html is not None:
        from pgtg.explain.page import as_page

        with atomic(options.html.resolve()) as temporary:  # a link is written through
            temporary.write_text(as_page(credit), encoding="utf-8", errors="backslashreplace")
        log.say(f"written to {options.html}")
    if options.out is not None:
        file = options.out.resolve()
        if form == "parquet":
            rows = [*table_rows(credit)]
            write_table(file, {name: [row[name] for row in rows] for name in rows[0]})
        else:
            write_jsonl(file, table_rows(credit))
        log.say(f"written to {options.out}")
    if options.html is None and options.out is None:
        from pgtg.explain.terminal import show

        show(credit)


def _check(options: Options) -> str | None:
    """The format of --out, after a look at what goes together."""
    if options.text is not None and options.split is not None:
        raise ConfigError("--text and --split: the texts are either yours or the run's; give one")
    for name, path in (("--html", options.html), ("--out", options.out)):
        if path is not None and path.is_dir():
            raise ConfigError(f"{name} {path} is a folder: give a file name")
    if options.out is not None:
        return format_of(options.out, options.format)
    if options.format in FORMATS:
        raise ConfigError(f"--format {options.format} needs --out FILE")
    if options.format is not None:
        raise _unknown(options.format)
    return None


def format_of(out: Path, format: str | None) -> str:
    """The format of a table: as asked for, else as the file's name ends.

    Raises:
        ConfigError: No such format, or a name that tells none.
    """
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: give a file name")
    if format is not None and format not in FORMATS:
        raise _unknown(format)
    found = format or out.suffix.removeprefix(".")
    if found not in FORMATS:
        raise ConfigError(f"--out {out}: give --format jsonl or --format parquet")
    return found


def _unknown(format: str) -> ConfigError:
    return ConfigError(f"--format: found '{format}', expected one of {', '.join(FORMATS)}")


def table_rows(credit: Credit) -> Iterator[dict[str, Any]]:
    """One row for each text and run."""
    for group in credit.groups:
        for entry in group.entries:
            for run, view in zip(credit.runs, entry.views, strict=True):
                yield {
                    "id": group.id,
                    "run": run.path.name,
                    "label": run.label,
                    "aggregator": run.about.aggregator.name,
                    "source": group.source,
                    "references": list(group.references),
                    "text": view.text,
                    "tokens": [piece.id for piece in view.pieces],
                    "strings": [piece.string for piece in view.pieces],
                    "starts": [piece.start for piece in view.pieces],
                    "ends": [piece.end for piece in view.pieces],
                    "rewards": list(view.rewards),
                    "evaluation": view.evaluation,
                    "rank": view.rank,
                    "score": entry.score,
                    "score_rank": entry.score_rank,
                }
