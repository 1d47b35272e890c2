"""Projection and losses of black-box tuning against the released functions and loops."""

from typing import Any

import pytest
import torch

from pgtg.ops.evolution import label_cross_entropy, label_hinge, projection_scale
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases, tensor


@pytest.mark.parametrize("case", cases("bbt_projection_init", RIVALS))
def test_the_scale_of_the_projection(case: dict[str, Any]):
    found = projection_scale(
        case["embedding_mean"],
        case["embedding_std"],
        case["intrinsic_dim"],
        sigma=case["sigma"],
        alpha=case["alpha"],
        centred=case["variant"] == "upstream",
    )
    expected = case["projection_mean"], case["projection_std"]
    assert found == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("case", cases("bbt_objective", RIVALS))
def test_the_objective(case: dict[str, Any]):
    """A linear stand-in model: given logits + the sum of the tokens' vectors times a matrix."""
    offset = tensor(case["projection"]) @ tensor(case["z"])
    offset = offset.view(len(case["prompt_offset"]), -1)
    torch.testing.assert_close(offset, tensor(case["prompt_offset"]), rtol=2e-5, atol=2e-5)
    moved = offset.sum(0) @ tensor(case["logits_per_unit_of_summed_offset"])
    logits = (tensor(case["logits_without_prompt"]) + moved)[:, case["label_word_ids"]]
    labels = torch.tensor(case["labels"])
    loss = label_cross_entropy if case["loss_type"] == "ce" else label_hinge
    assert loss(logits, labels).item() == pytest.approx(case["loss"], rel=2e-5)


def test_by_loops():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 2])
    for prompt in range(2):
        entropies, hinges = [], []
        for row, label in zip(logits[prompt], labels.tolist(), strict=True):
            entropies.append(-(row[label].exp() / row.exp().sum()).log())
            others = [c for c in range(3) if c != label]
            hinges.append(sum(max(0.0, 2.0 + (row[c] - row[label]).item()) for c in others))
        expected = torch.stack(entropies).mean().item()
        assert label_cross_entropy(logits, labels)[prompt].item() == pytest.approx(expected)
        assert label_hinge(logits, labels)[prompt].item() == pytest.approx(sum(hinges) / 4)
