"""The frozen LM with its trained MLP, and the policy gradient on its own samples."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from pgtg.errors import ArtifactError
from pgtg.methods.objective import PolicyGradient, Sampled, sampled_log_probs
from pgtg.models.adaptor import (
    AdaptedLanguageModel,
    adapt,
    draw_prompts,
    load_adaptor,
    save_adaptor,
)
from pgtg.models.batch import token_batch
from pgtg.models.generate import Decoding, generate, streams
from pgtg.models.language import LanguageModel
from pgtg.ops.objectives import standardized
from pgtg.types import TokenBatch
from tests.support.tiny_models import build

ALLOWED = [3, 5, 8, 13, 21]
SAMPLING = Decoding(False, 4)


def lively(family: str = "gpt2", allowed: list[int] | None = None) -> AdaptedLanguageModel:
    """An adapted model whose MLP says something: at its start it is near zero."""
    lm = adapt(build(family), 16, seed=0, allowed=allowed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lm.adaptor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return lm


def head_of(lm: LanguageModel) -> Any:
    return lm.model.get_output_embeddings()


def sampled(lm: LanguageModel, n: int = 6) -> TokenBatch:
    ((_, tokens),) = generate(
        lm, [[1]], ["x"], k=n, eos_ids=[], decoding=SAMPLING, batch_tokens=999, seed_key=(0,)
    )
    return token_batch([[1]], tokens, [0] * n, "cpu")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_mlps_output_replaces_the_last_hidden_state(family: str):
    lm = lively(family)
    batch = sampled(lm)
    full = torch.cat([torch.ones(6, 1, dtype=torch.long), batch.tokens[:, :-1]], dim=1)
    hidden = lm.model.get_decoder()(input_ids=full).last_hidden_state
    expected = head_of(lm)(lm.adaptor(hidden))
    assert_close(lm.logits(batch), expected, rtol=1e-4, atol=1e-5)


def test_a_residual_adaptor_starts_from_the_language_model_itself():
    lm = build("gpt2")
    batch = sampled(lm)
    found = adapt(build("gpt2"), 16, seed=0, residual=True).logits(batch)
    assert_close(found, lm.logits(batch), rtol=1e-2, atol=2e-3)  # the MLP is near zero
    assert not torch.equal(found, lm.logits(batch))


def test_only_the_mlp_is_trained():
    lm = lively()
    lm.logits(sampled(lm)).sum().backward()
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    assert trained == {f"adaptor.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert all(p.grad is not None for p in lm.adaptor.parameters())


def test_only_allowed_tokens_are_drawn_and_share_the_probability():
    lm = lively(allowed=ALLOWED)
    batch = sampled(lm, 40)
    assert set(batch.tokens.flatten().tolist()) <= set(ALLOWED)
    chances = lm.logits(batch).softmax(-1)
    assert_close(chances[..., ALLOWED].sum(-1), torch.ones(40, 4))


def test_saved_and_put_back_it_is_the_same(tmp_path: Path):
    lm, other = lively(), adapt(build("gpt2"), 16, seed=7)
    save_adaptor(lm, tmp_path)
    load_adaptor(other, tmp_path)
    batch = sampled(lm)
    assert_close(other.logits(batch), lm.logits(batch), rtol=0, atol=0)
    assert {path.name for path in tmp_path.iterdir()} == {"adaptor.json", "adaptor.safetensors"}


def test_another_language_model_is_refused(tmp_path: Path):
    save_adaptor(lively(), tmp_path)
    with pytest.raises(ArtifactError, match=r"another language model.*policy\.path"):
        load_adaptor(adapt(build("gpt2", seed=3), 16, seed=0), tmp_path)


def test_an_encoder_decoder_is_refused():
    with pytest.raises(ArtifactError, match="causal"):
        adapt(build("t5"), 16, seed=0)


# --- the gradient: against finite differences of the enumerated objective

V, T, ALPHA = 6, 2, 0.3


def toy() -> tuple[AdaptedLanguageModel, Tensor]:
    """A policy over V tokens, and a reward for each pair of tokens at each of the two places."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=V, n_positions=4)
    lm = adapt(LanguageModel(GPT2LMHeadModel(config).double().eval()), 5, 0).double()
    with torch.no_grad():
        for parameter in lm.adaptor.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
        head_of(lm).weight.mul_(30)  # far from uniform
    return lm, torch.randn(T, V, V, dtype=torch.float64)


def everything() -> TokenBatch:
    rows = [list(pair) for pair in itertools.product(range(V), repeat=T)]
    return token_batch([[0]], rows, [0] * len(rows), "cpu")


def reward_of(rewards: Tensor, tokens: Tensor) -> Tensor:
    """r(s_t, a_t): of the first token alone, then of the second after the first."""
    first, second = tokens[:, 0], tokens[:, 1]
    return torch.stack([rewards[0, first, first], rewards[1, first, second]], dim=1)


def enumerated(
    lm: AdaptedLanguageModel, rewards: Tensor, visits: Tensor, top_k: int, target: float | None
) -> float:
    """(1/T) sum_t E_{s_t}[ sum_a pi(a|s_t) r(s_t, a) + alpha H(pi(.|s_t)) ], states as given, and
    no H above the target."""
    batch = everything()
    logits = lm.logits(batch)
    if top_k:
        border = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < border, -torch.inf)
    pi = logits.softmax(-1)
    entropy = -torch.xlogy(pi, pi).sum(-1)
    if target is not None:
        assert (entropy < target).any() and (entropy > target).any()
        entropy = torch.where(entropy < target, entropy, target)
    start = (pi[0, 0] * rewards[0].diagonal()).sum() + ALPHA * entropy[0, 0]
    after = (pi[::V, 1] * rewards[1]).sum(-1) + ALPHA * entropy[::V, 1]
    return ((start + (visits * after).sum()) / T).item()


@pytest.mark.parametrize(("top_k", "target"), [(0, None), (3, None), (0, 0.9), (3, 1.0)])
def test_the_estimators_mean_is_the_gradient_of_the_enumerated_objective(
    top_k: int, target: float | None
):
    """Each sequence's loss gradient, weighted by its probability, against finite differences."""
    lm, rewards = toy()
    decoding = Decoding(False, T, top_k=top_k)
    objective = PolicyGradient(lm, 0.0, ALPHA, decoding, target)
    batch = everything()
    with torch.no_grad():
        logits = lm.logits(batch)
        if top_k:
            border = logits.topk(top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < border, -torch.inf)
        log_pi = logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
    chance = log_pi.sum(-1).exp()
    first = log_pi[::V, 0].exp()  # probability of each state after one token
    weight: Tensor = lm.adaptor[2].bias  # type: ignore[assignment]
    found = torch.zeros_like(weight)
    for row in range(len(batch.tokens)):
        if chance[row] == 0:
            continue
        one = token_batch([[0]], [batch.tokens[row].tolist()], [0], "cpu")
        values = Sampled(one, reward_of(rewards, one.tokens), None)
        lm.zero_grad()
        objective(values, objective.count(values)).value.backward()
        assert weight.grad is not None
        found -= chance[row] * weight.grad
    step, expected = 1e-4, torch.zeros_like(weight)
    for i in range(len(weight)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[i] += sign * step
                ends.append(enumerated(lm, rewards, first, top_k, target))
                weight[i] -= sign * step
        expected[i] = (ends[0] - ends[1]) / (2 * step)
    assert expected.abs().max() > 0.01
    assert_close(found, expected, rtol=2e-3, atol=2e-4)  # logits are cut to float32


def test_standardized_advantages_have_mean_0_and_sd_1_over_real_tokens():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = standardized(torch.tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]]), mask)
    assert_close(found[mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(found[mask].std(unbiased=False), torch.tensor(1.0))
    assert found[~mask].tolist() == [0.0, 0.0, 0.0]
    assert standardized(torch.full((2, 3), 4.0), mask).abs().sum() == 0


def test_standardized_advantages_keep_their_differences_in_a_given_unit():
    """Nearly equal rewards stay nearly equal, where their own spread would make them large."""
    mask = torch.tensor([[True, True, False]])
    rewards = torch.tensor([[1.0, 1.02, 99.0]])
    assert_close(standardized(rewards, mask, 0.1), torch.tensor([[-0.1, 0.1, 0.0]]))
    assert_close(standardized(rewards, mask), torch.tensor([[-1.0, 1.0, 0.0]]))
    assert standardized(rewards, mask, 0.0).abs().sum() == 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("decoding", [SAMPLING, Decoding(False, 4, 0.7, 5, 0.9)])
def test_prompts_drawn_with_their_states_are_those_of_generate(family: str, decoding: Decoding):
    lm = lively(family, ALLOWED)
    options: dict[str, Any] = {"k": 6, "eos_ids": [], "decoding": decoding}
    ((_, expected),) = generate(lm, [[1, 2]], ["x"], **options, batch_tokens=999, seed_key=(0,))
    noise = streams(4, 6, (0,), ["x"])
    drawn = draw_prompts(lm, [1, 2], noise, decoding)
    assert drawn.tokens.tolist() == expected
    batch = token_batch([[1, 2]], expected, [0] * 6, "cpu")
    assert_close(drawn.states, lm.states(batch)[:, :-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("allowed", [None, ALLOWED])
@pytest.mark.parametrize(
    "decoding", [SAMPLING, Decoding(False, 4, 0.7, 7), Decoding(False, 4, 0.7, 7, 0.9)]
)
def test_what_drawing_computed_gives_the_same_loss_and_gradient(
    decoding: Decoding, allowed: list[int] | None, residual: bool
):
    lm = lively("gpt2", allowed)
    lm.residual = residual
    drawn = draw_prompts(lm, [1], streams(4, 6, (0,), ["x"]), decoding)
    assert (drawn.candidates is None) == (decoding.top_k == 0)
    batch = token_batch([[1]], drawn.tokens.tolist(), [0] * 6, "cpu")
    advantage = torch.linspace(-1, 1, batch.mask.numel()).view(batch.mask.shape)
    found = []
    for known in (None, drawn, replace(drawn, candidates=None)):
        lm.zero_grad()
        objective = PolicyGradient(lm, 0.1, 0.3, decoding)
        before = torch.full(batch.mask.shape, -2.0)
        values = Sampled(batch, advantage, before, known)
        value = objective(values, objective.count(values)).value
        value.backward()
        found.append([value.detach(), *(p.grad for p in lm.adaptor.parameters())])
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)


def test_a_token_at_the_border_of_the_nucleus_keeps_a_finite_loss():
    """Rounding may put a token that was drawn outside the nucleus when it is learned from."""
    lm, decoding = lively(), Decoding(False, 4, 1.0, 7, 0.5)
    drawn = draw_prompts(lm, [1], streams(4, 6, (0,), ["x"]), decoding)
    assert drawn.candidates is not None
    least = lm.speak(drawn.states, drawn.candidates).argmin(-1, keepdim=True)
    outside = replace(drawn, tokens=drawn.candidates.gather(-1, least).squeeze(-1))
    batch = token_batch([[1]], outside.tokens.tolist(), [0] * 6, "cpu")
    found = sampled_log_probs(lm, batch, decoding, outside)
    among = lm.speak(drawn.states, drawn.candidates).log_softmax(-1)
    assert_close(found, among.gather(-1, least).squeeze(-1))


SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
}
SCALED: dict[str, Any] = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=4.0, **SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(head_dim=4, final_logit_softcapping=2.0, query_pre_attn_scalar=4, **SIZES)
    ),
}


@pytest.mark.parametrize("family", SCALED)
def test_models_that_scale_or_bound_their_logits_speak_as_themselves(family: str):
    """A zero adaptor that is added to the state changes nothing; rows of tokens are picked."""
    torch.manual_seed(0)
    plain = LanguageModel(SCALED[family]().eval())
    lm = adapt(plain, 8, 0, residual=True)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        for parameter in lm.adaptor.parameters():
            parameter.zero_()
        expected = plain.model(input_ids=ids).logits[0]
        mask = torch.ones_like(ids).bool()
        assert_close(lm.prefill(ids, mask, logits=True).output[0, 0], expected[-1])
        states = plain.model.get_decoder()(input_ids=ids).last_hidden_state[0]
        assert_close(lm.speak(states), expected)
        some = torch.tensor([[3, 4], [5, 6], [22, 0]])
        assert_close(lm.speak(states, some), expected.gather(-1, some))
        assert_close(lm.speak(states[None], some[None])[0], expected.gather(-1, some))
    assert adapt(build("gpt2"), 8, 0)._bare and not lm._bare
