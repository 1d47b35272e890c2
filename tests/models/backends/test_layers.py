"""Layers by faster code say and learn what their formula says."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.activations import FastGELUActivation, GELUActivation, NewGELUActivation

from pgtg.models.backends.layers import OneGELU, with_fast_layers
from tests.support.tiny_models import build


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


def test_other_activations_and_changed_layers_are_left_alone():
    class Own(NewGELUActivation):
        pass

    hooked = NewGELUActivation()
    hooked.forward = lambda input: input
    module = with_fast_layers(nn.Sequential(GELUActivation(), nn.GELU(), Own(), hooked))
    assert [type(part) for part in module] == [GELUActivation, nn.GELU, Own, NewGELUActivation]
