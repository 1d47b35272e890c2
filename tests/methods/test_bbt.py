"""Black-box tuning: the strategy as it is wired, what is kept, and a planted vector found."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError
from pgtg.methods import prompt_options as known
from pgtg.methods.prompt_options import BBT
from pgtg.types import Labelled
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases

cma = pytest.importorskip("cma")

from pgtg.methods import bbt  # noqa: E402
from pgtg.methods.bbt import BBTSearch  # noqa: E402


class Toy:
    """Log-odds of the right word fall with the squared distance of all vectors to a planted one."""

    def __init__(self, planted: np.ndarray):
        self.planted = planted

    def labelled(self, split: str) -> list[Labelled]:
        return [Labelled("a", "", 1), Labelled("b", "", 1)]

    def answers(self, candidates: Any) -> np.ndarray:
        far = np.array([((one.offset.ravel() - self.planted) ** 2).sum() for one in candidates])
        odds = np.stack([np.zeros_like(far), 3.0 - far], -1)[:, None].repeat(2, 1)
        return (odds - np.log(np.exp(odds).sum(-1, keepdims=True))).astype(np.float32)


def options(**own: Any) -> BBT:
    found = run_config("prompt", ["method=bbt"]).method
    assert isinstance(found, BBT)
    for name, value in own.items():
        setattr(found, name, value)
    return found


def search(toy: Toy, seed: int = 0, **own: Any) -> BBTSearch:
    task: Any = toy
    size = len(toy.planted)
    projection = np.random.default_rng(5).normal(0, 0.5, (size, own.get("dim", 50)))
    return BBTSearch(task, options(**own), (7, 8), projection.astype(np.float32), seed)


def run(one: BBTSearch, toy: Toy, turns: int = 10**6) -> list[tuple[str, list[Any]]]:
    asked = []
    while turns and (question := one.ask()) is not None:
        offsets = [c.offset.tolist() for c in question.candidates]  # type: ignore[union-attr]
        asked.append((question.split, offsets))
        one.tell(toy.answers(question.candidates))
        turns -= 1
    return asked


@pytest.mark.parametrize("case", cases("cma_wiring", RIVALS))
def test_the_strategy_is_pycmas_with_its_defaults(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The same normal numbers give the same candidates, means and step sizes."""
    normals = iter(case["normals"])
    rng = SimpleNamespace(
        standard_normal=lambda shape: np.array([next(normals) for _ in range(shape[0])])
    )
    monkeypatch.setattr(bbt.np.random, "default_rng", lambda seed: rng)
    size, population = case["dim"], case["popsize"]
    own = {"dim": size, "popsize": population, "budget": case["maxiter"] * population}
    own |= {"sigma": case["sigma0"], "bound": 0.0}
    projection = np.eye(size, dtype=np.float32)
    task: Any = Toy(np.array(case["centre"]))
    one = BBTSearch(task, options(**own), range(size), projection, 0)
    centre, made = np.array(case["centre"]), 0
    while (question := one.ask()) is not None:
        assert question.split == "train"
        found = np.array([c.offset.ravel() for c in question.candidates])  # type: ignore[union-attr]
        step = case["generations"][made]
        np.testing.assert_allclose(found, step["solutions"], atol=1e-3)
        one._generation(((found.astype(float) - centre) ** 2).sum(-1).tolist())
        np.testing.assert_allclose(one._strategy.mean, step["mean"], atol=1e-3)
        assert one._strategy.sigma == pytest.approx(step["sigma"], rel=1e-3)
        made += 1
    assert made == len(case["generations"])
    assert one._strategy.countevals == case["evaluations"]


@pytest.mark.parametrize("case", cases("bbt_selection", RIVALS))
def test_the_released_selection(case: dict[str, Any]):
    """Of the candidates whose number is due, the first with the best dev accuracy."""
    every, right = case["evaluate_every"], iter(case["dev_correct_of_4"])
    toy = Toy(np.zeros(4))
    toy.labelled = lambda split: [Labelled(str(i), "", 1) for i in range(4)]  # type: ignore[method-assign]
    size = next(n for n in range(2, case["calls"] + 1) if case["calls"] % n == 0)
    one = search(toy, dim=3, popsize=size, budget=case["calls"], check_every=every, released=True)
    calls: list[Any] = []
    while (question := one.ask()) is not None:
        offsets = [c.offset.tolist() for c in question.candidates]  # type: ignore[union-attr]
        if question.split == "train":
            calls += offsets
            one.tell(np.random.default_rng(len(calls)).normal(size=(len(offsets), 4, 2)))
        else:
            numbers = [n for n in range(len(calls) - size, len(calls)) if (n + 1) % every == 0]
            assert offsets == [calls[number] for number in numbers]
            counts = [next(right) for _ in numbers]
            one.tell(np.array([[[0.0, 1.0]] * n + [[1.0, 0.0]] * (4 - n) for n in counts]))
    (best,) = one.best()
    assert best.offset is not None
    assert best.offset.tolist() == calls[case["selected_call"] - 1]


@pytest.mark.parametrize("seed", range(2))
def test_it_finds_a_planted_vector(seed: int):
    toy = Toy(np.array([0.5, -1.0, 0.8, 0.1]))
    one = search(toy, seed, dim=6, budget=600, popsize=10, check_every=10)
    asked = run(one, toy)
    first = toy.answers([one.candidate(np.zeros(6))])[0, 0, 1]
    train = [offset for split, own in asked if split == "train" for offset in own]
    last = np.array([np.ravel(offset) for offset in train[-10:]])
    assert np.abs(last.mean(0) - toy.planted).max() < 0.05
    assert len(train) <= one.options.asked()[0]
    reached = toy.answers(one.best())[0, 0, 1]
    assert reached > first


def test_the_dev_check_is_of_the_generations_best_and_only_better_ones_are_kept():
    toy = Toy(np.array([0.5, -1.0]))
    one = search(toy, dim=2, budget=40, popsize=10, check_every=20)
    number, last = 0, None
    while (question := one.ask()) is not None:
        if question.split == "dev":
            losses = one.fitness[-1]
            expected = one.due[0]
            assert len(question.candidates) == 1 and len(one.fitness) % 2 == 0
            assert last is not None
            best = last.candidates[int(np.argmin(losses))].offset
            checked = question.candidates[0].offset
            assert best is not None and checked is not None and best.tolist() == checked.tolist()
            one.tell(np.array([[[0.0, 1.0]] * 2]))  # all right: later ones are no better
            number += 1
            assert one.kept == expected if number == 1 else one.kept != expected
        else:
            last = question
            one.tell(toy.answers(question.candidates))
    assert number == 2


def test_a_restored_search_asks_what_it_would_have_asked():
    toy = Toy(np.array([0.5, -1.0]))
    own: dict[str, Any] = {"dim": 3, "budget": 40, "popsize": 5, "check_every": 5}
    whole = run(search(toy, **own), toy)
    for turn in range(len(whole)):
        one, other = search(toy, **own), search(toy, **own)
        run(one, toy, turn)
        other.restore(one.state())
        assert run(other, toy) == whole[turn:]


def test_numpys_global_generator_is_left_alone():
    toy = Toy(np.array([0.5, -1.0]))
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    run(search(toy, dim=3, budget=20, popsize=5), toy)
    assert np.random.random() == expected


def test_without_the_package_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"method.name: bbt needs the package cma; pip install"):
        run_config("prompt", ["method=bbt"])


def test_a_vocabulary_that_is_too_small_is_refused():
    judge: Any = SimpleNamespace(
        word_embeddings=np.zeros((9, 2)), tokenizer=SimpleNamespace(all_special_ids=[0, 1])
    )
    assert bbt.hard_tokens(judge, 7) == [2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(ConfigError, match=r"method.tokens: found 8, but the classifier has 7"):
        bbt.hard_tokens(judge, 8)
    judge.word_embeddings = np.zeros((1010, 2))
    assert bbt.hard_tokens(judge, 3) == [1000, 1001, 1002]
