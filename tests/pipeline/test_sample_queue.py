"""The queue of sampled chunks that wait for the judge: bounded, in order, and without effect."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgtg.pipeline.stages import sample
from pgtg.types import Example

CHUNKS = 11


class Slow(Future):
    """Scores that are not there until they are waited for."""

    def __init__(self, name: str, said: list[str], scores: list[float]):
        super().__init__()
        self.name, self.said, self.scores = name, said, scores

    def done(self) -> bool:
        return False

    def result(self, timeout: float | None = None) -> dict[str, list[float]]:
        self.said.append(f"judged {self.name}")
        return {"score": self.scores}


def sampled(folder: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> list[str]:
    """What happens while eleven chunks of two sources are sampled, in its order."""
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    examples = [Example(str(i), f"source {i}", ("target",), "target") for i in range(2 * CHUNKS)]

    def generate(ctx: Any, lm: Any, codec: Any, mine: Any, *_: Any) -> dict[str, list]:
        said.append(f"generated {mine[0].id}")
        ids = [example.id for example in mine]
        return {"source_id": ids, "tokens": [[int(i)] for i in ids], "text": ids}

    def judged(tokens: Any, texts: list[str], own: Any, codec: Any) -> Future:
        assert [example.id for example in own] == texts
        scores = [float(text) / 2 for text in texts]
        if slow:
            return Slow(texts[0], said, scores)
        found: Future = Future()
        found.set_result({"score": scores})
        return found

    @contextlib.contextmanager
    def progress(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(advance=lambda n: None)

    sources = SimpleNamespace(ids=[[i] for i in range(len(examples))], cut=3)
    ctx: Any = SimpleNamespace(
        task=SimpleNamespace(sources=lambda examples, codec: sources, judge=judged),
        cfg=SimpleNamespace(sample=SimpleNamespace(chunk=2)),
        log=SimpleNamespace(progress=progress),
    )
    monkeypatch.setattr(sample, "_generate", generate)
    codec: Any = None
    assert sample._sample_part(ctx, codec, codec, examples, "train", 0, folder, "") == 3
    return said


def test_chunks_that_wait_for_the_judge_are_few_and_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said = sampled(tmp_path / "slow", monkeypatch, slow=True)
    names = [str(2 * i) for i in range(CHUNKS)]
    for kind in ("generated", "judged"):
        assert [line.split()[1] for line in said if line.startswith(kind)] == names
    waiting = [
        sum(1 if line.startswith("generated") else -1 for line in said[: n + 1])
        for n in range(len(said))
    ]
    assert max(waiting) == sample.PENDING + 1  # the one that was just generated among them
    assert waiting[-1] == 0


def test_waiting_for_the_judge_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = []
    for slow in (True, False):
        folder = tmp_path / str(slow)
        sampled(folder, monkeypatch, slow=slow)
        files.append({p.name: p.read_bytes() for p in sorted((folder / "train").iterdir())})
    assert len(files[0]) == CHUNKS and files[0] == files[1]


def test_chunks_that_were_judged_before_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After a kill those that waited are missing, and only they are generated."""
    sampled(tmp_path, monkeypatch, slow=True)
    whole = {p.name: p.read_bytes() for p in sorted((tmp_path / "train").iterdir())}
    for number in (7, 8):
        (tmp_path / "train" / f"{number:05d}.parquet").unlink()
    said = sampled(tmp_path, monkeypatch, slow=True)
    assert said == ["generated 14", "generated 16", "judged 14", "judged 16"]
    assert whole == {p.name: p.read_bytes() for p in sorted((tmp_path / "train").iterdir())}
