"""Shell completion: tasks and `group=option`, from the names of config files, and nested keys.

Bash cuts words at `=`, so there the words before the cursor end in [group, "="] and only the option
is completed; other shells hand over `group=opt` whole. A --config-dir before the cursor is looked
into as well. Nothing here imports Hydra.
"""

import os
import shlex
from pathlib import Path

import typer

from pgtg.config.groups import LISTS, groups, options


def complete_tasks(incomplete: str) -> list[tuple[str, str]]:
    return [*options("").items()]


def complete_groups(incomplete: str) -> list[str]:
    return list(LISTS)


def complete_overrides(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`group=` names, nested keys after a dot, or the options of the group before the cursor."""
    own: Path | None = ctx.params.get("config_dir")
    group, equals, _ = incomplete.partition("=")
    if equals and group:
        return [(f"{group}={name}", text) for name, text in options(group, own).items()]
    words = _bash_words()
    if words[-1:] == ["="]:  # the cursor is right after the sign: `aggregator=<TAB>`
        return [*options(words[-2], own).items()]
    if words[-2:-1] == ["="]:
        return [*options(words[-3], own).items()]
    if "." in incomplete:
        return _keys(incomplete)
    return [(f"{name}=", f"one of {len(options(name, own))}") for name in groups()]


def _keys(incomplete: str) -> list[tuple[str, str]]:
    """`key=` of each key of a section, e.g. reward.fit.lr=, with what it takes."""
    from pgtg.config.schema import expected_type, known_keys  # not read where groups are completed

    keys = known_keys()
    sections = {key.rpartition(".")[0] for key in keys}
    found = [key for key in keys if key.startswith(incomplete) and key not in sections]
    return [(f"{key}=", expected_type(key) or "") for key in found]


def _bash_words() -> list[str]:
    """Bash's words up to and including the one at the cursor; none in other shells."""
    words, index = os.environ.get("COMP_WORDS"), os.environ.get("COMP_CWORD")
    if words is None or index is None:
        return []
    try:
        found = shlex.split(words)[: int(index) + 1]
    except ValueError:  # an open quote: nothing to complete there
        return []
    return found + [""] * (int(index) + 1 - len(found))  # an empty last word is lost on the way
