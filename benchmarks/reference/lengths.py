"""Generations of prescribed lengths on both sides: random weights end none of themselves."""

import contextlib
import itertools
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
    """The same for one call of `generate`, whose batches take the rows in their order (sources of
    one length) and drop rows as they end."""
    batch, choose = generate_file.generate_batch, generate_file.choose
    to_come = iter(lengths)
    state: dict[str, Any] = {}

    def batch_with_lengths(
        lm: Any, source: Tensor, mask: Tensor, noise: Any, k: int, *rest: Any, **options: Any
    ) -> Any:
        own = list(itertools.islice(to_come, len(source) * k))
        state.update(step=0, lengths=own, live=list(range(len(own))))
        return batch(lm, source, mask, noise, k, *rest, **options)

    def choose_with_stops(logits: Tensor, *rest: Any) -> Tensor:
        state["step"] += 1
        step, own, live = state["step"], state["lengths"], state["live"]
        if len(logits) < len(live):
            live = state["live"] = [row for row in live if own[row] >= step]
        logits[:, eos] = -torch.inf
        chosen = choose(logits, *rest)
        for place, row in enumerate(live):
            if own[row] <= step:
                chosen[place] = eos
        return chosen

    generate_file.generate_batch = batch_with_lengths
    generate_file.choose = choose_with_stops
    try:
        yield
    finally:
        generate_file.generate_batch, generate_file.choose = batch, choose
