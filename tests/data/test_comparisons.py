"""Which generations are compared: within sources, in passes, or in groups drawn from a pool."""

from typing import Any

import numpy as np
import pytest
import torch

from pgtg.data.comparisons import (
    Comparisons,
    all_at_once,
    examples_in,
    from_fresh,
    from_pool,
    in_passes,
    of_sources,
)
from pgtg.data.generations import joined, of_tables, shuffled_scores
from pgtg.types import Generations


def generations(n: int, examples: int = 10, seed: int = 0) -> Generations:
    """n prompts of three tokens, judged on some examples; the last repeats the first."""
    scores = np.random.default_rng(seed).normal(size=(n, examples)).astype(np.float32)
    tokens = [[seed, i, i + 1] for i in range(n - 1)] + [[seed, 0, 1]]
    return Generations(
        source_ids=[f"s{seed}-{i}" for i in range(n)],
        sources=[[9]] * n,
        origin=list(range(n)),
        tokens=tokens,
        texts=[str(t) for t in tokens],
        scores=scores.mean(-1, dtype=np.float64).tolist(),
        groups=torch.arange(n)[:, None],
        example_scores=scores,
    )


def drawn(pool: Generations, step: int = 0, seed: int = 1, share: float = 0.8) -> Comparisons:
    return from_pool(pool, 64, seed, step, k=5, pool=8, share=share)


def test_groups_of_a_pool_hold_distinct_candidates_of_one_small_pool():
    pool = generations(20)
    found = drawn(pool)
    assert found.groups.shape == found.preference.shape == (64, 5)
    for group in found.groups.tolist():
        assert len({tuple(pool.tokens[row]) for row in group}) == 5
    assert len(set(found.groups.flatten().tolist())) == 8  # the update's own prompts
    assert 19 not in set(torch.cat([drawn(pool, i).groups for i in range(20)]).flatten().tolist())


def test_a_random_share_of_the_examples_is_the_same_for_all_groups_of_an_update():
    pool = generations(20)
    assert pool.example_scores is not None
    found = drawn(pool)
    seen = {int(row): float(p) for g, ps in zip(found.groups, found.preference, strict=True)
            for row, p in zip(g, ps, strict=True)}  # fmt: skip
    subsets = [
        set(keep)
        for keep in _subsets(10, 8)
        if all(
            abs(pool.example_scores[row][list(keep)].mean() - p) < 1e-6 for row, p in seen.items()
        )
    ]
    assert len(subsets) == 1  # eight of the ten examples, for every prompt


@pytest.mark.parametrize(
    ("share", "examples", "expected"),
    # 2 and 4 classes of 16 shots; an exact product stays, whatever a float makes of it
    [(0.8, 32, 26), (0.8, 64, 52), (0.8, 15, 12), (0.07, 100, 7), (1.0, 9, 9), (0.01, 3, 1)],
)
def test_a_share_of_the_examples_is_rounded_up(share: float, examples: int, expected: int):
    assert examples_in(share, examples) == expected


def test_groups_of_fresh_prompts_are_drawn_from_all_of_them():
    """Also one that was drawn twice; scored by means over one random share of the examples."""
    scores = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    scores[5] = scores[0]
    found = from_fresh(scores, 64, 1, 2, k=5, share=0.8)
    assert found.groups.shape == (64, 5)
    assert all(len(set(group)) == 5 for group in found.groups.tolist())
    assert set(found.groups.flatten().tolist()) == set(range(6))
    seen = {int(row): float(p) for g, ps in zip(found.groups, found.preference, strict=True)
            for row, p in zip(g, ps, strict=True)}  # fmt: skip
    assert seen[0] == seen[5]
    means = {keep: scores[:, list(keep)].mean(-1) for keep in _subsets(10, 8)}
    fits = [k for k, m in means.items() if all(abs(m[row] - p) < 1e-6 for row, p in seen.items())]
    assert len(fits) == 1
    again = from_fresh(scores, 64, 1, 3, k=5, share=0.8)
    assert not torch.equal(found.groups, again.groups)


def test_fresh_prompts_that_the_judge_cannot_tell_apart_give_one_tied_group():
    found = from_fresh(np.ones((4, 3), np.float32), 7, 0, 0, k=3, share=1.0)
    assert found.groups.shape == (1, 3) and found.tied == 7


def _subsets(n: int, k: int):
    from itertools import combinations

    return combinations(range(n), k)


def test_draws_are_a_function_of_seed_and_update():
    pool = generations(20)
    assert torch.equal(drawn(pool, 3).groups, drawn(pool, 3).groups)
    assert not torch.equal(drawn(pool, 3).groups, drawn(pool, 4).groups)
    assert not torch.equal(drawn(pool, 3).groups, drawn(pool, 3, seed=2).groups)


def test_all_examples_give_the_judges_mean():
    pool = generations(12)
    found = drawn(pool, share=1.0)
    expected = torch.tensor(pool.scores, dtype=torch.float64)[found.groups]
    torch.testing.assert_close(found.preference.double(), expected, atol=1e-6, rtol=0)


def test_all_at_once_is_one_group_without_repetitions():
    found = all_at_once(generations(6))
    assert found.groups.tolist() == [[0, 1, 2, 3, 4]]


def test_few_prompts_make_smaller_groups():
    assert from_pool(generations(4), 7, 0, 0, k=5, pool=16, share=1.0).groups.shape == (7, 3)


def test_rounds_are_joined_in_order_and_groups_stay_their_own():
    whole = joined([generations(3), generations(4, seed=1)])
    assert whole.groups.flatten().tolist() == list(range(7))
    assert whole.origin == list(range(7))
    assert whole.tokens[3:] == generations(4, seed=1).tokens
    assert whole.example_scores is not None and whole.example_scores.shape == (7, 10)


def test_shuffled_scores_are_the_same_scores_of_other_prompts():
    pool = generations(30)
    control = shuffled_scores(pool, 1)
    assert sorted(control.scores) == sorted(pool.scores) and control.scores != pool.scores
    assert control.example_scores is not None
    np.testing.assert_allclose(control.example_scores.mean(-1), control.scores, atol=1e-6)
    assert control.tokens == pool.tokens


def test_what_shuffled_scores_prefer_is_at_chance():
    """Of pairs whose order is known, half stand the right way round: 40 pools, 435 pairs each."""
    pool, right = generations(30), []
    rank = np.argsort(np.argsort(pool.scores))
    upper = np.triu_indices(30, 1)
    for seed in range(40):
        other = np.array(shuffled_scores(pool, seed).scores)
        agree = (other[:, None] > other) == (rank[:, None] > rank)
        right.append(agree[upper].mean())
    # a permutation's concordance has variance (2 n + 5) / (18 n (n - 1)) (Kendall)
    sd = np.sqrt((2 * 30 + 5) / (18 * 30 * 29))
    assert abs(np.mean(right) - 0.5) < 4 * sd / np.sqrt(40)
    assert np.std(right, ddof=1) == pytest.approx(sd, rel=0.4)


def test_passes_take_every_group_once():
    tied = Generations(
        source_ids=["a", "b", "c"],
        sources=[[1], [2], [3]],
        origin=[0, 0, 1, 1, 2, 2],
        tokens=[[i] for i in range(6)],
        texts=list("abcdef"),
        scores=[1.0, 2.0, 3.0, 3.0, 5.0, 4.0],
        groups=torch.arange(6).reshape(3, 2),
    )
    comparisons = of_sources(tied)
    assert comparisons.groups.tolist() == [[0, 1], [4, 5]] and comparisons.tied == 1
    first = [in_passes(comparisons, 1, 0, step).groups.tolist()[0] for step in range(2)]
    assert sorted(first) == [[0, 1], [4, 5]]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_parts_are_the_whole(size: int):
    found = drawn(generations(20))
    parts = found.split(size)
    assert max(len(part) for part in parts) <= size
    assert torch.equal(torch.cat([part.groups for part in parts]), found.groups)


def ranked(**columns: list) -> Generations:
    """Two sources with three and two ranked texts."""
    table = {
        "source_id": ["a", "a", "a", "b", "b"],
        "source": [[7], [7], [7], [8], [8]],
        "tokens": [[1], [2, 2], [3], [4], [5]],
        "text": list("uvwxy"),
        "score": [2.0, 1.0, 3.0, 0.0, 1.0],
    }
    return of_tables([table | columns])


def test_sources_may_have_unequal_numbers_of_texts():
    found = ranked()
    assert found.groups.tolist() == [[0, 1, 2], [3, 4, -1]]
    assert found.members == [[0, 1, 2], [3, 4]]
    compared = of_sources(found)
    assert compared.preference[0].tolist() == [2.0, 1.0, 3.0]
    assert compared.preference[1, :2].tolist() == [0.0, 1.0] and compared.preference[1, 2].isnan()
    both = joined([found, ranked()])
    assert both.groups.tolist() == [[0, 1, 2], [3, 4, -1], [5, 6, 7], [8, 9, -1]]


def test_pairs_are_compared_two_by_two():
    """a: the third text beats both others, which nobody compared; b: the second beats the first."""
    found = ranked(beats=[[], [], [0, 1], [], [0]])
    assert found.pairs is not None and found.pairs.tolist() == [[2, 0], [2, 1], [4, 3]]
    compared = of_sources(found)
    assert compared.groups.tolist() == found.pairs.tolist()
    assert (compared.preference == torch.tensor([1.0, 0.0])).all()
    twice = joined([found, found])
    assert twice.pairs is not None and twice.pairs[3:].tolist() == [[7, 5], [7, 6], [9, 8]]
    shuffled = [shuffled_scores(found, seed).pairs for seed in range(200)]
    flipped = [pairs.tolist() != found.pairs.tolist() for pairs in shuffled if pairs is not None]
    assert 0.8 < np.mean(flipped) < 0.95  # 7 in 8
    same = [sorted(map(sorted, p.tolist())) for p in shuffled if p is not None]
    assert same == [[[0, 2], [1, 2], [3, 4]]] * 200


def test_margins_go_with_their_groups():
    table = {"source_id": list("aabb"), "source": [[7]] * 2 + [[8]] * 2, "tokens": [[1], [2]] * 2}
    table |= {"text": list("uvwx"), "score": [1.0, 0.0, 0.0, 0.0], "margin": [0.5, 0.5, 2.0, 2.0]}
    found = of_tables([table])
    assert found.margins is not None and found.margins.tolist() == [0.5, 2.0]
    compared = of_sources(found)  # b is tied
    assert compared.tied == 1 and compared.margin is not None
    assert compared.margin.tolist() == [0.5]
    assert in_passes(compared, 1, 0, 3).margin is not None


def test_margins_where_only_some_chunks_and_rounds_have_any():
    def table(names: str, margins: list[float]) -> dict[str, list[Any]]:
        ids = [name for name in names for _ in range(2)]
        found = {"source_id": ids, "source": [[ord(i)] for i in ids], "tokens": [[1], [2]] * 2}
        found |= {"text": list("uvwx"), "score": [1.0, 0.0] * 2}
        return found | ({"margin": [m for m in margins for _ in range(2)]} if any(margins) else {})

    without, some = table("ab", [0.0, 0.0]), table("cd", [0.0, 2.0])
    found = of_tables([without, some])
    assert found.margins is not None and found.margins.tolist() == [0, 0, 0, 2]
    rounds = joined([of_tables([without]), of_tables([some])])
    assert rounds.margins is not None and rounds.margins.tolist() == [0, 0, 0, 2]
    assert (
        of_tables([without]).margins is None and joined([of_tables([without])] * 2).margins is None
    )
