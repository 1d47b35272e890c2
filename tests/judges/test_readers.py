"""Vectors on top of a prompt's tokens: the places they are added at, and their gradients."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pgtg.judges.candidate import Candidate
from pgtg.judges.classifier import Classifier
from pgtg.judges.readers import MaskedReader, VocabularyReader
from pgtg.judges.template import Prompt, Template
from pgtg.models.language import LanguageModel
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases, tensor
from tests.support.classifiers import MAX_TOKENS, labelled, model, tokenizer, words
from tests.support.tiny_roberta import close, rows, tiny_roberta

TEXTS = labelled("the film is great", "a b c d e f g h", "terrible")
TEMPLATES = {
    "roberta": ("{sentence} {prompt} It was {mask} .", "{mask} News: {prompt} {sentence}"),
    "bert": ("{sentence} {prompt} {mask} .",),
    "gpt2": ("{sentence}{prompt}", "{prompt} {sentence} was", "{sentence}{prompt} was"),
    "llama": ("{sentence}{prompt}", "{prompt} {sentence} was"),
    "mamba": ("{sentence}{prompt}", "{prompt} {sentence} was"),
}


def classifier(family: str, template: str, **options: Any) -> Classifier:
    known = tokenizer(family)
    return Classifier(
        model(family, len(known)),
        known,
        Template.parse(template, needs_prompt=True).tight,
        words(family),
        rendering="piecewise",
        max_tokens=MAX_TOKENS,
        **options,
    )


BOTH = [(family, template) for family, own in TEMPLATES.items() for template in own]


@pytest.mark.parametrize(("family", "template"), BOTH)
@pytest.mark.parametrize("readout", ["raw", "calibrated"])
def test_the_difference_of_embeddings_makes_one_prompt_of_another(
    family: str, template: str, readout: str
):
    """Word by word: vectors are added at the prompt's places, in every row, and nowhere else."""
    judge = classifier(family, template, readout=readout)
    one, other = (20, 21, 22), (30, 25, 35)
    table, before = judge.word_embeddings, judge.log_probs(Prompt("", one), TEXTS)
    vectors = (table[list(other)] - table[list(one)]).numpy()
    found = judge.log_probs_on_top(Candidate(Prompt("", one), offset=vectors), TEXTS)
    assert_close(
        torch.from_numpy(found),
        torch.from_numpy(judge.log_probs(Prompt("", other), TEXTS)),
        rtol=0,
        atol=2e-5,
    )
    assert judge.log_probs(Prompt("", one), TEXTS).tolist() == before.tolist()  # nothing is left


@pytest.mark.parametrize(("family", "template"), BOTH)
def test_zero_vectors_change_no_answer(family: str, template: str):
    judge, ids = classifier(family, template), (20, 21)
    zero = torch.zeros(2, judge.word_embeddings.shape[1]).numpy()
    for block in (False, True):
        candidate = Candidate(Prompt("", ids), offset=zero, block=block)
        found = judge.log_probs_on_top(candidate, TEXTS)
        assert found == pytest.approx(judge.log_probs(Prompt("", ids), TEXTS), abs=1e-6)


@pytest.mark.parametrize(("family", "template"), BOTH)
def test_logits_of_all_words_and_their_gradient(family: str, template: str):
    """The label words' are the classifier's; the gradient is that of finite differences."""
    judge, ids = classifier(family, template), (20, 21)
    candidate = Candidate(Prompt("", ids))
    vectors = torch.zeros(2, judge.word_embeddings.shape[1], requires_grad=True)
    logits = judge.word_logits(candidate, TEXTS, vectors)
    own = logits[:, judge.label_ids].log_softmax(-1).detach()
    expected = torch.from_numpy(judge.log_probs(Prompt("", ids), TEXTS))
    assert_close(own, expected, rtol=0, atol=2e-5)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return -judge.word_logits(candidate, TEXTS, at).log_softmax(-1)[:, 5].mean()

    (gradient,) = torch.autograd.grad(loss(vectors), vectors)
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    step = 4e-3 * direction
    with torch.no_grad():
        slope = (loss(vectors + step) - loss(vectors - step)).item() / 8e-3
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=2e-2, abs=2e-4)


def test_gradients_to_a_prompt_after_texts_are_those_of_whole_rows(
    monkeypatch: pytest.MonkeyPatch,
):
    """Of any of the texts, in any order, twice; the texts themselves are read once."""
    judge, ids = classifier("gpt2", "{sentence}{prompt}"), (20, 21)
    passes: list[int] = []
    prefill = LanguageModel.prefill
    monkeypatch.setattr(
        LanguageModel,
        "prefill",
        lambda lm, ids, *rest, **how: passes.append(len(ids)) or prefill(lm, ids, *rest, **how),
    )
    for chosen in (TEXTS[::-1], [TEXTS[1], TEXTS[0], TEXTS[1]]):
        given = judge.renderer.render(Prompt("", ids), [example.text for example in chosen])
        vectors = torch.randn(2, judge.word_embeddings.shape[1], requires_grad=True)
        found = judge.word_logits(Candidate(Prompt("", ids)), chosen, vectors, TEXTS)
        whole = VocabularyReader(judge._model).read(given, vectors)
        assert_close(found, whole, rtol=0, atol=2e-5)
        weights = torch.randn(found.shape)
        own, expected = (
            torch.autograd.grad((logits * weights).sum(), vectors)[0] for logits in (found, whole)
        )
        assert_close(own, expected, rtol=1e-4, atol=2e-5)
    assert passes == [len(TEXTS)]


@pytest.mark.parametrize("case", cases("bbt_forward", RIVALS))
def test_vectors_on_the_embedding_block_of_the_released_formula(case: dict[str, Any]):
    reader = MaskedReader(tiny_roberta(), torch.tensor(case["label_word_ids"]))
    given = rows(case, "prompt_positions", "mask_positions")
    assert close(reader.read(given), case["label_logits_without_offset"])
    with reader.offset.added(tensor(case["offset"]), block=True):
        assert close(reader.read(given), case["label_logits"])
    assert close(reader.read(given), case["label_logits_without_offset"])


@pytest.mark.parametrize("case", cases("soft_prompt", RIVALS))
def test_soft_tokens_of_the_released_embedding(case: dict[str, Any]):
    """Their ids are beyond the vocabulary; here vectors make them of any token's embedding."""
    model = tiny_roberta()
    words, prompt = model.config.vocab_size, tensor(case["prompt"])
    ids = [[i if i < words else 5 for i in own] for own in case["input_ids"]]
    marks = [[int(i >= words) for i in own] for own in case["input_ids"]]
    given = rows(case | {"input_ids": ids, "prompt": marks}, "prompt", "mask_positions")
    table: Any = model.get_input_embeddings()
    base = table.weight[5]
    logits = VocabularyReader(model).read(given, prompt - base)
    assert close(logits[:, case["label_word_ids"]], case["first_logits_at_mask"])


def test_rows_without_a_known_place_are_refused():
    judge, known = model("gpt2", 480), tokenizer("gpt2")
    template = Template.parse("{sentence}{prompt}")
    asked = Classifier(judge, known, template, words("gpt2"), rendering="string", max_tokens=48)
    vectors = torch.zeros(1, 16).numpy()
    with pytest.raises(ValueError, match="render them in pieces"):
        asked.log_probs_on_top(Candidate(Prompt(" a", (5,)), offset=vectors), TEXTS)


def test_white_space_in_front_of_slots_is_left_out():
    masked = Template.parse("{sentence} {prompt} It was {mask} .").tight
    assert [p if isinstance(p, str) else p.value for p in masked.pieces] == [
        "sentence",
        "prompt",
        " It was",
        "mask",
        " .",
    ]
