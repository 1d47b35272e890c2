"""Generations of prescribed lengths on both sides: random weights end none of themselves."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

import pgtg.models.generate as generate_file


class Stops(LogitsProcessor):
    """Row i ends with eos as its token number lengths[i]; never before."""

    def __init__(self, lengths: list[int], eos: int) -> None:
        self.lengths, self.eos = torch.as_tensor(lengths), eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1]  # the start token counts: this is the number of the token drawn
        scores[:, self.eos] = -torch.inf
        ends = self.lengths == step
        if ends.any():
            scores[ends] = -torch.inf
            scores[ends, self.eos] = 0.0
        return scores


@contextlib.contextmanager
def stops_in_pgtg(lengths: list[int], eos: int) -> Iterator[None]:
    """The same for `generate`, which drops a batch's rows as they end."""
    plain = generate_file.choose
    state: dict[str, Any] = {}

    def choose(logits: Tensor, *rest: Any) -> Tensor:
        if len(logits) == len(lengths) and state.get("step", 10**9) >= max(lengths) - 1:
            state.update(live=list(range(len(logits))), done=set(), step=-1)
        state["step"] += 1
        if len(logits) < len(state["live"]):
            state["live"] = [row for row in state["live"] if row not in state["done"]]
        logits[:, eos] = -torch.inf
        chosen = plain(logits, *rest)
        for place, row in enumerate(state["live"]):
            if lengths[row] <= state["step"] + 1:
                chosen[place] = eos
                state["done"].add(row)
        return chosen

    generate_file.choose = choose
    try:
        yield
    finally:
        generate_file.choose = plain
