"""Every causal and encoder-decoder family of Transformers, tiny and random, put through pgtg.

`python -m tests.support.families docs/models.md` writes the table, and
tests/models/test_families.py holds it.
"""

import copy
import string
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from pgtg.config.registry import HEADS
from pgtg.models.batch import token_batch
from pgtg.models.compatibility import Use, misfits
from pgtg.models.dropout import silence_dropout
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model, save_language_model
from pgtg.models.reward import HeadSpec, build_reward_model

DEPTH = "num_hidden_layers"
VOCAB, ROWS, MOST = 41, 48, 3 * 10**6  # tokens; rows of embeddings; weights
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
SIZES: dict[int | float, str] = {
    ROWS: "vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size",
    32: "hidden_size d_model n_embd emb_dim dim encoder_hidden_size lru_width embedding_size "
    "word_embed_proj_dim attention_hidden_size hidden_size_per_layer_input cross_hidden_size",
    40: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner dff "
    "expert_ffn_hidden_size ffn_hidden_size prefix_intermediate_size dim_ff "
    "mlp_hidden_size shared_intermediate_size intermediate_size_mlp",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads num_experts "
    "decoder_attention_heads num_local_experts n_routed_experts moe_num_experts "
    "num_encoder_attention_heads num_decoder_attention_heads mamba_n_heads mamba_num_heads "
    "linear_num_value_heads linear_num_key_heads moe_num_experts mamba_d_state state_size "
    "mamba_dt_rank conv_kernel mamba_d_conv rotary_dim index_n_heads",
    8: "head_dim d_kv v_head_dim kv_lora_rank mamba_d_head mamba_head_dim kv_channels d_head "
    "linear_key_head_dim linear_value_head_dim attention_head_dim qk_head_dim index_head_dim "
    "mamba_headdim o_lora_rank qk_rope_head_dim qk_nope_head_dim global_head_dim swa_head_dim",
    16: "moe_intermediate_size q_lora_rank shared_expert_intermediate_size sliding_window "
    "moe_shared_expert_intermediate_size attention_window_size local_attention_dim "
    "window_size expert_hidden_size mamba_chunk_size chunk_size attention_window",
    2: "num_key_value_heads num_experts_per_tok moe_top_k moe_k top_k encoder_layers "
    "decoder_layers num_layers num_decoder_layers n_layer n_layers num_encoder_layers layers "
    "num_hidden_layers num_kv_heads n_kv_heads num_experts_per_token num_decoder_layers_ "
    "num_key_value_heads_ multi_query_group_num",
    1: "n_group topk_group n_groups mamba_n_groups first_k_dense_replace n_shared_experts "
    "num_shared_experts moe_num_shared_experts sparse_step encoder_sparse_step "
    "decoder_sparse_step index_topk_freq num_nextn_predict_layers",
    64: "max_position_embeddings n_positions n_ctx max_seq_len index_topk block_size_",
    0.2: "initializer_range init_std initializer_factor init_method_std",
}
SMALL: dict[str, Any] = {name: value for value, names in SIZES.items() for name in names.split()}
# what a family needs in addition to the sizes, to be built at all
NEEDS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xlnet": {"d_head": 8, "d_inner": 40},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "recurrent_gemma": {DEPTH: 3, "attention_window_size": 16},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"]},
    "falcon_h1": {"mamba_d_ssm": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "jamba": {DEPTH: 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba": {DEPTH: 4, "attn_layer_period": 2, "attn_layer_offset": 1, "n_mamba_heads": 1},
    "m2m_100": {"decoder_start_token_id": 2},
    "nllb-moe": {"decoder_start_token_id": 2},
    "seamless_m4t": {"decoder_start_token_id": 2},
    "seamless_m4t_v2": {"decoder_start_token_id": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
}


@dataclass(frozen=True)
class Outcome:
    """How a family fares: `works`, `again` (whole texts are read again), `refused` or `untried`."""

    state: str
    note: str = ""


def families() -> list[tuple[str, str]]:
    """(kind, model type) of all that the Auto classes know."""
    causal = [("causal", name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    return causal + [("seq2seq", name) for name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES]


def tokenizer() -> PreTrainedTokenizerFast:
    """One letter a token, which holds whatever a family's own tokenizer class makes of it."""
    letters = string.ascii_letters[: VOCAB - 3]
    vocab = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def tiny(kind: str, name: str) -> Any:
    """A random model of the family; raises whatever keeps it from being built."""
    if name == "encoder-decoder":
        return _bert2bert()
    cls: Any = CONFIG_MAPPING[name]
    given: dict[str, Any] = {k: v for k, v in SMALL.items() if k in vars(cls())}
    given |= {k: v for k, v in IDS.items() if k != "decoder_start_token_id" or kind == "seq2seq"}
    given |= NEEDS.get(name, {})
    kinds = list(dict.fromkeys(getattr(cls(), "layer_types", None) or ()))
    try:  # a layer of each kind, where they can be named
        config = cls(**given | ({"layer_types": kinds, DEPTH: len(kinds)} if kinds else {}))
    except Exception:
        config = cls(**given)
    if hasattr(config, "is_decoder") and kind == "causal":
        config.is_decoder = True
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(copy.deepcopy(config)).parameters())
    if size > MOST:
        raise ValueError(f"no tiny config: {size:,} weights")
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    for forced in ("forced_eos_token_id", "forced_bos_token_id"):
        setattr(model.generation_config, forced, None)
        setattr(model.config, forced, None)
    return model


def fare(kind: str, name: str) -> Outcome:
    """Build it, have it refused or trained, saved, reloaded, sampled, and read by each head."""
    try:
        model = tiny(kind, name)
    except Exception as error:
        return Outcome("untried", _first(error))
    try:
        _plainly(model)
    except Exception as error:
        return Outcome("untried", f"the tiny config does not run: {_first(error)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        try:
            model.save_pretrained(path)
        except Exception as error:
            return Outcome("untried", f"not saved: {_first(error)}")
        tokenizer().save_pretrained(path)
        use = Use(
            "policy.path",
            str(path),
            None,
            None,
            20,
            12,
            True,
            None,
            tuple(HEADS),
            (1e-3, "float32"),
        )
        heads, note = tuple(HEADS), ""
        found = [str(one) for one in misfits(use) if one.fatal]
        if found and "choose reward.head=paper" in found[0]:
            heads = tuple(head for head in HEADS if head != "state_action")
            note = "not with reward.head=state_action"
            found = [str(one) for one in misfits(replace(use, heads=heads)) if one.fatal]
        if found:
            return Outcome("refused", found[0].replace(str(path), "..."))
        lm, _ = load_language_model(str(path))
        try:
            note = "; ".join(filter(None, (note, _generates(lm))))
            _trains(lm, path / "saved")
            _heads(path, heads)
        except Exception as error:
            return Outcome("fails", f"{type(error).__name__}: {_first(error)}")
        return Outcome("works" if lm.structure.caches else "again", note)


def _bert2bert() -> Any:
    sizes: dict[str, Any] = {
        name: SMALL[name] for name in ("hidden_size", "intermediate_size", DEPTH)
    }
    part = transformers.BertConfig(vocab_size=ROWS, num_attention_heads=4, **sizes)
    both: Any = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(part, part)
    both.pad_token_id, both.eos_token_id, both.decoder_start_token_id = 0, 2, 0
    torch.manual_seed(0)
    return transformers.EncoderDecoderModel(both).eval()


@torch.no_grad()
def _plainly(model: Any) -> None:
    """One pass of Transformers alone."""
    given: dict[str, Any] = {"input_ids": torch.tensor([[5, 6, 7]])}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.tensor([[0, 8]])
    model(**given)


def _first(error: BaseException) -> str:
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0][:110]}"


SOURCES = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
BATCH = (SOURCES, [[15, 16, 2], [17, 2], [18, 19, 20, 2], [21]], [0, 0, 1, 2])


def _generates(lm: LanguageModel) -> str:
    """Greedily as plain `generate` does, else (and said) as plain passes do.

    Transformers' `generate` gives RoBERTa's family other positions than its own forward counts.
    """
    options: Any = {"eos_ids": lm.end_ids, "decoding": Decoding(True, 6), "seed_key": ()}
    found = dict(generate(lm, SOURCES, ["a", "b", "c"], k=1, batch_tokens=9999, **options))
    same = True
    for i, source in enumerate(SOURCES):
        ids = torch.tensor([source])
        out = lm.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6
        )[0].tolist()
        new = out[1:] if lm.is_encoder_decoder else out[len(source) :]
        same = same and found[i][0] == new
        if found[i][0] != new and not lm.is_encoder_decoder:
            new = _by_plain_passes(lm, source)
        assert found[i][0] == new, f"generates {found[i][0]}, Transformers {new}"
    return "" if same else "Transformers' own generate departs from its forward passes"


@torch.no_grad()
def _by_plain_passes(lm: LanguageModel, source: list[int]) -> list[int]:
    ids = [*source]
    while len(ids) < len(source) + 6 and (len(ids) == len(source) or ids[-1] not in lm.end_ids):
        ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(source) :]


def _trains(lm: LanguageModel, folder: Path) -> None:
    """One update changes the logits, and the saved model reloads to the same ones."""
    silence_dropout(lm.model)
    batch = token_batch(*BATCH)
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-2)
    before = lm.logits(batch).detach()
    loss = -lm.train().logits(batch).log_softmax(-1).gather(-1, batch.tokens[..., None])
    loss.squeeze(-1)[batch.mask].sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = lm.eval().logits(batch)[batch.mask]
    assert after.isfinite().all() and not torch.equal(before[batch.mask], after), "no update"
    save_language_model(lm, tokenizer(), folder)
    reloaded, _ = load_language_model(str(folder))
    with torch.no_grad():
        assert_close(reloaded.logits(batch)[batch.mask], after)


def _heads(path: Path, heads: Sequence[str]) -> None:
    for head in heads:
        lm, _ = load_language_model(str(path))  # as in a run: some models hold what they last read
        reward = build_reward_model(lm, HeadSpec(head, "softplus", 8), 0).train()
        batch = token_batch(*BATCH)
        values = reward(batch)[batch.mask]
        values.sum().backward()
        assert values.isfinite().all(), f"head {head}"


STATES = {
    "works": "works",
    "again": "works; reads whole texts again for each token",
    "refused": "refused",
    "untried": "not tried",
    "fails": "FAILS",
}
HEAD = f"""# Language models

Made by `python -m tests.support.families docs/models.md` with Transformers
{transformers.__version__}: each family that its Auto classes know as a causal or an
encoder-decoder language model, tiny and random.
*Works*: greedy generations are those of plain `generate`; it trains; saved and reloaded it gives
the same logits; each reward head reads it. *Reads whole texts again*: it keeps no cache of keys and
values that rows can be picked from, so every token costs a pass over all before it: as exact, and
slower the longer the texts. *Refused*: in one line, before a run folder is made. *Not tried*: no
tiny config could be made here that runs (most of these read images or sound); a run looks at such a
model in the same way before it starts.

Of `generation_config` the end tokens and the decoder's start token are taken; forced tokens and
penalties are not.

| family | kind | |
|---|---|---|
"""


def row(kind: str, name: str, outcome: Outcome) -> str:
    note = f": {outcome.note}" if outcome.note else ""
    return f"| {name} | {kind} | {STATES[outcome.state]}{note} |".replace("\n", " ")


def main(out: Path) -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = []
    for kind, name in families():
        rows.append(row(kind, name, fare(kind, name)))
        print(rows[-1], flush=True)
    out.parent.mkdir(exist_ok=True)
    out.write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
