"""GrIPS: the released search step by step, and the best instruction of a toy classifier."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError
from pgtg.methods import grips
from pgtg.methods.grips import Edited, GripsSearch
from pgtg.methods.prompt_options import GrIPS
from pgtg.ops import edits
from pgtg.ops.gap import gap_scores
from pgtg.types import Labelled
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases

WORTH = {"plainly": 1.5, "never": -2.0, "verdict": 1.0, "maybe": -0.5, "clearly": 0.5}
LABELS = [0, 1, 1, 0]


class Toy:
    """A classifier whose answers get better with the worth of an instruction's words."""

    def template(self, name: str) -> Any:
        return SimpleNamespace(instruction=" ".join(WORTH))

    def labelled(self, split: str) -> list[Labelled]:
        return [Labelled(str(i), "", label) for i, label in enumerate(LABELS)]

    def gap_of(self, log_probs: torch.Tensor, split: str) -> torch.Tensor:
        return gap_scores(log_probs, torch.tensor(LABELS))

    def answers(self, texts: Sequence[str]) -> np.ndarray:
        """[P, E, 2]: log-odds of the right label are the words' worth, each word counted once."""
        worth = [sum(WORTH.get(word, 0.0) for word in set(text.split())) for text in texts]
        right = np.array([[1.0 if label else -1.0 for label in LABELS]]) * np.array(worth)[:, None]
        return np.stack([np.zeros_like(right), right], -1).astype(np.float32)


def search(task: Any = None, seed: int = 0, **options: Any) -> GripsSearch:
    own = run_config("prompt", ["method=grips"]).method
    assert isinstance(own, GrIPS)
    for name, value in options.items():
        setattr(own, name, value)
    toy: Any = task or Toy()
    return GripsSearch(toy, own, seed, torch.device("cpu"))


def run(one: GripsSearch, toy: Toy) -> list[list[str]]:
    """The texts of each question, until the search ends."""
    asked = []
    while (question := one.ask()) is not None:
        asked.append([candidate.prompt.text for candidate in question.candidates])
        one.tell(toy.answers(asked[-1]))
    return asked


@pytest.mark.parametrize("case", cases("grips_search", RIVALS))
def test_the_released_search(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Drawn edits and scores as they were: texts, what is accepted, the pool, and the end."""

    def scored(text: str) -> float:
        words = text.lower().replace(".", " ").replace(",", " ").split()
        value = 50 + 5 * sum(word in words for word in case["scorer"]["wanted"])
        return value - 2 * sum(w in words for w in case["scorer"]["unwanted"]) - 0.1 * len(words)

    def drawn(self: GripsSearch) -> list[Edited]:
        found = []
        for edit in case["iterations"][self.iteration]["edits"]:
            kind, phrase = edit["edit"], edit.get("phrase")
            if kind == "del":
                found.append(Edited(edits.delete_released(self.text, phrase), puts=phrase))
            elif kind == "add":
                text = edits.add_released(self.text, phrase, edit["after"])
                found.append(Edited(text, takes=phrase))
            else:
                found.append(Edited(edits.swap_released(self.text, *edit["phrases"])))
        return found

    monkeypatch.setattr(GripsSearch, "draw", drawn)
    one = search(instruction=case["instruction"], released=True)
    texts: list[str] = []
    monkeypatch.setattr(one, "scores", lambda answers: [scored(text) for text in texts])
    number = -1
    while (question := one.ask()) is not None:
        texts[:] = [candidate.prompt.text for candidate in question.candidates]
        one.tell(np.zeros((len(texts), 1, 2)))
        if number < 0:
            assert one.score == pytest.approx(case["base_score"])
        else:
            step = case["iterations"][number]
            assert texts == step["candidates"]
            assert one.text == step["instruction_after"]
            assert one.pool == step["deleted_pool_after"]
        number += 1
    assert number == len(case["iterations"]) and one.text == case["final"]
    assert one.score == pytest.approx(case["final_score"])
    assert [candidate.prompt.text for candidate in one.best()] == [case["final"]]


@pytest.mark.parametrize("seed", range(3))
def test_it_reaches_the_best_of_all_instructions(seed: int):
    toy = Toy()
    one = search(phrases="words", score="gap", patience=8, iterations=40, seed=seed)
    run(one, toy)
    subsets = [" ".join(words) for n in range(1, 6) for words in itertools.combinations(WORTH, n)]
    gaps = toy.gap_of(torch.from_numpy(toy.answers(subsets)), "train").double().mean(-1)
    assert one.score == pytest.approx(gaps.max().item(), rel=1e-6)
    assert set(one.text.split()) == {word for word, worth in WORTH.items() if worth > 0}


def test_it_never_gets_worse_and_keeps_its_budget_and_its_pool():
    toy, one = Toy(), search(phrases="words", score="gap", released=False)
    scores, spent = [], 0
    while (question := one.ask()) is not None:
        texts = [candidate.prompt.text for candidate in question.candidates]
        assert one.ask() is question or [c.prompt.text for c in one.ask().candidates] == texts  # type: ignore[union-attr]
        one.tell(toy.answers(texts))
        spent += len(texts)
        scores.append(one.score)
        assert sorted([*one.text.split(), *one.pool]) == sorted(WORTH)  # nothing is lost
    assert scores == sorted(scores) and spent <= 51 == one.total


def test_it_stops_after_two_iterations_without_a_better_text():
    toy = Toy()
    toy.answers = lambda texts: np.zeros((len(texts), 4, 2), np.float32)  # type: ignore[method-assign]
    assert [len(texts) for texts in run(search(phrases="words"), toy)] == [1, 5, 5]


def test_a_restored_search_asks_what_it_would_have_asked():
    toy = Toy()
    options: dict[str, Any] = {"phrases": "words", "score": "gap"}
    whole = run(search(**options), toy)
    for turn in range(len(whole)):
        one = search(**options)
        for _ in range(turn):
            question = one.ask()
            assert question is not None
            one.tell(toy.answers([candidate.prompt.text for candidate in question.candidates]))
        other = search(**options)
        other.restore(one.state())
        assert run(other, toy) == whole[turn:]


@pytest.mark.slow
def test_paraphrases_need_a_model_and_are_put_in_their_phrases_place(
    monkeypatch: pytest.MonkeyPatch,
):
    asked = []
    monkeypatch.setattr(
        grips, "_paraphrases", lambda path, phrase, _: asked.append((path, phrase)) or ["other."]
    )
    task, kinds = Toy(), set()
    for iteration in range(20):
        one = search(task, paraphraser="a/b", phrases="words", candidates=3)
        one.tell(task.answers([one.text]))
        one.iteration = iteration
        kinds |= {"other" in edit.text.split() for edit in one.draw()}
    assert kinds == {True, False} and {path for path, _ in asked} == {"a/b"}
    assert {phrase for _, phrase in asked} <= set(WORTH)
    asked.clear()
    one = search(task, phrases="words", candidates=60)
    one.tell(task.answers([one.text]))
    one.draw()
    assert not asked


def test_a_data_set_without_an_instruction_is_refused_in_one_line():
    task = Toy()
    task.template = lambda name: SimpleNamespace(instruction=None)  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=r"method.instruction: no value, and the data set's templ"
    ):
        search(task)
    assert search(task, instruction="Say it .").text == "Say it ."
