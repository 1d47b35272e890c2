"""The gap reward against hand arithmetic and a loop over its definition."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pgtg.ops.gap import accuracy, balanced_entropy, gap_scores
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import TIGHT, cases, tensor

NUMBERS = st.floats(-8, 8, allow_nan=False)


def test_by_hand():
    """p = (3/4, 1/4): gap +-1/2; p = (1/6, 2/6, 3/6) with label 1: 2/6 - 3/6."""
    two = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    assert_close(gap_scores(two, torch.tensor([0, 1])), torch.tensor([100.0, -90.0]))
    three = torch.tensor([[1.0, 2.0, 3.0]]).log()
    assert_close(gap_scores(three, torch.tensor([1])), torch.tensor([-30.0]))
    assert_close(gap_scores(three, torch.tensor([2]), correct=6, wrong=1), torch.tensor([1.0]))


def test_a_tie_scores_zero_and_the_first_of_equals_is_the_answer():
    tie = torch.zeros(2, 2)
    labels = torch.tensor([0, 1])
    assert gap_scores(tie, labels).tolist() == [0.0, 0.0]
    assert accuracy(tie, labels).item() == 0.5


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.data(), st.integers(2, 5), st.integers(1, 4))
def test_equals_the_definition_for_each_prompt_and_example(data: st.DataObject, c: int, e: int):
    rows = st.lists(st.lists(NUMBERS, min_size=c, max_size=c), min_size=e, max_size=e)
    prompts = data.draw(st.lists(rows, min_size=1, max_size=3))
    labels = data.draw(st.lists(st.integers(0, c - 1), min_size=e, max_size=e))
    found = gap_scores(torch.tensor(prompts, dtype=torch.float64), torch.tensor(labels))
    for p, prompt in enumerate(prompts):
        for i, (row, label) in enumerate(zip(prompt, labels, strict=True)):
            total = sum(math.exp(x) for x in row)
            others = max(math.exp(x) / total for k, x in enumerate(row) if k != label)
            gap = math.exp(row[label]) / total - others
            expected = 200 * gap if gap > 0 else 180 * gap
            assert found[p, i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_accuracy_by_hand():
    """Three of four right, for each of two prompts the other way round."""
    log_probs = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]])
    both = torch.cat([log_probs, -log_probs])
    assert accuracy(both, torch.tensor([1, 0, 0, 0])).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("labels", [[2], [-1]])
def test_labels_beyond_the_words_are_refused(labels: list[int]):
    with pytest.raises(ValueError, match="label words"):
        gap_scores(torch.zeros(1, 2), torch.tensor(labels))


def test_one_label_word_is_refused():
    with pytest.raises(ValueError, match=">= 2 label words"):
        accuracy(torch.zeros(1, 1), torch.tensor([0]))


@pytest.mark.parametrize("case", cases("prompt_gap_reward"))
def test_golden(case: dict[str, Any]):
    """The reference's reward per example, its mean, and the accuracy."""
    logits, labels = tensor(case["verbalizer_logits"]), torch.tensor(case["labels"])
    scores = gap_scores(logits.log_softmax(-1), labels)
    assert_close(scores, tensor(case["per_example"]), **TIGHT)
    assert_close(scores.mean(), tensor(case["reward"]), **TIGHT)
    assert accuracy(logits, labels).item() == case["accuracy"]


@pytest.mark.parametrize("case", cases("grips_score", RIVALS))
def test_the_released_balanced_accuracy_with_entropy(case: dict[str, Any]):
    words = case["labels"]
    guesses = torch.tensor([words.index(word) for word in case["predicted"]])
    labels = torch.tensor([words.index(word) for word in case["gold"]])
    log_probs = torch.nn.functional.one_hot(guesses, len(words)).double()
    found = balanced_entropy(log_probs, labels)
    assert found == pytest.approx(case["search_score"], rel=2e-5)
    assert accuracy(log_probs, labels).item() == pytest.approx(case["accuracy"])
