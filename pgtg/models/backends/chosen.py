"""Log-probabilities of given tokens from states, without an array of all logits.

The logits of N texts of T tokens over V words are by far the largest array of a training (16 texts
of 64 tokens over 49,152 words: 0.2 GB, several times over with their gradient), and on a CPU making
and touching it takes as long as the products. Here some rows after another go through the LM head,
and what is kept of a row is one number and, for the backward pass, one state: log p is a scalar of
its row, so that its gradient in the state, W[a] - sum_v p(v) W[v], is known in the forward pass
already, but for a factor. Where the head's own weights are trained too, the logits are kept for
their gradient, once, as the product gave them. The same arithmetic as with all logits, in another
order.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.models.backends.linear import multiply

CPU_BYTES = 2**25  # of the logits of the rows that are taken at once: they stay in the cache
DEVICE_BYTES = 2**29  # on accelerators, which want large products


def chosen_log_prob(
    states: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, " R"],
    dtype: torch.dtype,
) -> Float[Tensor, " R"]:
    """log softmax(W h_r)[a_r] of each row r [nats], with gradients in the states and in W.

    Args:
        dtype: What products are taken in; all else is in float32 (float64 where the products are).
    """
    if not torch.is_grad_enabled():  # inside, needs_input_grad would say what the inputs ask for
        states, weight = states.detach(), weight.detach()
    return _Chosen.apply(states, weight, tokens, dtype)  # type: ignore[no-any-return]


def _parts(rows: int, weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Rows whose logits are held at once."""
    room = CPU_BYTES if weight.device.type == "cpu" else DEVICE_BYTES
    size = max(1, room // (len(weight) * torch.promote_types(dtype, torch.float32).itemsize))
    return (slice(start, start + size) for start in range(0, rows, size))


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, tokens: Tensor, dtype: torch.dtype
    ) -> Tensor:
        for_states, for_weight = ctx.needs_input_grad[:2]
        exact = torch.promote_types(dtype, torch.float32)
        head, inputs = weight.to(dtype), states.to(dtype)
        found, totals = (states.new_empty(len(states), dtype=exact) for _ in range(2))
        pulls = torch.empty_like(states) if for_states and not for_weight else None
        every = multiply(inputs, head) if for_weight else None
        for rows in _parts(len(states), weight, dtype):
            product = multiply(inputs[rows], head) if every is None else every[rows]
            logits = product.to(exact, copy=every is not None)
            own = tokens[rows, None]
            found[rows] = logits.gather(-1, own).squeeze(-1)
            shares, totals[rows] = _shares(logits, divided=pulls is not None)
            if pulls is not None:
                pulls[rows] = multiply(_pull(shares, own).to(dtype), head.t())
        ctx.dtype, ctx.pulled = dtype, pulls is not None
        if pulls is not None:
            ctx.save_for_backward(pulls)
        elif for_weight:
            ctx.save_for_backward(states, weight, tokens, every, totals)
        return found.sub_(totals)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.pulled:
            (pulls,) = ctx.saved_tensors
            return grad[:, None].to(pulls.dtype) * pulls, None, None, None
        states, weight, tokens, every, totals = ctx.saved_tensors
        head, pulls = weight.to(ctx.dtype), torch.empty_like(every)
        for rows in _parts(len(states), weight, ctx.dtype):
            shares = every[rows].to(grad.dtype, copy=True).sub_(totals[rows, None]).exp_()
            pulls[rows] = _pull(shares, tokens[rows, None]).mul_(grad[rows, None])
        for_states = multiply(pulls, head.t()).to(states.dtype) if ctx.needs_input_grad[0] else None
        for_weight = multiply(pulls.t(), states.to(ctx.dtype).t())
        return for_states, for_weight.to(weight.dtype), None, None


def _shares(logits: Tensor, *, divided: bool) -> tuple[Tensor, Tensor]:
    """Probabilities (or a multiple of them) in the place of logits, log sum exp of each row."""
    highest = logits.amax(-1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    shares = logits.div_(total) if divided else logits
    return shares, total.log_().add_(highest).squeeze(-1)


def _pull(shares: Tensor, tokens: Tensor) -> Tensor:
    """Gradient of log p(a) in the logits, in the place of the probabilities."""
    return shares.neg_().scatter_add_(-1, tokens, shares.new_ones(1).expand(tokens.shape))
