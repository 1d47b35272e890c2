"""policy.dropout=false: no pass in train mode depends on chance, whatever way a model drops."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

from pgtg.models.dropout import keep_layers, silence_dropout
from pgtg.models.language import LanguageModel
from tests.support.tiny_models import COMMON, batch, build

RATE = 0.4
ROW: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def _gpt_neo() -> Any:
    kinds: dict[str, Any] = {"attention_types": [[["global", "local"], 1]], "num_layers": 2}
    sizes: dict[str, Any] = {"hidden_size": 16, "num_heads": 2, "max_position_embeddings": 40}
    return tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(attention_dropout=RATE, resid_dropout=RATE, **kinds, **sizes, **COMMON)
    )


def _falcon() -> Any:
    rates: dict[str, Any] = {"hidden_dropout": RATE, "attention_dropout": RATE}
    return tf.FalconForCausalLM(tf.FalconConfig(**rates, **ROW, **COMMON))


def _bert() -> Any:
    rates: dict[str, Any] = {"hidden_dropout_prob": RATE, "attention_probs_dropout_prob": RATE}
    config = tf.BertConfig(is_decoder=True, intermediate_size=24, **rates, **ROW, **COMMON)
    return tf.BertLMHeadModel(config)


def _phi() -> Any:
    rates = {"resid_pdrop": RATE, "embd_pdrop": RATE, "attention_dropout": RATE}
    return tf.PhiForCausalLM(tf.PhiConfig(intermediate_size=24, **rates, **ROW, **COMMON))


OWN = {"gpt_neo": _gpt_neo, "falcon": _falcon, "bert": _bert, "phi": _phi}
FAMILIES = ("t5", "bart", "opt", "gpt2", "bloom", *OWN)


def dropping(family: str) -> Any:
    """A model of the family with every rate of its config far from 0."""
    if family in OWN:
        return OWN[family]()
    model: Any = build(family).model
    for name, value in vars(model.config).items():
        # whole layers that are left out leave holes in a cache: another matter
        if "drop" in name and "layerdrop" not in name and isinstance(value, float):
            setattr(model.config, name, RATE)
    return type(model)(model.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_train_mode_gives_the_same_logits_under_two_seeds(family: str):
    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return lm.logits(inputs)

    torch.manual_seed(0)
    model, inputs = dropping(family), batch()
    lm = LanguageModel(model).train()
    assert not torch.equal(logits(1), logits(2)), "it drops"
    rates = {k: v for k, v in model.config.to_dict().items() if "drop" in k}
    silence_dropout(model)
    assert torch.equal(logits(1), logits(2))
    lm.eval()
    real = inputs.mask
    assert_close(lm.train().logits(inputs)[real], lm.eval().logits(inputs)[real])
    assert {k: v for k, v in model.config.to_dict().items() if "drop" in k} == rates


def test_no_layer_is_left_out_whatever_the_config_says():
    """In train mode OPT may skip a whole layer; a model that was loaded here never does."""
    config = tf.OPTConfig(layerdrop=1.0, dropout=0.0, ffn_dim=24, **ROW, **COMMON)
    model: Any = tf.OPTForCausalLM(config)
    inputs = batch()
    lm = LanguageModel(model)
    expected = lm.eval().logits(inputs)[inputs.mask]
    assert not torch.equal(lm.train().logits(inputs)[inputs.mask], expected), "it skips both"
    keep_layers(model)
    assert_close(lm.train().logits(inputs)[inputs.mask], expected)
    assert model.config.layerdrop == 1.0  # as saved


def test_routers_of_experts_have_no_noise_when_dropout_is_off():
    sizes: dict[str, Any] = {"intermediate_size": 24, "num_key_value_heads": 2}
    experts: dict[str, Any] = {"num_local_experts": 2, "router_jitter_noise": RATE}
    model: Any = tf.MixtralForCausalLM(tf.MixtralConfig(**sizes, **experts, **ROW, **COMMON))
    silence_dropout(model)
    lm, inputs = LanguageModel(model), batch()
    real = inputs.mask
    assert_close(lm.train().logits(inputs)[real], lm.eval().logits(inputs)[real])


def test_a_rate_that_scales_in_eval_mode_stays():
    """NLLB-MoE's, by which experts' outputs are scaled where nothing is dropped."""
    model: Any = build("gpt2").model
    model.transformer.moe_token_dropout = RATE
    silence_dropout(model)
    assert model.transformer.moe_token_dropout == RATE
