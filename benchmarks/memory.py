"""Peak memory of a call, as the kernel counts it (Linux only)."""

import resource
from collections.abc import Callable
from pathlib import Path

MIB = 2**20


def peak_mib(run: Callable[[], object]) -> float:
    """Peak memory of a call above what stood before it [MiB], in this process."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    run()
    return _status("VmHWM") - before


def held_mib() -> float:
    """Memory of this process now [MiB]."""
    return _status("VmRSS")


def children_mib() -> float:
    """Peak memory of the largest process that this one has started and waited for [MiB]."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / MIB


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / MIB
