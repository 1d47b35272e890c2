"""Gradient checkpointing: the loss and gradients of the plain pass, from less memory."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from pgtg.errors import ConfigError
from pgtg.models.backends.checkpointing import checkpointable_layers
from pgtg.models.language import LanguageModel, training_passes
from pgtg.types import Loss, TokenBatch, Window
from tests.support.tiny_models import FAMILIES, batch, build
from tests.training.test_loop import CFG, logged, run

KINDS = ("logits", "states")


def loss(lm: LanguageModel, inputs: TokenBatch, kind: str) -> Tensor:
    """A value on which all of the real outputs bear."""
    if kind == "logits":
        return lm.logits(inputs).log_softmax(-1)[inputs.mask].square().mean()
    states = lm.states(inputs)[:, 1:][inputs.mask]
    return (states * states.detach().cos()).mean()


def without_dropout(lm: LanguageModel) -> None:
    part: Any
    for part in lm.modules():
        if type(part).__name__ == "Dropout":
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # of BART and OPT


def gradients(lm: LanguageModel, inputs: TokenBatch, kind: str, **how: Any) -> dict[str, Tensor]:
    """Of the loss, by parameter, with the loss itself; dropout from one seed."""
    lm.zero_grad()
    torch.manual_seed(3)
    with training_passes(lm, **how):
        value = loss(lm, inputs, kind)
        value.backward()
    found = {n: p.grad.clone() for n, p in lm.named_parameters() if p.grad is not None}
    return found | {"loss": value.detach()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_pass(family: str, kind: str, side: str):
    """In float64, so that little is rounding; Bloom's own masks overflow there."""
    dtype = torch.float32 if family == "bloom" else torch.float64
    lm, inputs = build(family).to(dtype), batch(sources_to=side)
    without_dropout(lm)  # the two passes would draw other masks
    lm.train()
    expected = gradients(lm, inputs, kind)
    found = gradients(lm, inputs, kind, checkpointing=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_dropout_is_drawn_again_as_it_was():
    """Gradients by central differences of the loss under the same masks."""
    lm = build("gpt2").double().train()
    inputs = batch()
    weight: Any = lm.model.get_input_embeddings().weight
    found = gradients(lm, inputs, "logits", checkpointing=True)["model.transformer.wte.weight"]
    step, place = 1e-5, (int(inputs.source[0, 0]), 1)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * step
        torch.manual_seed(3)
        with training_passes(lm, checkpointing=True):
            values.append(loss(lm, inputs, "logits").item())
        with torch.no_grad():
            weight[place] -= sign * step
    assert found[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_outside_and_without_gradients_nothing_changes():
    lm, inputs = build("t5"), batch()
    with torch.no_grad():
        expected = lm.logits(inputs)
        with training_passes(lm, precision="bf16", checkpointing=True):
            assert_close(lm.train().logits(inputs).shape, expected.shape)
            assert_close(lm.eval().logits(inputs), expected, rtol=0, atol=0)
    with training_passes(lm.eval(), checkpointing=True), torch.no_grad():
        assert_close(lm.logits(inputs), expected, rtol=0, atol=0)
    assert not any(layer.gradient_checkpointing for layer in checkpointable_layers(lm.model))


def test_a_model_without_such_layers_is_refused():
    lm: Any = build("gpt2")
    lm.model = torch.nn.Linear(2, 2)
    with (
        pytest.raises(ConfigError, match="Transformers' Linear has no layers for it"),
        training_passes(lm, checkpointing=True),
    ):
        pass


def peak(lm: LanguageModel, inputs: TokenBatch, **how: Any) -> int:
    """Most bytes that a pass and its gradients hold at once, apart from the weights."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        gradients(lm, inputs, "logits", **how)
    recorded: Any = profile.profiler
    events = recorded.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = torch.tensor([size for _, size in sorted(changes)]).cumsum(0)
    return int(held.max())


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
@pytest.mark.slow
def test_the_peak_of_memory_is_lower(kind: str):
    """Eight layers; four texts, each continuing its own source."""
    if kind == "t5":
        sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "num_heads": 4}
        sizes["decoder_start_token_id"] = 0
        config = T5Config(**sizes, d_ff=256, num_layers=8)
        lm = LanguageModel(T5ForConditionalGeneration(config))
    else:
        sizes = {"vocab_size": 64, "n_positions": 256, "n_embd": 64, "n_head": 4}
        lm = LanguageModel(GPT2LMHeadModel(GPT2Config(**sizes, n_layer=8)))
    ids = torch.randint(3, 60, (4, 96), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids).bool()
    inputs = TokenBatch(ids, real, ids, real, torch.arange(4))
    lm.train()
    plain, less = peak(lm, inputs), peak(lm, inputs, checkpointing=True)
    assert less < 0.5 * plain, (less, plain)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_mixed_precision_is_near_and_its_gradients_are_float32(
    family: str, checkpointing: bool, precision: str, dtype: torch.dtype
):
    """Products keep 8 (bf16) or 11 (fp16) bits, so the loss keeps some 1 %."""
    lm, inputs = build(family).train(), batch()
    without_dropout(lm)
    expected = gradients(lm, inputs, "logits")
    how: dict[str, Any] = {"precision": precision, "checkpointing": checkpointing}
    with training_passes(lm, **how):
        assert lm.logits(inputs).dtype == dtype
    found = gradients(lm, inputs, "logits", **how)
    assert_close(found["loss"].float(), expected["loss"], rtol=0.05, atol=0)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in lm.parameters())
    assert not torch.equal(found["loss"].float(), expected["loss"])


@dataclass(frozen=True)
class MeanSquare:
    """A loss of all logits, a mean over the window's sequences."""

    lm: LanguageModel

    def count(self, batch: TokenBatch) -> Window:
        return Window(len(batch.tokens), int(batch.mask.sum()))

    def __call__(self, batch: TokenBatch, window: Window) -> Loss:
        return Loss(self.lm.logits(batch).float()[batch.mask].square().sum() / window.tokens, {})


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"precision": "bf16"}])
def test_the_loop_trains_so(changes: dict[str, Any], tmp_path: Path):
    """Checkpointing gives the plain losses to 1e-5; bf16 others, within some 1 %; both end."""
    losses = []
    for name, cfg in {"plain": CFG, "changed": replace(CFG, **changes)}.items():
        lm = build("llama").train()
        options = {"objective": MeanSquare(lm), "windows": lambda step: [batch()]}
        run(lm, tmp_path / name / "fit", replace(cfg, lr=1e-3), **options)
        losses.append([line["align/loss"] for line in logged(tmp_path / name / "fit")])
        assert lm.autocast is None and not lm.checkpointing
    plain, changed = losses
    close = 1e-5 if "gradient_checkpointing" in changes else 0.03
    assert changed == pytest.approx(plain, rel=close)
    assert len(changed) == CFG.updates and (close < 0.01 or changed != plain)
