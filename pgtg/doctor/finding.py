"""What a check of the doctor finds, and what it is told of the run that would be started."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Args:
        state: "ok", "warning" (the run would continue, but not as one might expect) or "problem".
        about: What was examined, in a word.
        text: What was found.
        fix: The command or key that fixes it; "" where the text says it, or nothing is wrong.
    """

    state: str
    about: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Surroundings:
    """Where a run would write, and what may be asked.

    Args:
        outputs: Folder in which run folders are made.
        cache: The shared cache; None where it is off.
        online: Whether the hub may be asked for what is not on this machine.
    """

    outputs: Path
    cache: Path | None
    online: bool = False


def good(about: str, text: str) -> Finding:
    return Finding("ok", about, text)


def warning(about: str, text: str, fix: str) -> Finding:
    return Finding("warning", about, text, fix)


def problem(about: str, text: str, fix: str) -> Finding:
    return Finding("problem", about, text, fix)
