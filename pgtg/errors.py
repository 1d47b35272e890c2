"""The errors that pgtg raises on purpose: each is one clear line for the user.

A message says what is wrong, where, and how to fix it. `exit_code` is what the command line
returns: 2 for what the user can fix in the call, the config or the data, 1 for a run that failed.
"""


class PgtgError(Exception):
    """Base of all errors that reach the user as one line, without a traceback."""

    exit_code = 1
    shared = False  # known to all processes of the run: one of them says it
    begun = False  # whether the run had begun; else it is as it was


class ConfigError(PgtgError):
    """The config or the command is wrong; several problems are reported together."""

    exit_code = 2

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(PgtgError):
    """A data file, a column or a split is missing, unreadable or empty."""

    exit_code = 2


class MissingResourceError(PgtgError):
    """Something that must be on this machine is not: a model, WordNet, a package."""

    exit_code = 2


class ArtifactError(PgtgError):
    """A run folder or one of its artifacts is missing, half-written or damaged."""

    exit_code = 2


class DivergedError(PgtgError):
    """Training met a number that is not finite; the last good checkpoint stays."""


class RunError(PgtgError):
    """Something that nobody foresaw; its traceback stands in the run's log."""
