"""Commands in a pseudo terminal of a given size, and what its screen shows: own, and small.

The screen knows what this project and rich send: colours, moves up and to a line's start, erasing.
It has as many columns as a line needs, so that what a terminal would break or cut is seen.
"""

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SENT = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|\x1b\].*?(?:\x07|\x1b\\)|(.)", re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """What a command left on the screen.

    Args:
        lines: The screen's, scrolled away or not.
        wide: All lines that were ever wider than the terminal, bars included.
        raw: What was sent.
        code: The exit code.
    """

    lines: list[str]
    wide: list[str]
    raw: str
    code: int

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def shown(
    command: Sequence[str],
    columns: int,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Shown:
    """Run a command in a terminal of so many columns and 24 rows."""
    own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    own |= {"TERM": "xterm-256color", **(env or {})}
    child, screen = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.chdir(cwd or ".")
        os.execvpe(command[0], [*command], own)
    sent = b""
    while True:
        try:
            part = os.read(screen, 2**16)
        except OSError:  # the other end is closed
            break
        sent += part
    os.close(screen)
    _, status = os.waitpid(child, 0)
    raw = sent.decode("utf-8", "replace")
    lines, wide = drawn(raw, columns)
    return Shown(lines, wide, raw, os.waitstatus_to_exitcode(status))


def drawn(raw: str, columns: int) -> tuple[list[str], list[str]]:
    """The lines that were drawn, and those that were ever wider than the terminal.

    A line of a single word (a path) may be: it is what can be copied.
    """
    rows: list[list[str]] = [[]]
    row = column = 0
    wide: dict[str, None] = {}
    for number, what, char in (found.groups() for found in SENT.finditer(raw)):
        if what == "A":
            row = max(0, row - int(number or 1))
        elif what == "K":
            rows[row] = [] if number == "2" else rows[row][:column]
        elif char in ("\n", "\r"):
            line = "".join(rows[row]).rstrip()
            if len(line) > columns and " " in line.strip():
                wide[line] = None
            column = 0 if char == "\r" else column
            if char == "\n":
                row += 1
                if row == len(rows):
                    rows.append([])
        elif char and char >= " ":
            rows[row].extend(" " * (column - len(rows[row])))
            rows[row][column : column + 1] = [char]
            column += 1
    return ["".join(line).rstrip() for line in rows], [*wide]
