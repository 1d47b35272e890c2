"""The one training loop, against a hand-written one, and stopped at every update."""

import json
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pgtg.config import FitConfig
from pgtg.errors import DivergedError
from pgtg.runs.folder import Artifact
from pgtg.runs.log import RunLog
from pgtg.runtime import signals
from pgtg.runtime.signals import Interrupted
from pgtg.training.loop import FitResult, fit
from pgtg.training.state import load_weights
from pgtg.training.update import Training, Where
from pgtg.types import Loss, Window
from tests.support.cases import crossed
from tests.support.tiny import FIT

CFG = replace(
    FIT,
    updates=6,
    lr=0.05,
    weight_decay=0.1,
    clip=0.5,
    schedule="constant",
    plateau_factor=0.5,
    plateau_patience=1,
    validate_every=0,
    checkpoint_every=1,
)
WHERE = Where(7, "align", 0)


class Stopped(Exception):
    """Stands for a kill: leaves the loop in the middle of an update."""


@dataclass(frozen=True)
class Rows:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Squares:
    """Mean squared error over the rows of the window."""

    model: nn.Module

    def count(self, batch: Rows) -> Window:
        return Window(len(batch.x), len(batch.x))

    def __call__(self, batch: Rows, window: Window) -> Loss:
        error = (self.model(batch.x).squeeze(-1) - batch.y).square().sum() / window.sequences
        return Loss(error, {"rows": len(batch.x) / window.sequences})


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def rows(step: int, n: int = 8) -> Rows:
    rng = torch.Generator().manual_seed(100 + step)
    x = torch.randn(n, 3, generator=rng)
    return Rows(x, x[:, 0] - 2 * x[:, 1] + 0.1 * torch.randn(n, generator=rng))


def cut(batch: Rows, *sizes: int) -> list[Rows]:
    return [Rows(*p) for p in zip(batch.x.split(sizes), batch.y.split(sizes), strict=True)]


def run(
    model: nn.Module, folder: Path, cfg: FitConfig = CFG, windows: Any = None, **more: Any
) -> FitResult:
    """`fit` as a stage calls it: the log cut back to the last commit, the state in `folder`.

    `windows` gives the micro-batches of an update.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder.parent, quiet=True)
    state = Artifact(folder / "state")
    log.rewind(state.manifest()["position"] if state.exists() else 0)
    more = {"where": WHERE, "inputs": "abc", "log": log} | more
    windows = windows or (lambda step: [rows(step)])

    def makes(step: int) -> list[Callable[[], Any]]:
        return [lambda batch=batch: batch for batch in windows(step)]

    objective = more.pop("objective", Squares(model))
    try:
        return fit(model, makes, objective, cfg, folder=folder, **more)
    finally:
        log.close(0)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "fit").mkdir(parents=True)
    return tmp_path / "run" / "fit"


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_is_the_loop_one_would_write_by_hand(folder: Path, name: str):
    """Against a plain loop with PyTorch's unfused optimiser; they differ in rounding only."""
    model, twin = network(), network()
    result = run(model, folder, replace(CFG, optimizer=name))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    optimizer = kind(twin.parameters(), lr=0.05, weight_decay=0.1, fused=False)
    for step in range(6):
        batch = rows(step)
        loss = (twin(batch.x).squeeze(-1) - batch.y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        line = logged(folder)[step]
        assert (line["stage"], line["round"], line["step"]) == ("align", 0, step + 1)
        assert line["align/loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert line["align/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert line["align/rows"] == 1
    assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-6)
    assert (result.steps, result.best) == (6, None)


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (3, 3, 2), (7, 1)])
def test_any_division_of_a_window_gives_the_same_updates(folder: Path, sizes: tuple[int, ...]):
    """Also unequal micro-batches: the loss is a mean over the window, not a mean of means."""
    whole, parts = network(), network()
    run(whole, folder)
    one = logged(folder)
    (folder / "state").rename(folder / "away")
    run(parts, folder, windows=lambda step: cut(rows(step), *sizes))
    assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
    for a, b in zip(one, logged(folder), strict=True):
        assert a.pop("stage") == b.pop("stage")
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_clip_zero_means_no_clipping(folder: Path):
    """Plain Adam, at the first update, moves each weight by lr * sign(g), clipped or not; so look
    at the logged norm and at the second moment, which hold the gradient itself."""
    batch, model = rows(0), network()
    (model(batch.x).squeeze(-1) - batch.y).square().mean().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(g.square().sum().item() for g in gradient.values()))
    assert norm > 0.5
    for clip, scale in ((0.0, 1.0), (0.5, 0.5 / norm)):
        twin = network()
        result = run(twin, folder / str(clip), replace(CFG, clip=clip, updates=1))
        expected = scale * gradient["0.weight"] * 0.1  # exp_avg = (1 - beta1) g
        assert_close(result.optimizer["0.weight|exp_avg"], expected, rtol=1e-4, atol=1e-7)
        assert logged(folder / str(clip))[-1]["align/grad_norm"] == pytest.approx(norm, rel=1e-5)


def scripted(values: Sequence[float], seen: list[dict[str, Tensor]], model: nn.Module):
    """A validation that returns the values given, one after the other, and keeps the weights."""

    def validate() -> dict[str, float]:
        assert not model.training
        seen.append(weights(model))
        return {"align/value": values[len(seen) - 1]}

    return validate


def test_plateau_patience_and_best(folder: Path):
    """By hand: values 3 2 2.5 2.5 2.5 2.4; factor 0.5 after more than one validation without a
    better one, stop at the fourth such. An equal value is not better."""
    model, seen = network(), []
    model.train()
    cfg = replace(CFG, updates=20, validate_every=2, schedule="plateau", patience=4)
    validate = scripted([3, 2, 2.5, 2, 2.5, 2.4], seen, model)
    result = run(model, folder, cfg, validate=validate, select="align/value")
    assert model.training
    assert (result.steps, result.best_step, result.best_value) == (12, 4, 2)
    assert result.best is not None and same(result.best, seen[1])
    rates = [line["align/lr"] for line in logged(folder) if "align/lr" in line]
    # validations at 2 4 6 8 10 12: bad ones from 6 on, the second bad one (8) halves the rate
    assert rates == [0.05] * 8 + [0.025] * 4
    load_weights(model, result.best)
    assert same(weights(model), seen[1]) and not same(seen[1], seen[-1])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_best_weights_are_copied_only_where_they_are_kept(folder: Path, keep: str):
    """In memory, and in the states for a resume; the best value is known either way."""
    model = network()
    cfg = replace(CFG, updates=6, validate_every=2, keep=keep)
    validate = scripted([1, 2, 3], [], model)
    result = run(model, folder, cfg, validate=validate, select="align/value")
    assert (result.best_step, result.best_value) == (2, 1)
    assert (result.best is not None) == (keep == "best")
    assert (folder / "state" / "best.safetensors").exists() == (keep == "best")


def test_the_last_update_is_validated_and_best_is_none_where_it_is_the_last(folder: Path):
    model, seen = network(), []
    cfg = replace(CFG, updates=5, validate_every=2)
    result = run(
        model, folder, cfg, validate=scripted([3, 2, 1], seen, model), select="align/value"
    )
    assert [line["step"] for line in logged(folder) if "align/value" in line] == [2, 4, 5]
    assert (result.best_step, result.best) == (5, None)
    assert same(weights(model), seen[-1])


FULL = replace(CFG, updates=7, validate_every=2, schedule="plateau", plateau_patience=0)
VALUES = [3.0, 1.0, 2.0, 4.0]  # at updates 2, 4, 6, 7


def by_step(model: nn.Module):
    """A validation that depends on nothing but how often the weights were updated: what a
    resumed process calls must not start again with the first value."""
    return lambda: {"align/value": VALUES[validations(model)]}


def validations(model: nn.Module) -> int:
    return {2: 0, 4: 1, 6: 2, 7: 3}[int(model.get_buffer("updates"))]


class Counted(nn.Module):
    """Dropout, and a count of the updates so far kept among the windows."""

    def __init__(self, seed: int):
        super().__init__()
        self.inner = network(seed, dropout=0.5)
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def train_counted(seed: int, folder: Path, stop_at: int | None = None, **changes: Any):
    """All of `FULL`, or up to the middle of update `stop_at`."""
    model = Counted(seed)
    model.train()

    def windows(step: int) -> list[Rows]:
        if step == stop_at:
            raise Stopped
        model.get_buffer("updates").fill_(step + 1)
        return cut(rows(step), 5, 3)

    cfg = replace(FULL, **changes)
    result = run(model, folder, cfg, windows, validate=by_step(model), select="align/value")
    return model, result


@pytest.mark.parametrize(("stop_at", "every"), crossed([4, 1, 2, 3, 5, 6], [1, 3]))
def test_resumed_from_any_state_it_ends_with_the_same_bits(
    tmp_path: Path, stop_at: int, every: int
):
    """Weights, best weights, optimiser, numbers and log lines. The resumed model begins with other
    weights, so that all must come from the state (or from the start, where there is none)."""
    whole, expected = train_counted(0, tmp_path / "a" / "fit")
    with pytest.raises(Stopped):
        train_counted(0, tmp_path / "b" / "fit", stop_at, checkpoint_every=every)
    saved = Artifact(tmp_path / "b" / "fit" / "state").exists()
    assert saved == (stop_at >= every)
    seed = 1 if saved else 0
    again, result = train_counted(seed, tmp_path / "b" / "fit", checkpoint_every=every)
    assert same(weights(again), weights(whole))
    assert expected.best is not None and result.best is not None
    assert same(result.best, expected.best) and same(result.optimizer, expected.optimizer)
    for name in ("steps", "best_step", "best_value"):
        assert getattr(result, name) == getattr(expected, name)
    a, b = (tmp_path / name / "metrics.jsonl" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("lost", ["optimizer", "progress", "state"])
def test_the_comparison_sees_what_a_resume_loses(tmp_path: Path, lost: str, monkeypatch):
    """Negative control: without one part of the state the end is another."""
    whole, _ = train_counted(0, tmp_path / "a" / "fit")
    with pytest.raises(Stopped):
        train_counted(0, tmp_path / "b" / "fit", 6)  # the rate has been lowered by then
    if lost == "state":
        Artifact(tmp_path / "b" / "fit" / "state").remove()
    elif lost == "optimizer":
        monkeypatch.setattr("pgtg.training.state.set_optimizer", lambda *_: None)
    else:
        load = __import__("pgtg.training.loop", fromlist=["load_state"]).load_state

        def forgetful(states: Artifact, training: Training) -> None:
            load(states, training)
            training.progress.lr = FULL.lr
            training.set_rate()

        monkeypatch.setattr("pgtg.training.loop.load_state", forgetful)
    again, _ = train_counted(1, tmp_path / "b" / "fit")
    assert not same(weights(again), weights(whole))


def test_a_finished_training_only_loads_its_state(folder: Path):
    model, _ = train_counted(0, folder)
    before = (folder.parent / "metrics.jsonl").read_bytes()
    again, result = train_counted(1, folder, stop_at=7)  # asking for a window would raise
    assert same(weights(again), weights(model)) and result.steps == 7
    assert (folder.parent / "metrics.jsonl").read_bytes() == before


def test_a_training_stopped_by_patience_stays_stopped(folder: Path):
    cfg = {"validate_every": 2, "patience": 1}
    model, result = train_counted(0, folder, **cfg)
    assert (result.steps, result.best_step) == (6, 4)
    again, found = train_counted(1, folder, **cfg)
    assert found.steps == 6 and same(weights(again), weights(model))
    assert result.best is not None and found.best is not None and same(found.best, result.best)


def test_an_optimiser_that_goes_on_is_one_that_never_stopped(folder: Path):
    """Two trainings in a row, the second from the first's optimiser state, are one long one."""
    long, short = network(), network()
    run(long, folder / "long")
    first = run(short, folder / "one", replace(CFG, updates=2))
    run(
        short,
        folder / "two",
        replace(CFG, updates=4),
        windows=lambda step: [rows(step + 2)],
        optimizer_state=first.optimizer,
    )
    assert same(weights(long), weights(short))


def test_rounds_that_carry_their_progress_are_one_training(folder: Path):
    """By hand: values 3 2 | 2.5 2.5 | 2.4 2.3 | in rounds of 4 updates; factor 0.5 after more than
    one bad validation, stop at the fourth bad one (update 12): the fourth round trains nothing.
    The second round has no better value, so its best is still the first round's."""
    cfg = replace(CFG, validate_every=2, schedule="plateau", patience=4)
    values = [3, 2, 2.5, 2.5, 2.4, 2.3]
    long, seen = network(), []
    whole = run(
        long,
        folder / "long",
        replace(cfg, updates=16),
        validate=scripted(values, seen, long),
        select="align/value",
    )
    short, before, found = network(), None, []
    for number in range(4):
        at = scripted(values[2 * number :], [], short)
        carried = {"progress": before.progress.carried()} if before else {}
        state = before.optimizer if before else None
        before = run(
            short,
            folder / str(number),
            replace(cfg, updates=4),
            windows=lambda step, first=4 * number: [rows(step + first)],
            validate=at,
            select="align/value",
            optimizer_state=state,
            **carried,
        )
        found.append((before.steps, before.best_step, before.best_value, before.best is None))
    assert found == [(4, 4, 2, True), (4, 0, 2, True), (4, -4, 2, True), (0, -8, 2, True)]
    assert (whole.steps, whole.best_step, whole.progress.lr) == (12, 4, 0.0125)
    assert before is not None and before.progress.lr == whole.progress.lr
    assert before.progress.stopped and before.progress.bad_validations == 4
    assert same(weights(long), weights(short))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_state_stays(folder: Path, bad: float):
    model = network()

    def windows(step: int) -> list[Rows]:
        batch = rows(step)
        return [Rows(batch.x, batch.y * bad)] if step == 3 else [batch]

    with pytest.raises(DivergedError, match=r"align round 0 update 3: the loss is (nan|inf)"):
        run(model, folder, windows=windows)
    assert len(logged(folder)) == 3
    state = Artifact(folder / "state")
    state.verify()
    assert state.manifest()["extra"]["progress"]["step"] == 3
    healthy = network(1)
    run(healthy, folder)  # the same folder, with data that is fixed
    expected = network()
    run(expected, folder / "other")
    assert same(weights(healthy), weights(expected))


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(folder: Path):
    model = network()
    parameter = next(model.parameters())
    parameter.register_hook(lambda g: g * math.nan)
    before = weights(model)
    with pytest.raises(DivergedError, match="gradient's norm is nan"):
        run(model, folder)
    assert same(weights(model), before)


def test_a_validation_that_is_not_finite_ends_the_run(folder: Path):
    model = network()
    validate = scripted([math.nan], [], model)
    with pytest.raises(DivergedError, match="align/value"):
        run(model, folder, replace(CFG, validate_every=1), validate=validate, select="align/value")


def test_only_parameters_that_require_gradients_are_trained(folder: Path):
    model = network()
    frozen = next(model.children())
    frozen.requires_grad_(False)
    before = weights(model)
    result = run(model, folder)
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"3.weight", "3.bias"}
    assert {key.split("|")[0] for key in result.optimizer} == moved


def test_the_global_random_state_neither_matters_nor_moves(tmp_path: Path):
    ends = []
    for number in (1, 2):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        model, _ = train_counted(0, tmp_path / str(number) / "fit")
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(weights(model))
    assert same(*ends)


def test_dropout_depends_on_seed_stage_and_round(tmp_path: Path):
    """Another key is another mask; the same key the same."""
    keys = [WHERE, WHERE, Where(8, "align", 0), Where(7, "improve", 0), Where(7, "align", 1)]
    ends = []
    for i, where in enumerate(keys):
        model = network(dropout=0.5)
        run(model, tmp_path / str(i) / "fit", where=where)
        ends.append(weights(model))
    assert same(ends[0], ends[1])
    assert not any(same(ends[0], other) for other in ends[2:])


def test_dropout_depends_on_the_update(folder: Path):
    """The same rows and, without a rate, the same weights: what differs is the mask."""
    cfg = replace(CFG, updates=3, lr=0.0)
    run(network(dropout=0.5), folder, cfg, windows=lambda step: [rows(0)])
    losses = [line["align/loss"] for line in logged(folder)]
    assert len(losses) == len(set(losses)) == 3


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_for_the_update_then_saves(tmp_path: Path, signum: int, code: int):
    """No checkpoints at all, and still nothing is lost."""
    whole, _ = train_counted(0, tmp_path / "a" / "fit", checkpoint_every=0)
    before = {s: signal.getsignal(s) for s in signals.EXIT_CODES}
    signals.install()
    try:
        model = Counted(0)
        model.train()

        def windows(step: int) -> list[Rows]:
            if step == 3:
                os.kill(os.getpid(), signum)
            model.get_buffer("updates").fill_(step + 1)
            return cut(rows(step), 5, 3)

        folder = tmp_path / "b" / "fit"
        cfg = replace(FULL, checkpoint_every=0)
        with pytest.raises(Interrupted) as stop:
            run(model, folder, cfg, windows, validate=by_step(model), select="align/value")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.value.exit_code == code
    assert Artifact(folder / "state").manifest()["extra"]["progress"]["step"] == 4
    again, _ = train_counted(1, folder, checkpoint_every=0)
    assert same(weights(again), weights(whole))
    a, b = (tmp_path / name / "metrics.jsonl" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


@dataclass(frozen=True)
class Halved(Squares):
    """The same, its gradient passing through a half-precision number."""

    def __call__(self, batch: Rows, window: Window) -> Loss:
        error = self.model(batch.x).squeeze(-1).half().float() - 100 * batch.y
        return Loss(error.square().sum() / window.sequences, {})


def test_fp16_leaves_out_updates_that_overflow_and_scales_less(folder: Path):
    """Against the definition: the first scale 2^16, 2^15, ... at which no gradient is infinite."""
    model, batch = network(), rows(0)
    error = model(batch.x).squeeze(-1).half().float().detach() - 100 * batch.y
    scales = [2.0 ** (16 - n) for n in range(17)]
    left_out = [bool((2 * error / 8 * scale).half().isinf().any()) for scale in scales].index(False)
    assert left_out > 1
    before = weights(model)
    cfg = replace(CFG, precision="fp16", updates=left_out)
    options = {"objective": Halved(model), "windows": lambda step: [batch]}
    run(model, folder, cfg, **options)
    assert same(weights(model), before)
    run(model, folder, replace(cfg, updates=left_out + 2), **options)  # resumes with the scale
    assert not same(weights(model), before)
    lines = logged(folder)
    used = [*scales[: left_out + 1], scales[left_out]]
    assert [line["align/loss_scale"] for line in lines] == used
    assert ["align/grad_norm" in line for line in lines] == [False] * left_out + [True] * 2
    twin = network()
    options["objective"] = Halved(twin)
    run(twin, folder / "plain", replace(cfg, precision="no", updates=2), **options)
    plain = logged(folder / "plain")[0]["align/grad_norm"]
    assert lines[left_out]["align/grad_norm"] == pytest.approx(plain, rel=0.01)  # 11 bits


def test_fp16_scales_more_after_many_finite_updates(folder: Path, monkeypatch):
    monkeypatch.setattr("pgtg.training.update.SCALE_GROWS_AFTER", 2)
    run(network(), folder, replace(CFG, precision="fp16", updates=5))
    found = [line["align/loss_scale"] for line in logged(folder)]
    assert found == [2.0**16] * 2 + [2.0**17] * 2 + [2.0**18]


def test_begin_comes_before_each_update_and_again_where_a_training_is_resumed(tmp_path: Path):
    """What it keeps in the working folder is what the updates of a resumed training read."""
    model, begun = network(), []

    def begin(step: int) -> None:
        begun.append(step)
        if step % 2 == 0 and not (tmp_path / f"rollouts{step}").exists():
            (tmp_path / f"rollouts{step}").write_text(str(len(begun)))

    def makes(step: int):
        assert begun[-1] == step and (tmp_path / f"rollouts{step - step % 2}").exists()
        if step == 3 and len(begun) == 4:
            raise Stopped
        return [lambda: rows(step)]

    how: dict[str, Any] = {"where": WHERE, "folder": tmp_path, "inputs": "i", "log": RunLog(None)}
    cfg = replace(CFG, updates=5)
    with pytest.raises(Stopped):
        fit(model, makes, Squares(model), cfg, **how, begin=begin)
    kept = (tmp_path / "rollouts2").read_text()
    model = network()
    fit(model, makes, Squares(model), cfg, **how, begin=begin)
    assert begun == [0, 1, 2, 3, 3, 4] and (tmp_path / "rollouts2").read_text() == kept
    assert len(list(tmp_path.glob("rollouts*"))) == 3
