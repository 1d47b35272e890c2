"""The order of training: every example once an epoch, at random, and little padding."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgtg.config.compose import run_config
from pgtg.data.comparisons import in_passes, of_sources, parts_in_passes
from pgtg.ops.order import dealt, of_epoch
from pgtg.training.schedule import updates_per_epoch
from pgtg.types import Generations
from tests.training.test_loop import CFG

# tokens of a source as they are distributed in the data sets, by T5's tokenizer, cut at 1024
LIKE = {
    "scitldr": lambda rng, n: rng.normal(220, 64, n).clip(40, 500),
    "cnn_dm": lambda rng, n: rng.lognormal(np.log(880), 0.5, n).clip(50, 1024),
    "xsum": lambda rng, n: rng.lognormal(np.log(430), 0.65, n).clip(20, 1024),
}


def epoch(lengths: np.ndarray, **options: int) -> list[list[list[int]]]:
    """Micro-batches of each of its updates."""
    sizes = {"micro_batch": 8, "accumulate": 4, "bucket": 16, "seed": 3} | options
    updates = updates_per_epoch(len(lengths), sizes["micro_batch"], sizes["accumulate"])
    return [of_epoch(lengths, place, **sizes) for place in range(updates)]


@cache
def the_configs_bucket() -> int:
    return run_config("summarize", ["experiment=none", "policy=t5_small"]).improve.bucket


def padding(lengths: np.ndarray, updates: list[list[list[int]]]) -> float:
    parts = [lengths[part] for update in updates for part in update]
    return 1 - sum(part.sum() for part in parts) / sum(part.max() * len(part) for part in parts)


@pytest.mark.parametrize("data", LIKE)
@pytest.mark.parametrize(("micro_batch", "accumulate"), [(8, 4), (8, 1), (16, 1), (4, 2)])
def test_at_most_six_percent_of_what_the_encoder_reads_is_padding(
    data: str, micro_batch: int, accumulate: int
):
    """With the configs' bucket; without one it is more than a sixth."""
    lengths = LIKE[data](np.random.default_rng(0), 2000).astype(int)
    sizes = {"micro_batch": micro_batch, "accumulate": accumulate}
    assert padding(lengths, epoch(lengths, bucket=the_configs_bucket(), **sizes)) <= 0.06
    assert padding(lengths, epoch(lengths, bucket=0, **sizes)) > 1 / 6


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=70),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(0, 3),
)
def test_every_example_once_an_epoch(
    lengths: list[int], micro_batch: int, accumulate: int, bucket: int, seed: int
):
    found = epoch(
        np.array(lengths), micro_batch=micro_batch, accumulate=accumulate, bucket=bucket, seed=seed
    )
    rows = [row for update in found for part in update for row in part]
    assert sorted(rows) == list(range(len(lengths)))
    assert all(1 <= len(update) <= accumulate for update in found)
    assert all(1 <= len(part) <= micro_batch for update in found for part in update)


@pytest.mark.parametrize("bucket", [0, 1])
def test_without_a_bucket_the_order_stays(bucket: int):
    found = epoch(np.arange(50)[::-1].copy(), bucket=bucket)
    rows = [row for update in found for part in update for row in part]
    assert rows == list(range(50)) and [len(update) for update in found] == [4, 3]


def test_an_update_is_a_function_of_the_seed_and_of_its_own_number():
    """Whatever updates were asked for before; another seed deals otherwise."""
    lengths = LIKE["cnn_dm"](np.random.default_rng(1), 900).astype(int)
    sizes = {"micro_batch": 8, "accumulate": 4, "bucket": 4}
    whole = epoch(lengths, bucket=4)
    assert of_epoch(lengths, 9, seed=3, **sizes) == whole[9]
    assert of_epoch(lengths, 9, seed=4, **sizes) != whole[9]
    # nor do the shortest texts come first
    means = [[lengths[part].mean() for part in update] for update in whole[:24]]
    assert np.corrcoef(np.arange(24), [min(m) for m in means])[0, 1] < 0.5


def test_updates_share_what_there_is():
    found = dealt([5, 1, 4, 2, 3], micro_batch=2, updates=2, seed=0)
    assert sorted(map(len, found)) == [1, 2]
    assert sorted(part for update in found for part in update) == [[0], [1, 3], [4, 2]]


@pytest.mark.parametrize(("number", "updates"), [(24, 6), (10, 10), (3, 4)])
def test_passes_over_comparison_groups(number: int, updates: int):
    """Each pass takes every group once, in micro-batches of similar sources."""
    pool = Generations(
        source_ids=[str(i) for i in range(number)],
        sources=[[1] * (1 + 7 * i % 40) for i in range(number)],
        origin=[i // 2 for i in range(2 * number)],
        tokens=[[i] for i in range(2 * number)],
        texts=[""] * (2 * number),
        scores=[float(i) for i in range(2 * number)],
        groups=torch.arange(2 * number).view(-1, 2),
    )
    cfg = replace(CFG, micro_batch=2, accumulate=2, bucket=updates)
    compared = of_sources(pool)
    found = [parts_in_passes(pool, compared, cfg, 0, step) for step in range(updates)]
    plain = [in_passes(compared, 4, 0, step) for step in range(updates)]
    taken = [row for update in found for part in update for row in part.groups[:, 0].tolist()]
    assert sorted(taken) == sorted(row for one in plain for row in one.groups[:, 0].tolist())
    assert all(1 <= len(part) <= 2 for update in found for part in update)
    if number == 24:
        lengths = [len(pool.sources[row // 2]) for row in taken]
        gaps = [abs(a - b) for a, b in zip(lengths[::2], lengths[1::2], strict=True)]
        assert max(gaps) <= 4 < np.ptp(lengths)
    same = parts_in_passes(pool, compared, cfg, 0, 1)
    assert all(torch.equal(a.groups, b.groups) for a, b in zip(same, found[1], strict=True))
