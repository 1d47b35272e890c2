"""`pgtg export preferences`: what a run's judge has said, as data of `pgtg train preferences`.

A folder of `train.jsonl` and `validation.jsonl` (the held-out sources), of all rounds that are
there, a line for each source of a round: prompt, completions [K], scores [K], higher is better,
null where the judge could not say.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgtg.data.generations import read_generations
from pgtg.errors import ArtifactError, ConfigError
from pgtg.export.card import made_by
from pgtg.export.folder import PREFERENCES_JSON, growing, require_free
from pgtg.runs.folder import RunFolder, write_json, write_jsonl
from pgtg.runs.log import RunLog
from pgtg.runs.saved import config_of
from pgtg.tasks import task_of
from pgtg.tasks.task import Sampled
from pgtg.types import Generations

SPLITS = {"train": "train", "heldout": "validation"}  # of a round's parts


def export_preferences(path: Path, out: Path, *, force: bool, log: RunLog) -> None:
    """Write a run's judged generations to a folder that `data.path` of the preferences task takes.

    Args:
        path: Run folder; it need not be finished.
        out: The folder to be.
        force: Replace an earlier export.

    Raises:
        ConfigError: The run's preferences are no judge's of completions, or `out` is taken.
        ArtifactError: No run, or one without judged generations.
        DataError: The run's data, which has the prompts, is not there.
    """
    require_free(out, force=force)
    folder = RunFolder(path).open()
    cfg = config_of(folder)
    task = task_of(cfg, folder.path)
    if not isinstance(task.preferences, Sampled):
        raise ConfigError(f"{path}: its preferences were given; they are in data.path already")
    if task.search is not None:
        raise ConfigError(
            f"{path}: its judge prefers prompts to each other, not completions of one"
        )
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS.values()}
    empty, rounds = 0, []
    for place in sorted((path / "rounds").glob("[0-9]*")):
        samples = folder.artifact("rounds", place.name, "sample")
        if not samples.exists():
            continue
        samples.verify()
        rounds.append(int(place.name))
        for part, examples in task.to_sample(rounds[-1]).items():
            generations = read_generations(samples, part)
            prompts = {example.id: example.source for example in examples}
            rows[SPLITS[part]] += rankings(generations, prompts)
            empty += generations.texts.count("")
    if not rows["train"]:
        raise ArtifactError(f"{path} holds no judged generations yet: `pgtg train` makes them")
    counts = {split: len(own) for split, own in rows.items() if own}
    with growing(out, force=force) as fresh:
        for split in counts:
            write_jsonl(fresh / f"{split}.jsonl", rows[split])
        about = {"task": cfg.task, "name": cfg.name, "seed": cfg.seed, "judge": cfg.judge.name}
        about |= {"rounds": rounds, "rows": counts}
        write_json(fresh / PREFERENCES_JSON, {"run": about, **made_by(folder)})
    if empty:
        log.warn(f"{empty} empty generations left out, which no ranking can hold")
    told = ", ".join(f"{count} rankings of {split}" for split, count in counts.items())
    log.say(f"{told} written to {out}: pgtg train preferences data.path={out}")


def rankings(generations: Generations, prompts: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A row for each source: its prompt, the texts of its generations, their scores.

    Args:
        prompts: By the source's id.
    """
    for name, members in zip(generations.source_ids, generations.members, strict=True):
        own = [row for row in members if generations.texts[row]]
        scores = [generations.scores[row] for row in own]
        yield {
            "prompt": prompts[name],
            "completions": [generations.texts[row] for row in own],
            "scores": [None if math.isnan(score) else score for score in scores],
        }
