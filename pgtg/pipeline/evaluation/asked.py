"""What a line of the prompt task asked of the judge, and what a search found by asking."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pgtg.judges.candidate import FOUND, Candidate, read_found
from pgtg.judges.record import TABLE
from pgtg.judges.template import Prompt
from pgtg.methods.fresh import prompt_task
from pgtg.pipeline.context import Context
from pgtg.pipeline.stages.match import judged_prompts
from pgtg.pipeline.stages.search import ASKED
from pgtg.runs.files import read_jsonl, read_table
from pgtg.tasks.prompt import PromptTask

Ranked = tuple[Candidate, dict[str, Any]]  # what the judge reads, and its row in tables


class Asked:
    """Prompts that a judge was asked for, by split: remembered or not, each as often as asked."""

    def __init__(self, task: PromptTask):
        self._task, self.prompts = task, dict[str, int]()

    def add(self, prompts: int, *splits: str) -> None:
        for split in splits:
            self.prompts[split] = self.prompts.get(split, 0) + prompts

    def figures(self) -> dict[str, Any]:
        """As results keep them."""
        return {
            "judged_prompts": sum(self.prompts.values()),
            "judged_dev_prompts": self.prompts.get("dev", 0),
            "judged_sequences": self.sequences,
            "judged_by_split": self.prompts,
        }

    @property
    def sequences(self) -> int:
        """Texts that the judge read: each prompt with every example of its split."""
        return sum(
            number * len(self._task.labelled(split) or []) for split, number in self.prompts.items()
        )


def has_found(folder: Path) -> bool:
    """Whether a folder holds candidates that a method ended with, and no policy."""
    return (folder / FOUND).is_file()


def found_by_search(folder: Path, most: int) -> list[Ranked]:
    """What a method ended with ("policy": its own choice), then the texts that led on train.

    Args:
        most: Candidates in all.
    """
    own = read_found(folder)
    found = [(one, one.row() | {"from": "search", "policy": True}) for one in own]
    known = {one.prompt for one in own}
    judged: dict[Prompt, float] = {}
    for row in _asked(folder):
        if row["split"] == "train" and "vectors" not in row:  # of vectors only the own are kept
            judged[_prompt(row)] = row["score"]
    for prompt in sorted(judged, key=lambda prompt: -judged[prompt]):
        if prompt not in known and len(found) < most:
            one = replace(own[0], prompt=prompt)
            found.append((one, one.row() | {"from": "judged", "policy": False}))
    return found


def search_results(ctx: Context, control: str, folder: Path, ranked: int) -> dict[str, Any]:
    """What a line spent that found candidates, each counted as often as it was asked for, and how
    it went where it asked about any on train."""
    spent = Asked(prompt_task(ctx))
    for split, prompts in judged_prompts(ctx, 0, control).items():
        spent.add(prompts, split)
    metrics = ctx.artifact(0, "improve", control=control).manifest()["metrics"]
    asked = _asked(folder)
    train = [row for row in asked if row["split"] == "train"]
    turns = itertools.groupby(train, key=lambda row: row["turn"])
    curve = _curve([row["score"] for row in turn] for _, turn in turns)
    distinct = {_prompt(row) for row in asked if "vectors" not in row}
    found = {
        **spent.figures(),
        "gradient_sequences": int(metrics.get("improve/gradient_sequences", 0)),
        "distinct_prompts": len(distinct) + sum("vectors" in row for row in train),
        "dev_prompts": ranked,
    }
    if curve:
        found["best_train_score"], found["last_mean_score"] = curve[-1]["best"], curve[-1]["mean"]
        found["curve"] = curve
    return found


def _asked(folder: Path) -> list[dict[str, Any]]:
    """The lines of what a search asked; none of a method that is trained."""
    path = folder / ASKED
    return read_jsonl(path) if path.is_file() else []


def drawn_curve(ctx: Context, control: str) -> list[dict[str, float]]:
    """The same of a line in one round that has prompts judged for each update alone."""
    artifact = ctx.artifact(0, "improve", control=control)
    table = read_table(artifact.file(TABLE), ["split", "score"])
    rows = zip(table["split"], table["score"], strict=True)
    scores = [score for split, score in rows if split == "train"]
    size = len(scores) // int(artifact.manifest()["metrics"]["improve/updates"])
    return _curve(scores[at : at + size] for at in range(0, len(scores), size))


def _curve(turns: Iterable[Sequence[float]]) -> list[dict[str, float]]:
    """After each turn: prompts judged so far, their best score, and the mean of the turn's."""
    found: list[dict[str, float]] = []
    prompts, best = 0, -math.inf
    for scores in turns:
        prompts, best = prompts + len(scores), max(best, *scores)
        found.append({"prompts": prompts, "best": best, "mean": float(np.mean(scores))})
    return found


def _prompt(row: Mapping[str, Any]) -> Prompt:
    return Prompt(row["text"], tuple(row["ids"]) if "ids" in row else None)
