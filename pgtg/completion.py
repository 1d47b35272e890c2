"""Shell completion: tasks, `group=option` and top-level keys, read from the names of config files.

Bash cuts words at `=`, so there the words before the cursor end in [group, "="] and only the option
is completed; other shells hand over `group=opt` whole. Nothing here imports Hydra.
"""

import os
import shlex

from pgtg.groups import LISTS, groups, option_files, title


def complete_tasks(incomplete: str) -> list[tuple[str, str]]:
    return [(path.stem, title(path)) for path in option_files("")]


def complete_groups(incomplete: str) -> list[str]:
    return list(LISTS)


def complete_overrides(incomplete: str) -> list[tuple[str, str]]:
    """`group=` names, or the options of the group before the cursor."""
    group, equals, _ = incomplete.partition("=")
    if equals and group:
        return [(f"{group}={path.stem}", title(path)) for path in option_files(group)]
    words = _bash_words()
    if words[-1:] == ["="]:  # the cursor is right after the sign: `aggregator=<TAB>`
        return [(path.stem, title(path)) for path in option_files(words[-2])]
    if words[-2:-1] == ["="]:
        return [(path.stem, title(path)) for path in option_files(words[-3])]
    return [(f"{name}=", f"one of {len(option_files(name))}") for name in groups()]


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
