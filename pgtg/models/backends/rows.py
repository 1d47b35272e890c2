"""Products of states with a few rows of a large frozen table, such as an LM head's candidates.

To pick C rows for each of N states makes N * C rows of a copy, a quarter of a GiB for a policy step
of the prompt task, which is then read twice. On a CPU each state's rows are picked, multiplied and
forgotten, and picked again for the gradient: they stay in the processor's cache.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def products_with_rows(
    states: Float[Tensor, "*N D"], table: Float[Tensor, "V D"], rows: Int[Tensor, "*N C"]
) -> Float[Tensor, "*N C"]:
    """Each state times each of the rows of the table that are named for it."""
    plain = states.device.type == "cpu" and states.dtype == table.dtype == torch.float32
    if not plain or table.requires_grad or torch.is_autocast_enabled("cpu"):
        return (table[rows] @ states[..., None]).squeeze(-1)
    return _Products.apply(states, table, rows)


class _Products(torch.autograd.Function):
    """One state after another. The table is frozen: only states get a gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows)
        out = states.new_empty(rows.shape)
        flat = states.reshape(-1, states.shape[-1]), rows.reshape(-1, rows.shape[-1])
        for state, own, line in zip(*flat, out.view(-1, rows.shape[-1]), strict=True):
            torch.mv(table.index_select(0, own), state, out=line)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        table, rows = ctx.saved_tensors
        wide = rows.reshape(-1, rows.shape[-1])
        # a state's gradient is the sum of its rows, each times the gradient of its product
        found = functional.embedding_bag(
            wide, table, per_sample_weights=grad.reshape(wide.shape), mode="sum"
        )
        return found.view(*rows.shape[:-1], table.shape[-1]), None, None
