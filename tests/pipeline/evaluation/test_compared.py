"""The end of a run, from made-up results: what is said against its definition."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgtg.pipeline.evaluation.compared import answers, recovered
from pgtg.runs.folder import Artifact, write_jsonl

N = 40


def context(folder: Path, lines: list[str], controls: list[str]) -> Any:
    return SimpleNamespace(
        cfg=SimpleNamespace(
            task="summarize",
            judge=SimpleNamespace(name="meteor"),
            method=SimpleNamespace(name="pgtg", alongside=controls),
            evaluate=SimpleNamespace(decodings=["greedy", "sample"]),
        ),
        folder=SimpleNamespace(artifact=lambda _, split, name: Artifact(folder / split / name)),
        log=SimpleNamespace(say=lines.append),
    )


def keep(folder: Path, system: str, nll: float, meteor: float) -> None:
    """Scores around these means; the same noise for all systems, and some of each one's own."""
    path = folder / "test" / system
    path.mkdir(parents=True)
    noise = [(i * 7 % N) / N + len(system) * (i % 2 - 0.5) / 100 for i in range(N)]
    for decoding, column, mean in (("references", "nll", nll), ("sample", "meteor", meteor)):
        rows = [{"scores": {"other": 0.0, column: mean + x}} for x in noise]
        write_jsonl(path / f"samples_{decoding}.jsonl", rows)


def test_a_gain_is_counted_from_the_baseline_to_planted_truth(tmp_path: Path):
    """From 10 to 4: 7 recovers half of it, 13 loses as much."""
    ctx = context(tmp_path, [], ["uniform", "shuffled", "oracle"])
    means = {"pgtg": {"nll": 7.0}, "uniform": {"nll": 10.0}, "oracle": {"nll": 4.0}}
    found = recovered(ctx, means | {"shuffled": {"nll": 13.0}})
    assert found == {"pgtg": 50, "uniform": 0, "oracle": 100, "shuffled": -50}
    del means["oracle"]
    assert recovered(ctx, means) == {}


def test_each_control_has_an_answer_and_lower_likelihood_loss_is_better(tmp_path: Path):
    systems = {
        "pgtg": (1.0, 9.0),
        "uniform": (2.0, 8.0),
        "shuffled": (2.0, 9.0),
        "untrained": (1.0, 9.0),
        "oracle": (0.5, 9.5),
    }
    for name, means in systems.items():
        keep(tmp_path, name, *means)
    lines: list[str] = []
    answers(context(tmp_path, lines, [*systems][1:]), ["test"])
    starts = [
        "Does guidance help? yes: uniform, nll 1.49 against 2.49",
        "Do the weights' positions matter? in part: shuffled, nll 1.49 against",
        "Was it learned, or is it confidence? not shown: untrained, nll",
        "Better than planted truth? no, the reverse: oracle",
        "On these texts, corrected for 8 comparisons.",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("controls", [[], ["uniform"]])
def test_without_controls_nothing_is_said(controls: list[str], tmp_path: Path):
    keep(tmp_path, "pgtg", 1, 9)
    keep(tmp_path, "uniform", 2, 8)
    lines: list[str] = []
    answers(context(tmp_path, lines, controls), ["test"])
    assert bool(lines) == bool(controls)
