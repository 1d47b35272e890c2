"""What help looks like: examples that can be typed, no line wider than the terminal."""

import inspect
import shutil
import textwrap

import typer

COLUMNS = min(shutil.get_terminal_size().columns, 80)  # of help


def examples(*commands: str, about: str = "") -> str:
    """Commands below a command's help, each perhaps with `  # what it does`.

    Comments stand in a column where the terminal has room for all of them, else above; a long
    command is broken as a shell takes it.
    """
    lines = ["Examples:" if len(commands) > 1 else "Example:", "", "\b"]
    rows = [command.partition("  # ")[::2] for command in commands]
    widest = max((len(command) for command, said in rows if said), default=0)
    apart = any(widest + len(said) > COLUMNS - 6 for _, said in rows)
    for command, said in rows:
        if said and not apart:
            lines.append(f"  {command:<{widest}}  {said}")
            continue
        if said:
            lines += textwrap.wrap(said, COLUMNS, initial_indent="  # ", subsequent_indent="  # ")
        parts = textwrap.wrap(command, COLUMNS - 8, break_long_words=False, break_on_hyphens=False)
        lines.append("  " + " \\\n      ".join(parts))
    return "\n".join([*([about, ""] if about else []), *lines])


def short(group: typer.Typer) -> None:
    """The first sentence of each command's help is what the list of commands says of it."""
    for command in group.registered_commands:
        said = command.help or inspect.getdoc(command.callback) or ""
        command.short_help = " ".join(said.split("\n\n")[0].split()).partition(". ")[0]
