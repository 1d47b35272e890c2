"""AutoPrompt: the released iteration on a tiny RoBERTa, and a planted trigger found."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError
from pgtg.judges.candidate import Candidate
from pgtg.judges.classifier import Classifier
from pgtg.judges.readers import MaskedReader, VocabularyReader
from pgtg.judges.template import Prompt, Template
from pgtg.methods.autoprompt import AutoPromptSearch, _first_token, embedding_gradient
from pgtg.methods.prompt_options import AutoPrompt
from pgtg.ops.triggers import best_tokens, first_order_scores, strictly_right
from pgtg.types import Labelled
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases
from tests.support.classifiers import MAX_TOKENS, labelled, model, tokenizer, words
from tests.support.tiny_roberta import close, rows, tiny_roberta

WORDS, LENGTH = 50, 2  # of the toy classifier: 2,500 triggers


def options(**own: Any) -> AutoPrompt:
    found = run_config("prompt", ["method=autoprompt"]).method
    assert isinstance(found, AutoPrompt)
    for name, value in own.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize("case", cases("autoprompt_step", RIVALS))
def test_one_released_iteration(case: dict[str, Any]):
    """Loss and gradient of each batch, candidates, their right answers, and what is accepted."""
    model = tiny_roberta()
    reader, label_ids = VocabularyReader(model), torch.tensor(case["label_word_ids"])
    answers = MaskedReader(model, label_ids)

    def given(batch: dict[str, Any], trigger: list[int]) -> list[Any]:
        found = rows(batch, "trigger_mask", "predict_mask")
        for row in found:
            row.ids[row.prompt : row.prompt + len(trigger)] = trigger
        return found

    gradients = []
    for batch in case["batches"][: case["accumulation"]]:
        vectors = torch.zeros(len(case["trigger"]), 8, dtype=torch.float64, requires_grad=True)
        log_probs = reader.read(given(batch, case["trigger"]), vectors).log_softmax(-1)
        own = label_ids[torch.tensor(batch["labels"])]
        loss = -log_probs[range(len(own)), own].mean()
        assert loss.item() == pytest.approx(batch["loss"], rel=2e-5)
        gradients.append(torch.autograd.grad(loss, vectors)[0])
    gradient = torch.stack(gradients).mean(0)
    assert close(gradient, case["gradient"])
    table: Any = model.get_input_embeddings()
    scores = first_order_scores(table.weight, gradient[case["position"]])
    found = best_tokens(scores, len(case["candidates"]))
    assert found == case["candidates"]
    last, trigger = case["batches"][-1], list(case["trigger"])
    right = []
    for token in [trigger[case["position"]], *found]:
        trigger[case["position"]] = token
        values = answers.read(given(last, trigger))
        right.append(strictly_right(values, torch.tensor(last["labels"])).sum().item())
    assert right == [case["correct_now"], *case["correct_of_candidates"]]
    better = [token for token, n in zip(found, right[1:], strict=True) if n == max(right[1:])]
    assert case["accepted"] == (better[0] if max(right[1:]) > right[0] else None)


class Toy:
    """Log-odds of the right word are the sum of the trigger's embeddings times each text's vector:
    linear, so that the first order is all there is."""

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(WORDS, 6, generator=generator)
        self.texts = torch.randn(40, 6, generator=generator) + 1.5
        self.labels = torch.arange(40) % 2

    def labelled(self, split: str) -> list[Labelled]:
        return [Labelled(str(i), "", label) for i, label in enumerate(self.labels.tolist())]

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        odds = (self.texts @ vectors.sum(-2)[..., None]).squeeze(-1) - 4.0
        return torch.stack([torch.zeros_like(odds), odds * (2 * self.labels - 1)], -1)

    def answers(self, candidates: Any) -> np.ndarray:
        found = [self.logits(self.table[list(one.prompt.ids)]) for one in candidates]
        return torch.stack(found).log_softmax(-1).numpy()

    def gradient(self, ids: Any, examples: Any) -> torch.Tensor:
        vectors = self.table[list(ids)].clone().requires_grad_(True)
        rows = [int(example.id) for example in examples]
        log_probs = self.logits(vectors).log_softmax(-1)[rows]
        loss = -log_probs[range(len(rows)), self.labels[rows]].mean()
        return torch.autograd.grad(loss, vectors)[0]


def search(toy: Toy, seed: int = 0, **own: Any) -> AutoPromptSearch:
    task: Any = toy
    return AutoPromptSearch(
        task,
        options(tokens=LENGTH, **own),
        toy.table,
        toy.gradient,
        start=[0] * LENGTH,
        text=lambda ids: " ".join(map(str, ids)),
        allowed=None,
        seed=seed,
    )


def run(one: AutoPromptSearch, toy: Toy, turns: int = 10**6) -> list[Any]:
    asked = []
    while turns and (question := one.ask()) is not None:
        asked.append((question.split, [c.prompt.ids for c in question.candidates]))
        one.tell(toy.answers(question.candidates))
        turns -= 1
    return asked


@pytest.mark.parametrize("seed", range(3))
def test_it_reaches_the_best_of_all_triggers(seed: int):
    toy = Toy(seed)
    one = search(toy, seed, iterations=15, candidates=20)
    asked = run(one, toy)
    every = [Candidate(Prompt("", ids)) for ids in itertools.product(range(WORDS), repeat=2)]
    right = strictly_right(torch.from_numpy(toy.answers(every)), toy.labels).sum(-1)
    (own,) = strictly_right(torch.from_numpy(toy.answers(one.best())), toy.labels).sum(-1)
    assert own == right.max()
    counts = {s: sum(len(ids) for split, ids in asked if split == s) for s in ("train", "dev")}
    most = one.options.asked()
    assert counts["train"] == most[0] and 1 <= counts["dev"] <= most[1]
    assert one.measured() == {"improve/gradient_sequences": 15 * 40}


def test_a_trigger_is_accepted_if_strictly_better_and_kept_if_better_on_dev():
    toy = Toy()
    one = search(toy, iterations=3, candidates=2)
    worse, better = [[0.0, -1.0]] * 40, [[0.0, 1.0]] * 40
    labels = [
        [row[::-1] if label == 0 else row for row, label in zip(own, toy.labels, strict=True)]
        for own in (worse, better)
    ]
    wrong, right = np.array(labels)
    first = one.ask()
    assert first is not None and first.split == "train" and len(first.candidates) == 3
    one.tell(np.stack([wrong, wrong, wrong]))  # none better: on to the next iteration, no check
    assert (one.iteration, one.trigger, one.accepted) == (1, [0, 0], False)
    second = one.ask()
    assert second is not None
    one.tell(np.stack([wrong, right, right]))  # the first of the best
    assert one.trigger == list(second.candidates[1].prompt.ids or ())
    dev = one.ask()
    assert (
        dev is not None
        and dev.split == "dev"
        and [c.prompt for c in dev.candidates] == [second.candidates[1].prompt]
    )
    one.tell(wrong[None])  # accuracy 0: kept all the same, since nothing was checked before
    assert one.kept == one.trigger and one.kept_accuracy == 0.0
    third = one.ask()
    assert third is not None
    one.tell(np.stack([wrong, wrong, right]))
    one.ask()
    one.tell(wrong[None])  # no better on dev
    assert one.trigger != one.kept == list(second.candidates[1].prompt.ids or ())
    assert one.ask() is None


def test_batches_are_drawn_anew_and_answers_are_views_of_the_whole_split():
    toy = Toy()
    one = search(toy, batch=10)
    batches = [(purpose, tuple(one._batch(purpose, 0))) for purpose in ("gradient", "trial")]
    assert len({rows for _, rows in batches}) == 2 and all(len(rows) == 10 for _, rows in batches)
    one.ask()
    scores = np.zeros((21, 40, 2))
    inside = one._batch("trial", 0)
    outside = next(i for i in range(40) if i not in inside)
    scores[3, outside, toy.labels[outside]] = 1.0  # would be better, on a text not drawn
    one.tell(scores)
    assert not one.accepted


def test_a_restored_search_asks_what_it_would_have_asked():
    toy, own = Toy(), {"iterations": 4, "candidates": 5, "batch": 12}
    whole = run(search(toy, **own), toy)
    for turn in range(len(whole)):
        one, other = search(toy, **own), search(toy, **own)
        run(one, toy, turn)
        other.restore(one.state())
        assert run(other, toy) == whole[turn:]


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_the_gradient_is_the_sum_over_texts_of_the_mean_loss(family: str):
    """Against a second implementation: embeddings given in the place of ids, padded by none."""
    known, judge = tokenizer(family), model(family, len(tokenizer(family)))
    text = "{sentence} {prompt} {mask} ." if family == "roberta" else "{sentence}{prompt}"
    template = Template.parse(text).tight
    options: Any = {"rendering": "piecewise", "max_tokens": MAX_TOKENS}
    own = Classifier(judge, known, template, words(family), **options)
    texts = labelled("a b", "the film is", *["c d e"] * 20)
    given = Candidate(Prompt("", (20, 21, 22)))
    found = embedding_gradient(own, given, texts)
    table: Any = judge.get_input_embeddings()
    expected = torch.zeros_like(found)
    for row, example in zip(
        own.renderer.render(given.prompt, [t.text for t in texts]), texts, strict=True
    ):
        vectors = table.weight[row.ids].clone().requires_grad_(True)
        positions = torch.arange(len(row.ids))[None] + (2 if family == "roberta" else 0)
        logits = judge(inputs_embeds=vectors[None], position_ids=positions).logits[0, row.position]
        loss = -logits.log_softmax(-1)[own.label_ids[example.label]] / len(texts)
        (gradient,) = torch.autograd.grad(loss, vectors)
        expected += gradient[row.prompt : row.prompt + 3]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_triggers_start_as_masks_or_as_one_token_of_a_text():
    causal: Any = SimpleNamespace(tokenizer=tokenizer("gpt2"))
    for text in (" the", None):
        if len(causal.tokenizer(" the")["input_ids"]) == 1:
            assert _first_token(causal, text) == causal.tokenizer(" the")["input_ids"][0]
    assert _first_token(causal, " great") == causal.tokenizer(" great")["input_ids"][0]
    with pytest.raises(ConfigError, match=r"method.start: ' the film zzz' is \d+ tokens"):
        _first_token(causal, " the film zzz")
    masked: Any = SimpleNamespace(tokenizer=tokenizer("roberta"))
    assert _first_token(masked, None) == masked.tokenizer.mask_token_id
