"""Segments and their rewards, by plain loops over lists."""

import pytest
import torch
from torch.testing import assert_close

from pgtg.ops.masking import pad
from pgtg.ops.segments import ends_by_entropy, ends_by_sign, ends_by_size, shared

ROWS = [[0.5, 1.0, -2.0, 0.25, 3.0], [4.0], [1.5, 2.5, 3.5]]


def rectangle(rows: list[list[float]]):
    _, mask = pad([[1] * len(row) for row in rows])
    values = torch.full(mask.shape, torch.nan, dtype=torch.double)
    values[mask] = torch.tensor([x for row in rows for x in row], dtype=torch.double)
    return values, mask


@pytest.mark.parametrize("spread", ["copy", "even", "end"])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_each_token_has_what_its_segments_last_one_has(size: int, spread: str):
    """Of one token each it is the token's own, of one segment the last token's."""
    rewards, mask = rectangle(ROWS)
    found = shared(rewards, ends_by_size(mask, size), mask, spread)
    for row, line, own in zip(ROWS, found, mask, strict=True):
        expected = []
        for start in range(0, len(row), size):
            part = row[start : start + size]
            of_last = {"copy": part[-1], "even": part[-1] / len(part), "end": part[-1]}[spread]
            others = 0.0 if spread == "end" else of_last
            expected += [others] * (len(part) - 1) + [of_last]
        assert line[own].tolist() == pytest.approx(expected, abs=1e-12)
        assert (line[~own] == 0).all()
    if size == 1:
        assert_close(found[mask], rewards[mask])


def test_sentences_end_at_signs_before_a_space():
    """The full stop of 3.5 is none; the last token always ends one."""
    words = [["It", " is", " 3", ".", "5", ".", " Yes", "!"], ["no", " sign"]]
    _, mask = pad([[1] * len(row) for row in words])
    closing, opening = torch.zeros_like(mask), torch.zeros_like(mask)
    for n, row in enumerate(words):
        closing[n, : len(row)] = torch.tensor([word[-1] in ".!?" for word in row])
        opening[n, : len(row)] = torch.tensor([word[0] == " " for word in row])
    ends = ends_by_sign(closing, opening, mask)
    assert [row.nonzero().flatten().tolist() for row in ends] == [[5, 7], [1]]


def test_segments_end_before_a_choice():
    """Brute force over the next token's entropy; of padding nothing is read, NaN even."""
    entropies, mask = rectangle([[9.0, 0.5, 2.0, 1.0, 1.5], [3.0], [0.1, 0.2, 5.0]])
    for above in (0.0, 0.3, 1.0, 1.2, 9.0):
        found = ends_by_entropy(entropies, above, mask)
        for row, line, own in zip(entropies, found, mask, strict=True):
            values = row[own].tolist()
            expected = [after > above for after in values[1:]] + [True]
            assert line[own].tolist() == expected and not line[~own].any()


def test_gradients_reach_the_last_tokens_alone():
    rewards = torch.ones(1, 4, requires_grad=True)
    mask = torch.ones(1, 4).bool()
    shared(rewards, ends_by_size(mask, 2), mask, "copy").sum().backward()
    assert rewards.grad is not None and rewards.grad.tolist() == [[0, 2, 0, 2]]
