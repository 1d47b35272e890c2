"""Weights divided among processes (FSDP2) train as whole ones do, and are saved whole."""

import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pgtg.config import FitConfig
from pgtg.config.groups import CONF
from pgtg.errors import ConfigError, DivergedError
from pgtg.models.backends.sharding import is_sharded, own_part, weights_of
from pgtg.models.language import LanguageModel, evaluating
from pgtg.models.loading import load_language_model
from pgtg.runs.folder import load_tensors
from pgtg.runs.log import RunLog
from pgtg.runtime import distributed
from pgtg.runtime.distributed import PeerLost, Sharding
from pgtg.types import Loss, Window
from tests.models.backends.test_checkpointing import loss, without_dropout
from tests.runtime.test_distributed import COUNT, close, ended, reached, same, started, together
from tests.support.tiny_models import batch, build
from tests.training.test_loop import CFG, logged, run

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# an encoder-decoder with tied weights, and causal models with and without
FAMILIES = ("t5", "gpt2", "llama")
SOME = replace(CFG, updates=4, accumulate=3, lr=1e-3, checkpoint_every=2, validate_every=2)


@dataclass(frozen=True)
class PerToken:
    """A mean over the tokens of the window; `times` stands in the batch's place."""

    lm: LanguageModel
    kind: str

    def count(self, times: float) -> Window:
        return Window(1, 1)

    def __call__(self, times: float, window: Window) -> Loss:
        value = times * loss(self.lm, batch(), self.kind) / window.tokens
        return Loss(value, {"seen": times / window.tokens})


def three(step: int) -> list[float]:
    """Micro-batches of an update: an odd number for two processes."""
    return [1.0 + step, 0.5, 2.0]


def tiny(family: str) -> LanguageModel:
    lm = build(family)
    without_dropout(lm)
    return lm.train()


def trained(lm: LanguageModel, kind: str, folder: Path, cfg: FitConfig = SOME, **more: Any):
    """One training of all processes, in one folder; the first logs."""
    more = {"objective": PerToken(lm, kind), "validate": partial(checked, lm)} | more
    more["select"] = "align/value"
    if not distributed.is_first():
        more["log"] = RunLog(None, mute=True)
    return run(lm, folder / "fit", cfg, three, **more)


Cases = list[tuple[str, str, dict[str, Any]]]
CHECKPOINTED = {"gradient_checkpointing": True}
SHORT: Cases = [("t5", "logits", {}), ("gpt2", "states", {}), ("llama", "logits", CHECKPOINTED)]
LONG: Cases = [
    (family, kind, changes)
    for family in FAMILIES
    for kind in ("logits", "states")
    for changes in ({}, CHECKPOINTED)
]


def train_parts(cases: Cases, rank: int, folder: Path) -> None:
    assert distributed.sharding() == Sharding(reshard=True)
    for i, (family, kind, changes) in enumerate(cases):
        lm, here = tiny(family), folder / str(i)
        cfg = replace(SOME, **changes)
        trained(lm, kind, here, replace(cfg, updates=2))
        assert is_sharded(lm)
        again = tiny(family)  # resumes from the saved state
        result = trained(again, kind, here, cfg)
        held = sum(own_part(p).numel() for p in again.parameters())
        assert held < 0.6 * sum(p.numel() for p in again.parameters())
        optimizer, weights = result.optimizer, weights_of(again.model)
        assert bool(optimizer) == bool(weights) == (rank == 0)
        if rank == 0:
            torch.save({"weights": weights, "optimizer": optimizer}, here / "result.pt")
        with evaluating(again):
            torch.save(read(again), here / f"logits.{rank}.pt")


@torch.no_grad()
def read(lm: LanguageModel) -> Tensor:
    """Logits, by another number of passes in each process."""
    for _ in range(2 * len(distributed.own(range(3)))):
        logits = lm.logits(batch())
    return logits


def checked(lm: LanguageModel) -> dict[str, float]:
    return {"align/value": read(lm).square().mean().item()}


@pytest.mark.slow
@pytest.mark.parametrize("cases", [SHORT, LONG])
def test_divided_weights_train_as_whole_ones(cases: Cases, tmp_path: Path):
    assert together(partial(train_parts, cases), tmp_path, FSDP) == [0, 0]
    for i, (family, kind, changes) in enumerate(cases):
        alone, here = tiny(family), tmp_path / str(i)
        result = trained(alone, kind, here / "alone", replace(SOME, **changes))
        found = torch.load(here / "result.pt")
        assert_close(found["optimizer"], result.optimizer, rtol=1e-3, atol=1e-5)
        assert found["weights"].keys() == alone.model.state_dict().keys()
        for name, expected in alone.model.named_parameters():
            # of keys' biases the gradient is 0, and what Adam makes of its rounding is no matter
            moment = result.optimizer.get(f"model.{name}|exp_avg_sq", torch.ones_like(expected))
            real = moment > 1e-10
            assert real.any()
            assert_close(
                found["weights"][name][real], expected.detach()[real], rtol=1e-4, atol=1e-5
            )
        with evaluating(alone):
            expected = read(alone)
        for rank in range(COUNT):
            assert_close(torch.load(here / f"logits.{rank}.pt"), expected, rtol=1e-3, atol=1e-4)
        assert close(logged(here / "fit"), logged(here / "alone" / "fit"))


def save_parts(rank: int, folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from pgtg.models.loading import save_language_model

    lm = tiny("t5")
    trained(lm, "logits", folder)
    words = models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="</s>")
    save_language_model(lm, tokenizer, folder / "saved")
    again, _ = load_language_model(str(folder / "saved"))
    with evaluating(lm), torch.no_grad():
        assert_close(again.logits(batch()), lm.logits(batch()))


@pytest.mark.slow
def test_what_is_saved_is_a_plain_folder(tmp_path: Path):
    assert together(save_parts, tmp_path, FSDP) == [0, 0]
    lm = tiny("t5")
    expected = {name for name, _ in lm.model.named_parameters()}  # tied weights once
    assert set(load_tensors(tmp_path / "saved" / "model.safetensors")) == expected


def diverge(rank: int, folder: Path) -> None:
    lm = tiny("t5")

    class OneIsNan(PerToken):
        def __call__(self, times: float, window: Window) -> Loss:
            return super().__call__(times * (float("nan") if times == 0.5 else 1), window)

    objective = OneIsNan(lm, "logits")
    with pytest.raises(DivergedError, match="the loss is nan"):
        trained(lm, "logits", folder, objective=objective)


def lose_one(rank: int, folder: Path) -> None:
    lm = tiny("t5")

    class Lost(PerToken):
        def __call__(self, times: float, window: Window) -> Loss:
            if rank:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(times, window)

    with pytest.raises(PeerLost, match="another process of this run has ended"):
        trained(lm, "logits", folder, objective=Lost(lm, "logits"))


@pytest.mark.slow
def test_what_happens_to_one_ends_all(tmp_path: Path):
    assert together(diverge, tmp_path, FSDP) == [0, 0]
    assert together(lose_one, tmp_path, FSDP) == [0, -signal.SIGKILL]


def test_a_launchers_settings_that_cannot_be_kept_are_refused(monkeypatch):
    assert distributed._asked_for() is None
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    assert distributed._asked_for() == Sharding(reshard=False)
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "full_shard")  # where nothing is said
    assert distributed._asked_for() == Sharding(reshard=True)
    settings = {
        "FSDP_RESHARD_AFTER_FORWARD": ("sideways", "expected true or false"),
        "FSDP_VERSION": ("1", "fsdp_version: found 1, expected 2"),
        "FSDP_OFFLOAD_PARAMS": ("true", "fsdp_offload_params: found true, expected false"),
        "FSDP_ACTIVATION_CHECKPOINTING": ("true", "improve.gradient_checkpointing=true"),
        "ACCELERATE_MIXED_PRECISION": ("bf16", "improve.precision=bf16"),
    }
    for name, (value, said) in settings.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ConfigError, match=said):
                distributed._asked_for()


def test_the_file_for_accelerate_asks_for_what_can_be_kept(monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file

    told: Any = load_config_from_file(str(CONF / "accelerate" / "fsdp2.yaml"))
    assert (told.distributed_type, told.mixed_precision) == ("FSDP", "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in told.fsdp_config.items():
        monkeypatch.setenv(name.upper(), str(value).lower())
    assert distributed._asked_for() == Sharding(reshard=True)


# --- whole runs, by the command line


@pytest.mark.slow
@pytest.mark.parametrize("task", ["summarize", "prompt"])
def test_a_run_on_divided_weights_ends_as_one_process(task: str, tmp_path: Path):
    runs = [started(task, tmp_path / "1", count=1)]
    runs.append(started(task, tmp_path / "2", told=FSDP))
    for code, said in [each for one in runs for each in ended(one)]:
        assert code == 0, said
    same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_a_stopped_run_on_divided_weights_goes_on_as_one_process(tmp_path: Path):
    """What was saved of weights and optimiser is whole."""
    run, more = tmp_path / "2", "reward.fit.checkpoint_every=0"
    children = started("summarize", run, more, told=FSDP)
    reached(run, "rounds/00/sample", children[0])
    for child in children:
        child.send_signal(signal.SIGTERM)
    assert [code for code, _ in ended(children)] == [143, 143]
    again = [started("summarize", each, more, count=1) for each in (run, tmp_path / "1")]
    for code, said in [each for children in again for each in ended(children)]:
        assert code == 0, said
    same(tmp_path / "1", run)


@pytest.mark.slow
def test_a_killed_process_ends_a_run_on_divided_weights(tmp_path: Path):
    run = tmp_path / "run"
    children = started("summarize", run, told=FSDP)
    reached(run, "rounds/00/.align.*.partial/state/manifest.json", children[0])
    children[1].send_signal(signal.SIGKILL)
    (code, said), lost = ended(children)
    assert (code, lost[0]) == (1, -signal.SIGKILL)
    assert said.count("error: another process of this run has ended") == 1
    assert [code for code, _ in ended(started("summarize", run, told=FSDP))] == [0, 0]
