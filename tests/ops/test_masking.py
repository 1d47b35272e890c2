"""Padding by position, and batches by length."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pgtg.models.batch import per_token
from pgtg.ops.masking import length_sorted, masked_mean, move_padding, pad
from pgtg.types import TokenBatch

# ids from 0 to 3, so that ids equal to the fill stand among the real ones, as when pad is eos
some_rows = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=5)
sides = st.sampled_from(["left", "right"])


@settings(max_examples=40, derandomize=True, deadline=None)
@given(some_rows, sides, sides, st.integers(0, 3))
def test_rows_survive_padding_and_moving(rows: list[list[int]], side: str, to: str, fill: int):
    ids, mask = pad(rows, side=side, fill=fill)
    assert [line[keep].tolist() for line, keep in zip(ids, mask, strict=True)] == rows
    moved, moved_mask = move_padding(ids, mask, side=to)
    expected, expected_mask = pad(rows, side=to)
    assert torch.equal(moved_mask, expected_mask)
    assert torch.equal(moved[moved_mask], expected[expected_mask])
    assert (ids[~mask] == fill).all()


@settings(max_examples=20, derandomize=True, deadline=None)
@given(some_rows, sides)
def test_masked_mean(rows: list[list[int]], side: str):
    ids, mask = pad(rows, side=side)
    values = ids.double().masked_fill(~mask, torch.nan)
    expected = [sum(row) / len(row) if row else 0.0 for row in rows]
    assert_close(masked_mean(values, mask), torch.tensor(expected, dtype=torch.double))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=30),
    st.integers(1, 300),
    st.integers(0, 10),
    st.integers(1, 4),
)
def test_batches_hold_each_row_once_within_the_budget(
    lengths: list[int], budget: int, extra: int, copies: int
):
    batches = length_sorted(lengths, budget=budget, held=lambda length: copies * (length + extra))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * copies * (max(lengths[row] for row in batch) + extra)
        assert len(batch) == 1 or padded <= budget
    ordered = [lengths[row] for batch in batches for row in batch]
    assert ordered == sorted(lengths, reverse=True)


def test_a_row_is_added_while_the_budget_lasts():
    assert length_sorted([5, 5, 5, 5], budget=10) == [[0, 1], [2, 3]]
    assert length_sorted([1, 9, 1, 1], budget=3) == [[1], [0, 2, 3]]


def test_values_come_back_to_their_own_sequences():
    """A value that names source and token, over batches of any size and origins in any order."""

    def value(batch: TokenBatch) -> torch.Tensor:
        return batch.source[batch.origin, :1] * 100 + batch.tokens

    sources, origin = [[7], [8, 8], [9, 9, 9]], [2, 0, 2, 1]
    tokens = [[1], [2, 3], [4, 5, 6], []]
    for budget in (1, 8, 1000):
        found = per_token(value, sources, tokens, origin, batch_tokens=budget)
        assert [row.tolist() for row in found] == [[901], [702, 703], [904, 905, 906], []]
