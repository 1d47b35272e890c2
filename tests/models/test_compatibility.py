"""Where model, tokenizer and run do not fit: one line before anything is written."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from pgtg.doctor import Surroundings, needs
from pgtg.errors import ConfigError, MissingResourceError
from pgtg.models.compatibility import Misfit, Use, misfits, unmoved, uses
from pgtg.models.frozen import KeptStates
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model, save_language_model
from pgtg.models.structure import layers_of, positions
from pgtg.runs.folder import load_tensors, save_tensors
from tests.cli.test_main import pgtg
from tests.doctor.test_doctor import around, config  # noqa: F401 (a fixture)
from tests.models.test_codec import WORDS, codec

V = len(WORDS)
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, **IDS}
BART: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
    **IDS,
}
OPT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ROW: dict[str, Any] = {**OPT, "intermediate_size": 16}
T5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def gpt2(vocab: int = V, **more: Any) -> Any:
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=vocab, **{**GPT2, **more}))


def llama() -> Any:
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(vocab_size=V, **ROW, max_position_embeddings=32, num_key_value_heads=2)
    )


def bart(**more: Any) -> Any:
    return tf.BartForConditionalGeneration(tf.BartConfig(vocab_size=V, **{**BART, **more}))


def opt() -> Any:
    config = tf.OPTConfig(vocab_size=V, ffn_dim=16, max_position_embeddings=32, **OPT, **IDS)
    return tf.OPTForCausalLM(config)


def t5() -> Any:
    return tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=V, **T5))


def saved(folder: Path, model: Any, family: str | None = "gpt2", **options: Any) -> str:
    model.save_pretrained(folder)
    if family is not None:
        codec(family, **options).tokenizer.save_pretrained(folder)
    return str(folder)


def use(path: str, **more: Any) -> Use:
    asked = Use("policy.path", path, None, None, 20, 12, True, None, (), (1e-3, "float32"))
    return replace(asked, **more)


def only(found: list[Misfit]) -> str:
    (one,) = found
    assert "\n" not in str(one)
    return str(one)


@pytest.mark.parametrize(
    ("build", "family"), [(gpt2, "gpt2"), (llama, "llama"), (bart, "bart"), (opt, "bart")]
)
def test_what_fits_is_left_in_peace(build: Callable[[], Any], family: str, tmp_path: Path):
    assert misfits(use(saved(tmp_path, build(), family))) == []


def test_a_folder_without_tokenizer(tmp_path: Path):
    """Transformers 5 makes up an empty one, GPT-2's with one token and T5's with 104."""
    for build in (gpt2, t5):
        path = saved(tmp_path / build.__name__, build(), None)
        assert "no tokens but special ones" in only(misfits(use(path)))
        with pytest.raises(ConfigError, match="no tokens but special ones"):
            load_language_model(path)


def test_tokens_without_embeddings(tmp_path: Path):
    path = saved(tmp_path, gpt2(V - 1))
    fix = f"has {V} tokens, its embeddings have {V - 1} rows: call model.resize_token_embeddings"
    assert fix in only(misfits(use(path)))


def test_no_end_and_no_start(tmp_path: Path):
    endless = saved(tmp_path / "a", gpt2(eos_token_id=None), specials={"eos_token": None})
    assert "end token: set eos_token in" in only(misfits(use(endless)))
    assert misfits(use(endless, writes=False)) == []
    startless = saved(tmp_path / "b", bart(decoder_start_token_id=None), "bart")
    assert "without decoder_start_token_id: set it in" in only(misfits(use(startless)))


@pytest.mark.parametrize(
    ("build", "limit"), [(gpt2, 32), (opt, 32), (llama, None), (t5, None), (bart, 32)]
)
def test_positions_are_those_that_can_be_read(build: Callable[[], Any], limit: int | None):
    model = build()
    stack = layers_of(model)
    assert positions(stack) == limit
    if limit is None or model.config.is_encoder_decoder:
        return
    ids = torch.ones(1, limit + 1, dtype=torch.long)
    model(input_ids=ids[:, :-1])
    with pytest.raises(IndexError):
        model(input_ids=ids)


def test_a_reward_model_reads_the_policys_tokens(tmp_path: Path):
    policy = (saved(tmp_path / "policy", gpt2()), None)
    reader = {"key": "reward.path", "writes": False, "reads_of": policy}
    assert misfits(use(policy[0], **reader)) == []
    other = saved(tmp_path / "other", gpt2())
    words = json.loads((tmp_path / "other/tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    first, last = list(vocab)[-2:]
    vocab[first], vocab[last] = vocab[last], vocab[first]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(words))
    (found,) = misfits(use(other, **reader))
    assert found.fatal and "reward.path=" in found.text and "other tokens than" in found.text
    found = misfits(use(saved(tmp_path / "t5", t5(), "t5"), **reader))
    assert any(one.fatal and "both be encoder-decoders" in one.text for one in found)


def test_tokens_that_only_the_config_knows(tmp_path: Path):
    """As a config's defaults name them: GPT-2's end of text, of 50,257 tokens."""
    model = t5()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 999
    found = misfits(use(saved(tmp_path / "t5", model, "t5")))
    assert any(f"decoder_start_token_id=999, its embeddings have {V}" in one.text for one in found)
    model = gpt2()
    model.config.eos_token_id = model.generation_config.eos_token_id = 50256
    assert misfits(use(saved(tmp_path / "gpt2", model))) == []  # the tokenizer's own counts
    ends = json.loads((tmp_path / "gpt2/tokenizer_config.json").read_text())
    del ends["eos_token"]
    (tmp_path / "gpt2/tokenizer_config.json").write_text(json.dumps(ends))
    assert "eos_token_id=50256" in misfits(use(str(tmp_path / "gpt2")))[0].text


def test_more_layers_than_there_are(tmp_path: Path):
    path = saved(tmp_path, gpt2())
    assert misfits(use(path, layers=1, trained_layers=1)) == []
    found = [str(one) for one in misfits(use(path, layers=99, trained_layers=99)) if not one.fatal]
    expected = f"=99: {path} has 1, all are taken"
    assert found == [f"reward.layers{expected}", f"policy.trainable_layers{expected}"]


def test_a_model_without_a_list_of_layers_has_no_top_ones(tmp_path: Path):
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    roberta = tf.RobertaConfig(vocab_size=V, num_attention_heads=2, is_decoder=True, **sizes)
    path = saved(tmp_path, tf.RobertaForCausalLM(roberta))
    assert misfits(use(path)) == []
    line = only(misfits(use(path, trained_layers=1)))
    assert line.startswith("policy.trainable_layers=1: a RobertaForCausalLM has no list of layers")
    lm = load_language_model(path)[0]
    assert not lm.keep_frozen(1, KeptStates(2**20))


def test_layers_that_training_would_leave_out_are_kept_and_it_is_said(tmp_path: Path):
    path = saved(tmp_path, bart(encoder_layerdrop=0.05), "bart")
    (said,) = misfits(use(path))
    assert not said.fatal and "encoder_layerdrop=0.05 of its config is taken as 0" in said.text
    lm, _ = load_language_model(path)
    assert [m.layerdrop for m in lm.model.modules() if hasattr(m, "layerdrop")] == [0.0, 0.0]


def test_expert_dropout_that_cannot_be_switched_off_is_said(tmp_path: Path):
    model = gpt2()
    model.config.moe_token_dropout = 0.2  # NLLB-MoE's
    (said,) = misfits(use(saved(tmp_path, model)))
    assert not said.fatal and "moe_token_dropout=0.2 of its config stays" in said.text


def test_sources_and_generations_beyond_the_positions(tmp_path: Path):
    path = saved(tmp_path / "gpt2", gpt2())
    assert misfits(use(path)) == []
    line = only(misfits(use(path, source_tokens=21)))
    assert "21 + 12 = 33 positions, a GPT2LMHeadModel has 32" in line
    assert line.endswith("set policy.max_source_tokens=20 at most")
    path = saved(tmp_path / "bart", bart(), "bart")
    assert misfits(use(path, source_tokens=32, new_tokens=32)) == []
    assert "policy.max_source_tokens=33" in only(misfits(use(path, source_tokens=33)))
    assert "max_new_tokens=33" in only(misfits(use(path, new_tokens=33)))
    path = saved(tmp_path / "llama", llama(), "llama")
    (rotary,) = misfits(use(path, source_tokens=21))
    assert not rotary.fatal and "trained on 32" in rotary.text
    prompts = use(path, source_tokens=0, start_text="one two", new_tokens=30)
    assert misfits(prompts) == [] and len(misfits(replace(prompts, new_tokens=31))) == 1


def test_what_is_read_both_ways_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    both = tf.BertLMHeadModel(tf.BertConfig(vocab_size=V, is_decoder=False, **ROW))
    assert "reads what comes after a token" in only(misfits(use(saved(tmp_path, both))))


def test_a_head_that_the_states_do_not_fit(tmp_path: Path):
    config = tf.ElectraConfig(vocab_size=V, is_decoder=True, embedding_size=8, **ROW)
    path = saved(tmp_path, tf.ElectraForCausalLM(config))
    assert misfits(use(path, heads=("paper",))) == []
    assert "choose reward.head=paper" in only(misfits(use(path, heads=("state_action",))))


def test_updates_that_bfloat16_rounds_away_are_said(tmp_path: Path):
    torch.manual_seed(0)
    path = saved(tmp_path, gpt2())
    trained = use(path, trained=(5e-6, "bfloat16"))
    (one,) = misfits(trained)
    assert not one.fatal and "improve.precision=bf16" in one.fix
    lm, _ = load_language_model(path, dtype="bfloat16")
    before = [p.detach().clone() for p in lm.parameters()]
    share = unmoved(lm, 5e-6)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(5e-6)
    same = sum(int((a == b).sum()) for a, b in zip(before, lm.parameters(), strict=True))
    assert share == pytest.approx(same / sum(p.numel() for p in before), abs=1e-9)
    assert misfits(replace(trained, trained=(5e-6, "float32"))) == []


def test_positions_that_are_computed_need_no_file(tmp_path: Path):
    """As Pegasus is published; any other weight that is missing is one too few."""
    sizes = {**BART, "forced_eos_token_id": 2, "decoder_start_token_id": 0}
    model = tf.PegasusForConditionalGeneration(tf.PegasusConfig(vocab_size=V, **sizes))
    path = Path(saved(tmp_path, model, "t5"))
    held = load_tensors(path / "model.safetensors")
    without = {name: value for name, value in held.items() if "embed_positions" not in name}
    assert len(held) - len(without) == 2
    save_tensors(path / "model.safetensors", without)
    lm, _ = load_language_model(str(path))
    for name, value in lm.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    gone = next(name for name in without if "layer_norm" in name)
    save_tensors(path / "model.safetensors", {k: v for k, v in without.items() if k != gone})
    with pytest.raises(MissingResourceError, match="lacks 1 of the weights"):
        load_language_model(str(path))


OWN = ("experiment=none", "data=files", "data.path=data", "policy=pretrained")


def test_run_dry_run_and_doctor_say_the_same_and_write_nothing(around: Surroundings):
    Path("data").mkdir()
    for split in ("train", "validation", "test"):
        Path(f"data/{split}.jsonl").write_text('{"source": "one two", "target": "three"}\n' * 3)
    path = saved(Path("model"), gpt2())
    call = [*OWN, f"policy.path={path}", "cache=off", "judge=rouge1"]
    wrong = "a GPT2LMHeadModel has 32: lower sample.max_new_tokens and policy.max_target_tokens"
    for words in (["train", "summarize"], ["train", "summarize", "--dry-run"]):
        assert wrong in pgtg(*words, *call, code=2).stderr
    cfg = config(*call)
    assert [one.state for one in needs.models(cfg, around)] == ["ok", "problem"]
    assert sorted(p.name for p in Path().iterdir()) == ["data", "model"]
    right = config(*call, "policy.max_source_tokens=20", "policy.max_target_tokens=12")
    right.sample.max_new_tokens = 12
    assert [one.state for one in needs.models(right, around)] == ["ok", "ok"]


def test_what_is_asked_of_which_model():
    cfg = config(*OWN[:2], "data.path=.", "policy=pretrained", "policy.path=a/b", "reward.layers=2")
    writer, reader = uses(cfg)
    assert (writer.path, writer.heads, writer.writes) == ("a/b", (), True)
    assert (reader.path, reader.key, reader.layers) == ("a/b", "reward.layers", 2)
    assert cfg.reward.head in reader.heads and reader.trained is None
    assert writer.new_tokens == max(cfg.policy.max_target_tokens, cfg.sample.max_new_tokens)
    cfg.method.name = "mle"
    assert len(uses(cfg)) == 1 and uses(config("experiment=quickstart")) == []


def test_weights_have_the_mode_that_the_umask_gives(tmp_path: Path):
    before = os.umask(0o027)
    try:
        save_language_model(LanguageModel(gpt2()), codec("gpt2").tokenizer, tmp_path / "m")
        save_tensors(tmp_path / "one.safetensors", {"a": torch.zeros(1)})
        plain = tmp_path / "plain"
        plain.write_text("")
        for path in (*tmp_path.glob("m/*"), tmp_path / "one.safetensors"):
            assert path.stat().st_mode == plain.stat().st_mode, path
    finally:
        os.umask(before)
