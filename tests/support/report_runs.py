"""Run folders as training leaves them, made in milliseconds from given scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgtg.runs.folder import RunFolder, content_hash, write_json, write_jsonl, write_table

ROUGE = {"implementation": "rouge_score 0.1.2", "scale": "[0, 100]"}
GREEDY = {"greedy": True, "max_new_tokens": 32}
Columns = Mapping[str, Sequence[float]]


def config(**changed: Any) -> dict[str, Any]:
    """A small config; `changed` by dotted key with __ for the dot."""
    made: dict[str, Any] = {
        "task": "summarize",
        "name": "tiny",
        "seed": 0,
        "cache": "off",
        "data": {"name": "newswire", "path": None},
        "aggregator": {"name": "avg", "temperature": 2.0},
        "method": {"name": "pgtg", "controls": ["uniform"]},
        "metrics": {"names": ["rouge"]},
        "policy": {"path": None},
    }
    for key, value in changed.items():
        *sections, last = key.split("__")
        place = made
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return made


def make_run(
    path: Path,
    systems: Mapping[str, Columns],
    *,
    data: str = "the data",
    metric: Mapping[str, Any] = ROUGE,
    decoding: Mapping[str, Any] = GREEDY,
    split: str = "test",
    ids: str = "test-{}",
    finished: bool = True,
    **changed: Any,
) -> Path:
    """A run with scores per example: `systems` holds system -> column -> scores."""
    run = RunFolder(path).create(config(**changed), {"git": None, "packages": {}})
    all_results = {}
    for name, columns in systems.items():
        results = {
            "system": name,
            "data": content_hash(data),
            "metrics": [dict(metric)],
            "absent": {},
            "decodings": {
                "greedy": {
                    "decoding": dict(decoding),
                    "mean": {column: float(np.mean(row)) for column, row in columns.items()},
                }
            },
        }
        rows = [
            {"id": ids.format(i), "text": "t", "scores": {c: row[i] for c, row in columns.items()}}
            for i in range(len(next(iter(columns.values()))))
        ]
        artifact = run.artifact("eval", split, name)
        write_jsonl(artifact.working("x") / "samples_greedy.jsonl", rows)
        artifact.commit(inputs="x", results=results)
        all_results[name] = results
    write_json(path / "eval" / f"results_{split}.json", all_results)
    if finished:
        write_json(path / "summary.json", {})
    return path


def add_round(
    path: Path, number: int, *, seed: int = 0, extra: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """What the stages of a round leave: manifests, held-out evaluations and rewards, log lines.

    Args:
        extra: Under "extra" in the manifests, by stage; "uniform" is the control's training.
    """
    run, rng = RunFolder(path), np.random.default_rng(seed)
    place = ("rounds", f"{number:02d}")

    def commit(
        parts: Sequence[str], metrics: Mapping[str, float], tables: Mapping[str, Any]
    ) -> None:
        artifact = run.artifact(*parts)
        working = artifact.working("x")
        for name, columns in tables.items():
            write_table(working / name, columns)
        name = "uniform" if "controls" in parts else parts[-1]
        artifact.commit(inputs="x", metrics=metrics, **(extra or {}).get(name, {}))

    lengths = rng.integers(3, 9, 24)
    rewards = [rng.random(n).tolist() for n in lengths]
    sources = [f"s{i // 4}" for i in range(24)]
    evaluation, score = rng.normal(size=24).tolist(), rng.normal(size=24).tolist()
    generations = {"sample/train_generations": 40, "sample/heldout_generations": 24}
    commit([*place, "sample"], generations, {})
    commit([*place, "align"], {"align/updates": 30}, {})
    commit([*place, "score"], {}, {"heldout.parquet": {"source_id": sources, "reward": rewards}})
    table = {"source_id": sources, "evaluation": evaluation, "score": score}
    ranking = {"aggregate/heldout_pair_accuracy": 0.6 + 0.05 * number}
    commit([*place, "aggregate"], ranking, {"heldout.parquet": table})
    commit([*place, "improve"], {"improve/updates": 20}, {})
    commit(["controls", "uniform", f"{number:02d}", "improve"], {"improve/updates": 20}, {})
    lines = [
        {"stage": "sample", "round": number, "step": 0, "sample/heldout_mean_score": 70 + number},
        *(
            {"stage": stage, "round": number, "step": 30 * number + step, name: value}
            for step in (15, 30)
            for stage, name, value in [
                ("align", "align/heldout_pair_accuracy", 0.5 + step / 300),
                ("improve", "improve/negative_heldout_score", -80.0 - step),
                ("improve.uniform", "improve/negative_heldout_score", -81.0 - step),
            ]
        ),
    ]
    log = path / "metrics.jsonl"
    before = log.read_bytes() if log.exists() else b""
    write_jsonl(log, lines)
    log.write_bytes(before + log.read_bytes())
