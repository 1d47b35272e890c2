"""From `conf/` and key=value overrides to a checked `RunConfig`.

Whatever is wrong with a call is collected and reported together: unknown keys and options with the
nearest known name, wrong types, missing values, and the cross-checks of `config.check`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pgtg.config import (
    OWNED,
    RunConfig,
    endpoint_of,
    endpoints,
    expected_type,
    is_open,
    known_keys,
    stand_in,
)
from pgtg.config.checks import check, planted, value_at
from pgtg.config.composition import chosen_options, composed_from, shared_from, with_types
from pgtg.config.groups import SECTIONS, groups
from pgtg.config.overrides import PATHS, as_hydra
from pgtg.config.paths import policy_folder
from pgtg.config.registry import (
    METHODS,
    TASKS,
    controls_of,
    method_spec,
    methods_of,
    nearest,
    refusal,
)
from pgtg.config.sources import REFUSALS, loader, one_line, theirs
from pgtg.errors import ConfigError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
NAMES_SERVER = {"judge", "judge.base_url"}  # keys by which a user names one
# what an experiment fits to its data, whatever backbone or method the call chooses
FITTED = {
    "reward": ("fit",),
    "method": ("entropy", "entropy_target", "standardize", "sparse_updates", "sparse_lr"),
}


class Composed(NamedTuple):
    """A config, what is wrong with the overrides that are not in it, and what was decided."""

    cfg: DictConfig
    problems: list[str]
    notes: list[str]


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
    return planned(task, overrides, config_dir=config_dir, saved=saved)[0]


def planned(
    task: str,
    overrides: Sequence[str] = (),
    *,
    config_dir: Path | None = None,
    saved: Mapping[str, Any] | None = None,
) -> tuple[RunConfig, list[str]]:
    """As `run_config`, with what composing decided and the user may not expect."""
    cfg, problems, notes = composed(task, overrides, config_dir=config_dir, saved=saved)
    run, more = as_run_config(cfg)
    if problems or more:
        raise ConfigError(*problems, *more)
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    if (url := endpoint_of(run)) is not None and (saved is None or given & NAMES_SERVER):
        endpoints.allow(url)
    return run, notes


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

    method = dict(saved.get("method") or {}).get("name")
    known = [f"method={method}"] if method in methods_of(task) else []
    cfg = composed(task, known).cfg  # some tasks have no default for where their data lie
    defaults = OmegaConf.to_object(_filled(cfg, sorted(OmegaConf.missing_keys(cfg))))
    assert isinstance(defaults, RunConfig)
    return fill(_renamed(saved), asdict(defaults), ""), added


def _renamed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved config with `prompt.group` where it has the key's former name, `sample.k`."""
    prompt, sample = saved.get("prompt"), saved.get("sample")
    if not isinstance(prompt, dict) or not isinstance(sample, dict) or "group" in prompt:
        return saved
    return {**saved, "prompt": {**prompt, "group": sample.get("k")}, "sample": {**sample, "k": 1}}


def composed(
    task: str,
    overrides: Sequence[str] = (),
    *,
    config_dir: Path | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Composed:
    """The config with all overrides that could be applied.

    An experiment sets defaults: a group or a value of the call beats it. The default experiment is
    for the default data only.
    """
    load = loader(config_dir)
    if task not in TASKS:
        raise ConfigError(f"there is no task '{task}'{nearest(task, TASKS)}")
    if not load.repository.config_exists(task):  # a plugin's
        raise ConfigError(f"task '{task}': give --config-dir with the folder of its {task}.yaml")
    parsed, problems = _parse(load, overrides)
    others = [text for override in parsed if (text := _other_task(load, override, task))]
    if others:
        raise ConfigError(*problems, *others)
    if saved is not None and not any(o.key_or_group == "experiment" for o in parsed):
        cfg, more = _on_saved(load, task, parsed, saved)
        return Composed(cfg, problems + more, [])
    cfg, more, notes = _load(load, task, parsed)
    return Composed(cfg, problems + more, notes)


def as_run_config(cfg: DictConfig) -> tuple[RunConfig, list[str]]:
    """Plain dataclasses from a composed config, and all that `check` has against them."""
    problems, missing = [], []
    try:
        try:
            with theirs():
                run = OmegaConf.to_object(cfg)
        except MissingMandatoryValue:
            missing = sorted(OmegaConf.missing_keys(cfg))
            problems += [f"{key}: no value; give {key}=..." for key in missing]
            with theirs():
                run = OmegaConf.to_object(_filled(cfg, missing))
    except REFUSALS as error:
        raise ConfigError(*problems, one_line(error)) from error
    assert isinstance(run, RunConfig)
    _expand_home(run)
    _name_hub(run)
    if run.policy.path is not None:
        run.policy.path = policy_folder(run.policy.path)
    if run.method.controls is None:  # those of the task
        method = run.method
        runs = refusal(run.task, method.name, options=method) is None
        learned = runs and method_spec(run.task, method.name, options=method).learns_reward
        known, truth = controls_of(run.task), planted(run.data)
        able = [c for c in TASKS[run.task].controls if truth or not known[c].planted]
        run.method.controls = able if learned else []
    return run, problems + [p for p in check(run) if p.split(":")[0] not in missing]


def _parse(load: ConfigLoaderImpl, overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    parsed, problems = [], []
    for text in overrides:
        try:
            override = _override(as_hydra(text))
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


def _other_task(load: ConfigLoaderImpl, override: Override, task: str) -> str | None:
    """What to say of another task, or of an experiment of one."""
    if override.key_or_group == "task" and (override.is_delete() or override.value() != task):
        return f"'{override.input_line}': the task comes first, e.g. pgtg train {task}"
    if override.key_or_group != "experiment" or override.is_delete():
        return None
    name = str(override.value())
    try:
        with theirs():
            found = load.repository.load_config(f"experiment/{name}")
    except (*REFUSALS, OSError) as error:
        return f"experiment={name}: {one_line(error)}"
    if found is not None and not isinstance(found.config, DictConfig):
        return f"experiment={name}: expected key: value lines"
    own = OmegaConf.select(found.config, "task", default=task) if found is not None else task
    if own == task:
        return None
    return f"experiment={name}: it belongs to the task '{own}': pgtg train {own} experiment={name}"


def _is_new_key(load: ConfigLoaderImpl, override: Override) -> bool:
    """Whether an override with a + would add what the schema does not know."""
    key = override.key_or_group
    adds = override.is_add() or override.is_force_add()
    known = override.is_hydra_override() or bool(_options(load, override))
    return adds and not known and expected_type(key) is None


def _load(
    load: ConfigLoaderImpl, task: str, parsed: Sequence[Override]
) -> tuple[DictConfig, list[str], list[str]]:
    """Compose the groups, then set each value; with what is wrong, and what to say."""
    problems, groups, values, rooms = [], [], [], [_kind(parsed), task]
    for override in parsed:
        options = _options(load, override)
        problem = _group_problem(load, override, options) if options else None
        if problem:
            problems.append(problem)
        else:
            (groups if options else values).append(_own(load, rooms, override))
    try:
        cfg, notes = _with_groups(load, task, groups)
    except REFUSALS as error:
        raise ConfigError(*problems, one_line(error)) from error
    return cfg, problems + [p for p in (_apply(load, cfg, o) for o in values) if p], notes


def _kind(parsed: Sequence[Override]) -> str:
    """The last word of the experiment's name: "paper" of sst2_paper; "" where none is named."""
    named = [str(o.value()) for o in parsed if o.key_or_group == "experiment" and not o.is_delete()]
    return named[-1].rpartition("_")[2] if named else ""


def _own(load: ConfigLoaderImpl, rooms: Sequence[str], override: Override) -> Override:
    """`method=pgtg` is method/<task>/pgtg where the task has an option of its own by that name, and
    `method=bbt` with `experiment=sst2_paper` is method/paper/bbt: that kind of experiment's."""
    group, name = override.key_or_group, override.value()
    if override.is_delete() or not isinstance(name, str) or not _options(load, override):
        return override
    for room in rooms:
        if room and load.repository.config_exists(f"{group}/{room}/{name}"):
            return _override(f"{group}={room}/{name}")
    return override


def _with_groups(
    load: ConfigLoaderImpl, task: str, chosen: Sequence[Override]
) -> tuple[DictConfig, list[str]]:
    """The chosen groups over the experiment's values; what to say of that."""
    named = [o for o in chosen if o.key_or_group == "experiment"]
    others = {o.key_or_group: o for o in chosen if o not in named and not o.is_hydra_override()}
    others = {group: o for group, o in others.items() if "/" not in group and not o.is_delete()}
    if not others:
        return composed_from(load, task, chosen), []
    choices = chosen_options(load, task, named)
    changed = [group for group, o in others.items() if str(o.value()) != choices.get(group)]
    if not changed:
        return composed_from(load, task, chosen), []
    name = choices.get("experiment")
    if name == "none":
        return composed_from(load, task, chosen), []
    without = [*(o for o in chosen if o not in named), _override("experiment=none")]
    plain = shared_from(load, task, without)
    if not named and ({"data", "dataset"} & set(changed)):
        why = f"experiment=none: '{name}' is for {_pair(choices)}; experiment=... chooses another"
        return plain.copy(), [why]
    cfg = composed_from(load, task, chosen)
    notes = []
    for section in (SECTIONS.get(group, group) for group in changed):
        lost = _replace(cfg, plain, section)
        if lost:
            notes.append(f"experiment={name}: {section} of the command line replaces its {lost}")
    return cfg, notes


def _pair(choices: Mapping[str, str]) -> str:
    """Which data the defaults are for, as it would be written."""
    return next(f"{group}={choices[group]}" for group in ("dataset", "data") if group in choices)


def _replace(cfg: DictConfig, plain: DictConfig, section: str) -> str:
    """Put a section as it is without the experiment; the keys that the experiment had set."""
    old, new = cfg[section], plain[section].copy()
    for key in FITTED.get(section, ()):
        if key in old and key in new:
            new[key] = old[key]
    before, after = (OmegaConf.to_container(part, resolve=False) for part in (old, new))
    cfg[section] = new
    if not isinstance(before, dict) or not isinstance(after, dict):
        return ""
    return ", ".join(str(key) for key in before if before[key] != after.get(key))


@lru_cache(maxsize=1024)
def _override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def _on_saved(
    load: ConfigLoaderImpl, task: str, parsed: Sequence[Override], saved: Mapping[str, Any]
) -> tuple[DictConfig, list[str]]:
    """The saved config with the overrides applied: whole groups first, then single keys."""
    try:
        base = with_types(task, saved)
    except REFUSALS as error:
        raise ConfigError(f"the saved config is of another version: {one_line(error)}") from error
    if base.task != task:
        raise ConfigError(f"this run folder belongs to the task '{base.task}', not '{task}'")
    groups = [o for o in parsed if _options(load, o)]
    name = str(base.experiment or "none")
    if not re.fullmatch(r"[\w+.-]+(/[\w+-]+)*", name):
        raise ConfigError(f"the saved config names no experiment: {name!r:.80}")
    if not load.repository.config_exists(f"experiment/{name}"):
        name = "none"  # the user's own, in a folder that this call does not name
    chosen, problems, _ = _load(load, task, [_override(f"experiment={name}"), *groups])
    if base.cache != "off":  # where this user's runs share, not where a stranger's run says
        base["cache"] = chosen["cache"]
    for override in groups:
        section = SECTIONS.get(override.key_or_group, override.key_or_group)
        base[section] = chosen[section]
    values = [o for o in parsed if o not in groups]
    return base, problems + [p for p in (_apply(load, base, o) for o in values) if p]


def _options(load: ConfigLoaderImpl, override: Override) -> list[str]:
    """Names of the files in the group that an override chooses from; none if it sets a value."""
    if "." in override.key_or_group:  # a key of a section: folders of groups have no such name
        return []
    return load.repository.get_group_options(override.key_or_group)


def _group_problem(load: ConfigLoaderImpl, override: Override, options: list[str]) -> str | None:
    value = override.value()
    if value in options or override.is_delete():
        return None
    group, value = override.key_or_group, "null" if value is None else value
    if load.repository.config_exists(f"{group}/{value}"):  # in a folder of the group
        return None
    if group == "method" and any(s.name == value and not s.alone for s in METHODS.specs):
        return f"method={value}: it is a control, run by method.controls=[{value}]"
    return f"{group}={value}: there is no {group} '{value}'{nearest(str(value), options)}"


def _apply(load: ConfigLoaderImpl, cfg: DictConfig, override: Override) -> str | None:
    """Set one key of `cfg`; what is wrong with it, where that is refused."""
    if override.is_hydra_override():
        return None
    key = override.key_or_group
    if override.is_delete() and expected_type(key) is not None and not is_open(key):
        return f"'{override.input_line}': a key cannot be left out; give it another value"
    section, _, name = key.partition(".")
    if section in OWNED and name == "name" and override.value() != cfg[section].name:
        return f"{key}: write {section}={override.value()}, which brings its own options"
    if (override.is_add() or override.is_force_add()) and not _has_option(cfg, key):
        return _no_option(cfg, section, name)
    if is_open(f"{key}.x") and isinstance(found := override.value(), dict):
        override = replace(override, _value={_name(name): one for name, one in found.items()})
    empty = _empty_section(cfg, key)
    if empty is None and isinstance(override.value(), dict) and not is_open(f"{key}.x"):
        empty = key if OmegaConf.select(cfg, key) is None and expected_type(key) else None
    if empty is not None:
        options = _fillers(load, empty)
        fix = f"choose {' or '.join(options)}" if options else "choose what fills it first"
        return f"{key}: {empty} is null here, so it has no keys; {fix}"
    try:
        with theirs():
            ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
    except REFUSALS as error:
        expected = expected_type(key)
        if expected is None:
            return f"{key}: there is no such key{nearest(key, known_keys())}"
        if not _has_option(cfg, key):
            return _no_option(cfg, section, name)
        if isinstance(error.__cause__, OmegaConfBaseException) and not override.is_delete():
            found = override.get_value_element_as_str()
            return f"{key}={found}: expected {expected}, found {found!r}"
        return f"'{override.input_line}': {one_line(error)}"
    return None


def _has_option(cfg: DictConfig, key: str) -> bool:
    """Whether the method or judge that a config names has a key; true of other sections' keys."""
    section, _, name = key.partition(".")
    return section not in OWNED or not name or name.partition(".")[0] in cfg[section]


def _no_option(cfg: DictConfig, section: str, name: str) -> str:
    known = nearest(name, map(str, cfg[section]))
    return f"{section}.{name}: {section}={cfg[section].name} has no such option{known}"


def _name(key: object) -> str:
    """A mapping's key as text: Hydra reads 1 and true as number and truth value."""
    return str(key).lower() if isinstance(key, bool) else str(key)


def _empty_section(cfg: DictConfig, key: str) -> str | None:
    """The section on the way to a key that is null; OmegaConf asserts that there is none."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        section = ".".join(parts[:end])
        if expected_type(key) is not None and OmegaConf.select(cfg, section) is None:
            return section
    return None


def _fillers(load: ConfigLoaderImpl, section: str) -> list[str]:
    """`group=option` of the config files, ours and the call's own, that give a section its keys."""
    top, _, rest = section.partition(".")
    found = []
    for group in (name for name in groups() if SECTIONS.get(name, name) == top):
        for option in load.repository.get_group_options(group):
            content = load.repository.load_config(f"{group}/{option}")
            if rest and content and OmegaConf.select(content.config, rest) is not None:
                found.append(f"{group}={option}")
    return found


def _filled(cfg: DictConfig, missing: Sequence[str]) -> DictConfig:
    """A config whose missing values have a stand-in of their type, so that the rest is checked."""
    cfg = cfg.copy() if missing else cfg
    for key in missing:
        OmegaConf.update(cfg, key, stand_in(key))
    return cfg


def _name_hub(run: RunConfig) -> None:
    """Where data.path is owner/name, and there is no such file or folder, it is a hub id."""
    path = str(run.data.path)
    if run.data.name == "files" and HUB_ID.fullmatch(path) and not Path(path).exists():
        run.data.name = "hub"


def _expand_home(run: RunConfig) -> None:
    """Replace a leading ~ in the keys that hold paths. Relative paths stay relative."""
    for key in PATHS:
        section, _, name = key.rpartition(".")
        owner = value_at(run, section) if section else run
        value = value_at(run, key)
        if isinstance(value, str) and value.startswith("~"):
            setattr(owner, name, str(Path(value).expanduser()))
