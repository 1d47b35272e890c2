"""One search over prompts, run to its end: ask, judge, tell, save."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgtg.judges.candidate import Candidate, save_found
from pgtg.methods.fresh import prompt_task
from pgtg.methods.search import Question, Search
from pgtg.ops.gap import accuracy
from pgtg.pipeline.context import Context
from pgtg.runs.files import json_line, put_at, read_json, write_json
from pgtg.runs.folder import Artifact
from pgtg.runtime import distributed
from pgtg.runtime.signals import uninterrupted

ASKED = "asked.jsonl"  # a line for each candidate, in the order in which they were judged


def run_search(
    ctx: Context, search: Search, working: Path, inputs: str, control: str
) -> dict[str, float]:
    """Run a search, or resume it, and keep what it found in the working folder.

    Returns:
        Metrics: prompts that were judged, by split, the best and the last mean score on train, and
        what the search measured.
    """
    states, label = Artifact(working / "state"), f"improve.{control}" if control else "improve"
    asked = {"train": 0, "dev": 0}
    turn, scores, best, written = 0, [0.0], 0.0, 0
    if states.exists():
        states.verify()
        kept = read_json(states.file("search.json"))
        names = ("asked", "turn", "scores", "best", "written")
        asked, turn, scores, best, written = (kept[name] for name in names)
        search.restore(kept["search"])
        ctx.log.say(f"{label}: resumed after {sum(asked.values())} judged prompts")
    with ctx.log.progress(label, search.total) as bar:
        bar.advance(sum(asked.values()))
        while (question := search.ask()) is not None:
            answers = _judged(ctx, question)
            with uninterrupted(agreed=distributed.agreed_signal):
                search.tell(answers)
                rows = _rows(ctx, turn, question, answers)
                turn, asked[question.split] = turn + 1, asked[question.split] + len(rows)
                if question.split == "train":
                    scores = [row["score"] for row in rows]
                    best = max(scores) if asked["train"] == len(rows) else max(best, *scores)
                    values = {"best": best, "mean": float(np.mean(scores))}
                    values = {f"improve/train_{name}_score": v for name, v in values.items()}
                    ctx.log.metrics(label, 0, asked["train"], values)
                written = _write(working / ASKED, written, rows)
                kept = {"asked": asked, "turn": turn, "scores": scores, "best": best}
                kept |= {"written": written, "search": dict(search.state())}
                _save(ctx, states, inputs, kept)
            bar.advance(len(rows))
    _keep(working, search.best())
    states.remove()
    counts = {f"improve/{split}_judged_prompts": float(n) for split, n in asked.items()}
    ends = {"best": best, "last_mean": float(np.mean(scores))}
    counts |= {f"improve/train_{name}_score": value for name, value in ends.items()}
    return counts | dict(search.measured())


def _judged(ctx: Context, question: Question) -> np.ndarray:
    """float32 [P, E, C] answers to a question, by all processes together."""
    task = prompt_task(ctx)

    def judged(own: Sequence[Candidate]) -> list[np.ndarray]:
        return list(task.answers(own, question.split))

    return np.stack(distributed.spread(judged, question.candidates))


def _rows(ctx: Context, turn: int, question: Question, answers: np.ndarray) -> list[dict[str, Any]]:
    task = prompt_task(ctx)
    values = torch.from_numpy(answers)
    labels = torch.tensor([example.label for example in task.labelled(question.split) or []])
    scores = task.gap_of(values, question.split).double().mean(-1).tolist()
    right = (100.0 * accuracy(values, labels)).tolist()
    return [
        {"turn": turn, "split": question.split} | one.row() | {"score": score, "accuracy": share}
        for one, score, share in zip(question.candidates, scores, right, strict=True)
    ]


@distributed.first
def _write(path: Path, at: int, rows: Sequence[dict[str, Any]]) -> int:
    """Put rows behind the first `at` bytes of a file; its size then."""
    return put_at(path, at, b"".join(json_line(row, path) for row in rows), cut=True)


@distributed.first
def _save(ctx: Context, states: Artifact, inputs: str, kept: dict[str, Any]) -> None:
    write_json(states.working(inputs, fresh=True) / "search.json", kept)
    states.commit(inputs=inputs, metrics={}, position=ctx.log.position())


@distributed.first
def _keep(working: Path, found: Sequence[Candidate]) -> None:
    save_found(working, found)
