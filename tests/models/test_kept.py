"""Kept texts give a head what the model gives it, up to bfloat16."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pgtg.errors import ConfigError
from pgtg.models import kept as module
from pgtg.models.batch import token_batch
from pgtg.models.kept import KeptModel, KeptTexts, head_on, read_texts
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, build_reward_model, randomize_head
from tests.support.tiny_models import build

SOURCES = [[5, 6, 7], [8], [9, 10]]
TOKENS = [[1, 2, 3, 4], [11], [3, 3], [12, 13, 1], [4, 5]]
ORIGIN = [0, 0, 2, 1, 2]


@pytest.fixture(params=["llama", "t5"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return build(request.param).eval()


def test_texts_are_read_as_one_by_one(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    found = read_texts(lm, SOURCES, TOKENS, ORIGIN)
    assert found.lengths.tolist() == [4, 1, 2, 3, 2]
    own = found.states.split([n + 1 for n in found.lengths.tolist()])
    probs, entropies = found.by_text(found.log_probs), found.by_text(found.entropies)
    for n, ids in enumerate(TOKENS):
        batch = token_batch([SOURCES[ORIGIN[n]]], [ids], [0])
        with torch.no_grad():
            states, log_p = lm.states(batch)[0], lm.logits(batch)[0].log_softmax(-1)
        assert_close(own[n], states.bfloat16(), rtol=1e-2, atol=1e-2)
        assert_close(probs[n], log_p[range(len(ids)), ids], rtol=1e-5, atol=1e-5)
        assert_close(entropies[n], -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(module, "PLACES", 1)  # a text at a time
    monkeypatch.setattr(module, "CACHED", 3)  # and some of its tokens
    again = read_texts(lm, SOURCES, TOKENS, ORIGIN)
    assert_close(again.log_probs, found.log_probs, rtol=1e-5, atol=1e-5)
    assert_close(again.entropies, found.entropies, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["paper", "linear", "state_action", "logprob"])
@pytest.mark.parametrize("places", [2, module.PLACES])  # a text at a time; all at once
def test_a_head_gives_the_same_rewards_on_kept_texts(
    head: str, places: int, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    """In another order of texts, padded, and of a part of them; so are gradients."""
    monkeypatch.setattr(module, "PLACES", places)
    spec, texts = HeadSpec(head, "softplus", 8), read_texts(lm, SOURCES, TOKENS, ORIGIN)
    whole = build_reward_model(lm, spec, 3)
    kept = head_on(KeptModel(texts, lm.model.get_input_embeddings(), "cpu"), spec, 3)
    for one, other in zip(whole.head.parameters(), kept.head.parameters(), strict=True):
        assert torch.equal(one, other)
    randomize_head(whole, 1)
    randomize_head(kept, 1)
    rows = [4, 0, 3]
    own = [TOKENS[row] for row in rows]
    by_model = token_batch([SOURCES[ORIGIN[row]] for row in rows], own, [0, 1, 2])
    by_number = token_batch([[row] for row in rows], own, [0, 1, 2])
    expected, found = whole(by_model), kept(by_number)
    tolerance = 1e-6 if head == "logprob" else 2e-2  # bfloat16 has 8 bits
    mask = by_model.mask
    assert_close(found[mask], expected[mask], rtol=tolerance, atol=tolerance)
    expected[mask].sum().backward()
    found[mask].sum().backward()
    for one, other in zip(whole.head.parameters(), kept.head.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        scale = one.grad.abs().max().item()
        assert_close(other.grad, one.grad, rtol=0.0, atol=2 * tolerance * scale)


def test_units_that_end_by_entropy_end_there_on_kept_texts(lm: LanguageModel):
    texts = read_texts(lm, SOURCES, TOKENS, ORIGIN)
    cut = texts.entropies.median().item() + 1e-4
    more: dict[str, Any] = {"granularity": "segment", "segments": "entropy", "segment_entropy": cut}
    spec, rows = HeadSpec("linear", "softplus", 8, **more), [3, 0, 4]
    whole = build_reward_model(lm, spec, 3, start=lm)
    kept = head_on(KeptModel(texts, lm.model.get_input_embeddings(), "cpu"), spec, 3)
    own = [TOKENS[row] for row in rows]
    by_model = token_batch([SOURCES[ORIGIN[row]] for row in rows], own, [0, 1, 2])
    by_number = token_batch([[row] for row in rows], own, [0, 1, 2])
    expected, found = (
        model.unit_rewards(batch).isnan()[by_model.mask]
        for model, batch in ((whole, by_model), (kept, by_number))
    )
    assert expected.any() and torch.equal(found, expected)


def test_parts_are_joined_in_their_order(lm: LanguageModel):
    whole = read_texts(lm, SOURCES, TOKENS, ORIGIN)
    parts = [read_texts(lm, SOURCES, TOKENS[a:b], ORIGIN[a:b]) for a, b in ((0, 2), (2, 5))]
    found = KeptTexts.joined(parts)
    assert found.lengths.tolist() == whole.lengths.tolist()
    assert_close(found.log_probs, whole.log_probs, rtol=1e-5, atol=1e-5)
    assert_close(found.states, whole.states, rtol=1e-2, atol=1e-2)


class Curious(nn.Module):
    """A head of somebody's own that reads what is not kept."""

    def __init__(self, asked: str):
        super().__init__()
        self.asked = asked

    def forward(self, lm, batch):
        return lm.logits(batch) if self.asked == "logits" else lm.model.config


@pytest.mark.parametrize("asked", ["logits", "model"])
def test_what_is_not_kept_is_said(asked: str, lm: LanguageModel):
    texts = read_texts(lm, SOURCES, TOKENS, ORIGIN)
    kept = KeptModel(texts, lm.model.get_input_embeddings(), "cpu")
    with pytest.raises(ConfigError, match=r"reward\.trained=all"):
        Curious(asked)(kept, token_batch([[0]], TOKENS[:1], [0]))


def test_only_the_head_is_trained(lm: LanguageModel):
    texts = read_texts(lm, SOURCES, TOKENS, ORIGIN)
    kept = KeptModel(texts, lm.model.get_input_embeddings(), "cpu")
    found = head_on(kept, HeadSpec("state_action", "softplus", 8), 0)
    trained = {name for name, p in found.named_parameters() if p.requires_grad}
    assert trained == {f"head.{name}" for name, _ in found.head.named_parameters()}
