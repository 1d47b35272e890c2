"""The generated reviews: the truth by hand and by enumeration, and what holds in every split."""

import itertools
import math
import random
from dataclasses import replace

import pytest

from pgtg.config import ReviewsConfig
from pgtg.data.worlds import reviews
from pgtg.data.worlds.reviews import CANDIDATES, LEAN, OPINIONS, GroundTruth, make_truth, optimum
from pgtg.errors import ConfigError

CONFIG = ReviewsConfig(
    shots=16,
    test=100,
    seed=0,
    length=5,
    words=64,
    strong=6,
    weak=10,
    harmful=12,
    pairs=4,
    sharpness=6.0,
)
TRUTH = GroundTruth({"truly": 1.0, "river": -0.5}, {("seat", "truly"): 0.25}, scale=2.0)


# --- the ground truth


@pytest.mark.parametrize(
    ("prompt", "strength"),
    [
        ((), 0.0),
        (("paper", "seat"), 0.0),
        (("truly",), 2.0),
        (("truly", "truly", "truly"), 2.0),  # a word counts once
        (("river", "truly"), 1.0),
        (("truly", "paper", "seat"), 2.5),  # either order of a pair
        (("seat", "river", "truly"), 1.5),
    ],
)
def test_strength_by_hand(prompt: tuple[str, ...], strength: float):
    assert TRUTH.strength(prompt) == pytest.approx(strength)
    assert TRUTH.strengths([prompt, ()]) == pytest.approx([strength, 0.0])


def test_probability_by_hand():
    text = "the plot was dull , cast was slow but music was lovely"  # (-1 - 0.5 + 1) / 3
    assert reviews.evidence(text) == pytest.approx(-1 / 6)
    wanted = 1 / (1 + math.exp(-(2.0 * -1 / 6 + LEAN)))
    assert TRUTH.probability(("truly",), text) == pytest.approx(wanted)
    assert TRUTH.probability((), text) == pytest.approx(1 / (1 + math.exp(-LEAN)))


def test_a_truth_has_the_kinds_of_words_asked_for():
    truth, words = make_truth(CONFIG), reviews.candidates(CONFIG)
    values = sorted(truth.weights.values(), reverse=True)
    assert [sum(low <= v <= high for v in values) for low, high in [(0.6, 1), (0.2, 0.4)]] == [
        6,
        10,
    ]
    assert sum(value < 0 for value in values) == 12 == len(values) - 16
    assert len(truth.pairs) == 4
    for first, second in truth.pairs:
        assert first < second
        assert sorted(word in truth.weights for word in (first, second)) == [False, True]
    assert set(truth.active) <= set(words) and len(truth.active) == 28 + 4


def test_the_best_prompt_has_the_config_sharpness():
    """By enumeration of all prompts of three different words (a repetition adds nothing)."""
    cfg = replace(CONFIG, words=24, strong=2, weak=5, harmful=3, pairs=3, length=3)
    for seed in range(3):
        truth = make_truth(replace(cfg, seed=seed))
        prompts = itertools.combinations(reviews.candidates(cfg), 3)
        assert max(truth.strength(p) for p in prompts) == pytest.approx(6.0)


def test_the_world_seed_moves_the_truth_and_nothing_else_does():
    assert make_truth(CONFIG) == make_truth(replace(CONFIG, shots=3, test=7))
    assert make_truth(CONFIG).weights.keys() != make_truth(replace(CONFIG, seed=1)).weights.keys()


def test_random_prompts_stay_far_below_the_optimum():
    """Room is left: best of 320 at or below 80 % of the optimum's strength, mean near 0."""
    for seed in range(3):
        truth = make_truth(replace(CONFIG, seed=seed))
        found = truth.strengths(reviews.random_prompts(reviews.candidates(CONFIG), 5, 3200, seed))
        best = [max(found[i : i + 320]) for i in range(0, 3200, 320)]
        assert sum(best) / 10 < 0.8 * CONFIG.sharpness
        assert abs(sum(found) / 3200) < 0.1 * CONFIG.sharpness


@pytest.mark.parametrize(
    "more", [{"words": 65}, {"words": 31}, {"strong": 0}, {"length": 0}, {"pairs": 40, "weak": 30}]
)
def test_sizes_that_do_not_fit_are_refused(more: dict[str, int]):
    with pytest.raises(ConfigError, match=r"data\.reviews"):
        reviews.candidates(replace(CONFIG, **more))


# --- reviews


def test_splits_have_their_sizes_balance_and_no_text_twice():
    splits = reviews.generate(CONFIG)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 32,
        "dev": 32,
        "test": 100,
    }
    texts = [row.text for rows in splits.values() for row in rows]
    assert len(set(texts)) == 164
    for rows in splits.values():
        assert 2 * sum(row.label for row in rows) == len(rows) == len({row.id for row in rows})


def test_the_class_is_the_sign_of_the_opinions():
    """Evidence found again from the bare text."""
    for row in reviews.generate(CONFIG)["test"]:
        weights = [OPINIONS[word] for word in row.text.split() if word in OPINIONS]
        assert 2 <= len(weights) <= 3
        assert abs(sum(weights)) / len(weights) >= 0.25
        assert (sum(weights) > 0) == (row.label == reviews.GOOD)


def test_the_data_seed_draws_other_few_examples_and_the_same_test():
    first, second = reviews.generate(CONFIG), reviews.generate(CONFIG, data_seed=1)
    assert first["test"] == second["test"]
    assert first["train"] != second["train"] and first["dev"] != second["dev"]
    assert reviews.generate(CONFIG) == first


def test_every_word_is_in_the_vocabulary_and_kinds_do_not_mix():
    vocabulary, rng = reviews.vocabulary(CONFIG), random.Random(0)
    assert vocabulary == sorted(set(vocabulary)) and len(CANDIDATES) == len(set(CANDIDATES)) == 64
    others = {*OPINIONS, *reviews.ASPECTS, *reviews.JOINTS, *reviews.ANSWERS, "the", "was", "."}
    assert not others & set(CANDIDATES)
    texts = [reviews.any_text(CONFIG, rng) for _ in range(300)]
    words = {word for text in texts for word in text.split()}
    assert words <= set(vocabulary) and not words & set(reviews.ANSWERS)
    mixed = [
        t for t in texts if set(t.split()) & set(CANDIDATES) and set(t.split()) & set(OPINIONS)
    ]
    assert not mixed  # so this text says nothing about the truth


# --- the best prompt


def test_coordinate_ascent_finds_the_enumerated_optimum():
    """A judge with graded words and a pair worth more than any of them, 8^3 prompts."""
    words = list("abcdefgh")

    def judge(prompts: list[tuple[str, ...]]) -> list[float]:
        return [
            sum(ord(w) - ord("a") for w in set(p)) + 20 * ({"a", "b"} <= set(p)) for p in prompts
        ]

    found, score = optimum(judge, words, 3, seed=0, restarts=30)
    best = max(judge(list(itertools.product(words, repeat=3))))
    assert score == best == judge([found])[0] == 0 + 1 + 7 + 20


def test_coordinate_ascent_goes_on_until_no_place_changes():
    """Only when the last place is right do the others count: one pass would not do."""

    def judge(prompts: list[tuple[str, ...]]) -> list[float]:
        return [10.0 * (p[2] == "b") + (p[2] == "b") * sum(w == "c" for w in p) for p in prompts]

    assert optimum(judge, "abc", 3, 0, 0, starts=[("a", "a", "a")]) == (("c", "c", "b"), 12.0)


def test_random_prompts_are_uniform_and_seeded():
    prompts = reviews.random_prompts("abcd", 5, 2000, 3)
    assert (
        prompts
        == reviews.random_prompts("abcd", 5, 2000, 3)
        != reviews.random_prompts("abcd", 5, 2000, 4)
    )
    counts = [sum(p.count(word) for p in prompts) for word in "abcd"]
    # binomial, n = 10000, p = 1/4: four standard deviations are 173
    assert sum(counts) == 10000 and all(abs(count - 2500) < 173 for count in counts)
