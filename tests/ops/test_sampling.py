"""The sampled distribution: what is kept, what is drawn, its log-probability and entropy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pgtg.ops.sampling import (
    candidates,
    derive_seed,
    draw,
    entropy,
    log_probability,
    restrict,
    uniforms,
)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("top_k", [0, 1, 5, 20, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
def test_restriction_equals_transformers(temperature: float, top_k: int, top_p: float):
    """The same logits as Transformers' own warpers, in their order."""
    logits = 2 * torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(8, 1, dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, logits)  # type: ignore[arg-type]
    if top_k:
        expected = TopKLogitsWarper(top_k)(ids, expected)  # type: ignore[arg-type]
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)  # type: ignore[arg-type]
    found = restrict(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_ties_at_the_border_of_top_k_are_kept():
    kept = restrict(torch.tensor([1.0, 2.0, 1.0, 0.0]), top_k=2)
    assert kept.isfinite().tolist() == [True, True, True, False]


@pytest.mark.parametrize("top_k", [1, 4, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_candidates_are_what_restriction_leaves(top_k: int, top_p: float):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 20, generator=generator)
    logits[:, ::3] = -math.inf
    whole = restrict(logits, temperature=0.7, top_k=top_k, top_p=top_p)
    tokens, kept = candidates(logits, temperature=0.7, top_k=top_k, top_p=top_p)
    assert tokens.shape == (6, min(top_k, 20)) and (tokens.diff() > 0).all()
    assert_close(torch.full_like(whole, -math.inf).scatter(-1, tokens, kept), whole)
    uniform = torch.rand(6, generator=generator)
    chosen = tokens.gather(-1, draw(kept, uniform)[:, None]).squeeze(-1)
    assert chosen.tolist() == draw(whole, uniform).tolist()


def test_draw_has_exactly_the_distribution():
    """1000 evenly spaced numbers give each token exactly its thousandths, excluded ones none."""
    shares = torch.tensor([0.0, 0.100, 0.250, 0.0, 0.645, 0.005, 0.0])
    uniform = (torch.arange(1000, dtype=torch.double) + 0.5) / 1000
    tokens = draw(shares.log().expand(1000, 7), uniform)
    assert torch.bincount(tokens, minlength=7).tolist() == [0, 100, 250, 0, 645, 5, 0]


def test_draw_never_takes_an_excluded_token_at_the_ends():
    logits = torch.tensor([-math.inf, 0.3, -math.inf, 1.0, -math.inf]).expand(2, 5)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.double)
    assert draw(logits, ends).tolist() == [1, 3]


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.integers(0, 5), st.floats(0.1, 1.0), st.floats(-50, 50))
def test_log_probability_belongs_to_what_is_sampled(top_k: int, top_p: float, shift: float):
    """Adds up to 1 over the kept tokens, -inf elsewhere; a constant on the logits is nothing."""
    logits = torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    kept = restrict(logits, top_k=top_k, top_p=top_p)
    values = log_probability(kept.expand(6, 6), torch.arange(6))
    assert values.exp().sum().item() == pytest.approx(1.0)
    assert torch.equal(values.isfinite(), kept.isfinite())
    moved = log_probability(
        restrict(logits + shift, top_k=top_k, top_p=top_p).expand(6, 6), torch.arange(6)
    )
    assert_close(moved, values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("top_k", [0, 1, 3])
def test_entropy_and_its_gradient(top_k: int):
    """-sum p log p over the kept tokens; the gradient is that of finite differences, never NaN."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 6, dtype=torch.double, generator=generator).requires_grad_()
    expected = []
    for row in restrict(logits, top_k=top_k).softmax(-1).tolist():
        expected.append(-sum(p * math.log(p) for p in row if p > 0))
    found = entropy(restrict(logits, top_k=top_k))
    assert_close(found, torch.tensor(expected, dtype=torch.double), rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: entropy(restrict(x, top_k=top_k)), (logits,))
    found.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_streams_depend_on_their_key_alone():
    assert np.array_equal(uniforms(8, 1, "a", 2)[:5], uniforms(5, 1, "a", 2))
    keys = [(1, "a", 2), (1, "a", 3), (2, "a", 2), (1, "b", 2), (1, "a2"), ("1", "a", "2", "")]
    firsts = {uniforms(1, *key)[0] for key in keys}
    assert len(firsts) == len(keys)
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    many = np.concatenate([uniforms(50, 0, i) for i in range(200)])
    assert many.min() >= 0 and many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.012)  # four standard errors of 10,000 numbers
    assert all(0 <= derive_seed(i) < 2**63 for i in range(100))


def test_half_precision_logits_are_read_in_float32():
    assert restrict(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
