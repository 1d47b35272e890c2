"""The sentences at the end of a run: what they say against the definition."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import stats

from pgtg.pipeline.findings import verdicts
from pgtg.runs.folder import Artifact, write_jsonl

N = 60


def said(folder: Path, systems: dict[str, list[dict[str, list[float]]]]) -> list[str]:
    """Lines on splits and two decodings, of per-example scores by system and split."""
    lines: list[str] = []
    splits = [f"split{i}" for i in range(len(systems["pgtg"]))]
    for name, found in systems.items():
        for split, columns in zip(splits, found, strict=True):
            path = folder / split / name
            path.mkdir(parents=True)
            rows = [
                {"scores": dict(zip(columns, row, strict=True))}
                for row in zip(*columns.values(), strict=True)
            ]
            for decoding in ("greedy", "sample"):
                write_jsonl(path / f"samples_{decoding}.jsonl", rows)
    ctx: Any = SimpleNamespace(
        cfg=SimpleNamespace(
            method=SimpleNamespace(name="pgtg", alongside=[n for n in systems if n != "pgtg"]),
            evaluate=SimpleNamespace(decodings=["greedy", "sample"]),
        ),
        folder=SimpleNamespace(artifact=lambda _, split, name: Artifact(folder / split / name)),
        log=SimpleNamespace(say=lines.append),
    )
    verdicts(ctx, splits)
    return lines


def shifted(p: float, n: int = N) -> np.ndarray:
    """Differences whose t-test over examples has about this two-sided p."""
    noise = np.random.default_rng(0).normal(size=n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    return noise + stats.t.isf(p / 2, n - 1) / np.sqrt(n)


def test_one_family_over_splits_controls_decodings_and_metrics(tmp_path: Path):
    """p = .01 alone would be a finding; among 2 x 1 x 2 x 2 it is none, and p = 1e-6 is one."""
    zero, weak, strong = [0.0] * N, shifted(0.01).tolist(), shifted(1e-6).tolist()
    ours = [{"a": weak, "b": strong}, {"a": zero, "b": zero}]
    theirs = [{"a": zero, "b": zero}, {"a": zero, "b": zero}]
    *lines, last = said(tmp_path, {"pgtg": ours, "uniform": theirs})
    assert len(lines) == 4
    for line, decoding in zip(lines[:2], ("greedy", "sample"), strict=True):
        weak_part, strong_part = line.split("; ")
        assert line.startswith(f"split0, {decoding}: pgtg minus uniform: a +0.34 [+0.09, +0.60]")
        assert weak_part.endswith("(no difference shown)") and strong_part.endswith("(better)")
    assert "corrected for 8 comparisons" in last and "on these texts" in last


def test_worse_is_said_too(tmp_path: Path):
    zero, strong = [0.0] * N, shifted(1e-6).tolist()
    lines = said(tmp_path, {"pgtg": [{"a": zero}], "uniform": [{"a": strong}]})
    assert lines[0].endswith("(worse)")


def test_without_controls_nothing_is_said(tmp_path: Path):
    assert said(tmp_path, {"pgtg": [{"a": [0.0] * N}]}) == []
