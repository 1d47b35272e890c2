"""Attention of few queries by two products: the formula, and where it is taken."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pgtg.models.backends import attention
from pgtg.models.backends.attention import FEW, by_products, few_queries, in_columns
from pgtg.models.generate import Decoding, generate
from pgtg.ops.masking import pad
from tests.support.cases import some
from tests.support.tiny_models import EOS, FAMILIES, SOURCES, build

B, S, D = 3, 7, 4
ADDED = ["nothing", "numbers", "numbers of each head", "truth values", "both"]


def drawn(heads: int, groups: int, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(B, heads, number, D, generator=draw)
    key, value = (torch.randn(B, groups, S, D, generator=draw) for _ in range(2))
    return query, key, value


def addends(kind: str, heads: int, number: int) -> list[torch.Tensor | None]:
    draw = torch.Generator().manual_seed(1)
    truth = torch.rand(B, 1, number, S, generator=draw) < 0.6
    truth[..., 0] = True
    numbers = torch.randn(B, 1, number, S, generator=draw)
    of_heads = torch.randn(1, heads, number, S, generator=draw)
    return {
        "nothing": [None, None],
        "numbers": [numbers, None],
        "numbers of each head": [None, of_heads],
        "truth values": [truth, None],
        "both": [truth, of_heads],
    }[kind]


@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (6, 2), (1, 1)])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_it_is_the_formula(kind: str, heads: int, groups: int, number: int, scale: float | None):
    query, key, value = drawn(heads, groups, number)
    added = addends(kind, heads, number)
    whole = torch.zeros(B, heads, number, S)
    for part in added:
        if part is not None:
            whole = (
                whole.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else whole + part
            )
    every = heads // groups
    wanted = functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(every, 1),
        value.repeat_interleave(every, 1),
        attn_mask=whole,
        scale=scale,
    )
    assert_close(by_products(query, key, value, added, scale=scale), wanted)
    columns = in_columns(value)
    assert torch.equal(columns, value) and columns.stride(2) == 1
    assert_close(by_products(query, key, columns, added, scale=scale), wanted)


@pytest.mark.parametrize("biased", [False, True])
def test_a_query_that_sees_nothing_gets_what_the_kernel_gives_it(biased: bool):
    parts, nothing = drawn(2, 2, 1), torch.zeros(B, 1, 1, S, dtype=torch.bool)
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 1
    bias = torch.randn(1, 2, 1, S) if biased else None

    def attended() -> torch.Tensor:
        attend = ALL_ATTENTION_FUNCTIONS[attention.NAME]
        return attend(module, *parts, nothing, position_bias=bias)[0]

    wanted = attended()
    with few_queries():
        assert_close(attended(), wanted)
    assert wanted.any() == biased


class Called:
    """Transformers' kernel, counted."""

    def __init__(self) -> None:
        self.usual, self.number = ALL_ATTENTION_FUNCTIONS[attention.NAME], 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.number += 1
        return self.usual(*args, **options)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Called:
    called = Called()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, attention.NAME, called)
    return called


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, False),
        ({"number": FEW + 1}, True),
        ({"heads": 8, "groups": 2}, True),
        ({"dtype": torch.float64}, True),
        ({"grad": True}, True),
        ({"dropout": 0.1}, True),
        ({"mask": None}, True),  # and so each query sees the keys up to its own place
        ({"mask": None, "number": 1}, False),
        ({"mask": None, "is_causal": False}, False),
        ({"strided": True}, True),
    ],
)
def test_all_else_is_left_to_the_kernel(change: dict[str, Any], left: bool, kernel: Called):
    told = {"heads": 2, "groups": 2, "number": 2, "dtype": torch.float32, "grad": False} | change
    heads, number = told["heads"], told["number"]
    parts = [part.to(told["dtype"]) for part in drawn(heads, told["groups"], number)]
    if told.get("strided"):
        parts[1] = parts[1].transpose(1, 2).contiguous().transpose(1, 2)
    parts[0].requires_grad_(told["grad"])
    mask = told.get("mask", torch.ones(B, 1, number, S, dtype=torch.bool))
    options = {k: v for k, v in told.items() if k in ("dropout", "is_causal")}
    module: Any = torch.nn.Module()
    module.num_key_value_groups = heads // told["groups"]

    def attended() -> torch.Tensor:
        torch.manual_seed(0)
        return ALL_ATTENTION_FUNCTIONS[attention.NAME](module, *parts, mask, **options)[0]

    wanted, before = attended(), kernel.number
    with few_queries():
        found = attended()
    assert kernel.number - before == left
    assert_close(found, wanted)
    assert ALL_ATTENTION_FUNCTIONS[attention.NAME] is kernel


def test_what_the_kernel_refuses_stays_refused(kernel: Called):
    parts = drawn(2, 2, 1)
    with few_queries(), pytest.raises(ValueError, match="softcap"):
        ALL_ATTENTION_FUNCTIONS[attention.NAME](torch.nn.Module(), *parts, None, softcap=5.0)


@pytest.mark.parametrize("family", some(FAMILIES, "t5", "bart", "gpt2", "llama"))
@pytest.mark.parametrize("k", [3, 4])
def test_decoding_takes_it_and_says_the_same(
    family: str, k: int, kernel: Called, monkeypatch: pytest.MonkeyPatch
):
    lm = build(family)
    decoding = Decoding(False, 12, temperature=0.8, top_k=12)
    options: dict[str, Any] = {"eos_ids": [EOS, 4], "decoding": decoding, "seed_key": (1,)}

    def sampled() -> tuple[dict[int, list[list[int]]], int]:
        before = kernel.number
        found = dict(generate(lm, SOURCES, ["a", "b", "c"], k=k, batch_tokens=10**4, **options))
        return found, kernel.number - before

    found, calls = sampled()
    monkeypatch.setattr(attention, "FEW", 0)
    wanted, usual = sampled()
    assert found == wanted
    assert calls < usual or (family == "bloom" and not usual)  # whose attention is its own code


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize(
    ("k", "change", "laid"),
    [
        (FEW, {}, True),
        (FEW + 1, {}, False),
        (1, {"bf16": True}, False),
        (1, {"eager": True}, False),
    ],
)
def test_values_are_in_columns_only_where_products_read_them(
    family: str, k: int, change: dict[str, bool], laid: bool
):
    """torch's kernel reads columns in twice the time."""
    lm = build(family)
    if change.get("bf16"):
        lm = lm.to(torch.bfloat16)
    if change.get("eager"):
        lm.model.set_attn_implementation("eager")
    with torch.no_grad():
        rows = [source for source in range(len(SOURCES)) for _ in range(k)]
        reading = lm.prefill(*pad(SOURCES), logits=True).select(rows)
    lm.lay_out_for_few_queries(reading)
    values = [layer.values for layer in reading.cache.cross_attention_cache.layers]
    assert values and all((part.stride(2) == 1) == laid for part in values)
