"""Dropout on a CPU: the definition with the mask that was drawn, in float64."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from pgtg.models.backends import dropout as file
from pgtg.models.backends.dropout import OwnDropout, attention, dropout, threshold
from tests.support.tiny_models import batch, build

P = 0.3
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def mask_of(shape: tuple[int, ...], seed: int, p: float = P) -> torch.Tensor:
    """What is kept, divided by the probability that it is, as the next call draws it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        numbers = file.random_numbers(math.prod(shape))
    border, factor = threshold(p)
    return (numbers.int() < border).double().view(shape) * factor


@pytest.fixture(params=[1, 1000])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "CHUNK", 7)
    monkeypatch.setattr(file, "SCORES", request.param)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9])
def test_masks_keep_what_they_should(p: float):
    mask = mask_of((10**6,), 0, p)
    kept = (mask > 0).double()
    assert abs(kept.mean().item() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / 10**6) + 2**-16
    assert abs(mask.mean().item() - 1) < 6 * math.sqrt(p / (1 - p) / 10**6) + 1e-6
    # neighbours are independent of each other
    pairs = (kept[1:] * kept[:-1]).mean().item()
    assert abs(pairs - kept.mean().item() ** 2) < 6 / 10**3 * max(p, 1e-3)
    border, factor = threshold(p)
    assert (border + 2**15) / 2**16 * factor == pytest.approx(1, abs=1e-12)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4, 6)])
def test_dropout_is_the_mask_times_the_input(shape: tuple[int, ...]):
    torch.manual_seed(1)
    x = torch.randn(shape, requires_grad=True)
    grad = torch.randn(shape[::-1]).permute(tuple(reversed(range(len(shape)))))  # not contiguous
    torch.manual_seed(5)
    out = dropout(x, P)
    out.backward(grad)
    mask = mask_of(shape, 5)
    assert_close(out.double(), x.detach().double() * mask, **CLOSE)
    assert x.grad is not None
    assert_close(x.grad.double(), grad.double() * mask, **CLOSE)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("of_bias", [None, (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 4, 5), (1, 1, 1, 5)])
def test_attention_is_the_definition(of_bias: tuple[int, ...] | None):
    torch.manual_seed(2)
    parts = [torch.randn(2, n, 3, 6).transpose(1, 2).requires_grad_() for n in (4, 5, 5)]
    if of_bias is not None:
        parts.append(torch.randn(of_bias, requires_grad=True))
    bias = parts[3] if of_bias is not None else None
    torch.manual_seed(6)
    out = attention(parts[0], parts[1], parts[2], bias, P, 0.7)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, parts, grad)
    wide = [part.detach().double().requires_grad_() for part in parts]
    scores = 0.7 * wide[0] @ wide[1].transpose(2, 3)
    weights = (scores + wide[3] if of_bias is not None else scores).softmax(-1)
    expected = (weights * mask_of((2, 3, 4, 5), 6)) @ wide[2]
    assert_close(out.double(), expected.detach(), **CLOSE)
    for have, want in zip(found, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        assert_close(have.double(), want, **CLOSE)


@pytest.mark.parametrize("masked", ["no", "causal", "bool", "float"])
def test_torchs_calls_are_answered(masked: str, monkeypatch: pytest.MonkeyPatch):
    """Without what is random they are torch's own, so all that is passed on is understood."""
    monkeypatch.setattr(file, "threshold", lambda p: (2**15, 1.0))  # all are kept
    torch.manual_seed(3)
    query, key, value = torch.randn(3, 2, 3, 4, 6)
    seen = torch.rand(2, 1, 4, 4) > 0.5
    seen[..., 0] = True
    given: dict[str, Any] = {
        "no": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": seen},
        "float": {"attn_mask": torch.randn(1, 3, 4, 4), "scale": 1.0},
    }[masked]
    calls: list[str] = []
    plain = file.attention
    monkeypatch.setattr(file, "attention", lambda *a: calls.append("attention") or plain(*a))
    expected = functional.scaled_dot_product_attention(query, key, value, **given)
    with OwnDropout():
        found = functional.scaled_dot_product_attention(query, key, value, dropout_p=P, **given)
        assert torch.equal(nn.Dropout(P)(query), query)
        assert torch.equal(nn.Dropout(P).eval()(query), query)
    assert_close(found, expected)
    assert calls == ["attention"]


def test_what_is_not_meant_is_left_to_torch(monkeypatch: pytest.MonkeyPatch):
    for name in ("dropout", "attention"):
        monkeypatch.setattr(file, name, lambda *_, **__: pytest.fail("answered"))
    x = torch.randn(2, 3, 4, 6)
    nothing_seen = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    attend = functional.scaled_dot_product_attention
    with OwnDropout():
        functional.dropout(x.double(), P)
        functional.dropout(x, 0.0)
        functional.dropout(x, P, training=False)
        functional.dropout(x.clone(), P, inplace=True)
        attend(x, x, x)
        attend(x.double(), x.double(), x.double(), dropout_p=P)
        attend(x, x[:, :1], x[:, :1], dropout_p=P, enable_gqa=True)
        attend(x, x, x, attn_mask=torch.zeros(4, 4), dropout_p=P)
        with pytest.raises(RuntimeError, match="dtype"):  # torch refuses it
            attend(x, x, x, attn_mask=torch.zeros(1, 1, 4, 4).double(), dropout_p=P)
        out = attend(x, x, x, attn_mask=nothing_seen, dropout_p=P)
    assert torch.equal(out, torch.zeros_like(x))  # torch's rule for a query that sees nothing


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_training_drops_by_it_and_repeats_itself(family: str, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    for name in ("dropout", "attention"):
        plain = getattr(file, name)
        monkeypatch.setattr(file, name, lambda *a, n=name, f=plain: calls.append(n) or f(*a))
    lm = build(family)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return lm.logits(batch())

    sure = logits(0)
    assert not calls
    lm.train()
    found = [logits(seed).detach() for seed in (0, 1, 0)]
    assert set(calls) == {"dropout", "attention"}
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], sure)
