"""What Hydra composes of the files of a call, with the schema's types.

Composed is each choice of files once: the jobs of a sweep mostly differ in values, which are set
later, and not in their groups. Values of the call are `config.compose`'s matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pgtg.config import OWNED, RunConfig, known_keys
from pgtg.config.registry import options_of
from pgtg.config.sources import REFUSALS, loader, one_line, theirs
from pgtg.errors import ConfigError


def composed_from(load: ConfigLoaderImpl, task: str, parsed: Sequence[Override]) -> DictConfig:
    """The config of the chosen groups, the caller's own."""
    return shared_from(load, task, parsed).copy()


def shared_from(load: ConfigLoaderImpl, task: str, parsed: Sequence[Override]) -> DictConfig:
    """The same, which others read as well."""
    overrides = tuple(str(o.input_line) for o in parsed)
    return _composed(load, task, overrides) if _has_own(load) else _shipped(task, overrides)


def chosen_options(load: ConfigLoaderImpl, task: str, parsed: Sequence[Override]) -> dict[str, str]:
    """The option that is taken of each group."""
    overrides = tuple(str(o.input_line) for o in parsed)
    return dict(_chosen(load, task, overrides) if _has_own(load) else _as_shipped(task, overrides))


def _has_own(load: ConfigLoaderImpl) -> bool:
    """Whether the user's own folder is looked into, whose files may change."""
    return any(source.provider == "command-line" for source in load.repository.get_sources())


# What `conf/` alone makes of a call: its files do not change while a command runs, and the jobs of
# a sweep mostly differ in values, which are set later, and not in their groups.


@lru_cache(maxsize=64)
def _shipped(task: str, overrides: tuple[str, ...]) -> DictConfig:
    return _composed(loader(), task, overrides)


@lru_cache(maxsize=64)
def _as_shipped(task: str, overrides: tuple[str, ...]) -> dict[str, str]:
    return _chosen(loader(), task, overrides)


def _composed(load: ConfigLoaderImpl, task: str, overrides: Sequence[str]) -> DictConfig:
    with theirs():
        cfg = load.load_configuration(
            config_name=task,
            overrides=list(overrides),
            run_mode=RunMode.RUN,
            validate_sweep_overrides=False,
        )
    try:
        return with_types(task, _values(cfg))
    except REFUSALS as error:
        file = _refused(load, task, overrides)
        raise ConfigError(f"in '{file}': {one_line(error)}") from error


def _values(cfg: Any) -> dict[str, Any]:
    """The sections of a composed config, or of a file of it, as plain values; not Hydra's."""
    with theirs():
        values = OmegaConf.to_container(cfg, resolve=False)
    if not isinstance(values, dict):
        raise ConfigError("expected key: value lines")
    return {str(key): value for key, value in values.items() if key != "hydra"}


def _refused(load: ConfigLoaderImpl, task: str, overrides: Sequence[str]) -> str:
    """The first of the files that were composed whose own values have no such key or type."""
    for part in load.compute_defaults_list(task, list(overrides), RunMode.RUN).defaults:
        try:
            with_types(task, _values(load._load_single_config(part, load.repository).config))
        except REFUSALS:
            return str(part.config_path)
    return task


def _chosen(load: ConfigLoaderImpl, task: str, overrides: Sequence[str]) -> dict[str, str]:
    """The option that composing would take of each group."""
    with theirs():
        found = load.compute_defaults_list(task, list(overrides), RunMode.RUN)
    known = found.overrides.known_choices
    return {str(group): str(option) for group, option in known.items()}


def with_types(task: str, values: Mapping[str, Any]) -> DictConfig:
    """A config with the schema's types, owned sections with those of the options that they name.

    What files and saved runs say of the options of other methods or judges is not read.
    """
    given = dict(values)
    base = _schema(RunConfig).copy()
    for owned in OWNED:
        section = given.get(owned)
        if not isinstance(section, Mapping):
            continue
        options = options_of(owned, task, str(section.get("name")))
        base[owned] = _schema(options)
        own = {option.name for option in fields(options)}
        others = {key.removeprefix(f"{owned}.") for key in known_keys()} - own
        given[owned] = {key: value for key, value in section.items() if key not in others}
    with theirs():
        cfg = OmegaConf.unsafe_merge(base, given)  # into the base, which is its own
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True)
    return cfg


@cache
def _schema(section: type) -> DictConfig:
    """The types and defaults of a section; not to be changed."""
    return OmegaConf.structured(section)
