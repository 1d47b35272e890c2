"""Sweeps: which jobs a sweep folder was asked for, and how far each of its runs is.

`sweep.json` lists what the sweep was asked for; how far a job is, its own run folder tells: the
lock (running), summary.json (done), log.txt (how it last ended). So nothing here can be out of
date, and runs of other machines are seen too where they share the disk.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pgtg.errors import ArtifactError
from pgtg.runs.files import read_json, write_json, writing
from pgtg.runs.folder import RunFolder
from pgtg.runs.layout import counted, folded, shown, tabled
from pgtg.runs.locks import locked
from pgtg.runs.log import ENDED

SWEEP = "sweep.json"
# partly done: stages were run alone; stopped: by a signal, or cut off; refused: never begun
STATES = ("done", "running", "partly done", "stopped", "failed", "refused", "missing")
TAIL = 2**16  # bytes at the end of a log that are looked at
ERROR, STOPPED, REFUSED, BEGIN = " error: ", " stopped: ", " refused: ", " run folder "


@dataclass(frozen=True)
class Status:
    """How far one run is.

    Args:
        run: Its folder's name.
        state: One of STATES.
        note: Why it is not done: the error, the signal, why a later call was refused; the last line
            of the log of a running one.
    """

    run: str
    state: str
    note: str = ""


def record(folder: Path, command: Sequence[str], jobs: Mapping[str, Sequence[str]]) -> None:
    """Add jobs to the list of a sweep.

    Args:
        folder: The sweep's.
        command: What resumes it, as words of a command line.
        jobs: Name of the run's folder -> its overrides.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), locked(folder / f".{SWEEP}.lock"):
        known = asked_for(folder)
        added = {name: list(overrides) for name, overrides in jobs.items()}
        write_json(folder / SWEEP, {"command": list(command), "jobs": {**known, **added}})


def asked_for(folder: Path) -> dict[str, list[str]]:
    """The jobs of a sweep: name of the run's folder -> its overrides; empty without a list.

    Raises:
        ArtifactError: The list is damaged.
    """
    return dict(_read(folder)["jobs"])


def is_complete(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run of this config ended here; what was made from another config does not count."""
    run = RunFolder(folder)
    return (folder / "summary.json").is_file() and run.exists() and not run.config_diff(config)


def status(folder: Path, name: str) -> Status:
    """How far the run in a folder is."""
    run = RunFolder(folder)
    if run.running():
        return Status(name, "running", _last_line(folder))
    if (folder / "summary.json").is_file() and run.exists():
        return Status(name, "done")
    state, note = _ended(folder)
    return Status(name, state, note) if state or run.exists() else Status(name, "missing")


def statuses(folder: Path) -> list[Status]:
    """All jobs that a sweep was asked for, and all runs below its folder."""
    names = dict.fromkeys(asked_for(folder))
    names |= dict.fromkeys(sorted(_runs_below(folder)))
    return [status(folder / name, name) for name in names]


def show(folder: Path) -> None:
    """Print the status table of a sweep to stdout.

    Raises:
        ArtifactError: There is no run below the folder, and no list of jobs.
    """
    found = statuses(folder)
    if not found:
        raise ArtifactError(f"{folder} holds no run and no {SWEEP}: it is no sweep's folder")
    print(table(folder, found, sys.stdout))


def table(folder: Path, found: Sequence[Status], stream: IO[str]) -> str:
    """How far the runs of a sweep are, their number by state, and what resumes them.

    Args:
        folder: The sweep's.
        found: Its runs.
        stream: Where it is shown.
    """
    rows = [[one.run, one.state, shown(one.note)] for one in found]
    lines = [tabled(["run", "state", "note"], rows, stream, left=True), summary(found)]
    command = _read(folder)["command"]
    if command and any(one.state != "done" for one in found):
        lines.append(folded(f"resume with: {' '.join(command)}", stream))
    return "\n".join(lines)


def summary(found: Sequence[Status]) -> str:
    """ "12 runs: 8 done, 1 running, 3 missing"."""
    counts = {state: sum(one.state == state for one in found) for state in STATES}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{counted(len(found), 'run')}: {', '.join(parts)}"


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SWEEP
    if not path.is_file():
        return {"command": [], "jobs": {}}
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("jobs"), dict):
        raise ArtifactError(f"{path} is damaged: delete it; its runs are kept")
    return {"command": [], **found}


def _runs_below(folder: Path) -> Iterator[str]:
    """Names, relative to the folder, of all run folders at any depth."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        if "config.yaml" in files and "provenance.json" in files:
            folders[:] = []  # nothing below a run is a run
            yield str(here.relative_to(folder))
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]


def _tail(folder: Path) -> list[str]:
    path = folder / "log.txt"
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _last_line(folder: Path) -> str:
    lines = [line for line in _tail(folder) if line.strip()]
    return lines[-1] if lines else ""


def _ended(folder: Path) -> tuple[str, str]:
    """How a run that is not done last ended, and what is to be said of it; ("", "") without a log.

    A call that was refused changed nothing: the run is what it was before.
    """
    state = note = refused = last = ""
    for line in _tail(folder):
        last = line if line.strip() else last
        if line.endswith(f" {ENDED}"):
            state, note, refused = "partly done", "", ""
        elif BEGIN in line:
            state, note, refused = "stopped", "", ""
        elif ERROR in line:
            state, note = "failed", line.split(ERROR, 1)[1]
        elif STOPPED in line:
            state, note = "stopped", line.split(STOPPED, 1)[1]
        elif REFUSED in line:
            refused = line.split(REFUSED, 1)[1]
    if state == "stopped" and not note:
        note = f"cut off; last: {last}"
    if refused:
        note = f"{note}; " * bool(note) + f"a later call was refused: {refused}"
    return (state, note) if state else ("refused", refused) if refused else ("", "")
