"""What a command raises, as lines on stderr and an exit code; what a terminal needs before that."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

import typer

from pgtg.errors import ConfigError, PgtgError
from pgtg.runtime import signals


@contextmanager
def reporting() -> Iterator[None]:
    """Turn what a command raises into one line per problem on stderr, and the exit code."""
    before = {signum: signal.getsignal(signum) for signum in signals.EXIT_CODES}
    signals.install()
    try:
        ensure_home()
        replace_what_cannot_be_shown()
        yield
    except PgtgError as error:
        for line in str(error).split("\n") if tells(error) else ():
            say(f"error: {printable(line)}")
        raise typer.Exit(error.exit_code) from error
    except signals.Interrupted as stop:
        if tells(stop):
            say("; ".join([str(stop), *getattr(stop, "__notes__", ())]))
        raise typer.Exit(stop.exit_code) from stop
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        say(f"error: {printable(unforeseen(error))}")
        raise typer.Exit(1) from error
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def tells(error: BaseException) -> bool:
    """Whether this process, of those of its run, is the one that says what was raised."""
    from pgtg.runtime import distributed  # seldom needed, as what is imported in functions below

    return distributed.tells(error)


def say(text: str) -> None:
    """A line on stderr, which a terminal shows broken at spaces."""
    from pgtg.runs.layout import folded

    typer.echo(folded(text, sys.stderr), err=True)


def replace_what_cannot_be_shown() -> None:
    """Texts hold any character; a terminal of another encoding shows a sign in its place."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def ensure_home() -> None:
    """A user without a home folder (a container's, named by a number) gets one among the temporary
    files: caches of ours and of the libraries lie below it.

    Raises:
        ConfigError: Its place is taken by another user.
    """
    if os.path.expanduser("~") != "~":  # noqa: PTH111 (Path.home raises)
        return
    import tempfile

    home = Path(tempfile.gettempdir()) / f"pgtg-home-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.getuid():
        raise ConfigError(f"this user has no home folder, and {home} is not ours: set HOME")
    os.environ["HOME"] = str(home)
    say(f"note: this user has no home folder; caches go to {home} (set HOME)")


def printable(line: str) -> str:
    """Control characters as escapes: a stranger's file must not drive the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def unforeseen(error: Exception) -> str:
    """One line for an error that nobody foresaw; its traceback goes to a file of its own."""
    import tempfile
    import traceback

    first = (str(error).strip() or "no message").splitlines()[0]
    with tempfile.NamedTemporaryFile(
        "w", prefix="pgtg-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        traceback.print_exception(error, file=file)
    return f"{type(error).__name__}: {first} (unexpected; traceback in {file.name})"
