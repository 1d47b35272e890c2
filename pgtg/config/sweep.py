"""Sweeps as Hydra understands them: their jobs, folders, launcher, and the keys that they vary."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from pgtg.config.overrides import folder_name
from pgtg.config.sources import loader, one_line
from pgtg.errors import ConfigError

LAUNCHERS = (
    "launchers are packages: pip install hydra-joblib-launcher, hydra-submitit-launcher, ..."
)


def sweep(task: str, overrides: Sequence[str], config_dir: Path | None = None) -> list[list[str]]:
    """The overrides of each job of a sweep: all combinations of `key=a,b` (Hydra's basic sweeper).

    Raises:
        ConfigError: An override is not `key=value`.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parser = OverridesParser.create(config_loader=loader(config_dir))
    try:
        parsed = [o for o in parser.parse_overrides(list(overrides)) if not o.is_hydra_override()]
        return BasicSweeper.split_arguments(parsed, None)[0]
    except HydraException as error:
        raise ConfigError(one_line(error)) from error


def job_folders(jobs: Iterable[Sequence[str]], exclude: Iterable[str]) -> list[str]:
    """Names of the run folders of a sweep's jobs, as `conf/` has Hydra name them."""
    from hydra._internal.config_loader_impl import get_overrides_dirname

    parser, skipped = OverridesParser.create(), list(exclude)
    return [
        folder_name(get_overrides_dirname(parser.parse_overrides(list(job)), skipped, ",", "="))
        for job in jobs
    ]


def hydra_part(
    task: str, overrides: Sequence[str], config_dir: Path | None = None
) -> Mapping[str, Any]:
    """Hydra's own launcher, sweeper and sweep sections as this call composes them.

    Raises:
        ConfigError: The call names a launcher or a sweeper that is not installed.
    """
    load = loader(config_dir)
    parsed = OverridesParser.create(config_loader=load).parse_overrides(list(overrides))
    own = [str(o.input_line) for o in parsed if o.is_hydra_override()]
    experiments = [o for o in parsed if o.key_or_group == "experiment"]  # may choose a launcher
    own += ["experiment=none" if o.is_sweep_override() else str(o.input_line) for o in experiments]
    try:
        cfg = load.load_configuration(task, own, RunMode.MULTIRUN, validate_sweep_overrides=False)
    except HydraException as error:
        raise ConfigError(f"{one_line(error)}; {LAUNCHERS}") from error
    names = ("launcher", "sweeper", "sweep")
    return {name: OmegaConf.to_container(cfg.hydra[name], resolve=False) for name in names}


def swept_keys(overrides: Iterable[str]) -> tuple[set[str], set[str]]:
    """Keys that a sweep varies, and keys that it leaves fixed."""
    parser = OverridesParser.create()
    parsed = [parser.parse_override(text) for text in overrides]
    swept = {o.get_key_element() for o in parsed if o.is_sweep_override()}
    return swept, {o.get_key_element() for o in parsed} - swept
