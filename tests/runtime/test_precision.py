"""Passes without gradients: their type, what it changes, and how many tokens a batch holds."""

from typing import Any

import pytest
import torch

from pgtg.config import BATCH_TOKENS
from pgtg.config.registry import HEADS
from pgtg.errors import ConfigError
from pgtg.models import budget
from pgtg.models.batch import token_batch
from pgtg.models.budget import token_budget
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import evaluating, reading_passes
from pgtg.models.reward import HeadSpec, build_reward_model
from pgtg.ops.sampling import log_probability
from pgtg.runtime import precision
from pgtg.runtime.precision import as_read, judge_dtype, read_dtype
from tests.support.precisions import products
from tests.support.sim_device import NAME
from tests.support.tiny_models import FAMILIES, SOURCES, build

CPU = torch.device("cpu")


def test_auto_narrows_on_gpus_with_bf16_alone(monkeypatch: pytest.MonkeyPatch):
    for device in (CPU, torch.device(NAME)):
        assert read_dtype("auto", device) is None and judge_dtype("auto", device) == "float32"
    assert read_dtype("no", CPU) is None and read_dtype("bf16", CPU) == torch.bfloat16
    monkeypatch.setattr(precision, "computes_bf16", lambda device: True)
    assert read_dtype("auto", CPU) == torch.bfloat16 and read_dtype("no", CPU) is None
    assert judge_dtype("auto", CPU) == "bfloat16" and judge_dtype("float32", CPU) == "float32"
    with pytest.raises(ConfigError, match="precision: found 'half'"):
        read_dtype("half", CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learner_and_a_sampler_in_bf16_nearly_agree_on_what_was_sampled(family: str):
    """The sampler gives tokens; what they are worth the learner says, in float32 [nats].

    bf16 has 8 bits: logits of size 10 are known to 0.04 in the last step alone, and each of some
    ten steps before adds as much to states that these wide random weights spread.
    """
    learner, sampler = build(family), build(family)
    as_read(sampler, torch.bfloat16)
    assert {p.dtype for p in sampler.parameters()} == {torch.bfloat16}
    decoding = Decoding(False, 9)
    options: dict[str, Any] = {"k": 4, "eos_ids": [], "seed_key": (1,), "batch_tokens": "auto"}
    found = dict(generate(sampler, SOURCES, ["a", "b", "c"], decoding=decoding, **options))
    rows = [(i, tokens) for i, each in found.items() for tokens in each]
    batch = token_batch(SOURCES, [tokens for _, tokens in rows], [i for i, _ in rows])
    with torch.no_grad():
        exact, narrow = (
            log_probability(lm.logits(batch).float(), batch.tokens) for lm in (learner, sampler)
        )
    assert exact.dtype == narrow.dtype == torch.float32
    gap = (exact - narrow).abs()
    assert 0 < gap.mean() < 0.05 and gap.max() < 0.5, gap
    assert (exact - narrow).mean().abs() < 0.03  # and none of them is favoured


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_in_training_is_read_narrowly_and_keeps_its_weights(family: str):
    lm = build(family).train()
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    batch = token_batch(SOURCES, [[3, 9], [4], [5, 6, 7]], [0, 1, 2])
    options: dict[str, Any] = {"k": 2, "eos_ids": [], "seed_key": (1,), "batch_tokens": "auto"}
    found, dtypes = {}, products(lm)
    for name, dtype in (("plain", None), ("narrow", torch.bfloat16)):
        with reading_passes(lm, dtype):
            assert not lm.training
            found[name] = lm.logits(batch)
            list(generate(lm, SOURCES, ["a", "b", "c"], decoding=Decoding(False, 9), **options))
        assert lm.training
        assert set(dtypes) == {dtype or torch.float32}
        dtypes.clear()
    with evaluating(lm), torch.no_grad():
        exact = lm.logits(batch)
    assert torch.equal(found["plain"], exact)  # to the bit
    gap = (found["narrow"].float() - exact)[batch.mask].abs()
    assert 0 < gap.mean() < 0.05
    for name, parameter in lm.named_parameters():
        assert parameter.requires_grad and torch.equal(parameter, before[name])


def test_weights_that_are_narrow_are_read_as_they_are():
    """Also a learner's of its own; autocast would widen some of its steps."""
    for dtype, narrowed in ((None, False), (torch.bfloat16, True)):
        lm = build("t5")
        as_read(lm, dtype)
        with reading_passes(lm, torch.bfloat16):
            assert torch.is_autocast_enabled("cpu") is not narrowed


@pytest.mark.parametrize("head", HEADS)
def test_a_reward_models_head_stays_in_float32(head: str):
    model = build_reward_model(build("t5"), HeadSpec(head, "softplus", 8), 0).eval()
    batch = token_batch(SOURCES, [[3, 9], [4], [5, 6, 7]], [0, 1, 2])
    with torch.no_grad():
        exact = model(batch)
        for lm in model.language_models:  # some heads have a reference model besides
            as_read(lm, torch.bfloat16)
        narrow = model(batch)
    assert {p.dtype for p in model.head.parameters()} <= {torch.float32}
    assert narrow.dtype == torch.float32
    assert (exact - narrow)[batch.mask].abs().max() < 0.1


def test_a_budget_is_the_number_asked_for_or_what_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
):
    lm = build("t5")
    assert token_budget(123, lm) == token_budget(123) == 123
    assert token_budget("auto", lm) == token_budget("auto") == BATCH_TOKENS
    monkeypatch.setattr(budget, "free_bytes", lambda device: 10**9)
    whole = token_budget("auto", lm)
    # t5: keys and values of 2 layers with 2 heads of 8, activations, scores, a share of logits
    a_token = 4 * (2 * 2 * 2 * 8 + 8 * 16 + 3 * 24 + 3 * 2 * 1024) + 6 * 4 * 23 // 64
    assert whole == int(0.5e9 / a_token)
    as_read(lm, torch.bfloat16)
    assert 1.9 * whole < token_budget("auto", lm) < 2.1 * whole
    assert token_budget("auto") == BATCH_TOKENS  # rows with all of their logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deeper_model_leaves_room_for_fewer_tokens(family: str):
    sizes = [budget.bytes_per_token(build(family, layers)) for layers in (1, 2, 3)]
    assert (
        sizes[2] - sizes[1] == sizes[1] - sizes[0] == 4 * 2 * 16 // (2 if family == "llama" else 1)
    )


def test_the_probe_compares_products():
    assert 0 < precision.bf16_speed(CPU) < 1000
