"""From `conf/` and key=value overrides to a checked `RunConfig`. All that composes knows Hydra.

Whatever is wrong with a call is collected and reported together: unknown keys and options with the
nearest known name, wrong types, missing values, and the cross-checks of `config.check`.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pgtg.checks import STANDARD, check, nearest, value_at
from pgtg.config import RunConfig, expected_type, is_open, known_keys, stand_in
from pgtg.errors import ConfigError
from pgtg.groups import CONF, option_files

VERSION_BASE = "1.3"
PATHS = (
    "data.path",
    "policy.path",
    "reward.path",
    "judge.classifier.path",
    "metrics.bertscore_model",
    "cache",
)
LAUNCHERS = "launchers are extras: pip install 'pgtg[joblib]', 'pgtg[slurm]' or 'pgtg[ray]'"
# how Hydra and OmegaConf refuse odd input; some of it trips over their own assertions and types
REFUSALS = (HydraException, OmegaConfBaseException)
REFUSALS += (AssertionError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
SECTIONS = {"dataset": "data"}  # groups that fill a section of another name


def folder_name(text: str) -> str:
    """A file name for the overrides of one sweep job, e.g. `aggregator=max,seed=1`.

    What is cut, or holds other characters, gets a hash, so that two jobs never share a folder.
    """
    name = re.sub(r"[^\w.,=+-]+", "_", text)
    if len(name) > 200:
        name = f"{name[:180]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return name or "job"


def register() -> None:
    """Tell Hydra the schema and the resolver of `conf/`; may be called any number of times."""
    setup_globals()
    setbase(VERSION_BASE)
    OmegaConf.register_new_resolver("pgtg_folder", folder_name, replace=True)
    ConfigStore.instance().store(name="run_schema", node=RunConfig, provider="pgtg")


def loader(config_dir: Path | None = None) -> ConfigLoaderImpl:
    """Hydra's loader over `conf/`, with the user's own folder in front of it."""
    register()
    search = create_config_search_path(str(CONF))
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir: there is no folder {config_dir}")
        search.prepend(provider="command-line", path=f"file://{config_dir.resolve()}")
    return ConfigLoaderImpl(config_search_path=search)


def run_config(
    task: str,
    overrides: Sequence[str] = (),
    *,
    config_dir: Path | None = None,
    saved: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The checked config of one run.

    Args:
        task: Name of a primary config in `conf/`.
        overrides: Hydra overrides, `key=value`; later ones win.
        config_dir: A folder of the user's own config files, searched first.
        saved: The config of an existing run, to which the overrides are applied instead of to the
            defaults; not used where the overrides choose an experiment.

    Raises:
        ConfigError: With all problems that were found.
    """
    cfg, problems = composed(task, overrides, config_dir=config_dir, saved=saved)
    run, more = as_run_config(cfg)
    if problems or more:
        raise ConfigError(*problems, *more)
    return run


def completed(task: str, saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A run's saved config with today's default for each key that pgtg did not have when the run
    was made, and the names of these keys."""
    added: list[str] = []

    def fill(values: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> dict[str, Any]:
        filled = dict(values)
        for key, value in defaults.items():
            here, found = f"{place}{key}", values.get(key)
            if key not in values:
                filled[key] = value
                added.append(here)
            elif isinstance(value, dict) and isinstance(found, dict) and not is_open(f"{here}.x"):
                filled[key] = fill(found, value, f"{here}.")
        return filled

    return fill(saved, asdict(run_config(task)), ""), added


def composed(
    task: str,
    overrides: Sequence[str] = (),
    *,
    config_dir: Path | None = None,
    saved: Mapping[str, Any] | None = None,
) -> tuple[DictConfig, list[str]]:
    """The config with all overrides that could be applied, and what is wrong with the others."""
    load = loader(config_dir)
    if task not in tasks():
        raise ConfigError(f"there is no task '{task}'{nearest(task, tasks())}")
    parsed, problems = _parse(load, overrides)
    others = [text for override in parsed if (text := _other_task(override, task))]
    if others:
        raise ConfigError(*problems, *others)
    if saved is not None and not any(o.key_or_group == "experiment" for o in parsed):
        cfg, more = _on_saved(load, task, parsed, saved)
    else:
        cfg, more = _load(load, task, parsed)
    return cfg, problems + more


def as_run_config(cfg: DictConfig) -> tuple[RunConfig, list[str]]:
    """Plain dataclasses from a composed config, and all that `check` has against them."""
    problems = []
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        problems += [f"{key}: no value; give {key}=..." for key in missing]
        run = OmegaConf.to_object(_filled(cfg, missing))
    except REFUSALS as error:
        raise ConfigError(*problems, one_line(error)) from error
    assert isinstance(run, RunConfig)
    _expand_home(run)
    if run.method.controls is None:  # those of the task
        run.method.controls = list(STANDARD[run.task]) if run.method.name == "pgtg" else []
    return run, problems + [p for p in check(run) if p.split(":")[0] not in missing]


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


def as_hydra(text: str) -> str:
    """An override of ours as Hydra's grammar takes it.

    Keys of open mappings may be new, so they get `++`; a path is quoted, with ~ expanded, unless it
    is a list or a sweep; `experiment=null` is the experiment "none".
    """
    key, _, value = text.partition("=")
    if text == "experiment=null":
        return "experiment=none"
    if key in PATHS and value and value != "null" and not set("'\"[,") & set(value):
        text = f"{key}={quoted(Path(value).expanduser() if value[0] == '~' else value)}"
    return f"++{text}" if is_open(key) else text


def quoted(value: object) -> str:
    """A value as Hydra's override grammar reads it, whatever characters it holds."""
    text = str(value).replace('"', '\\"').replace("${", "\\${")
    return f'"{text}"'


def tasks() -> list[str]:
    """Names of the primary configs."""
    return sorted(path.stem for path in CONF.glob("*.yaml"))


def one_line(error: BaseException) -> str:
    """The message of a Hydra or OmegaConf error, with its cause's, on one line."""
    parts = [str(error)]
    while error.__cause__ is not None and error.__cause__ is not error:
        error = error.__cause__
        parts.append(str(error))
    lines = [line.strip() for part in parts for line in part.splitlines()]
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith("object_type")]
    return "; ".join(kept)


def _parse(load: ConfigLoaderImpl, overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    parser, parsed, problems = OverridesParser.create(config_loader=load), [], []
    for text in overrides:
        try:
            override = parser.parse_override(as_hydra(text))
        except HydraException as error:
            hint = "" if "=" in text else "; parameters are written key=value"
            problems.append(f"'{text}': {one_line(error)}{hint}".replace("\n", " "))
            continue
        if override.is_sweep_override():
            fix = "a sweep needs -m, a list is written key=[a,b], a text with a comma key='\"a,b\"'"
            problems.append(f"'{text}': several values for one key; {fix}")
        elif _is_new_key(load, override):
            key = override.key_or_group
            problems.append(f"{key}: there is no such key{nearest(key, known_keys())}")
        else:
            parsed.append(override)
    return parsed, problems


def _other_task(override: Override, task: str) -> str | None:
    """What to say of another task, or of an experiment of one."""
    if override.key_or_group == "task" and (override.is_delete() or override.value() != task):
        return f"'{override.input_line}': the task comes first, e.g. pgtg train {task}"
    if override.key_or_group != "experiment":
        return None
    name = str(override.value())
    for path in option_files("experiment"):
        if path.stem == name:
            own = yaml.safe_load(path.read_text(encoding="utf-8")).get("task", task)
            if own != task:
                say = f"pgtg train {own} experiment={name}"
                return f"experiment={name}: it belongs to the task '{own}': {say}"
    return None


def _is_new_key(load: ConfigLoaderImpl, override: Override) -> bool:
    """Whether an override with a + would add what the schema does not know."""
    key = override.key_or_group
    adds = override.is_add() or override.is_force_add()
    known = override.is_hydra_override() or bool(_options(load, override))
    return adds and not known and expected_type(key) is None


def _load(
    load: ConfigLoaderImpl, task: str, parsed: Sequence[Override]
) -> tuple[DictConfig, list[str]]:
    """Compose with all overrides; if that fails, without those at fault."""
    problems, groups, values = [], [], []
    for override in parsed:
        options = _options(load, override)
        problem = _group_problem(override, options) if options else None
        if problem:
            problems.append(problem)
        else:
            (groups if options else values).append(override)
    try:
        return _compose(load, task, [*groups, *values]), problems
    except REFUSALS:
        pass  # the loop below finds the overrides at fault, unless the config files are
    try:
        base = _compose(load, task, groups)
    except REFUSALS as error:
        raise ConfigError(*problems, one_line(error)) from error
    return base, problems + [p for p in (_apply(base, o) for o in values) if p]


def _on_saved(
    load: ConfigLoaderImpl, task: str, parsed: Sequence[Override], saved: Mapping[str, Any]
) -> tuple[DictConfig, list[str]]:
    """The saved config with the overrides applied: whole groups first, then single keys."""
    try:
        base = OmegaConf.merge(OmegaConf.structured(RunConfig), dict(saved))
    except REFUSALS as error:
        raise ConfigError(f"the saved config is of another version: {one_line(error)}") from error
    assert isinstance(base, DictConfig)
    if base.task != task:
        raise ConfigError(f"this run folder belongs to the task '{base.task}', not '{task}'")
    groups = [o for o in parsed if _options(load, o)]
    name = str(base.experiment or "none")
    if not re.fullmatch(r"[\w+.-]+(/[\w+-]+)*", name):
        raise ConfigError(f"the saved config names no experiment: {name!r:.80}")
    experiment = OverridesParser.create().parse_override(f"experiment={name}")
    chosen, problems = _load(load, task, [experiment, *groups])
    if base.cache != "off":  # where this user's runs share, not where a stranger's run says
        base["cache"] = chosen["cache"]
    for override in groups:
        section = SECTIONS.get(override.key_or_group, override.key_or_group)
        base[section] = chosen[section]
    values = [o for o in parsed if o not in groups]
    return base, problems + [p for p in (_apply(base, o) for o in values) if p]


def _compose(load: ConfigLoaderImpl, task: str, parsed: Sequence[Override]) -> DictConfig:
    cfg = load.load_configuration(
        config_name=task,
        overrides=[str(o.input_line) for o in parsed],
        run_mode=RunMode.RUN,
        validate_sweep_overrides=False,
    )
    OmegaConf.set_readonly(cfg.hydra, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


def _options(load: ConfigLoaderImpl, override: Override) -> list[str]:
    """Names of the files in the group that an override chooses from; none if it sets a value."""
    return load.get_group_options(override.key_or_group)


def _group_problem(override: Override, options: list[str]) -> str | None:
    value = override.value()
    if value in options or override.is_delete():
        return None
    group, value = override.key_or_group, "null" if value is None else value
    return f"{group}={value}: there is no {group} '{value}'{nearest(str(value), options)}"


def _apply(cfg: DictConfig, override: Override) -> str | None:
    """Set one key of `cfg`; what is wrong with it, where that is refused."""
    if override.is_hydra_override():
        return None
    key = override.key_or_group
    empty = _empty_section(cfg, key)
    if empty is not None:
        return f"{key}: {empty} is null here, so it has no keys; choose what fills it first"
    try:
        ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
    except REFUSALS as error:
        expected = expected_type(key)
        if expected is None:
            return f"{key}: there is no such key{nearest(key, known_keys())}"
        if isinstance(error.__cause__, OmegaConfBaseException) and not override.is_delete():
            found = override.get_value_element_as_str()
            return f"{key}={found}: expected {expected}, found {found!r}"
        return f"'{override.input_line}': {one_line(error)}"
    return None


def _empty_section(cfg: DictConfig, key: str) -> str | None:
    """The section on the way to a key that is null; OmegaConf asserts that there is none."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        section = ".".join(parts[:end])
        if expected_type(key) is not None and OmegaConf.select(cfg, section) is None:
            return section
    return None


def _filled(cfg: DictConfig, missing: Sequence[str]) -> DictConfig:
    """A copy in which missing values have a stand-in of their type, so that the rest is checked."""
    cfg = cfg.copy()
    for key in missing:
        OmegaConf.update(cfg, key, stand_in(key))
    return cfg


def _expand_home(run: RunConfig) -> None:
    """Replace a leading ~ in the keys that hold paths. Relative paths stay relative."""
    for key in PATHS:
        section, _, name = key.rpartition(".")
        owner = value_at(run, section) if section else run
        value = value_at(run, key)
        if isinstance(value, str) and value.startswith("~"):
            setattr(owner, name, str(Path(value).expanduser()))
