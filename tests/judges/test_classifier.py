"""The classifier LM against the full model's own logits of each row alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModel,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from pgtg.errors import ConfigError, MissingResourceError, PgtgError
from pgtg.judges.classifier import Classifier, check_pair, fingerprint, load_classifier
from pgtg.judges.rendering import Prompt, Template
from pgtg.types import Labelled
from tests.models.test_language import rows_read
from tests.support.cases import some
from tests.support.classifiers import MAX_TOKENS, labelled, model, tokenizer, words

TOKENIZERS = {family: tokenizer(family) for family in ("bert", "roberta", "gpt2", "llama")}
MODELS = {family: model(family, len(tok)) for family, tok in TOKENIZERS.items()}
LAST, FIRST = "{sentence} {prompt} {mask} .", "{mask} {prompt} {sentence}"
AFTER, BEFORE = "{sentence} {prompt}", "{prompt} News: {sentence} is"
KINDS = [("bert", LAST), ("bert", FIRST), ("roberta", LAST), ("roberta", FIRST)]
CAUSAL = [(family, template) for family in ("gpt2", "llama") for template in (AFTER, BEFORE)]
MASKS = "[MASK] <mask>"
EXAMPLES = labelled("the film", f"a {MASKS} b {MASKS}", "", "great " * 600, "x", "was it good .")
PROMPT = Prompt("It was")
# float32 and another order of additions; log-probabilities here are of size 1 to 5
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def classifier(family: str, template: str, mode: str = "string", **how: Any) -> Classifier:
    how = {"rendering": mode, "max_tokens": MAX_TOKENS, "batch_tokens": 100, **how}
    label_words = how.pop("words", words(family))
    parsed = Template.parse(template)
    return Classifier(MODELS[family], TOKENIZERS[family], parsed, label_words, **how)


@torch.no_grad()
def by_definition(judge: Classifier, family: str, prompt: Prompt, texts: Sequence[str]):
    """Each row alone through the whole model, all of its vocabulary, then the words' columns."""
    out = []
    tok = TOKENIZERS[family]
    columns = [tok(word, add_special_tokens=False)["input_ids"][0] for word in judge.words]  # type: ignore[index]
    for row in judge.renderer.render(prompt, texts):
        logits = MODELS[family](input_ids=torch.tensor([row.ids])).logits[0, row.position]
        out.append(logits[columns].log_softmax(-1).numpy())
    return np.stack(out)


@pytest.mark.parametrize("mode", ["string", "piecewise"])
@pytest.mark.parametrize(("family", "template"), [*KINDS, *CAUSAL])
def test_equals_the_full_model_on_each_row_alone(family: str, template: str, mode: str):
    """Texts with the mask token, an empty one and one of 600 words among them."""
    judge = classifier(family, template, mode)
    for prompt in (PROMPT, Prompt("Grade a"), Prompt("")):
        found = judge.log_probs(prompt, EXAMPLES)
        assert found.shape == (len(EXAMPLES), 2) and found.dtype == np.float32
        expected = by_definition(judge, family, prompt, [e.text for e in EXAMPLES])
        np.testing.assert_allclose(found, expected, **CLOSE)
    assert judge.truncated(EXAMPLES, PROMPT) == judge.truncated(EXAMPLES) == 1


@pytest.mark.parametrize(("family", "template"), [KINDS[0], KINDS[2], *CAUSAL])
def test_the_head_runs_on_the_answers_and_the_words_only(family: str, template: str):
    """The model's own head, over the whole vocabulary, is never called."""
    judge = classifier(family, template)
    with rows_read(MODELS[family].get_output_embeddings()) as seen:  # type: ignore[arg-type]
        judge.log_probs(PROMPT, EXAMPLES)
    assert seen == []


@pytest.mark.parametrize(("family", "template"), [KINDS[2], CAUSAL[0], CAUSAL[1]])
def test_a_head_of_another_make_is_used_in_full(
    family: str, template: str, monkeypatch: pytest.MonkeyPatch
):
    """A model that scales its logits at the end: our short head would be wrong."""
    lm = MODELS[family]
    plain = lm.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        out.logits = out.logits * 0.1
        return out

    before = classifier(family, template).log_probs(PROMPT, EXAMPLES)
    monkeypatch.setattr(lm, "forward", scaled)
    judge = classifier(family, template)
    found = judge.log_probs(PROMPT, EXAMPLES)
    expected = by_definition(judge, family, PROMPT, [e.text for e in EXAMPLES])
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert np.abs(found - before).max() > 0.1


# --- batches of several prompts


@pytest.mark.parametrize("readout", ["raw", "calibrated"])
@pytest.mark.parametrize("mode", ["string", "piecewise"])
@pytest.mark.parametrize(("family", "template"), some(KINDS, KINDS[0], KINDS[3]))
def test_prompts_read_together_answer_as_each_alone(
    family: str, template: str, mode: str, readout: str
):
    together = classifier(family, template, mode, mixed=True, readout=readout, batch_tokens=400)
    alone = classifier(family, template, mode, mixed=False, readout=readout)
    prompts = [Prompt(text) for text in ("It was", "", "Grade a b c d", MASKS, "It was")]
    found = together.log_probs_of(prompts, EXAMPLES)
    expected = np.stack([alone.log_probs(prompt, EXAMPLES) for prompt in prompts])
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert (alone.log_probs_of(prompts, EXAMPLES) == expected).all()
    assert together.describe() != alone.describe()  # a memo of its own


def test_the_answers_to_many_prompts_come_back_in_one_transfer(monkeypatch: pytest.MonkeyPatch):
    judge = classifier("roberta", LAST, mixed=True, batch_tokens=400)
    fetched, cpu = [], torch.Tensor.cpu

    def counting(tensor: torch.Tensor) -> torch.Tensor:
        fetched.append(tensor.shape)
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counting)
    judge.log_probs_of([Prompt(word) for word in ("a", "b", "c", "d", "e", "f")], EXAMPLES)
    assert fetched == [(6 * len(EXAMPLES), 2)]


# --- the key-value cache


@pytest.mark.parametrize("mode", ["string", "piecewise"])
@pytest.mark.parametrize(("family", "template"), CAUSAL)
def test_cached_and_plain_scores_agree(family: str, template: str, mode: str):
    cached = classifier(family, template, mode)
    plain = classifier(family, template, mode, prefix_cache=False)
    for text in ("It was", "great", "Absolutely absolute", " .", "ness"):
        found, expected = (c.log_probs(Prompt(text), EXAMPLES) for c in (cached, plain))
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_tokens_that_merge_across_the_border_are_read_plainly():
    """ "good" + "ness" is one token of this tokeniser, which no cache of "good" begins."""
    tok = TOKENIZERS["gpt2"]
    assert len(tok(" goodness")["input_ids"]) == 1  # type: ignore[arg-type]
    judge = classifier("gpt2", "{sentence}{prompt}")
    examples = labelled("was good", "was goo", "was")
    for prompt in (Prompt("ness"), Prompt("ness It was great")):
        found = judge.log_probs(prompt, examples)
        expected = by_definition(judge, "gpt2", prompt, [e.text for e in examples])
        np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("mode", ["string", "piecewise"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_sentence_cut_for_a_long_prompt_is_read_plainly(family: str, mode: str):
    """It fits by itself, so its cache is kept, but not with this prompt."""
    judge, text = classifier(family, AFTER, mode), "xyz " * 14
    prompt = Prompt(" It was great " * 5)
    assert judge.truncated(labelled(text)) == 0 and judge.truncated(labelled(text), prompt) == 1
    for each in (Prompt("a"), prompt):
        found = judge.log_probs(each, labelled(text, "film"))
        expected = by_definition(judge, family, each, [text, "film"])
        np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_before_the_prompt_are_read_once(family: str):
    texts = labelled(*("the film is great" for _ in range(4)))
    judge = classifier(family, AFTER, "piecewise", batch_tokens=10**4)
    with rows_read(MODELS[family].get_decoder()) as seen:
        for prompt in ("a", "b c", "d e f"):
            judge.log_probs(Prompt(prompt), texts)
    text = seen[0][1]
    tails = [len(TOKENIZERS[family](p)["input_ids"]) for p in ("a", "b c", "d e f")]  # type: ignore[arg-type]
    start = 1 if family == "llama" else 0
    assert seen == [(4, text), *((4, tail - start) for tail in tails)] and text > 4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_prompt_before_the_texts_is_read_once(family: str):
    judge = classifier(family, BEFORE, batch_tokens=10**4)
    with rows_read(MODELS[family].get_decoder()) as seen:
        judge.log_probs(PROMPT, labelled("the film", "x", "great"))
    assert [rows for rows, _ in seen] == [1, 3]


def test_the_cache_stays_below_its_limit_and_changes_no_bit():
    judges = [classifier("llama", AFTER, cache_bytes=n) for n in (0, 6000, 2**30)]
    found = [[j.log_probs(Prompt(p), EXAMPLES) for p in ("It was", "a", "It was")] for j in judges]
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other, strict=True))
    kept = [judge._causal.kept_bytes for judge in judges]  # type: ignore[union-attr]
    assert kept[0] == 0 < kept[1] <= 6000 < kept[2]


# --- what a value depends on


@pytest.mark.parametrize(("family", "template"), some([KINDS[0], *CAUSAL], KINDS[0], CAUSAL[0]))
@settings(max_examples=8, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(["It was", "a", "great .", ""]), min_size=1, max_size=5))
def test_other_prompts_change_no_bit(family: str, template: str, others: list[str]):
    asked, alone = classifier(family, template), classifier(family, template)
    for other in others:
        asked.log_probs(Prompt(other), EXAMPLES[:3])
        asked.log_probs(Prompt(other), EXAMPLES)
    again = asked.log_probs(PROMPT, EXAMPLES)
    assert (again == alone.log_probs(PROMPT, EXAMPLES)).all()


@pytest.mark.parametrize(
    ("family", "template"), some([KINDS[0], KINDS[3], *CAUSAL], KINDS[0], CAUSAL[2])
)
@settings(max_examples=8, derandomize=True, deadline=None)
@given(st.permutations(range(len(EXAMPLES))), st.integers(1, len(EXAMPLES)), st.integers(1, 300))
def test_order_and_company_of_examples_do_not_matter(
    family: str, template: str, order: list[int], size: int, batch: int
):
    expected = classifier(family, template).log_probs(PROMPT, EXAMPLES)
    judge = classifier(family, template, batch_tokens=batch)
    found = judge.log_probs(PROMPT, [EXAMPLES[i] for i in order[:size]])
    np.testing.assert_allclose(found, expected[order[:size]], **CLOSE)


@pytest.mark.parametrize(("family", "template"), [KINDS[0], *CAUSAL])
def test_calibrated_is_raw_less_the_mean_over_the_calibration_texts(family: str, template: str):
    texts = ["N/A", "the film"]
    raw = classifier(family, template)
    judge = classifier(family, template, readout="calibrated", calibration=texts)
    values = raw.log_probs(PROMPT, EXAMPLES)
    values = values - by_definition(raw, family, PROMPT, texts).mean(0)
    values = values - np.log(np.exp(values).sum(-1, keepdims=True))
    np.testing.assert_allclose(judge.log_probs(PROMPT, EXAMPLES), values, **CLOSE)
    # the texts themselves, asked for before and after others, and read once for all
    calibration, fresh = (
        labelled(*texts),
        classifier(family, template, readout="calibrated", calibration=texts),
    )
    with rows_read(MODELS[family].base_model) as seen:
        first = fresh.log_probs(PROMPT, calibration)
    assert (first == judge.log_probs(PROMPT, calibration)).all()
    assert (fresh.log_probs(PROMPT, EXAMPLES) == judge.log_probs(PROMPT, EXAMPLES)).all()
    np.testing.assert_allclose(
        first,
        classifier(family, template, readout="calibrated", calibration=texts * 2).log_probs(
            PROMPT, calibration
        ),
        **CLOSE,
    )
    assert sum(rows for rows, _ in seen) <= 2 * len(texts)
    free = classifier(family, template, readout="calibrated")
    (nothing,) = free.log_probs(PROMPT, labelled("N/A"))  # knows no class by definition
    np.testing.assert_allclose(nothing, np.log([0.5, 0.5]), **CLOSE)


@pytest.mark.parametrize(
    ("family", "template"),
    [
        ("bert", "{sentence} is {mask}"),
        ("gpt2", "{sentence} is"),
        ("gpt2", AFTER),
        ("gpt2", BEFORE),
    ],
)
@pytest.mark.parametrize("readout", ["raw", "calibrated"])
def test_demonstrations_are_each_examples_own(family: str, template: str, readout: str):
    demos = [labelled("bad"), labelled("good", "great film"), []]
    judge = classifier(family, template, readout=readout)
    together = judge.log_probs(PROMPT, EXAMPLES[:3], demos)
    for i, shown in enumerate(demos):
        (alone,) = judge.log_probs(PROMPT, [EXAMPLES[i]], [shown])
        np.testing.assert_allclose(together[i], alone, **CLOSE)
    assert np.abs(together[:2] - judge.log_probs(PROMPT, EXAMPLES[:2])).max() > 1e-3


def test_examples_with_too_little_room_for_demonstrations_are_counted():
    judge, examples = classifier("llama", "{sentence} is"), labelled("the film", "x")
    few, many = labelled("bad"), labelled("bad", "great " * MAX_TOKENS)
    assert judge.shown_fewer(examples, [few, many]) == 1
    assert judge.shown_fewer(examples, [[], few]) == 0


# --- what is refused


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("gpt2", [" terrible", " unheardof"], "' unheardof' is 8 tokens ['Ġu', 'n', "),
        ("gpt2", ["terrible", " great"], "'terrible' is "),
        ("bert", ["terrible", "Ω"], "'Ω' is unknown"),
        ("bert", ["great", " great"], "'great' and ' great' are the same token"),
        ("gpt2", [" great"], "two or more"),
        ("gpt2", [" great", ""], "'' is 0 tokens []"),
    ],
)
def test_label_words_must_be_single_tokens(family: str, given: list[str], message: str):
    template = LAST if family == "bert" else AFTER
    with pytest.raises(ConfigError) as error:
        classifier(family, template, words=given)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "template", "how", "message"),
    [
        ("bert", AFTER, {}, "has no {mask}, but classifier BertForMaskedLM is a masked LM"),
        ("gpt2", LAST, {}, "has a {mask}, but classifier GPT2LMHeadModel is a causal LM"),
        ("gpt2", AFTER, {"readout": "callibrated"}, "did you mean 'calibrated'"),
        ("roberta", LAST, {"max_tokens": 49}, "RobertaForMaskedLM reads 1 to 48 tokens"),
        ("gpt2", AFTER, {"max_tokens": 49}, "GPT2LMHeadModel reads 1 to 48 tokens"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    family: str, template: str, how: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as error:
        classifier(family, template, **how)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_how_long_a_text_may_be_is_what_the_models_positions_hold():
    """OPT's table has two more rows than positions; rotary positions continue."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    tok = TOKENIZERS["gpt2"]
    opt = OPTForCausalLM(
        OPTConfig(vocab_size=len(tok), ffn_dim=16, max_position_embeddings=MAX_TOKENS, **sizes)
    )
    how: dict[str, Any] = {"rendering": "string"}
    parsed = Template.parse(AFTER)
    Classifier(opt, tok, parsed, words("gpt2"), max_tokens=MAX_TOKENS, **how)
    with pytest.raises(ConfigError, match=f"OPTForCausalLM reads 1 to {MAX_TOKENS} tokens"):
        Classifier(opt, tok, parsed, words("gpt2"), max_tokens=MAX_TOKENS + 1, **how)
    assert MODELS["llama"].config.max_position_embeddings == MAX_TOKENS
    classifier("llama", AFTER, max_tokens=MAX_TOKENS + 1)


def test_tokenizer_and_config_are_held_together_before_weights_are_read(tmp_path: Path):
    MODELS["bert"].config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"judge.classifier.path=.*no tokens but special ones"):
        check_pair(str(tmp_path), None)
    TOKENIZERS["bert"].save_pretrained(tmp_path)
    check_pair(str(tmp_path), None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vocab_size"] = len(TOKENIZERS["bert"]) - 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="its embeddings have"):
        check_pair(str(tmp_path), None)


def test_an_encoder_decoder_is_refused():
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1))
    with pytest.raises(ConfigError, match="is an encoder-decoder"):
        Classifier(
            t5, TOKENIZERS["gpt2"], Template.parse(AFTER), [" great", " terrible"],
            rendering="string", max_tokens=9,
        )  # fmt: skip


def test_answers_that_are_not_finite_are_refused():
    broken = model("gpt2", len(TOKENIZERS["gpt2"]))
    judge = Classifier(
        broken, TOKENIZERS["gpt2"], Template.parse(AFTER), words("gpt2"),
        rendering="string", max_tokens=9,
    )  # fmt: skip
    broken.get_parameter("transformer.ln_f.weight").fill_(float("nan"))
    with pytest.raises(PgtgError, match="answers NaN or infinity to 'It was'"):
        judge.log_probs(PROMPT, labelled("film"))


# --- loading, and what describes a classifier


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_a_saved_classifier_loads_as_what_its_config_says(family: str, tmp_path: Path):
    MODELS[family].save_pretrained(tmp_path)
    TOKENIZERS[family].save_pretrained(tmp_path)
    lm, tok = load_classifier(str(tmp_path))
    assert type(lm) is type(MODELS[family]) and not lm.training
    assert not any(weight.requires_grad for weight in lm.parameters())
    template = LAST if family in ("bert", "roberta") else AFTER
    how: Any = {"rendering": "string", "max_tokens": MAX_TOKENS, "batch_tokens": 100}
    judge = Classifier(lm, tok, Template.parse(template), words(family), **how)
    expected = classifier(family, template)
    assert (judge.log_probs(PROMPT, EXAMPLES) == expected.log_probs(PROMPT, EXAMPLES)).all()
    assert judge.describe() == expected.describe()


def test_what_is_no_classifier_is_one_line(tmp_path: Path):
    with pytest.raises(MissingResourceError, match="cannot be loaded") as error:
        load_classifier(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)
    AutoModel.from_config(MODELS["bert"].config).save_pretrained(tmp_path)  # without a head
    with pytest.raises(MissingResourceError, match=r"says \['BertModel'\], and a") as error:
        load_classifier(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_description_tells_apart_what_answers_otherwise():
    base = classifier("gpt2", AFTER).describe()
    assert base == classifier("gpt2", AFTER).describe()
    others = [
        classifier("gpt2", "{sentence}  {prompt}"),
        classifier("gpt2", AFTER, "piecewise"),
        classifier("gpt2", AFTER, words=[" great", " terrible"]),
        classifier("gpt2", AFTER, readout="calibrated"),
        classifier("gpt2", AFTER, max_tokens=40),
    ]
    assert all(other.describe() != base for other in others)
    tok = TOKENIZERS["gpt2"]
    changed = model("gpt2", len(tok))
    assert fingerprint(changed, tok) == base["model"]
    changed.get_parameter("transformer.ln_f.weight")[3] += 1e-6
    assert fingerprint(changed, tok) != base["model"]
    assert fingerprint(MODELS["gpt2"], TOKENIZERS["llama"]) != base["model"]


def test_examples_are_read_by_their_text_alone():
    judge = classifier("gpt2", AFTER)
    one, other = Labelled("a", "film", 0), Labelled("b", "film", 1)
    assert (judge.log_probs(PROMPT, [one]) == judge.log_probs(PROMPT, [other])).all()


def test_a_head_that_projects_states_first_is_left_to_the_model():
    """ALBERT's last layer reads narrower vectors than its states: the full head answers."""
    torch.manual_seed(0)
    tok = TOKENIZERS["bert"]
    sizes: dict[str, Any] = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}
    more: dict[str, Any] = {"num_hidden_layers": 2, "intermediate_size": 24}
    albert = AlbertForMaskedLM(AlbertConfig(vocab_size=len(tok), **sizes, **more)).eval()
    made = Classifier(
        albert, tok, Template.parse(LAST), words("bert"), rendering="string", max_tokens=MAX_TOKENS
    )
    found = made.log_probs(PROMPT, EXAMPLES)
    ids = [tok(word, add_special_tokens=False)["input_ids"][0] for word in words("bert")]
    for row, values in zip(made.renderer.render(PROMPT, _texts()), found, strict=True):
        with torch.no_grad():
            logits = albert(input_ids=torch.tensor([row.ids])).logits[0, row.position, ids]
        np.testing.assert_allclose(values, logits.log_softmax(-1), **CLOSE)


def _texts() -> list[str]:
    return [example.text for example in EXAMPLES]
