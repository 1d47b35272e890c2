"""The config groups as files: where `conf/` is and what it offers. Fast: imports nothing."""

from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]  # the package
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # wheel | checkout
LISTS = {
    "tasks": "",
    "experiments": "experiment",
    "data": "data",
    "datasets": "dataset",
    "policies": "policy",
    "rewards": "reward",
    "heads": "reward.head",
    "aggregators": "aggregator",
    "methods": "method",
    "judges": "judge",
    "metrics": "metrics",
    "loggers": "logger",
    "quoting": "data.quoting",
    "tokenizers": "metrics.tokenizer",
}
SECTIONS = {"dataset": "data"}  # groups that fill a section of another name
NOT_OURS = {"accelerate"}  # settings of a launcher, for its own command line


def groups() -> list[str]:
    """The config groups, by name."""
    return sorted(
        path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_OURS
    )


def option_files(group: str) -> list[Path]:
    """Our yaml files of a config group ("" for the tasks), by name."""
    return sorted((CONF / group).glob("*.yaml")) if (CONF / group).is_dir() else []


def options(group: str, config_dir: Path | None = None) -> dict[str, str]:
    """Name -> what it is, of the files of a config group, in the order of their names.

    Args:
        group: As for `option_files`.
        config_dir: The user's own config files, if any; those of a group may lie in folders below
            it, and take the place of ours of the same name.
    """
    found = {path.stem: path for path in option_files(group)}
    if config_dir is not None and group:
        own = config_dir / group
        found |= {str(path.relative_to(own).with_suffix("")): path for path in own.rglob("*.yaml")}
    return {name: title(found[name]) for name in sorted(found)}


def title(path: Path) -> str:
    """The first comment line of a config file, which says what it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@")), "")
