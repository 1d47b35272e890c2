"""`pgtg doctor`: every problem of this machine and this config at once, each with what fixes it.

A check is a function that yields findings. Whatever goes wrong inside one is a finding too, so that
the others are still made. Nothing is left written and nothing is fetched; only `--online` asks the
hub whether it has what is not on this machine.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from pgtg.config import RunConfig
from pgtg.doctor import machine, needs
from pgtg.doctor.finding import Finding, Surroundings, good, problem
from pgtg.runs.layout import listed

__all__ = ["Finding", "Surroundings", "examine", "text_of"]

Check = Callable[[RunConfig | None, Surroundings], Iterator[Finding]]
CHECKS: dict[str, Check] = {
    "packages": machine.packages,
    "device": machine.device,
    "outputs": machine.outputs,
    "cache": machine.cache,
    "models": needs.models,
    "data": needs.data,
    "judge": needs.judge,
    "metrics": needs.metrics,
    "tracker": needs.tracker,
    "memory": needs.memory,
    "disk": needs.disk,
}


def examine(
    cfg: RunConfig | None, config_problems: Sequence[str], around: Surroundings
) -> list[Finding]:
    """All findings, in the order of CHECKS.

    Args:
        cfg: The config; None where it cannot be composed, and then only the machine is examined.
        config_problems: What is wrong with it, one line each with the way out.
        around: Where the run would write, and whether the network may be asked.
    """
    found = [problem("config", text, "") for text in config_problems]
    if cfg is not None and not found:
        found = [good("config", f"{cfg.task}/{cfg.name} seed {cfg.seed}: every key is fine")]
    for name, check in CHECKS.items():
        found += _checked(name, check, cfg, around)
    return found


def _checked(
    name: str, check: Check, cfg: RunConfig | None, around: Surroundings
) -> Iterable[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check(cfg, around))
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        said = f"this could not be examined: {type(error).__name__}: {first}"
        found.append(problem(name, said, "report it with the output of `pgtg doctor --env`"))
    return found


def text_of(found: Sequence[Finding]) -> str:
    """The findings as lines, what fixes a problem below it; the count at the end."""
    width = max(len(one.about) for one in found)
    rows = []
    for one in found:
        rows.append((f"{one.state:<7}  {one.about:<{width}}", one.text))
        if one.fix:
            rows.append(("", f"fix: {one.fix}"))
    counts = {state: sum(one.state == state for one in found) for state in ("problem", "warning")}
    words = [f"{n} {word}{'s' if n != 1 else ''}" for word, n in counts.items()]
    end = ", ".join(words) if any(counts.values()) else "all is well"
    return f"{listed(rows, sys.stdout)}\n{end}"
