"""Layers by faster code say and learn what their formula says."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import T5Config, T5ForConditionalGeneration
from transformers.activations import FastGELUActivation, GELUActivation, NewGELUActivation

from pgtg.models.backends.layers import OneGELU, ReLU, with_fast_layers
from tests.support.tiny_models import build

SMALL: dict[str, Any] = {
    "vocab_size": 23,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


def t5(**sizes: Any) -> Any:
    return T5ForConditionalGeneration(T5Config(**SMALL | sizes))


@pytest.mark.parametrize("spelt_out", [NewGELUActivation, FastGELUActivation])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_in_one_pass_is_the_formula(spelt_out: type[nn.Module], dtype: torch.dtype):
    def by_definition(x: Tensor) -> Tensor:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = torch.linspace(-12, 12, 4001, dtype=dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    layer = with_fast_layers(spelt_out())
    assert type(layer) is OneGELU
    found, expected = layer(x), by_definition(exact)
    found.sum().backward()
    expected.sum().backward()
    assert x.grad is not None and exact.grad is not None
    bound = 2e-6 if dtype == torch.float32 else 2e-2
    close: dict[str, Any] = {"rtol": bound, "atol": bound}
    assert_close(found.double(), expected, **close)
    assert_close(x.grad.double(), exact.grad, **close)
    spelt = spelt_out()(x.detach())
    assert_close(found.detach(), spelt, **close)


def test_a_model_has_it_from_where_it_is_loaded():
    lm = build("gpt2")
    kinds = {type(part) for part in lm.modules()}
    assert OneGELU in kinds and NewGELUActivation not in kinds
    assert OneGELU in {type(part) for part in copy.deepcopy(lm).modules()}


@pytest.mark.parametrize("length", [1, 2, 7])
def test_relative_positions_are_laid_out_as_scores_are(length: int):
    """T5's encoder and decoder: the same values and gradients, and no copy for each layer."""
    plain = t5().eval()
    fast: Any = with_fast_layers(copy.deepcopy(plain))
    for stack in ("encoder", "decoder"):
        found = []
        for model in (plain, fast):
            attention = getattr(model, stack).block[0].layer[0].SelfAttention
            bias = attention.compute_bias(length, length)
            (bias * torch.arange(bias.numel()).view_as(bias)).sum().backward()
            found += [bias, attention.relative_attention_bias.weight.grad]
        assert found[2].is_contiguous() and found[2].shape == (1, 4, length, length)
        assert found[2].equal(found[0]) and found[3].equal(found[1])


@pytest.mark.parametrize("sizes", [{}, {"d_model": 256, "d_ff": 1024}], ids=["tiny", "onednn"])
def test_a_t5_says_and_learns_the_same(sizes: dict[str, int]):
    """In a larger one products may be oneDNN's, whose gradients allow no change in place."""
    plain = t5(**sizes).train()
    fast: Any = with_fast_layers(copy.deepcopy(plain))
    with_fast_layers(fast)  # once more changes nothing
    attention = fast.encoder.block[0].layer[0].SelfAttention
    assert len(attention.relative_attention_bias._forward_hooks) == 1
    assert sum(type(part) is ReLU for part in fast.modules()) == 4
    ids = torch.arange(2, 18).repeat(2, 2)
    for model in (plain, fast):
        torch.manual_seed(0)  # dropout
        model(input_ids=ids, labels=ids).loss.backward()
    for want, have in zip(plain.parameters(), fast.parameters(), strict=True):
        assert want.grad is not None and have.grad is not None
        assert_close(have.grad, want.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        one, other = (model.eval()(input_ids=ids, labels=ids).logits for model in (plain, fast))
    assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_relu_is_in_place_without_gradients_alone():
    relu, x = ReLU(), torch.tensor([-1.0, 2.0])
    assert relu(x).data_ptr() != x.data_ptr() and x[0] == -1
    with torch.no_grad():
        assert relu(x).data_ptr() == x.data_ptr() and x.tolist() == [0, 2]


def test_other_activations_and_changed_layers_are_left_alone():
    class Own(NewGELUActivation):
        pass

    hooked = NewGELUActivation()
    hooked.forward = lambda input: input
    module = with_fast_layers(nn.Sequential(GELUActivation(), nn.GELU(), Own(), hooked))
    assert [type(part) for part in module] == [GELUActivation, nn.GELU, Own, NewGELUActivation]
