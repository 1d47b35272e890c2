"""First-order scores against the released functions, a linear loss, and brute force."""

from typing import Any

import pytest
import torch

from pgtg.ops.triggers import best_tokens, first_order_scores, strictly_right
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases, tensor


@pytest.mark.parametrize("case", cases("autoprompt_candidates", RIVALS))
def test_the_released_candidates(case: dict[str, Any]):
    gradient = tensor(case["gradient"]) * (-1 if case["increase_loss"] else 1)
    found = first_order_scores(tensor(case["embeddings"]), gradient)
    allowed = sorted(set(range(len(found))) - set(case["banned"]))
    assert best_tokens(found, case["candidates"], allowed) == case["ids"]
    if not case["increase_loss"]:
        assert found.tolist() == pytest.approx(case["scores"], rel=2e-5)


@pytest.mark.parametrize("case", cases("autoprompt_accuracy", RIVALS))
def test_the_released_accuracy_with_a_tie(case: dict[str, Any]):
    words, labels = case["label_word_ids"], torch.tensor(case["labels"])
    whole = tensor(case["logits"]).log_softmax(-1)
    losses = -whole[range(len(labels)), torch.tensor(words)[labels]]
    assert losses.tolist() == pytest.approx(case["loss_per_example"], rel=2e-5)
    found = strictly_right(whole[:, words], labels)
    assert found.int().tolist() == case["correct"]


def test_of_a_loss_linear_in_the_embedding_the_order_is_that_of_the_losses():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, generator=generator, dtype=torch.float64)
    place = table[7].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(place @ weight + 3.0, place)
    losses = table @ weight + 3.0
    assert best_tokens(first_order_scores(table, gradient), 50) == losses.argsort().tolist()


def test_of_equals_the_lower_id_comes_first():
    assert best_tokens(torch.tensor([1.0, 2.0, 2.0, 0.0]), 2) == [1, 2]
    assert best_tokens(torch.tensor([1.0, 2.0, 2.0, 0.0]), 9, [3, 2]) == [2, 3]
