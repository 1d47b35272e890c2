"""Memory, numbers, trackers, processes and clocks that fail: one line, nothing lost."""

import contextlib
import datetime
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pgtg.config import RunConfig
from pgtg.errors import DivergedError, PgtgError
from pgtg.models import generate as generating
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel
from pgtg.models.reward import RewardModel
from pgtg.ops import objectives  # noqa: F401 (so that methods are loaded before they are changed)
from pgtg.pipeline.run import train
from pgtg.runs.folder import load_tensors
from pgtg.types import Loss
from tests.support.failing import SHORT, SLOW, cfg, finished, run, said  # noqa: F401 (fixtures)
from tests.support.tiny import _quiet, results, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_models import build

# --- memory


def tokens_of(batch_tokens: int = 10**6, warn: Callable[[str], None] = print) -> dict[int, Any]:
    sources = [[3 + i % 5] * (2 + i % 4) for i in range(8)]
    return dict(
        generate(
            build("gpt2"),
            sources,
            [str(i) for i in range(8)],
            k=2,
            eos_ids=[2],
            decoding=Decoding(False, 6),
            batch_tokens=batch_tokens,
            seed_key=(0,),
            warn=warn,
        )
    )


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_sampling_halves_its_batches(monkeypatch: pytest.MonkeyPatch, kind: str):
    """A batch of more than 2 sources does not fit: the same generations, said once."""
    expected, real, sizes, warned = tokens_of(), generating.generate_batch, [], []

    def small(lm: Any, source: torch.Tensor, *more: Any, compiled: bool) -> Any:
        sizes.append(len(source))
        if len(source) > 2:
            raise ERRORS[kind]
        return real(lm, source, *more)

    monkeypatch.setattr(generating, "_share", 1.0)
    monkeypatch.setattr(generating, "generate_batch", small)
    assert tokens_of(150, warned.append) == expected
    assert tokens_of(150, warned.append) == expected
    assert len(warned) == 1 and "out of memory" in warned[0]
    assert max(sizes) > 2 and sizes[-1] <= 2
    assert sum(size > 2 for size in sizes) == sizes.index(next(s for s in sizes if s <= 2))


@pytest.mark.parametrize("kind", ERRORS)
def test_one_source_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch, kind: str):
    def never(*_: Any, **how: Any) -> Any:
        raise ERRORS[kind]

    monkeypatch.setattr(generating, "_share", 1.0)
    monkeypatch.setattr(generating, "generate_batch", never)
    with pytest.raises(PgtgError, match=r"do not fit into the memory: lower sample\.k"):
        tokens_of(warn=lambda text: None)


def test_other_errors_of_sampling_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def wrong(*_: Any, **how: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(generating, "generate_batch", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        tokens_of()


# --- numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_finite(bad: float, greedy: bool):
    lm = build("gpt2")
    head = lm.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight[4] = bad
    sampling = generate(
        lm,
        [[3, 5]],
        ["a"],
        k=1,
        eos_ids=[2],
        decoding=Decoding(greedy, 4),
        batch_tokens=99,
        seed_key=(0,),
    )
    with pytest.raises(DivergedError, match="logits at token 0"):
        list(sampling)


def plant(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, from the third time on that a number of that kind is made."""
    import pgtg.training.loop as loop
    from pgtg.models.language import LanguageModel

    calls = {"n": 0}

    def third() -> bool:
        calls["n"] += 1
        return calls["n"] > 2

    if where == "weights":
        plain = loop.update

        def corrupting(training: Any, *more: Any) -> Any:
            values = plain(training, *more)
            if third():
                next(iter(training.trained.values())).data.fill_(math.nan)
            return values

        monkeypatch.setattr(loop, "update", corrupting)
    elif where == "loss":
        real_update = loop.update

        def update(training: Any, windows: Any, objective: Any) -> Any:
            class Spoilt:
                count = objective.count

                def __call__(self, batch: Any, window: Any) -> Loss:
                    loss = objective(batch, window)
                    return Loss(loss.value * math.nan, loss.metrics) if third() else loss

            return real_update(training, windows, Spoilt())

        monkeypatch.setattr(loop, "update", update)
    else:
        owner: Any = {"reward": RewardModel, "log_probabilities": LanguageModel}[where]
        name = {"reward": "forward"}.get(where, where)
        real = getattr(owner, name)

        def corrupted(self: Any, *more: Any) -> Any:
            value = real(self, *more)
            return value * math.nan if third() else value

        monkeypatch.setattr(owner, name, corrupted)


@pytest.mark.parametrize(
    "where",
    [
        "loss",
        "reward",
        "weights",
        "log_probabilities",
    ],
)
@pytest.mark.slow
def test_nan_ends_the_run_and_loses_nothing(
    cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys, where: str
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        plant(where, patch)
        code, text = said(capsys, lambda: train(cfg, run))
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1, text
    assert "nan" in errors[0].lower() or "not finite" in errors[0]
    for path in run.rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_tensors(path).values()), path
    train(cfg, run)
    assert results(run) == results(finished)


@pytest.mark.parametrize("head", ["reward", pytest.param("start_log_prob", marks=SLOW)])
def test_nan_in_the_scores_of_a_round(
    cfg: RunConfig, finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch, head: str
):
    """Where nothing is trained either."""
    shutil.rmtree(run / "rounds" / "00" / "score")
    with monkeypatch.context() as patch:
        broken = (
            (RewardModel, "forward") if head == "reward" else (LanguageModel, "log_probabilities")
        )
        patch.setattr(*broken, lambda self, b: b.mask.float() * math.nan)
        with pytest.raises(DivergedError, match=f"{head} is not finite"):
            train(cfg, run)
    train(cfg, run)
    assert results(run) == results(finished)


# --- trackers, processes, clocks


class Broken:
    """A tracker that fails at each call."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            self.calls.append(name)
            raise RuntimeError(f"{name} failed\nwith lines")

        return fail


@contextlib.contextmanager
def backwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at the clock is an hour before the one before."""
    import pgtg.runs.log as logging

    start, looks = time.time(), [0]

    def earlier() -> float:
        looks[0] += 1
        return start - 3600.0 * looks[0]

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(earlier(), tz)

    fake = type("Clock", (), {"datetime": Backwards, "UTC": datetime.UTC})
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", earlier)
        patch.setattr(logging, "datetime", fake)
        yield
    assert looks[0] > 10


@pytest.mark.slow
def test_a_broken_tracker_and_a_clock_that_jumps_back(
    cfg: RunConfig, finished: Path, tmp_path: Path, monkeypatch, capsys
):
    """Said once, and the same bits."""
    broken = Broken()
    monkeypatch.setattr("pgtg.pipeline.run.tracker", lambda *_: broken)
    with backwards(monkeypatch):
        code, text = said(capsys, lambda: train(cfg, tmp_path / "run"))
    assert (code, text.count("the tracker failed")) == (0, 1)
    assert broken.calls[0] == "start" and broken.calls[-1] == "close"
    assert results(tmp_path / "run") == results(finished)
    capsys.readouterr()


HOLD = """
import sys
from pgtg.runs.folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_has_the_run(cfg: RunConfig, run: Path, capsys):
    command = [sys.executable, "-c", HOLD, str(run)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before, began = results(run), time.monotonic()
        code, text = said(capsys, lambda: train(cfg, run))
        assert time.monotonic() - began < 5
        assert code == 2 and f"in use by process {holder.pid}" in text
        assert results(run) == before
        assert holder.stdin is not None
        holder.stdin.close()
    train(cfg, run)
