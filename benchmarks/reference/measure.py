"""Timing two sides in one process, alternating."""

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]
Row = dict[str, Any]


def quiet() -> contextlib.redirect_stdout:
    """The reference prints as it works: not here."""
    return contextlib.redirect_stdout(io.StringIO())


def timed(run: Run) -> tuple[float, float]:
    """Wall time and this process's CPU time [s] of one call."""
    wall, used = time.perf_counter(), time.process_time()
    with quiet():
        run()
    return time.perf_counter() - wall, time.process_time() - used


def profiled(run: Run) -> None:
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"self CPU time {total / 1e6:.2f} s")
    for event in events[:24]:
        own = event.self_cpu_time_total
        share = f"{own / 1e3:9.1f} ms {100 * own / total:5.1f} %"
        print(f"  {event.key[:60]:<60} {share}  {event.count} calls")


@dataclass(frozen=True)
class Meter:
    """How rows are measured.

    Args:
        repeats: Timed calls of each side, after one call that warms up.
        profile: Show where pgtg's time goes instead.
    """

    repeats: int
    profile: bool = False

    def compare(self, name: str, target: str, reference: Run, ours: Run) -> Row:
        """Prints and returns a row: medians, and ratios reference / ours of calls side by side.

        Returns:
            Nothing when profiling.
        """
        if self.profile:
            print(name)
            profiled(ours)
            return {}
        sides = {"reference": reference, "ours": ours}
        for run in sides.values():
            timed(run)
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for i in range(self.repeats):
            for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
                times[side].append(timed(sides[side]))
        pairs = list(zip(times["reference"], times["ours"], strict=True))
        ratios = [reference[1] / ours[1] for reference, ours in pairs]
        row: Row = {"name": name, "target": target}
        for side, found in times.items():
            row[side] = {
                "wall_s": statistics.median(wall for wall, _ in found),
                "cpu_s": statistics.median(cpu for _, cpu in found),
            }
        row["cpu_ratio"] = statistics.median(ratios)
        row["cpu_ratio_range"] = [min(ratios), max(ratios)]
        row["wall_ratio"] = statistics.median(a[0] / b[0] for a, b in pairs)
        seconds = "  ".join(
            f"{side} {row[side]['wall_s']:.2f} s wall {row[side]['cpu_s']:.2f} s CPU"
            for side in sides
        )
        print(
            f"{name:<58} CPU {row['cpu_ratio']:.2f} ({min(ratios):.2f}-{max(ratios):.2f})  "
            f"wall {row['wall_ratio']:.2f}  target {target}  | {seconds}",
            flush=True,
        )
        return row


def gflops(rows: int = 4096, inner: int = 512, columns: int = 2048) -> float:
    """Of a matmul of an encoder layer's shape, now."""
    a, b = torch.rand(rows, inner), torch.rand(inner, columns)
    times = []
    for _ in range(5):
        begin = time.process_time()
        torch.mm(a, b)
        times.append(time.process_time() - begin)
    return 2e-9 * rows * inner * columns / statistics.median(times)
