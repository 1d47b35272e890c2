"""The masked LM of some of the rivals' figures: 40 words, width 8, float64."""

from typing import Any

import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from pgtg.judges.rendering import Rendered
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases, tensor


def tiny_roberta() -> RobertaForMaskedLM:
    """In eval mode and frozen, with the weights that stand with the figures."""
    (stored,) = cases("tiny_roberta", RIVALS)
    model = RobertaForMaskedLM(RobertaConfig(**stored["config"])).double()
    weights = {name: tensor(values) for name, values in stored["weights"].items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("lm_head.decoder") for name in missing)
    return model.eval().requires_grad_(False)


def rows(case: dict[str, Any], prompt: str, answer: str) -> list[Rendered]:
    """Rows of a case, without padding; places where its 0/1 masks `prompt` and `answer` say."""
    found = []
    for number, ids in enumerate(case["input_ids"]):
        real = sum(case["attention_mask"][number])
        marks = case[answer][number]
        place = marks.index(1) if isinstance(marks, list) else marks
        start = case[prompt][number].index(1)
        found.append(Rendered(ids[:real], place, False, prompt=start))
    return found


def close(found: torch.Tensor, expected: Any) -> bool:
    """Within 2e-5 of the array's largest value, as the figures are."""
    wanted = tensor(expected)
    return bool((found.double() - wanted).abs().max() <= 2e-5 * wanted.abs().max())
