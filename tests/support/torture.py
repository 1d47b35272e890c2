"""`make torture`: runs of all tasks, killed at random moments until they are done.

Each run is started again after each kill, and ends with the very bytes of a run that was never
stopped: weights, metrics.jsonl, samples, results. Half of the kills wait for a file that is being
written. SIGTERM and Ctrl-C must save and exit with their codes soon.

    python -m tests.support.torture [--kills 200] [--seed 0]

Prints one line a run, and the counts as JSON at the end; exit code 1 if anything was lost.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.forking import Forked
from tests.support.tiny import TINY, results
from tests.support.tiny_preferences import TINY_PREFERENCES
from tests.support.tiny_prompt import TINY_PROMPT

TASKS = {
    "summarize": [*TINY, "method.controls=[uniform,shuffled]", "judge.workers=1"],
    "prompt": [*TINY_PROMPT, "keep_rounds=all"],
    "preferences": [*TINY_PREFERENCES, "method.reinforce=0.1", "method.samples=2"],
}
SIGNALS = {signal.SIGKILL: (0.7, -9), signal.SIGTERM: (0.15, 143), signal.SIGINT: (0.15, 130)}
PATIENCE = 120.0  # s for a whole run
LATE = 5.0  # s within which a signal that may save must have ended the run


def command(task: str, run: Path) -> list[str]:
    return ["train", task, *TASKS[task], f"run_dir={run}"]


def writing(run: Path) -> Callable[[], bool]:
    """Whether a file is being written, under a name of its own before it gets its name."""

    def found() -> bool:  # os.walk tolerates folders that go while it looks
        return any(
            name.endswith(".tmp") for _, dirs, files in os.walk(run) for name in (*dirs, *files)
        )

    return found


def killed(task: str, run: Path, moment: float, inside: bool, signum: int) -> tuple[int, float]:
    """Start or resume a run, and stop it; its exit code, and how long it took to end [s]."""
    child = Forked(command(task, run), run.with_name(run.name + ".stderr"))
    start = time.monotonic()
    point = writing(run) if inside else lambda: True
    while child.poll() is None and time.monotonic() - start < PATIENCE:
        if time.monotonic() - start >= moment and point():
            child.send_signal(signum)
            break
        time.sleep(0.0005 if inside else 0.002)
    sent = time.monotonic()
    child.communicate(PATIENCE)
    assert child.returncode is not None
    return child.returncode, time.monotonic() - sent


def said_by(run: Path) -> list[str]:
    """The lines of a run's log."""
    log = run / "log.txt"
    return log.read_text().splitlines() if log.is_file() else []


def stage_of(run: Path) -> str:
    """The last work that the log tells of."""
    lines = [line for line in said_by(run) if " error: " not in line]  # what a signal left
    words = (lines[-1].split() if lines else []) + ["", "nothing"]
    return words[1].rstrip(":") if len(words) > 3 else "start-up"


def campaign(kills: int, seed: int, folder: Path) -> dict:
    """Kill until enough kills were survived; counts, and what was lost."""
    rng = random.Random(seed)
    signals, where, lost, late, runs, done = Counter(), Counter(), [], [], 0, 0
    whole, seconds = {}, {}
    for task in TASKS:
        start = time.monotonic()
        child = Forked(command(task, folder / task), folder / f"{task}.stderr")
        said = child.communicate(PATIENCE)[1]
        if child.returncode:
            raise SystemExit(f"the reference run of {task} failed: {said}")
        seconds[task] = time.monotonic() - start
        whole[task] = results(folder / task)
    while done < kills:
        task = list(TASKS)[runs % len(TASKS)]
        run = folder / f"run{runs}"
        runs += 1
        hits, before = 0, len(lost)
        while True:
            weights = [share for share, _ in SIGNALS.values()]
            (signum,) = rng.choices(list(SIGNALS), weights)
            moment = rng.uniform(0, seconds[task] * (0.7 if hits < 8 else 2))
            told = said_by(run)
            code, ending = killed(task, run, moment, rng.random() < 0.5, signum)
            if code == 0:
                break
            expected = SIGNALS[signum][1]
            # before the program is there to take it, a signal does what the system does
            if code != expected and not (code == -signum and said_by(run) == told):
                stderr = run.with_name(run.name + ".stderr")
                said = stderr.read_text().strip().splitlines()[-1:] if stderr.exists() else []
                lost.append(f"{task}: {signum.name} ended with {code}, not {expected}: {said}")
                break
            hits, done = hits + 1, done + 1
            signals[signum.name] += 1
            where[f"{task} {stage_of(run)}"] += 1
            if signum != signal.SIGKILL:
                late.append(ending)
        if len(lost) > before:
            print(f"run {runs} ({task}): {lost[-1]}")
            continue
        same = results(run) == whole[task]
        if not same:
            lost.append(f"{task}: {run} differs from the run that was not stopped")
        print(f"run {runs} ({task}): {hits} kills, {'same bytes' if same else 'DIFFERS'}")
        if same:
            shutil.rmtree(run)
    return {
        "kills": done,
        "runs": runs,
        "signals": dict(signals),
        "where": dict(sorted(where.items())),
        "longest end after SIGTERM or Ctrl-C [s]": round(max(late, default=0.0), 2),
        "ends later than allowed": sum(seconds > LATE for seconds in late),
        "lost": lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(asked.kills, asked.seed, Path(folder))
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["lost"] or found["ends later than allowed"]))


if __name__ == "__main__":
    main()
