"""Token rewards: the same in any batch, saved and reloaded, and each head against its formula."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from pgtg.config.registry import HEADS
from pgtg.errors import ArtifactError, ConfigError, MissingResourceError
from pgtg.models import reward
from pgtg.models.language import LanguageModel
from pgtg.models.loading import (
    load_language_model,
    save_language_model,
    train_only_top_layers,
)
from pgtg.models.reward import (
    HeadSpec,
    RewardModel,
    build_reward_model,
    head_size,
    load_reward_model,
    save_reward_model,
    signs_of,
)
from pgtg.models.tiny.t5 import build_tokenizer
from pgtg.ops.bounds import BOUNDS
from pgtg.ops.normalizing import ByPlace
from tests.models.test_language import rows_read
from tests.support.cases import crossed
from tests.support.tiny_models import (
    EOS,
    FAMILIES,
    ORIGIN,
    SOURCES,
    TOKENS,
    VOCAB,
    alone,
    batch,
    build,
)

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # float32, another order of additions
KINDS = ["t5", "gpt2", "llama"]
TOKENIZER = build_tokenizer([f"w{i}" for i in range(VOCAB - 3)])


def model(
    family: str,
    head: str,
    bound: str = "softplus",
    spec: HeadSpec | None = None,
    start: LanguageModel | None = None,
) -> RewardModel:
    """A reward model whose rewards differ: the head's own start (gain 1e-4) gives one constant."""
    spec = spec or HeadSpec(head, bound, 32)
    built = build_reward_model(build(family), spec, seed=1, start=start)
    generator = torch.Generator().manual_seed(2)
    for p in built.head.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator) + (0.2 if p.ndim == 0 else 0.0)
    for p in built.backbone.parameters() if head == "log_ratio" else ():
        p.data = p.data + 0.3 * torch.randn(p.shape, generator=generator)
    return built.eval()


def by_hand(built: RewardModel, source: list[int], tokens: list[int]) -> Tensor:
    """Rewards [T] from the head's formula, on plain forwards of one sequence alone."""
    states, logits = alone(built.backbone, source, tokens)
    weights = {name: p.detach() for name, p in built.head.named_parameters()}
    if built.spec.head == "linear":
        z = (states[1:] @ weights["score.weight"].T + weights["score.bias"]).squeeze(-1)
    elif built.spec.head == "logprob":
        chosen = logits.log_softmax(-1)[range(len(tokens)), tokens]
        z = weights["scale"] * chosen + weights["shift"]
    elif built.spec.head == "log_ratio":
        assert built.reference is not None
        before = alone(built.reference, source, tokens)[1]
        gained = logits.log_softmax(-1) - before.log_softmax(-1)
        z = built.spec.beta * gained[range(len(tokens)), tokens]
    else:
        inputs = states[1:]
        if built.spec.head == "state_action":
            table = built.backbone.model.get_input_embeddings()
            action = table(torch.tensor(tokens)).detach()
            after, before, action = (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, keepdim=True) + 1e-5).sqrt()
                for x in (states[1:], states[:-1], action)
            )
            inputs = torch.cat([after, before, action, before * action], -1)
        hidden = (inputs @ weights["mlp.0.weight"].T + weights["mlp.0.bias"]).clamp(min=0)
        z = (hidden @ weights["mlp.2.weight"].T + weights["mlp.2.bias"]).squeeze(-1)
    if built.spec.bound == "sigmoid":
        return 1 / (1 + (-z).exp())
    return (1 + (1 - (1 + (1 - z).exp()).log()).exp()).log()


@pytest.mark.parametrize(("family", "head"), crossed(KINDS, [*HEADS]))
def test_rewards_alone_in_a_batch_and_padded_on_any_side(family: str, head: str):
    """Against the formula on each sequence alone; the padding holds eos, which is pad, or more."""
    built = model(family, head)
    for source_side, token_side in itertools.product(["left", "right"], repeat=2):
        for fill, rows in (((EOS,), range(5)), ((3, 9, 1), [4, 1, 3])):
            inputs = batch(sources_to=source_side, tokens_to=token_side, fill=fill, rows=rows)
            with torch.no_grad():
                found = built(inputs)
            for place, row in enumerate(rows):
                expected = by_hand(built, SOURCES[ORIGIN[row]], TOKENS[row])
                assert_close(found[place][inputs.mask[place]], expected, **CLOSE)
    values = built(batch())[batch().mask]
    assert values.std() > 0.03 and found.dtype == torch.float32


@pytest.mark.parametrize("head", HEADS)
def test_sigmoid_bound(head: str):
    built = model("gpt2", head, "sigmoid")
    with torch.no_grad():
        found = built(batch(rows=[1]))[0]
    assert_close(found, by_hand(built, SOURCES[0], TOKENS[1]), **CLOSE)


def test_logprob_head_starts_as_the_models_confidence():
    """r = bound(log p + 1), since scale and shift start at 1."""
    built = build_reward_model(build("t5"), HeadSpec("logprob", "softplus", 0), seed=0)
    logits = alone(built.backbone, SOURCES[0], TOKENS[0])[1]
    log_p = logits.log_softmax(-1)[range(3), TOKENS[0]]
    with torch.no_grad():
        found = built(batch(rows=[0]))[0]
    assert_close(found, BOUNDS["softplus"](log_p + 1.0), **CLOSE)


@pytest.mark.parametrize("family", KINDS)
def test_the_log_ratio_is_zero_at_the_start(family: str):
    """But for rounding; the reference stays as it is, in eval mode, when the backbone moves."""
    built = build_reward_model(build(family), HeadSpec("log_ratio", "none", 1, 0.5), seed=3)
    assert built.eval()(batch()).abs().max() <= 1e-6
    before = [parameter.clone() for parameter in built.language_models[1].parameters()]
    built.train()(batch())[batch().mask].sum().backward()
    torch.optim.SGD([p for p in built.parameters() if p.requires_grad], 0.1).step()
    after = built.language_models[1].parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not built.language_models[1].training and (built(batch()) != 0).any()


UNITS = {
    "one token": {"granularity": "segment", "segments": "tokens", "segment_tokens": 1},
    "one segment": {"granularity": "segment", "segments": "tokens", "segment_tokens": 99},
    "two": {"granularity": "segment", "segments": "tokens", "segment_tokens": 2},
}


@pytest.mark.parametrize("spread", ["copy", "even", "end"])
@pytest.mark.parametrize("head", ["paper", "logprob"])
def test_segments_are_tokens_and_sequences_in_their_limits(head: str, spread: str, tmp_path: Path):
    """To 1e-6, padded on any side, saved and read again; the unit's reward is its last token's."""
    built = model("llama", head)
    found = {}
    for name, own in {**UNITS, "token": {}, "sequence": {"granularity": "sequence"}}.items():
        built.spec = HeadSpec(head, "softplus", 32, spread=spread, **own)  # type: ignore[arg-type]
        for side in ("right", "left"):
            inputs = batch(tokens_to=side)
            with torch.no_grad():
                rewards = built(inputs)
            rows = [row[own].tolist() for row, own in zip(rewards, inputs.mask, strict=True)]
            for one, other in zip(rows, found.setdefault(name, rows), strict=True):
                assert one == pytest.approx(other, abs=1e-6)
    for a, b in (("one token", "token"), ("one segment", "sequence")):
        for one, other in zip(found[a], found[b], strict=True):
            assert one == pytest.approx(other, abs=1e-6)
    for tokens, whole, pairs in zip(found["token"], found["sequence"], found["two"], strict=True):
        share = {"copy": 1, "even": 1 / len(tokens), "end": 1}[spread]
        assert whole[-1] == pytest.approx(tokens[-1] * share, abs=1e-6)
        if len(tokens) > 1:
            assert pairs[1] == pytest.approx(tokens[1] / (2 if spread == "even" else 1), abs=1e-6)
            assert pairs[0] == pytest.approx(0.0 if spread == "end" else pairs[1], abs=1e-6)
    built.spec = HeadSpec(head, "softplus", 32, spread=spread, **UNITS["two"])  # type: ignore[arg-type]
    save_reward_model(built, tmp_path, batch(), TOKENIZER)
    assert load_reward_model(tmp_path).spec == built.spec


@pytest.mark.parametrize(("family", "spread"), crossed(KINDS, ["copy", "even", "end"]))
def test_segments_end_where_the_start_policy_is_unsure(family: str, spread: str, tmp_path: Path):
    """By its own passes over each text alone; tokens and sequences in the limits; padded on any
    side; read again from its folder; the start policy is not the backbone, and not trained."""
    start, found = build(family, seed=5).eval(), {}
    alone_by_it = [
        (-p.exp() * p).sum(-1)
        for source, ids in zip(ORIGIN, TOKENS, strict=True)
        for p in [alone(start, SOURCES[source], ids)[1].log_softmax(-1)]
    ]
    middle = torch.cat(alone_by_it).median().item() + 1e-4
    for name, cut in (("token", 0.0), ("middle", middle), ("sequence", 99.0)):
        more = {"granularity": "segment", "segments": "entropy", "segment_entropy": cut}
        spec = HeadSpec("paper", "softplus", 32, spread=spread, **more)  # type: ignore[arg-type]
        built = model(family, "paper", spec=spec, start=start)
        for side in ("right", "left"):
            inputs = batch(tokens_to=side)
            with torch.no_grad():
                rewards, units = built(inputs), built.unit_rewards(inputs)
            rows = [row[own].tolist() for row, own in zip(rewards, inputs.mask, strict=True)]
            for one, other in zip(rows, found.setdefault(name, rows), strict=True):
                assert one == pytest.approx(other, abs=1e-6)
            plain = model(family, "paper")
            for n, row in enumerate(rows):
                own = by_hand(plain, SOURCES[ORIGIN[n]], TOKENS[n]).tolist()
                ends = [h > cut for h in alone_by_it[n][1:].tolist()] + [True]
                expected, first = [0.0] * len(own), 0
                for last in [t for t, end in enumerate(ends) if end]:
                    size = last + 1 - first
                    for t in range(first, last + 1):
                        share = {"copy": 1, "even": 1 / size, "end": t == last}[spread]
                        expected[t] = own[last] * share
                    first = last + 1
                assert row == pytest.approx(expected, abs=1e-4)
                at = units[n][inputs.mask[n]]
                assert at.isnan().tolist() == [not end for end in ends]
                kept = [r for r, end in zip(own, ends, strict=True) if end]
                assert at[~at.isnan()].tolist() == pytest.approx(kept, abs=1e-4)
        assert not any(p.requires_grad for p in start.parameters())
        if name == "middle":
            assert built.train().start is not None and not start.training
            save_reward_model(built, tmp_path, batch(), TOKENIZER)
            again = load_reward_model(tmp_path).eval()
            assert torch.allclose(again(batch())[batch().mask], built.eval()(batch())[batch().mask])
    assert found["token"] != found["middle"] != found["sequence"]
    with pytest.raises(ConfigError, match=r"reward\.segments: entropy needs the start policy"):
        build_reward_model(build(family), spec, 0)


def test_rewards_are_normalised_where_a_policy_learns_from_them(tmp_path: Path):
    """Saved with the rest; before they are shared within units, at the place of a unit's end."""
    for more in ({}, UNITS["two"]):
        spec = HeadSpec("paper", "softplus", 32, spread="end", **more)  # type: ignore[arg-type]
        built = model("llama", "paper", spec=spec)
        built.normalizer = ByPlace((0.5, -0.1), (0.2, 0.05), 0.01, 3)
        with torch.no_grad():
            raw = built(batch())
            save_reward_model(built, tmp_path, batch(), TOKENIZER)
            again = load_reward_model(tmp_path).eval()
            assert again.normalizer == built.normalizer and not again.normalizing
            assert_close(again(batch()), raw)
            again.normalizing = True
            for side in ("right", "left"):
                inputs = batch(tokens_to=side)
                found = again(inputs)
                for n, ids in enumerate(TOKENS):
                    own, before = found[n][inputs.mask[n]], raw[n][batch().mask[n]]
                    for t in range(len(ids)):
                        within = bool(more) and t % 2 == 0 and t + 1 < len(ids)
                        at = math.log(min(t + 1, 3))
                        value = (before[t].item() - 0.5 + 0.1 * at) / (0.2 + 0.05 * at)
                        assert own[t].item() == pytest.approx(0.0 if within else value, abs=1e-4)
    for wrong in ('{"mean": [0, 1], "sd": [1, 1], "least": 0, "longest": 3}', '{"mean": 3}', "[]"):
        (tmp_path / "reward_normalizer.json").write_text(wrong)
        with pytest.raises(ArtifactError, match="describes no normaliser"):
            load_reward_model(tmp_path)


def test_sentences_are_those_of_the_vocabulary():
    """Byte-level, where a full stop within a number is none, and of whole words."""

    class Words:
        all_special_tokens = ("<end>",)

        def __init__(self, *words: str):
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: n for n, word in enumerate(self.words)}

    closing, opening = signs_of(Words("<end>", "\u0120so", ".", "5", '.")', "\u010a"))  # type: ignore[arg-type]
    assert closing.tolist() == [False, False, True, False, True, True]
    assert opening.tolist() == [True, True, False, False, False, True]
    assert signs_of(Words("<end>", "so", "."))[1].all()  # type: ignore[arg-type]
    spec = HeadSpec("paper", "softplus", 8, granularity="segment")
    with pytest.raises(ConfigError, match=r"reward\.segments: sentences need the tokenizer"):
        build_reward_model(build("gpt2"), spec, 0)
    built = build_reward_model(build("gpt2"), spec, 0, TOKENIZER).eval()
    assert torch.isfinite(built(batch())[batch().mask]).all()


def test_a_folder_of_before_the_log_ratio_is_read(tmp_path: Path):
    """Its reward_head.json has no beta, and no unit of credit."""
    built = model("gpt2", "paper")
    save_reward_model(built, tmp_path, batch(), TOKENIZER)
    found = json.loads((tmp_path / "reward_head.json").read_text())
    later = ("beta", "granularity", "segments", "segment_tokens", "segment_entropy", "spread")
    for name in later:
        del found[name]
    (tmp_path / "reward_head.json").write_text(json.dumps(found))
    assert torch.equal(load_reward_model(tmp_path).eval()(batch()), built(batch()))


@pytest.mark.parametrize("family", KINDS)
def test_the_paper_s_head_starts_at_one_reward_everywhere(family: str):
    """0.5487 = the softplus bound at 0, and from the seed alone."""
    spec = HeadSpec("paper", "softplus", 2048)
    built = build_reward_model(build(family), spec, seed=3)
    torch.manual_seed(99)
    again = build_reward_model(LanguageModel(built.backbone.model), spec, seed=3)
    with torch.no_grad():
        found = built(batch())
        assert torch.equal(found, again(batch()))
    assert_close(found, torch.full_like(found, 0.5487), rtol=0, atol=2e-4)
    first, last = (m for m in built.head.modules() if isinstance(m, nn.Linear))
    bound = 1e-4 * math.sqrt(6 / (16 + 2048))  # Xavier-uniform with gain 1e-4
    assert 0.95 * bound < first.weight.abs().max() <= bound
    assert (first.bias == -1e-4).all() and (last.bias == -1e-4).all()


def test_the_linear_head_starts_as_small_and_moves_at_once():
    """One reward everywhere, and a gradient on each weight: the states themselves."""
    built = build_reward_model(build("llama"), HeadSpec("linear", "softplus", 1), seed=3)
    found = built(batch())
    assert_close(found, torch.full_like(found, 0.5487), rtol=0, atol=2e-4)
    assert isinstance(layer := built.head.get_submodule("score"), nn.Linear)
    bound = 1e-4 * math.sqrt(6 / (16 + 1))
    assert 0.5 * bound < layer.weight.abs().max() <= bound and (layer.bias == -1e-4).all()
    found[batch().mask].sum().backward()
    assert layer.weight.grad is not None and (layer.weight.grad.abs() > 1e-3).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_counted_as_it_is_built(head: str):
    built = build_reward_model(build("gpt2"), HeadSpec(head, "softplus", 7), seed=0)
    assert head_size(16, built.spec) == sum(p.numel() for p in built.head.parameters())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", KINDS)
def test_each_source_is_read_once_and_all_weights_learn(family: str, head: str):
    built, inputs = model(family, head), batch()
    lm = built.backbone.model
    reader = lm.get_encoder() if built.backbone.is_encoder_decoder else lm.get_decoder()
    with rows_read(reader) as seen:
        built(inputs)[inputs.mask].sum().backward()
    assert seen[0][0] == len(SOURCES)
    assert len(seen) == (1 if built.backbone.is_encoder_decoder else 2)
    trained = [(name, p) for name, p in built.named_parameters() if p.requires_grad]
    assert not any(name.startswith("reference.") for name, _ in trained)
    without = [name for name, p in trained if p.grad is None]
    # Llama's output embeddings are its own, and only heads of log-probabilities read them
    unused = family == "llama" and head not in ("logprob", "log_ratio")
    assert without == (["backbone.model.lm_head.weight"] if unused else [])


@pytest.mark.parametrize(("family", "head"), crossed(KINDS, [*HEADS]))
def test_saved_folder_reloads_here_and_in_plain_transformers(
    family: str, head: str, tmp_path: Path
):
    built, inputs = model(family, head), batch()
    save_reward_model(built, tmp_path, inputs, TOKENIZER)
    with torch.no_grad():
        expected = built(inputs)
        reloaded = load_reward_model(tmp_path).eval()
        assert torch.equal(reloaded(inputs)[inputs.mask], expected[inputs.mask])
        auto = AutoModelForSeq2SeqLM if built.backbone.is_encoder_decoder else AutoModelForCausalLM
        plain = LanguageModel(auto.from_pretrained(tmp_path).eval())
        assert torch.equal(plain.states(inputs), built.backbone.states(inputs))
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("head", [head for head in HEADS if head != "log_ratio"])  # has no weights
def test_a_save_that_reloads_to_other_rewards_is_detected(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = reward.save_tensors

    def corrupt(path: Path, tensors: dict[str, Tensor]) -> None:
        save(path, {name: value + 0.05 for name, value in tensors.items()})

    monkeypatch.setattr(reward, "save_tensors", corrupt)
    with pytest.raises(ArtifactError, match="reloads to other rewards"):
        save_reward_model(model("gpt2", head), tmp_path, batch(), TOKENIZER)


def test_a_folder_without_a_reward_head(tmp_path: Path):
    save_language_model(build("gpt2"), TOKENIZER, tmp_path)
    with pytest.raises(ArtifactError, match=r"no reward_head\.json here"):
        load_reward_model(tmp_path)


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(MissingResourceError, match="cannot be loaded"):
        load_language_model(str(tmp_path / "nothing"))


def truncated(lm: LanguageModel, layers: int) -> LanguageModel:
    """Cuts the layers off a loaded model, by its module lists."""
    for module in list(lm.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and name in ("block", "layers", "h"):
                setattr(module, name, child[:layers])
    return lm


@pytest.mark.parametrize("family", FAMILIES)
def test_first_layers_equal_the_cut_full_model(family: str, tmp_path: Path):
    full = build(family, layers=3)
    save_language_model(full, TOKENIZER, tmp_path)
    part, _ = load_language_model(str(tmp_path), layers=2)
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in full.parameters())
    with torch.no_grad():
        whole = full.states(batch())[batch_columns()]
        found = part.states(batch())[batch_columns()]
        assert_close(found, truncated(full, 2).states(batch())[batch_columns()], **CLOSE)
    assert not torch.allclose(found, whole, atol=1e-2)


def batch_columns() -> Tensor:
    """Columns of the states that stand before or after a real token."""
    mask = batch().mask
    return torch.cat([torch.ones(len(mask), 1).bool(), mask], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2])
def test_only_the_top_layers_and_the_final_norm_are_trained(family: str, layers: int):
    lm = build(family, layers=3)
    count = train_only_top_layers(lm, layers)
    trained = {name for name, p in lm.model.named_parameters() if p.requires_grad}
    root, norm = {
        "t5": ("decoder.block.", "decoder.final_layer_norm."),
        "bart": ("model.decoder.layers.", None),  # BART normalises after each block, not at the end
        "gpt2": ("transformer.h.", "transformer.ln_f."),
        "llama": ("model.layers.", "model.norm."),
        "opt": ("model.decoder.layers.", "model.decoder.final_layer_norm."),
        "bloom": ("transformer.h.", "transformer.ln_f."),
    }[family]
    starts = [f"{root}{i}." for i in range(3 - layers, 3)] + ([norm] if norm else [])
    assert trained == {n for n, _ in lm.model.named_parameters() if n.startswith(tuple(starts))}
    assert all(any(name.startswith(start) for name in trained) for start in starts)
    assert count == sum(p.numel() for p in lm.parameters() if p.requires_grad)
    lm.logits(batch())[batch().mask].logsumexp(-1).sum().backward()
    assert {name for name, p in lm.model.named_parameters() if p.grad is not None} == trained


def test_all_weights_are_trained_without_a_limit():
    lm = build("gpt2")
    assert train_only_top_layers(lm, None) == sum(p.numel() for p in lm.parameters())
