"""The phases of `make bench`, this version against another one, call by call.

    git worktree add --detach ../before COMMIT
    python benchmarks/versions.py ../before [--threads 1] [--repeats 5] [--only NAME ...]

Each version runs in a process of its own, with its own benchmarks/bench.py and the same libraries.
Of each phase one call is made there, then one here, and so on, after one call each that warms up;
what is printed is time here over time there: the median of the pairs, with the least and the
largest, of CPU time and of wall time. CPU time is the two processes' own, and of commands that a
phase starts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parents[1]
LEAST = 5.0  # [s] short phases are repeated for so long


def serve(threads: int) -> None:
    """Run what is asked for on standard input: a phase's name prepares it, an empty line calls it.

    Names of the phases, then (CPU time, wall time) [s] of each call, go to standard output.
    """
    import inspect

    import torch
    from bench import PHASES  # of the version whose folder comes first in PYTHONPATH

    torch.set_num_threads(threads)
    answers, sys.stdout = sys.stdout, sys.stderr  # a phase that prints does not answer
    print(json.dumps(list(PHASES)), file=answers, flush=True)
    run = None
    for line in sys.stdin:
        if name := line.strip():
            prepare: Callable[..., Any] = PHASES[name]  # older versions' take no device
            takes_device = bool(inspect.signature(prepare).parameters)
            run = prepare(*[torch.device("cpu")] * takes_device).run
        assert run is not None
        cpu, wall = cpu_time(), time.perf_counter()
        run()
        took = (cpu_time() - cpu, time.perf_counter() - wall)
        print(json.dumps(took), file=answers, flush=True)


def cpu_time() -> float:
    """Of this process and of those it started that have ended [s]."""
    return sum(os.times()[:4])


class Version:
    """A checkout whose phases run in a process of their own."""

    def __init__(self, folder: Path, threads: int):
        path = os.pathsep.join(map(str, (folder / "benchmarks", folder)))
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "benchmarks/versions.py"), "--serve", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
        assert self.process.stdin and self.process.stdout
        self.ask: IO[str] = self.process.stdin
        self.answers: IO[str] = self.process.stdout
        self.phases: list[str] = self.read()

    def read(self) -> Any:
        line = self.answers.readline()
        if not line:
            sys.exit(f"{self.process.args}: ended, see above")
        return json.loads(line)

    def call(self, phase: str = "") -> tuple[float, float]:
        """(CPU time, wall time) [s] of one call of the last phase that was named, or of this."""
        print(phase, file=self.ask, flush=True)
        return self.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("other", type=Path, nargs="?", help="another version's checkout")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="phases by their names in `make bench`")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return
    if asked.other is None:
        parser.error("name another version's checkout, e.g. ../before")
    if not (asked.other / "benchmarks/bench.py").is_file():
        parser.error(f"{asked.other}: no checkout of a version (benchmarks/bench.py is not there)")
    here = Version(HERE, asked.threads)
    there = Version(asked.other.resolve(), asked.threads)
    common = [name for name in here.phases if name in there.phases]
    if unknown := set(asked.only or []) - set(common):
        names = ", ".join(sorted(unknown))
        parser.error(f"--only {names}: no phase of both versions; there are: {', '.join(common)}")
    print(f"{'time here / there':<32} {'CPU time':<22} wall time")
    for name in asked.only or common:
        for version in (there, here):
            version.call(name)
        pairs = []
        begun = time.perf_counter()
        while len(pairs) < asked.repeats or time.perf_counter() - begun < LEAST:
            pairs.append((there.call(), here.call()))
        columns = []
        for clock in (0, 1):
            ratios = sorted(own[clock] / other[clock] for other, own in pairs)
            columns.append(f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f})")
        print(f"{name:<32} {columns[0]:<22} {columns[1]}", flush=True)


if __name__ == "__main__":
    main()
