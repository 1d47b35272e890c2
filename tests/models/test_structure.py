"""Models that neither cache, nor `hidden_size`, nor a bare LM head describe: read as exactly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

from pgtg.errors import ConfigError
from pgtg.models.language import LanguageModel
from pgtg.models.structure import layers_of, own_logits
from tests.models.test_language import CLOSE, GREEDY, sample
from tests.support.tiny_models import (
    COMMON,
    EOS,
    ORIGIN,
    SOURCES,
    TOKENS,
    VOCAB,
    alone,
    batch,
    build,
)

SMALL: dict[str, Any] = {**COMMON, "hidden_size": 16, "intermediate_size": 24}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}


def _mamba() -> Any:
    return tf.MambaForCausalLM(tf.MambaConfig(num_hidden_layers=2, state_size=4, **SMALL))


def _openai_gpt() -> Any:
    sizes: dict[str, Any] = {"n_positions": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**sizes, **COMMON))


def _lfm2() -> Any:
    kinds = ["conv", "full_attention"]
    return tf.Lfm2ForCausalLM(
        tf.Lfm2Config(
            num_hidden_layers=2, layer_types=kinds, rope_parameters=ROPE, **SMALL, **HEADS
        )
    )


ROPE = {"rope_type": "default", "rope_theta": 1e4}


def _recurrent_gemma() -> Any:
    sizes: dict[str, Any] = {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 8}
    return tf.RecurrentGemmaForCausalLM(tf.RecurrentGemmaConfig(**sizes, **SMALL, **HEADS))


def _opt_projected() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 8}
    more: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = tf.OPTConfig(max_position_embeddings=40, init_std=0.3, **sizes, **more, **COMMON)
    return tf.OPTForCausalLM(config)


def _bert2bert() -> Any:
    config = tf.BertConfig(num_hidden_layers=2, num_attention_heads=2, **SMALL)
    both: Any = tf.EncoderDecoderConfig.from_encoder_decoder_configs(config, config)
    both.decoder_start_token_id, both.pad_token_id, both.eos_token_id = 0, EOS, EOS
    return tf.EncoderDecoderModel(both)


def _granite() -> Any:
    options: dict[str, Any] = {"num_hidden_layers": 2, "logits_scaling": 4.0}
    return tf.GraniteForCausalLM(
        tf.GraniteConfig(**options, **SMALL, num_attention_heads=4, num_key_value_heads=2)
    )


REREAD: dict[str, Callable[[], Any]] = {
    "mamba": _mamba,
    "openai_gpt": _openai_gpt,
    "lfm2": _lfm2,
    "recurrent_gemma": _recurrent_gemma,
}
ODD = REREAD | {"opt_projected": _opt_projected, "bert2bert": _bert2bert, "granite": _granite}


def made(family: str) -> LanguageModel:
    torch.manual_seed(0)
    model = ODD[family]()
    with torch.no_grad():  # large enough that a wrong mask shows
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return LanguageModel(model.eval())


def test_which_models_are_read_again():
    assert {name for name in ODD if not made(name).structure.caches} == set(REREAD)
    assert all(build(name).structure.caches for name in ("t5", "bart", "gpt2", "llama", "bloom"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ODD)
def test_states_and_logits_equal_plain_forwards_of_each_sequence_alone(family: str, side: str):
    lm, inputs = made(family), batch(sources_to=side, fill=(5, EOS))
    with torch.no_grad():
        states, logits = lm.states(inputs), lm.logits(inputs)
    assert lm.width == states.shape[-1]
    for row, (tokens, origin) in enumerate(zip(TOKENS, ORIGIN, strict=True)):
        expected_states, expected_logits = alone(lm, SOURCES[origin], tokens)
        assert_close(logits[row, : len(tokens)], expected_logits, **CLOSE)
        if expected_states.shape[-1] == lm.width:  # OPT lists them before their projection
            assert_close(states[row, : len(tokens) + 1], expected_states, **CLOSE)


@pytest.mark.parametrize("family", ODD)
def test_greedy_equals_transformers_generate_and_batches_do_not_matter(family: str):
    lm = made(family)
    found = sample(lm, 10_000, k=1, decoding=GREEDY, eos_ids=[EOS])
    for i, source in enumerate(SOURCES):
        ids = torch.tensor([source])
        options = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": EOS}
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore
        new = out[0, 1 if lm.is_encoder_decoder else len(source) :].tolist()
        assert found[i] == [new]
    assert sample(lm, 10_000) == sample(lm, 1)


@pytest.mark.parametrize("family", ["mamba", "openai_gpt"])
def test_gradients_without_a_cache_equal_those_of_plain_forwards(family: str):
    lm, inputs = made(family).train(), batch(sources_to="left")
    for part in lm.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    picked = lm.logits(inputs).log_softmax(-1).gather(-1, inputs.tokens[..., None]).squeeze(-1)
    found = torch.autograd.grad(picked[inputs.mask].sum(), [*lm.parameters()])
    total = torch.zeros(())
    for tokens, origin in zip(TOKENS, ORIGIN, strict=True):
        ids = torch.tensor([SOURCES[origin] + tokens])
        logits = lm.model(input_ids=ids).logits[0, len(SOURCES[origin]) - 1 : -1]
        total = total + logits.log_softmax(-1)[range(len(tokens)), tokens].sum()
    for one, other in zip(found, torch.autograd.grad(total, [*lm.parameters()]), strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-4 * (other.abs().max().item() + 0.1))


@pytest.mark.parametrize("family", ["granite", "opt_projected", "mamba"])
def test_own_logits_are_the_models(family: str):
    model = made(family).model
    ids = torch.randint(0, VOCAB, (2, 5))
    with torch.no_grad():
        states = layers_of(model)(input_ids=ids)[0]
        assert_close(own_logits(model, states), model(input_ids=ids).logits)
    assert "forward" not in vars(layers_of(model))


def test_models_of_one_config_are_tried_once(monkeypatch: pytest.MonkeyPatch):
    from pgtg.models import structure as module

    tried: list[Any] = []
    original = module._tried
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module, "_tried", lambda model: tried.append(model) or original(model))
    first, again = build("gpt2"), build("gpt2", seed=1)
    build("gpt2", layers=1)
    assert len(tried) == 2 and first.structure == again.structure


def test_what_reads_no_text_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    model: Any = build("gpt2").model
    monkeypatch.setattr("pgtg.models.structure._known", {})  # a config does not say this
    model.transformer = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel does not read text .*another model$"):
        LanguageModel(model)
