"""`--dry-run` of a run on preferences that exist already: nothing is sampled or judged for them."""

from collections.abc import Mapping
from dataclasses import replace

from pgtg.config import RunConfig
from pgtg.pipeline.plan import summarize
from pgtg.pipeline.plan.summarize import TRAINED
from pgtg.pipeline.plan.work import Work


def split_sizes(cfg: RunConfig) -> dict[str, int | None]:
    """Rows in each split that the run reads; None for data that would have to be fetched."""
    from pgtg.tasks.preferences import PreferencesTask

    task = PreferencesTask(cfg)
    wanted: list[str] = [s for s in dict.fromkeys(["train", *cfg.evaluate.splits]) if task.has(s)]
    if task.trained not in wanted:
        wanted.append(TRAINED)
    if cfg.data.name == "hub":
        return dict.fromkeys(wanted)
    return {s: len(task.examples(task.trained if s == TRAINED else s)) for s in wanted}


def work(cfg: RunConfig, sizes: Mapping[str, int | None] | None = None) -> Work:
    """All that the run does, counted; see `summarize.work`."""
    sizes = split_sizes(cfg) if sizes is None else sizes
    found = summarize.work(cfg, sizes)
    tiny = cfg.policy.tiny_lm
    return replace(found, sampled=0, set_up=1 if tiny is None else tiny.fit.updates)


def describe(cfg: RunConfig, examples: Mapping[str, int | None]) -> dict[str, str]:
    """The rows of the plan, for splits of so many rows."""
    rows = summarize.describe(cfg, examples)
    learned = rows.pop("generations", None)
    rows.pop("judged texts", None)
    train = examples.get("train")
    cfg = summarize.bounded(cfg, examples)
    held = cfg.sample.heldout_sources
    if learned is not None and train is not None:
        rows["preferences"] = (
            f"{cfg.sample.sources:,} of {train:,} rows per round, at most {held:,} to check"
        )
    return rows
