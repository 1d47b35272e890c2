"""Linear layers in oneDNN: the definition in float64, and torch's own where that is the rule."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from pgtg.models.backends import linear as file
from pgtg.models.backends.layers import with_fast_layers
from pgtg.models.backends.linear import FastConv1D, FastLinear, linear
from tests.support.tiny_models import batch, build

has_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN"
)
CLOSE: dict[str, Any] = {
    "rtol": 1e-4,
    "atol": 1e-4,
}  # float32 sums of up to 2048 products of size 1


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU where oneDNN is the faster one, whatever the shape."""
    monkeypatch.setattr(file, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(file, "WORTHWHILE", 0)
    monkeypatch.setattr(file, "FEWEST_ROWS", 0)


def by_definition(x, weight, bias, grad):
    """The layer's output and gradients in float64, by plain sums of products."""
    x, weight, grad = x.double(), weight.double(), grad.double()
    out = torch.einsum("...i,oi->...o", x, weight)
    out = out if bias is None else out + bias.double()
    of_weight = torch.einsum("...o,...i->oi", grad, x)
    return out, torch.einsum("...o,oi->...i", grad, weight), of_weight, grad.flatten(0, -2).sum(0)


@has_onednn
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (2, 3, 4), (2, 300)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_output_and_gradients_are_the_definitions(onednn, shape: tuple[int, ...], with_bias: bool):
    torch.manual_seed(0)
    x = torch.randn(*shape, 33, requires_grad=True)
    weight = torch.randn(17, 33, requires_grad=True)
    bias = torch.randn(17, requires_grad=True) if with_bias else None
    grad = torch.randn(17, *shape).movedim(0, -1)  # not contiguous
    out = linear(x, weight, bias)
    out.backward(grad)
    expected = by_definition(
        x.detach(), weight.detach(), bias if bias is None else bias.detach(), grad
    )
    found = [out, x.grad, weight.grad, expected[3].float() if bias is None else bias.grad]
    for have, want in zip(found, expected, strict=True):
        assert_close(have, want.float(), **CLOSE)


@has_onednn
def test_only_what_is_trained_gets_a_gradient(onednn):
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8)
    linear(x, weight, None).sum().backward()
    assert_close(x.grad, weight.sum(0).expand(4, -1), **CLOSE)
    assert weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs_own_to_the_bit(onednn, dtype: torch.dtype):
    x, weight = torch.randn(40, 64).to(dtype), torch.randn(32, 64).to(dtype)
    assert torch.equal(linear(x, weight, None), functional.linear(x, weight))


def test_small_products_and_single_rows_are_torchs_own(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args):
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(file, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(file, "_product", refuse)
    for rows, inputs, outputs in [(64, 64, 64), (3, 2048, 2048)]:
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        assert torch.equal(linear(x, weight, None), functional.linear(x, weight))
    with pytest.raises(AssertionError, match="oneDNN"):
        linear(torch.randn(64, 512), torch.randn(512, 512), None)


@pytest.mark.parametrize("faster", [True, False])
def test_autocast_is_torchs_own(faster: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file, "onednn_is_faster", lambda: faster)
    monkeypatch.setattr(file, "WORTHWHILE", 0)
    x, weight = torch.randn(8, 16), torch.randn(4, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = linear(x, weight, None), functional.linear(x, weight)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_onednn_is_asked_for_a_product_before_it_is_taken(monkeypatch: pytest.MonkeyPatch):
    """On a CPU with AVX-512 that MKL leaves unused."""
    monkeypatch.delenv("PGTG_ONEDNN", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for vendor, multiplies in [("other", True), ("other", False), ("GenuineIntel", True)]:
        monkeypatch.setattr(file, "_vendor", lambda vendor=vendor: vendor)
        monkeypatch.setattr(file, "_onednn_multiplies", lambda answer=multiplies: answer)
        found = file.onednn_is_faster.__wrapped__()
        assert found == (multiplies and vendor == "other")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("outputs", [64, 65, 190])
def test_torchs_products_by_blocks_are_the_definitions(
    outputs: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(file, "onednn_is_faster", lambda: False)
    for name, value in {"WORTHWHILE": 0, "WIDE": 64, "BLOCK": 16}.items():
        monkeypatch.setattr(file, name, value)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(33, outputs, bias=with_bias), nn.Linear(outputs, 3))
    assert [type(part) for part in with_fast_layers(module)] == [FastLinear, nn.Linear]
    x = torch.randn(2, 7, 33)
    layer: Any = module[0]
    with torch.no_grad():
        found = layer(x)
    expected, *_ = by_definition(x, layer.weight.detach(), layer.bias, torch.zeros_like(found))
    assert_close(found, expected.float(), **CLOSE)
    calls: list[int] = []
    monkeypatch.setattr(file, "_by_blocks", lambda x, *rest: calls.append(len(x)) or found)
    layer(x)  # with gradients, too many rows or too few: torch's own
    with torch.no_grad():
        layer(torch.randn(file.MOST_ROWS + 1, 33))
        layer(torch.randn(file.FEWEST_ROWS - 1, 33))
    assert not calls


@has_onednn
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_model_says_and_learns_the_same_with_it(
    family: str, onednn, monkeypatch: pytest.MonkeyPatch
):
    fast = build(family)
    monkeypatch.setattr(file, "onednn_is_faster", lambda: False)
    plain = build(family)
    kinds = {type(part) for part in fast.modules()}
    assert {FastLinear if family == "t5" else FastConv1D} <= kinds
    assert not {FastLinear, FastConv1D} & {type(part) for part in plain.modules()}
    assert [*fast.state_dict()] == [*plain.state_dict()]
    for lm in (plain, fast):
        lm.logits(batch()).logsumexp(-1).sum().backward()
    assert_close(fast.logits(batch()), plain.logits(batch()), rtol=1e-4, atol=1e-4)
    for (name, have), want in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert_close(have.grad, want.grad, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_copies_and_unknown_layers_stay_what_they_are(onednn):
    class Own(nn.Linear):
        pass

    module = with_fast_layers(nn.Sequential(nn.Linear(4, 4), Own(4, 4), Conv1D(4, 4)))
    assert [type(part) for part in module] == [FastLinear, Own, FastConv1D]
    assert [type(part) for part in copy.deepcopy(module)] == [FastLinear, Own, FastConv1D]
    assert with_fast_layers(module) is module


def test_the_environment_leaves_all_products_to_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(file, "_vendor", lambda: "AuthenticAMD")
    for value, expected in {"0": False, "1": True, "": True}.items():
        monkeypatch.setenv("PGTG_ONEDNN", value)
        assert file.onednn_is_faster.__wrapped__() is expected


def test_what_others_have_changed_is_left_alone(onednn):
    """torch.compile's and PEFT's modules (by their marks), and a forward of the layer's own."""

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    compiled = nn.Module()
    compiled._orig_mod = layers()  # as torch.compile holds it
    with_fast_layers(compiled)
    assert not any(isinstance(part, FastLinear) for part in compiled.modules())
    adapted = nn.Module()
    adapted.base_layer, adapted.rest = nn.Linear(4, 4), layers()
    with_fast_layers(adapted)
    assert not any(isinstance(part, FastLinear) for part in adapted.modules())
    hooked = layers()
    own: Any = hooked[0]
    own.forward = lambda x: x
    assert [type(part) for part in with_fast_layers(hooked)] == [nn.Linear, FastLinear]


@has_onednn
def test_the_operator_is_taken_only_where_it_multiplies(monkeypatch: pytest.MonkeyPatch):
    assert file._onednn_multiplies()
    monkeypatch.setattr(file, "_product", lambda x, weight: x @ weight.T + 1)
    assert not file._onednn_multiplies()

    def gone(*args: Any) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(file, "_product", gone)
    assert not file._onednn_multiplies()
