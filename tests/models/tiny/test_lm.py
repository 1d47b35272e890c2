"""The tiny language models of the reviews: folders, examples by hand, a truth that is learned."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from pgtg.config import TinyLMConfig
from pgtg.data.worlds import reviews
from pgtg.data.worlds.reviews import GroundTruth
from pgtg.models.tiny.lm import build_causal, build_masked, build_tokenizer
from pgtg.pipeline.recipes import teaching
from pgtg.runs.log import RunLog
from tests.data.worlds.test_reviews import CONFIG
from tests.support.sim_device import NAME
from tests.support.tiny import FIT

WORDS = [".", "the", "plot", "was", "dull", "truly", "bad", "good"]  # ids from 5
TINY = TinyLMConfig(d_model=16, layers=1, heads=2, fit=FIT)


# --- tokenizers and models


def test_one_word_is_one_token_and_only_the_masked_lm_is_wrapped():
    masked, causal = build_tokenizer(WORDS, masked=True), build_tokenizer(WORDS, masked=False)
    assert masked("the plot was dull <mask> .")["input_ids"] == [0, 6, 7, 8, 9, 4, 5, 2]
    assert causal("</s> the plot")["input_ids"] == [2, 6, 7]
    assert causal("truly snow")["input_ids"] == [10, 3]
    assert masked(" bad", add_special_tokens=False)["input_ids"] == [11]  # one token with a space
    ids = (masked.bos_token_id, masked.pad_token_id, masked.eos_token_id, masked.mask_token_id)
    assert ids == (0, 1, 2, 4) and causal.mask_token_id is None
    assert (causal.bos_token_id, causal.eos_token_id) == (2, 2)
    assert causal.decode([10, 9]) == "truly dull"


@pytest.mark.parametrize("words", [["rain", "rain"], ["two words"], [""], ["<mask>"]])
def test_words_that_cannot_be_tokens_are_refused(words: list[str]):
    with pytest.raises(ValueError, match="distinct"):
        build_tokenizer(words, masked=True)


@pytest.mark.parametrize(
    ("build", "auto"), [(build_masked, AutoModelForMaskedLM), (build_causal, AutoModelForCausalLM)]
)
def test_plain_transformers_reloads_the_same_model_and_tokenizer(build, auto, tmp_path: Path):
    model, tokenizer = build(WORDS, TINY, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, tokenizer_again = auto.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the plot was dull truly .", return_tensors="pt")["input_ids"]
    assert tokenizer_again("the plot was dull truly .")["input_ids"] == ids[0].tolist()
    special = ("bos_token_id", "pad_token_id", "eos_token_id", "mask_token_id")
    assert [getattr(tokenizer_again, s) for s in special] == [
        getattr(tokenizer, s) for s in special
    ]
    with torch.no_grad():  # the same bits in the same operations
        assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("build", [build_masked, build_causal])
def test_weights_depend_on_the_seed_alone(build):
    torch.manual_seed(1)
    first = build(WORDS, TINY, seed=7)[0].state_dict()
    torch.manual_seed(2)
    same, other = build(WORDS, TINY, seed=7)[0], build(WORDS, TINY, seed=8)[0]
    assert all(same.state_dict()[name].equal(weight) for name, weight in first.items())
    assert not other.get_input_embeddings().weight.equal(same.get_input_embeddings().weight)


@pytest.mark.parametrize("build", [build_masked, build_causal])
def test_the_longest_text_fits(build):
    """128 tokens, which RoBERTa's offset of positions would overrun by two."""
    model, tokenizer = build(WORDS, TINY, seed=0)
    assert tokenizer.model_max_length == 128
    with torch.no_grad():
        assert model(torch.full((1, 128), 6)).logits.shape == (1, 128, len(tokenizer))


# --- examples


def test_masked_examples_by_hand():
    """Each place is a mask, and the two answers' weights are the ground truth's probabilities."""
    truth = GroundTruth({"truly": 1.0}, {}, 2.0)
    pairs = [("the plot was dull", ("truly", "truly")), ("the plot was dull", ("was",))]
    found = teaching.masked_examples(pairs, truth, build_tokenizer(WORDS, masked=True))
    assert found.ids.tolist() == [
        [0, 6, 7, 8, 9, 10, 10, 4, 5, 2],
        [0, 6, 7, 8, 9, 8, 4, 5, 2, 1],
    ]
    assert found.ids[found.rows, found.columns].tolist() == [4, 4, 4, 4]
    assert found.rows.tolist() == [0, 1, 0, 1] and found.words.tolist() == [11, 11, 12, 12]
    good = [truth.probability(("truly",), "the plot was dull"), truth.probability((), "dull")]
    assert_close(found.weights, torch.tensor([1 - good[0], 1 - good[1], *good]))


def test_causal_examples_predict_every_next_token_and_no_padding():
    found = teaching.causal_examples(["the plot .", "dull"], build_tokenizer(WORDS, masked=False))
    rows = list(zip(found.rows.tolist(), found.columns.tolist(), found.words.tolist(), strict=True))
    assert rows == [(0, 0, 6), (0, 1, 7), (0, 2, 5), (0, 3, 2), (1, 0, 9), (1, 1, 2)]
    assert found.weights.tolist() == [1.0] * 6
    assert found.ids[:, 0].tolist() == [2, 2]  # what prompts start from


@pytest.mark.parametrize("build", [build_masked, build_causal])
def test_log_probs_are_those_of_the_whole_model_and_the_loss_their_mean(build):
    model, tokenizer = build(WORDS, TINY, seed=0)
    if build is build_masked:
        pairs = [("the plot was dull", ("truly",)), ("the dull", ("was", "truly"))]
        found = teaching.masked_examples(pairs, GroundTruth({"truly": 1.0}, {}, 2.0), tokenizer)
    else:
        found = teaching.causal_examples(["the plot .", "dull"], tokenizer)
    with torch.no_grad():
        logits = model(found.ids, attention_mask=found.mask.long()).logits.log_softmax(-1)
        whole = logits[found.rows, found.columns, found.words]
        assert_close(teaching.log_probs(model, found), whole)
        objective = teaching.Predict(model)
        loss = objective(found, objective.count(found))
    n = len(set(zip(found.rows.tolist(), found.columns.tolist(), strict=True)))  # places
    assert_close(loss.value, -(found.weights * whole).sum() / n)


def test_the_error_is_zero_for_the_truth_itself(monkeypatch: pytest.MonkeyPatch):
    pairs = [("the plot was dull", ("truly",)), ("the plot was dull", ("was",))]
    truth = GroundTruth({"truly": 1.0}, {}, 2.0)
    found = teaching.masked_examples(pairs, truth, build_tokenizer(WORDS, masked=True))
    exact = found.weights.log() - 3.0  # answers need not be the only words
    monkeypatch.setattr(teaching, "log_probs", lambda model, batch: exact)
    assert teaching.log_odds_error(None, found) == pytest.approx(0.0, abs=1e-6)
    off = exact + torch.tensor([0.0, 0.0, 0.5, -0.1])
    monkeypatch.setattr(teaching, "log_probs", lambda model, batch: off)
    assert teaching.log_odds_error(None, found) == pytest.approx(0.3, abs=1e-6)


def test_example_prompts_are_richer_in_active_words_pairs_and_repeats_than_uniform_ones():
    truth, words, rng = reviews.make_truth(CONFIG), reviews.candidates(CONFIG), random.Random(0)
    prompts = [teaching.example_prompt(rng, truth, words, 5) for _ in range(2000)]
    assert {len(prompt) for prompt in prompts} == {5}
    assert {word for prompt in prompts for word in prompt} == set(words)
    active = np.mean([sum(word in truth.active for word in p) / 5 for p in prompts])
    assert active > 0.65  # 0.5 of uniform ones
    paired = np.mean([any({a, b} <= set(p) for a, b in truth.pairs) for p in prompts])
    assert paired > 0.15
    strong = np.mean([truth.strength(p) > 0.7 * CONFIG.sharpness for p in prompts])
    assert strong > 0.02  # the judge sees prompts near the best, as a search will


# --- teaching


def teach(tmp_path: Path, name: str, seed: int, cfg: TinyLMConfig = TINY, device: str = "cpu"):
    folder = tmp_path / f"{name}{seed}"
    folder.mkdir()
    recipe = {"judge": teaching.teach_truth, "policy": teaching.teach_words}[name]
    return folder / name, recipe(
        CONFIG,
        cfg,
        seed,
        folder,
        inputs="x",
        log=RunLog(None, quiet=True),
        device=torch.device(device),
    )


@pytest.mark.parametrize("name", ["judge", "policy"])
def test_teaching_saves_a_folder_and_is_a_function_of_its_seed(tmp_path: Path, name: str):
    auto = AutoModelForMaskedLM if name == "judge" else AutoModelForCausalLM
    (tmp_path / "again").mkdir()
    models = []
    for where, seed in ((tmp_path, 0), (tmp_path / "again", 0), (tmp_path, 1)):
        folder, metrics = teach(where, name, seed)
        assert all(np.isfinite(value) for value in metrics.values()) and metrics
        assert sorted(p.name for p in folder.parent.iterdir() if p.name == name) == [name]
        models.append(auto.from_pretrained(folder).get_input_embeddings().weight)
    assert models[0].equal(models[1]) and not models[0].equal(models[2])


@pytest.mark.parametrize("name", ["judge", "policy"])
def test_teaching_on_a_device_gives_the_cpus_model(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "device").mkdir()
    _, expected = teach(tmp_path, name, 0)
    seen, read = set(), teaching.log_probs
    monkeypatch.setattr(
        teaching, "log_probs", lambda model, of: (seen.add(of.ids.device.type), read(model, of))[1]
    )
    folder, found = teach(tmp_path / "device", name, 0, device=NAME)
    assert seen == {NAME} and found == pytest.approx(expected, rel=1e-4)
    assert any(folder.glob("*.safetensors"))


def test_the_causal_lm_learns_the_words(tmp_path: Path):
    """Well below log 100 = 4.6 nats a token after a few updates."""
    fit = replace(FIT, updates=60, micro_batch=32, lr=1e-2, validate_every=30)
    metrics = teach(tmp_path, "policy", 0, replace(TINY, fit=fit))[1]
    assert metrics["words/token_nll"] < 3.0


@pytest.mark.slow
def test_the_taught_judge_ranks_prompts_as_the_truth_does(tmp_path: Path):
    """At a fourth of the size, some 20 CPU-s: its log-odds follow the truth on unseen prompts."""
    fit = replace(FIT, updates=1200, micro_batch=64, validate_every=100)
    cfg = TinyLMConfig(d_model=64, layers=2, heads=4, fit=fit)
    folder, metrics = teach(tmp_path, "judge", 0, cfg)
    assert metrics["judge/uniform_log_odds_error"] < 0.3  # lean alone is off by 0.55 nats
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    truth, words = reviews.make_truth(CONFIG), reviews.candidates(CONFIG)
    prompts = reviews.random_prompts(words, 5, 300, seed=1)
    good = "the plot was superb and cast was lovely"
    found = teaching.masked_examples([(good, prompt) for prompt in prompts], truth, tokenizer)
    with torch.no_grad():
        bad, right = teaching.log_probs(model, found).view(2, -1)
    correlation = np.corrcoef((right - bad).numpy(), truth.strengths(prompts))[0, 1]
    assert correlation > 0.9
