"""`--dry-run`: what a run would do and need, counted before anything is spent. Writes nothing."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgtg.config import RunConfig
from pgtg.config.registry import TASKS, resolve
from pgtg.config.sizes import show_size
from pgtg.errors import DataError
from pgtg.pipeline.plan.models import ModelSizes, model_sizes
from pgtg.pipeline.plan.room import Room, require_room, room_for
from pgtg.runs.layout import listed
from pgtg.training.schedule import segments

MANY = 10**6  # updates in an epoch of unknown length, only to count rounds
KEYS = {  # rows of a plan, and by which keys they change
    "generations": "sample.sources, sample.k",
    "preferences": "sample.sources",
    "judged prompts": "prompt.first, sample.sources",
    "reward updates": "reward.fit.updates",
    "policy updates": "schedule.total",
    "evaluation": "evaluate.examples",
}
NAMES = 14  # columns of a plan's names
UNKNOWN = "unknown: the models are not on this machine"


def describe(runs: Sequence[RunConfig], *, probed: bool = False) -> str:
    """The plan of one run as text; of a sweep, what its runs have in common once, and their sum.

    Raises:
        DataError: The data are on this machine but cannot be read.
    """
    plans = [_plan(run) for run in runs]
    names = list(dict.fromkeys(name for plan in plans for name in plan))
    rows = [(name, text) for name in names for text in _texts(name, plans)]
    own = [run.method.own_updates is not None for run in runs]
    keys = [] if all(own) else [f"{name}: {KEYS[name]}" for name in names if name in KEYS]
    keys += ["the method's options"] * any(own)
    keys += ["disk: keep_rounds"]
    rows.append(("change it", "; ".join(keys)))
    if not probed:
        rows.append(("time", "add --probe: it times a few steps of each stage, about a minute"))
    if len(runs) > 1:
        rows = [("sweep", f"{len(runs)} runs"), *rows, ("in all", _sum(runs))]
    return listed(rows, sys.stdout, width=NAMES)


def _texts(name: str, plans: Sequence[Mapping[str, str]]) -> list[str]:
    """What the plans say of one thing; where it is not of all runs, with how many have it."""
    texts = [plan[name] for plan in plans if name in plan]
    found = {text: texts.count(text) for text in texts}
    if name == "run" or [*found.values()] == [len(plans)]:
        return list(found)
    return [f"{text} ({count} run{'s' * (count > 1)})" for text, count in found.items()]


def _sum(runs: Sequence[RunConfig]) -> str:
    """Work and disk of all runs of a sweep; what they share by the cache is counted for each."""
    parts = []
    try:
        works = [resolve(TASKS[run.task].plan).work(run) for run in runs]
    except DataError:
        parts.append("work unknown: the data are not on this machine")
    else:
        pairs = list(zip(runs, works, strict=True))
        parts.append(f"{sum(run.sample.k * work.sampled for run, work in pairs):,} generations")
        parts.append(f"{sum(work.reward_updates for work in works):,} reward updates")
        parts.append(f"{sum(work.policy_updates for work in works):,} policy updates")
        parts.append(f"{sum(work.evaluated for work in works):,} evaluated texts")
    rooms = [room for run in runs if (room := needs(run)) is not None]
    if len(rooms) == len(runs):
        parts.append(f"disk up to {show_size(_disk(rooms))}")
    return ", ".join(parts)


def _disk(rooms: Sequence[Room]) -> float:
    """Disk [bytes] of runs one after the other: what all keep, and what one needs on top of it."""
    return sum(room.disk_end for room in rooms) + max(room.disk - room.disk_end for room in rooms)


def _plan(cfg: RunConfig) -> dict[str, str]:
    """The rows of one run's plan."""
    rows = {
        "run": f"{cfg.task}/{cfg.name} seed {cfg.seed}: {cfg.method.name}, {cfg.aggregator.name}"
    }
    task = resolve(TASKS[cfg.task].plan)
    examples = task.split_sizes(cfg)
    rows |= task.describe(cfg, examples)
    return rows | _resources(cfg, model_sizes(cfg), examples.get("train") or 0)


def split_sizes(cfg: RunConfig) -> dict[str, int | None]:
    """Examples of each split; None where they would have to be fetched, 0 where there is no file.

    Raises:
        DataError: The data are on this machine but cannot be read.
    """
    return resolve(TASKS[cfg.task].plan).split_sizes(cfg)


def needs(cfg: RunConfig) -> Room | None:
    """Disk and memory [bytes]; None if a model is not on this machine."""
    sizes = model_sizes(cfg)
    return None if sizes is None else room_for(cfg, sizes, _rounds(cfg), on_cpu=_on_cpu(cfg))


def check_resources(cfg: RunConfig, *, fetch: bool = False) -> list[str]:
    """Refuse what could not be run here; returns what else is to be said before it is.

    Args:
        fetch: Whether a model's config and tokenizer may be fetched.

    Raises:
        MissingResourceError: The judge lacks something; the message says what fixes it.
        ConfigError: A model, its tokenizer and the config do not fit, or a metric's model and
            tokenizer; PGTG_CACHE_SIZE is no size.
    """
    from pgtg.judges.judge import check_judge
    from pgtg.metrics import build_metrics
    from pgtg.models.compatibility import check_models
    from pgtg.runs.entries import size_limit

    if cfg.cache != "off":
        size_limit()
    said = check_models(cfg, fetch=fetch)
    build_metrics(cfg.metrics)  # what is missing is said where it is n/a
    return said + check_judge(cfg, fetch=fetch)


def check_room(runs: Sequence[RunConfig], folder: Path) -> None:
    """Refuse runs that will not fit on the disk; models that are not here yet are not counted.

    Raises:
        MissingResourceError: They would not fit; says what would help.
    """
    found = [needs(run) for run in runs]
    known = [one for one in found if one is not None]
    if known:
        require_room(runs, folder, _disk(known))


def _rounds(cfg: RunConfig) -> int:
    """Rounds of a run: how many does not depend on how long an epoch is."""
    return len(segments(cfg.schedule, MANY))


def _on_cpu(cfg: RunConfig) -> bool:
    from pgtg.pipeline.context import pick_device

    return pick_device(cfg.device).type == "cpu"


def _resources(cfg: RunConfig, sizes: ModelSizes | None, train: int) -> dict[str, str]:
    if sizes is None:
        return {"memory": UNKNOWN, "disk": UNKNOWN}
    on_cpu = _on_cpu(cfg)
    found = room_for(cfg, sizes, _rounds(cfg), on_cpu=on_cpu, train=train)
    models = [f"policy {sizes.policy.parameters:,}", f"reward backbone {sizes.reward.parameters:,}"]
    if not sizes.adaptor:
        models[0] += f" ({sizes.policy.trained:,} trained)"
    if sizes.judge is not None:
        models.append(f"judge {sizes.judge.parameters:,}")
    memory = f"about {show_size(found.host)}"
    if not on_cpu:
        memory = (
            f"about {show_size(found.device)} on the device, {show_size(found.host)} of the host's"
        )
    memory += f"; {show_size(found.activations)} of it for texts of full length"
    return {
        "parameters": ", ".join(models),
        "memory": memory,
        "disk": f"up to {show_size(found.disk)}, {show_size(found.disk_end)} at the end",
    }
