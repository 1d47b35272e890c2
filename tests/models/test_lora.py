"""Low-rank adapters: what they change, what is trained, and how they are saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from pgtg.config import LoraConfig
from pgtg.errors import ArtifactError, ConfigError
from pgtg.models.language import LanguageModel
from pgtg.models.lora import (
    add_lora,
    has_lora,
    load_lora,
    merge_lora,
    save_lora,
    trained_weights,
)

RANK = 3
OPTIONS = LoraConfig(RANK, 6.0, 0.0)
KINDS = ("llama", "gpt2", "t5")


def model(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    made: Any
    if kind == "llama":
        sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
        sizes["num_hidden_layers"] = 2
        made = LlamaForCausalLM(
            LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=40, **sizes)
        )
    elif kind == "gpt2":
        ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1}
        made = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, **ends))
    else:
        made = T5ForConditionalGeneration(
            T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
        )
    return LanguageModel(made.eval())


def logits(lm: LanguageModel) -> torch.Tensor:
    ids = torch.tensor([[5, 7, 9, 11]])
    more = {"decoder_input_ids": ids} if lm.is_encoder_decoder else {}
    return lm.model(input_ids=ids, **more).logits.detach()


def changed(lm: LanguageModel) -> LanguageModel:
    """With adapters that do something."""
    add_lora(lm, OPTIONS, 1, "policy.lora")
    with torch.no_grad():
        for name, value in lm.model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.1)
    return lm


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(kind: str):
    lm, same = model(kind), model(kind)
    before, size = logits(lm), trained_weights(lm.model, RANK)
    add_lora(lm, OPTIONS, 1, "policy.lora")
    assert has_lora(lm) and not has_lora(model(kind))
    assert_close(logits(lm), before, rtol=1e-5, atol=1e-5)
    trained = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == size > 0
    add_lora(same, OPTIONS, 1, "policy.lora")
    pairs = zip(lm.model.parameters(), same.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)  # a function of the seed


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_w_plus_b_a(kind: str):
    lm = changed(model(kind))
    expected = logits(lm)
    assert not torch.allclose(expected, logits(model(kind)), atol=1e-3)
    merge_lora(lm)
    assert not has_lora(lm)
    assert_close(logits(lm), expected, rtol=1e-4, atol=1e-5)
    assert [n for n, _ in lm.model.named_parameters()] == [
        n for n, _ in model(kind).model.named_parameters()
    ]
    before = logits(lm)
    merge_lora(lm)  # none: no change
    assert torch.equal(logits(lm), before)


def test_a_layer_by_hand():
    lm = changed(model("llama"))
    layer: Any = lm.model.model.layers[0].self_attn.q_proj
    w, a, b = (
        layer.base_layer.weight.detach(),
        layer.lora_A["default"].weight.detach(),
        layer.lora_B["default"].weight.detach(),
    )
    x = torch.randn(2, 32)
    assert_close(layer(x).detach(), x @ (w + 6.0 / RANK * b @ a).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapters_come_back(kind: str, tmp_path: Path):
    lm = changed(model(kind))
    save_lora(lm, OPTIONS, "somewhere/model", tmp_path / "a")
    assert {p.name for p in (tmp_path / "a").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = model(kind)
    add_lora(again, OPTIONS, 2, "policy.lora")
    load_lora(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(lm))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_peft_itself_loads_them(tmp_path: Path):
    """On the same model, saved as a plain folder."""
    lm = model("llama")
    lm.model.save_pretrained(tmp_path / "base")
    expected = logits(changed(lm))
    save_lora(lm, OPTIONS, str(tmp_path / "base"), tmp_path / "a")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    found = PeftModel.from_pretrained(base, str(tmp_path / "a")).eval()
    assert_close(found(torch.tensor([[5, 7, 9, 11]])).logits.detach(), expected)


def test_adapters_of_another_model_or_rank_are_refused(tmp_path: Path):
    save_lora(changed(model("llama")), OPTIONS, "m", tmp_path / "a")
    for other, options in ((model("gpt2"), OPTIONS), (model("llama"), LoraConfig(4, 6.0))):
        add_lora(other, options, 1, "policy.lora")
        with pytest.raises(ArtifactError, match="of another model"):
            load_lora(other, tmp_path / "a")


def test_targets_that_are_not_there_are_one_line():
    with pytest.raises(ConfigError, match=r"policy.lora.targets: found query: "):
        add_lora(model("llama"), LoraConfig(2, 2.0, 0.0, "query"), 0, "policy.lora")
    lm = model("llama")
    add_lora(lm, LoraConfig(2, 2.0, 0.0, "q_proj,v_proj"), 0, "policy.lora")
    names = [n for n, p in lm.model.named_parameters() if p.requires_grad]
    assert len(names) == 8 and all("q_proj" in n or "v_proj" in n for n in names)
