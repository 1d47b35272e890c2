"""Log-probabilities from states against their definition, log softmax of all logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import ProphetNetConfig, ProphetNetForCausalLM, ProphetNetForConditionalGeneration

from pgtg.models.adaptor import AdaptedLanguageModel
from pgtg.models.backends import chosen
from pgtg.models.backends.chosen import chosen_log_prob
from pgtg.models.language import LanguageModel, training_passes
from pgtg.models.structure import scaled_head
from pgtg.ops.sampling import log_probability
from tests.support.tiny_models import batch, build

ROWS, WIDTH, WORDS = 7, 5, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = 3 * torch.randn(ROWS, WIDTH, dtype=dtype, generator=generator)
    weight = torch.randn(WORDS, WIDTH, dtype=dtype, generator=generator)
    return states, weight, torch.tensor([0, 10, 3, 3, 7, 1, 0])


@pytest.fixture(params=[1, 3, 100], ids=["row by row", "in parts", "at once"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "CPU_BYTES", request.param * WORDS * 8)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(("states", "weight"), [(True, False), (False, True), (True, True)])
def test_gradients_by_finite_differences(states: bool, weight: bool):
    h, w, tokens = inputs()
    h.requires_grad_(states)
    w.requires_grad_(weight)
    assert torch.autograd.gradcheck(
        lambda h, w: chosen_log_prob(h, w, tokens, torch.float64), (h, w)
    )


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["float32", "bf16"]
)
def test_as_log_softmax_of_all_logits(dtype: torch.dtype, near: float, trained: bool):
    h, w, tokens = inputs(torch.float32)
    h.requires_grad_()
    w.requires_grad_(trained)
    wanted = [h, w] if trained else [h]
    factors = torch.linspace(-1, 2, ROWS)
    plain = (h @ w.t()).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    found = chosen_log_prob(h, w, tokens, dtype)
    assert found.dtype == torch.float32
    assert_close(found, plain, rtol=near, atol=5 * near)
    expected = torch.autograd.grad((plain * factors).sum(), wanted)
    given = torch.autograd.grad((found * factors).sum(), wanted)
    assert_close(given, expected, rtol=near, atol=5 * near)


def test_nothing_is_kept_where_nothing_is_trained():
    h, w, tokens = inputs(torch.float32)
    found = chosen_log_prob(h, w, tokens, torch.float32)
    assert not found.requires_grad
    assert_close(found, log_probability(h @ w.t(), tokens))


def test_without_gradients_no_array_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch):
    """Whatever the weights ask for elsewhere."""
    h, w, tokens = inputs(torch.float32)
    monkeypatch.setattr(chosen, "CPU_BYTES", 2 * WORDS * 4)
    rows, multiply = list[int](), chosen.multiply

    def noted(x: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(x))
        return multiply(x, weight)

    monkeypatch.setattr(chosen, "multiply", noted)
    with torch.no_grad():
        chosen_log_prob(h.requires_grad_(), w.requires_grad_(), tokens, torch.float32)
    assert rows == [2, 2, 2, 1]


def test_no_rows():
    h, w, tokens = inputs(torch.float32)
    found = chosen_log_prob(h[:0].requires_grad_(), w.requires_grad_(), tokens[:0], torch.float32)
    assert found.shape == (0,)
    found.sum().backward()
    assert w.grad is not None and not w.grad.any()


@pytest.mark.parametrize("family", ["t5", "bart", "llama", "gpt2"])
@pytest.mark.parametrize("frozen_head", [False, True])
def test_of_a_model_as_from_its_logits(family: str, frozen_head: bool):
    """Values, and gradients in all weights; T5's logits have a factor where weights are tied."""
    lm, one = build(family, 2), batch()
    assert lm._scaled_head() is not None
    if frozen_head:
        head_of(lm).requires_grad_(False)
    named = {name: p for name, p in lm.named_parameters() if p.requires_grad}

    def gradients(log_probs: Tensor) -> dict[str, Any]:
        value = (log_probs * torch.linspace(1, 2, log_probs.numel()).view_as(log_probs))[one.mask]
        found = torch.autograd.grad(value.sum(), list(named.values()), allow_unused=True)
        return dict(zip(named, found, strict=True))

    plain, found = log_probability(lm.logits(one).float(), one.tokens), lm.log_probabilities(one)
    assert_close(found[one.mask], plain[one.mask], rtol=1e-5, atol=1e-5)
    assert_close(gradients(found), gradients(plain), rtol=1e-4, atol=1e-5)


def test_products_are_of_the_type_that_passes_have():
    lm, one = build("llama", 2).train(), batch()
    with training_passes(lm, precision="bf16"):
        narrow = lm.log_probabilities(one)
        plain = log_probability(lm.logits(one).float(), one.tokens)
    assert torch.equal(narrow[one.mask], plain[one.mask])
    assert not torch.equal(narrow[one.mask], lm.log_probabilities(one)[one.mask])


def test_heads_that_are_more_than_a_product_give_their_own_logits():
    """A bias, a bound, an MLP between, a head of its own: by the logits, whatever they are."""
    wrapped, biased = build("llama", 2), build("llama", 2)
    wrapped.model.set_output_embeddings(torch.nn.Linear(16, 23))
    head = head_of(biased)
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, head.out_features))
    adapted = AdaptedLanguageModel(build("llama", 2).model, 8, residual=True)
    bounded = LanguageModel(_gemma2())
    for lm in (wrapped, biased, adapted, bounded):
        assert lm._scaled_head() is None
        one = batch()
        plain = log_probability(lm.logits(one).float(), one.tokens)
        assert torch.equal(lm.log_probabilities(one), plain)


@pytest.mark.parametrize("encoder", [False, True])
def test_a_head_that_reads_more_than_the_last_states_is_no_product(encoder: bool):
    """Of ProphetNet several states of a token, which the model asks its layers for by place."""
    config = ProphetNetConfig(
        vocab_size=23,
        hidden_size=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        is_decoder=not encoder,
        is_encoder_decoder=encoder,
    )
    family = ProphetNetForConditionalGeneration if encoder else ProphetNetForCausalLM
    assert scaled_head(family(config).eval(), 16) is None


def head_of(lm: LanguageModel) -> torch.nn.Linear:
    head = lm.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    return head


def _gemma2() -> Any:
    import transformers as tf

    config = tf.Gemma2Config(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        final_logit_softcapping=2.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return tf.Gemma2ForCausalLM(config).eval()
