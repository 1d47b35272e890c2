"""The doctor's checks of the machine: versions, clock, device, and folders that must take files."""

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pgtg import DISTRIBUTION
from pgtg.config import RunConfig, judge_model_of, workers_of
from pgtg.config.sizes import show_size
from pgtg.doctor.finding import Finding, Surroundings, good, problem, warning
from pgtg.errors import ConfigError, MissingResourceError
from pgtg.pipeline.plan.room import nearest_folder
from pgtg.runs.entries import size_limit
from pgtg.runs.locks import acquire

SLOWER = 1.5  # a 16-bit product that takes so much longer than a 32-bit one is no help


def packages(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """Each dependency against its range, as pgtg was installed with."""
    from packaging.requirements import Requirement

    listed = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    needed = [one for one in listed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in needed:
        try:
            found = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((one, "is not installed"))
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append((one, f"{found} is installed, pgtg needs {one.specifier}"))
    for one, text in wrong:
        fix = f"{sys.executable} -m pip install '{one.name}{one.specifier}'"
        yield problem("packages", f"{one.name} {text}", fix)
    if not wrong:
        found = f"Python {platform.python_version()}, {len(needed)} packages"
        yield good("packages", f"{found}, all in pgtg's ranges")


def device(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """The device is there, and the dtype is no slower on it than 32-bit floats."""
    from pgtg.runtime.device import pick_device

    try:
        found = pick_device(cfg.device if cfg else "auto")
    except MissingResourceError as error:
        yield problem("device", str(error), "device=auto, or fix the driver: see nvidia-smi")
        return
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    ratio = _bfloat16_ratio(str(found))
    yield good("device", f"{found}, {cores} cores; bfloat16 product: {ratio:.1f} x float32's time")
    slow = cfg is not None and "bfloat16" in _dtypes(cfg) and ratio > SLOWER
    if slow:
        fix = "policy.dtype=float32 (and judge.classifier.dtype=float32)"
        yield warning("device", f"bfloat16 is {ratio:.1f} x slower than float32 on {found}", fix)
    if cfg is not None and (cfg.threads or 0) > cores:
        yield warning("device", f"threads={cfg.threads} on {cores} cores", f"threads={cores}")
    if cfg is not None and (workers_of(cfg) or 0) > cores:
        text = f"judge.workers={workers_of(cfg)} on {cores} cores"
        yield warning("device", text, f"judge.workers={cores - 1}")


def outputs(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """Run folders can be made, and locked."""
    yield _writable("outputs", around.outputs, "run_dir=<a folder of yours>")


def cache(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """The same of the cache; its size limit can be read."""
    if around.cache is None:
        yield good("cache", "off")
        return
    yield _writable("cache", around.cache, "PGTG_CACHE=<a folder of yours>, or cache=off")
    try:
        size_limit()
    except ConfigError as error:
        yield problem("cache", str(error), "export PGTG_CACHE_SIZE=20GB")


def _writable(about: str, folder: Path, fix: str) -> Finding:
    """Whether files can be made and locked in a folder, or in what of its path exists."""
    here = nearest_folder(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=here, prefix=".pgtg-doctor-") as file:
            try:
                os.close(acquire(Path(file.name)))
            except OSError as error:
                text = f"{here}: this disk has no file locks ({error.strerror}); runs need them"
                return problem(about, text, fix)
    except OSError as error:
        text = f"{folder} cannot be written: {here}: {error.strerror or error}"
        return problem(about, text, f"chmod u+w '{here}', or {fix}")
    return good(about, f"{folder} can be written")


def _dtypes(cfg: RunConfig) -> set[str]:
    judge = judge_model_of(cfg)
    return {cfg.policy.dtype} | ({judge[1].dtype} if judge is not None else set())


def _bfloat16_ratio(device: str) -> float:
    """Time of a small product in bfloat16 over that in float32, best of some."""
    import torch

    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(256, 256, dtype=dtype, device=device)
        times = []
        for _ in range(6):
            begin = time.perf_counter()
            (square @ square)[0, 0].item()  # waits for the device
            times.append(time.perf_counter() - begin)
        best[dtype] = min(times)
    return best[torch.bfloat16] / best[torch.float32]


def cpu_name() -> str:
    """The processor as Linux names it."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def memory_bytes() -> tuple[int | None, int | None]:
    """Bytes of memory that a process may have: in all, and free now; None where unknown."""
    values = {}
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text()
        values = {k: int(v) * 1024 for k, v in re.findall(r"(\w+):\s+(\d+) kB", text)}
    total, free = values.get("MemTotal"), values.get("MemAvailable")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(name).read_text())
            total, free = min(total or limit, limit), min(free or limit, limit)
    return total, free


def size_or_unknown(count: int | None) -> str:
    return "unknown" if count is None else show_size(count)
