"""Own code without a fork: files that add specs to the registries.

A plugin is a Python file with a list `SPECS` of specs (`config.registry`). It is run only where the
command line names it (`--plugin FILE`), never for what a config or a run folder says. The option
puts its path into $PGTG_PLUGINS, so that the processes that a command starts (judges, jobs of a
sweep) run the same file.
"""

import hashlib
import os
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from pgtg.errors import ConfigError

FILES = "PGTG_PLUGINS"


def paths() -> list[Path]:
    """The plugins of this process, as it was asked for them."""
    return [Path(name) for name in os.environ.get(FILES, "").split(os.pathsep) if name]


def use(files: Sequence[Path]) -> None:
    """Run plugins and add what they hold, here and in all processes that are started from here.

    Raises:
        ConfigError: A file is not there, cannot be run, or holds no specs; a name is taken.
    """
    from pgtg.config.registry import add_plugins  # it asks for `paths`

    known = paths()
    os.environ[FILES] = os.pathsep.join(
        str(path) for path in dict.fromkeys([*known, *(file.absolute() for file in files)])
    )
    add_plugins()


def specs_of(file: Path) -> Sequence[object]:
    """What a plugin's file holds; runs it.

    Raises:
        ConfigError: It is not there, it fails, or it holds no list SPECS.
    """
    if not file.is_file():
        raise ConfigError(f"--plugin: there is no file {file}")
    module = _run(file)
    specs = getattr(module, "SPECS", None)
    if not isinstance(specs, list | tuple) or not specs:
        raise ConfigError(f"--plugin {file}: no list SPECS of pgtg.config.registry's specs in it")
    return specs


def _run(file: Path) -> ModuleType:
    import sys

    name = f"pgtg_plugin_{file.stem}_{_digest(file)[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    found = spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise ConfigError(f"--plugin {file}: no Python file (its name ends in .py)")
    module = module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickles look it up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        first = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(f"--plugin {file}: {type(error).__name__}: {first}") from error
    return module


def described() -> list[dict[str, str]]:
    """Name and sha256 of each plugin of this process: what results rest on apart from pgtg."""
    return [{"name": path.name, "sha256": _digest(path)} for path in paths()]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
