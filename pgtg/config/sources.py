"""Where configs are read from: `conf/` and the user's own folder, as Hydra is told of them.

Hydra composes files as they are; their types are checked once the whole is there
(`config.composition`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.version import setbase
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

try:
    from yaml import CSafeLoader as SafeLoader  # by libyaml, several times as fast
except ImportError:
    from yaml import SafeLoader

from pgtg.config import open_schema
from pgtg.config.groups import CONF
from pgtg.config.overrides import folder_name
from pgtg.config.registry import (
    AGGREGATORS,
    JUDGES,
    METHODS,
    JudgeSpec,
    MethodSpec,
    Registry,
    Spec,
    resolve,
)
from pgtg.errors import ConfigError

VERSION_BASE = "1.3"
SCHEMA = "run_schema.yaml"  # which `conf/` has before all else
# how Hydra and OmegaConf refuse odd input, and what some of it makes them stumble over (`theirs`)
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
STUMBLES = (AssertionError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
PLUGGABLE: Mapping[str, Registry] = {  # groups whose options may be a plugin's
    "method": METHODS,
    "judge": JUDGES,
    "aggregator": AGGREGATORS,
}


class Stumbled(HydraException):
    """Hydra or OmegaConf met odd input by an assertion or a type error of its own."""


@contextmanager
def theirs() -> Iterator[None]:
    """Around their calls only: there such an error is the input's, elsewhere a fault of ours."""
    try:
        yield
    except REFUSALS:
        raise
    except STUMBLES as error:
        raise Stumbled(str(error)) from error


def one_line(error: BaseException) -> str:
    """The message of a Hydra or OmegaConf error, with its cause's, on one line."""
    parts = [str(error)]
    while error.__cause__ is not None and error.__cause__ is not error:
        error = error.__cause__
        parts.append(str(error))
    lines = [line.strip() for part in parts for line in part.splitlines()]
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith("object_type")]
    return "; ".join(kept)


class Shipped(FileConfigSource):
    """The files of `conf/`, which do not change while a command runs: each is parsed once."""

    @staticmethod
    def scheme() -> str:
        return "shipped"

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._normalize_file_name(config_path)
        values, header = _parsed(file)
        config = OmegaConf.create(values)  # one for each call, that composing takes parts over from
        return ConfigResult(self.provider, f"{self.scheme()}://{CONF}", config, dict(header))


class Fast(SafeLoader):  # pyright: ignore[reportGeneralTypeIssues]
    """Reads yaml as OmegaConf does, but for a key that is there twice, which it does not refuse."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


@cache
def _parsed(file: str) -> tuple[Any, dict[str, str | None]]:
    """What a file of `conf/` holds, and its lines of the form `# @key value`; not to be changed."""
    text = (CONF / file).read_text(encoding="utf-8")
    return yaml.load(text, Loader=Fast) or {}, FileConfigSource._get_header_dict(text)


def register() -> None:
    """Tell Hydra the schema and the resolver of `conf/`; may be called any number of times."""
    setup_globals()
    setbase(VERSION_BASE)
    SourcesRegistry.instance().register(Shipped)
    OmegaConf.register_new_resolver("pgtg_folder", folder_name, replace=True)
    store = ConfigStore.instance()
    if SCHEMA not in store.repo:  # its place; what we compose gets its types once it is whole
        store.store(name="run_schema", node={}, provider="pgtg")
    for group, registry in PLUGGABLE.items():
        for spec in registry.others:
            store.store(group=group, name=spec.name, node=_plain_option(spec))


def _plain_option(spec: Spec) -> dict[str, Any]:
    """The option of a plugin's thing: its options' own defaults; an aggregator's are avg's."""
    if isinstance(spec, MethodSpec):
        options = OmegaConf.structured(resolve(spec.options)(name=spec.name, controls=[]))
    elif isinstance(spec, JudgeSpec):
        options = OmegaConf.structured(resolve(spec.options)(name=spec.name))
    else:
        options = OmegaConf.load(CONF / "aggregator" / "avg.yaml")
        OmegaConf.update(options, "name", spec.name)
    found = OmegaConf.to_container(options)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@contextmanager
def typed() -> Iterator[None]:
    """Within, Hydra knows all keys and types: where it composes itself, of values as well."""
    register()
    store = ConfigStore.instance()
    place = store.repo[SCHEMA]
    store.store(name="run_schema", node=open_schema(), provider="pgtg")
    try:
        yield
    finally:
        store.repo[SCHEMA] = place


def loader(config_dir: Path | None = None) -> ConfigLoaderImpl:
    """Hydra's loader over `conf/`, with the user's own folder in front of it."""
    register()
    search = create_config_search_path(f"{Shipped.scheme()}://{CONF}")
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir: there is no folder {config_dir}")
        search.prepend(provider="command-line", path=f"file://{config_dir.resolve()}")
    return ConfigLoaderImpl(config_search_path=search)
