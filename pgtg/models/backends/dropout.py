"""Dropout on a CPU: masks from 16-bit random numbers, and attention that keeps no weights.

Torch draws a float32 for each number that may be dropped, which takes as long as a tenth of a
training pass's products. Sixteen bits decide as well: what lies below a threshold is kept, with a
probability q that is 1 - p to within 2^-17, and divided by this q, so that means are exact. The
numbers come from SFC64, seeded by torch's own generator: the same seed, the same masks.

Dropout in attention keeps torch from its fused kernel: scores, weights, masks and dropped weights
of all heads are made and kept, 70 MB each for a layer of T5-small and 8 texts of 512 tokens. Here a
few heads at a time pass through the processor's cache, and the backward pass makes their weights
again from queries and keys (Dao et al. 2022, "FlashAttention"); only the random numbers are kept.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CHUNK = 2**18  # numbers that are masked at a time
SCORES = 2**20  # attention scores at a time
VALUES = 2**16  # of a 16-bit number


def random_numbers(count: int) -> Int16[Tensor, " N"]:
    """Uniform 16-bit numbers, as far as torch's generator says."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    raw = np.random.SFC64(seed).random_raw(count // 4 + 1)  # 64 bits each
    return torch.from_numpy(raw).view(torch.int16)[:count]


def threshold(p: float) -> tuple[int, float]:
    """What a 16-bit number must lie below to be kept, and the factor of what is kept."""
    kept = round((1 - p) * VALUES)
    return kept - VALUES // 2, VALUES / kept if kept else 0.0


def keep(numbers: Tensor, border: int, out: Tensor) -> Tensor:
    """1.0 in `out` for what is kept, else 0.0."""
    if border >= VALUES // 2:  # no 16-bit number is as large: all are kept
        return out.fill_(1.0)
    return torch.lt(numbers.view(out.shape), border, out=out)


def dropout(x: Float[Tensor, "*N"], p: float) -> Float[Tensor, "*N"]:
    """Each number is 0 with probability p, else divided by the probability that it is kept."""
    return _Dropout.apply(x, p)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p = p
        numbers = random_numbers(x.numel())
        ctx.save_for_backward(numbers)
        return _masked(x, numbers, p)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (numbers,) = ctx.saved_tensors
        return _masked(grad, numbers, ctx.p), None


def _masked(x: Tensor, numbers: Tensor, p: float) -> Tensor:
    border, factor = threshold(p)
    flat = x.reshape(-1)
    out, mask = torch.empty_like(flat), flat.new_empty(min(CHUNK, len(flat)))
    for start in range(0, len(flat), CHUNK):
        part = slice(start, min(start + CHUNK, len(flat)))
        kept = keep(numbers[part], border, mask[: part.stop - start])
        torch.mul(flat[part], kept.mul_(factor), out=out[part])
    return out.view(x.shape)


def attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S E"],
    bias: Float[Tensor, "#B #H #T S"] | None,
    p: float,
    scale: float,
) -> Float[Tensor, "B H T E"]:
    """dropout(softmax(scale * query key^T + bias)) value."""
    if bias is not None:
        bias = bias.expand(*bias.shape[:2], query.shape[2], key.shape[2])
    return _Attention.apply(query, key, value, bias, p, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any, p: float, scale: float):
        numbers = random_numbers(math.prod(query.shape[:3]) * key.shape[2])
        ctx.save_for_backward(query, key, value, bias, numbers)
        ctx.p, ctx.scale = p, scale
        out = value.new_empty(*query.shape[:3], value.shape[3])
        border, factor = threshold(p)
        for at, weights, kept in _weights(query, key, bias, numbers, border, scale):
            torch.bmm(weights.mul_(kept), value[at], out=out[at])
        return out.mul_(factor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor):
        query, key, value, bias, numbers = ctx.saved_tensors
        border, factor = threshold(ctx.p)
        of_query, of_key, of_value = (
            torch.empty(part.shape, dtype=part.dtype) for part in (query, key, value)
        )
        of_bias = torch.zeros(bias.shape) if ctx.needs_input_grad[3] else None
        for at, weights, kept in _weights(query, key, bias, numbers, border, ctx.scale):
            own = grad[at] * factor
            torch.bmm((weights * kept).transpose(1, 2), own, out=of_value[at])
            of_weights = torch.bmm(own, value[at].transpose(1, 2)).mul_(kept)
            of_scores = torch.ops.aten._softmax_backward_data(
                of_weights, weights, -1, weights.dtype
            )
            if of_bias is not None:
                place = _of_bias(of_bias, at)
                place += of_scores.sum(0, keepdim=True) if len(place) == 1 else of_scores
            torch.bmm(of_scores, key[at], out=of_query[at])
            torch.bmm(of_scores.transpose(1, 2), query[at], out=of_key[at])
        if ctx.scale != 1:
            of_query *= ctx.scale
            of_key *= ctx.scale
        return of_query, of_key, of_value, of_bias, None, None


def _weights(
    query: Tensor, key: Tensor, bias: Tensor | None, numbers: Tensor, border: int, scale: float
) -> Iterator[tuple[tuple[int, slice], Float[Tensor, "h T S"], Float[Tensor, "h T S"]]]:
    """Of some heads of a row: where they stand, their weights before dropout, and what is kept.

    The two tensors are used again for the next heads.
    """
    rows, heads, length, _ = query.shape
    seen = key.shape[2]
    numbers = numbers.view(rows, heads, length, seen)
    step = max(1, min(heads, SCORES // max(1, length * seen)))
    scores, weights, mask = query.new_empty(3, step, length, seen)
    for row in range(rows):
        for start in range(0, heads, step):
            at = row, slice(start, min(start + step, heads))
            size = at[1].stop - start
            made = torch.bmm(query[at], key[at].transpose(1, 2), out=scores[:size])
            if scale != 1:
                made *= scale
            if bias is not None:
                made += _of_bias(bias, at)
            torch.softmax(made, -1, out=weights[:size])
            yield at, weights[:size], keep(numbers[at], border, mask[:size])


def _of_bias(bias: Tensor, at: tuple[int, slice]) -> Float[Tensor, "#h T S"]:
    """The part of a bias for some heads of a row."""
    part = bias[at[0] if len(bias) > 1 else 0]
    return part[at[1]] if len(part) > 1 else part


class OwnDropout(TorchFunctionMode):
    """Calls of torch's dropout and of its attention with dropout are answered by these functions,
    inside, where they are made on float32 tensors of the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = _ANSWERS.get(func)
        found = None if answer is None else answer(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else found


def _drops(x: Tensor, p: float) -> bool:
    return 0 < p < 1 and x.device.type == "cpu" and x.dtype == torch.float32


def _own_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor | None:
    return dropout(input, p) if training and not inplace and _drops(input, p) else None


def _own_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    tensors = query, key, value
    plain = all(_drops(x, dropout_p) and x.dim() == 4 for x in tensors)
    if not plain or len({x.shape[:2] for x in tensors}) > 1:  # enable_gqa: fewer heads of keys
        return None
    bias = attn_mask
    if is_causal and attn_mask is None:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
        bias = seen
    if bias is not None and bias.dim() != 4:
        return None
    if bias is not None and bias.dtype == torch.bool:
        if not bias.any(-1).all():  # a query that sees nothing: torch has a rule for it
            return None
        bias = torch.zeros(bias.shape).masked_fill_(~bias, -math.inf)
    if bias is not None and bias.dtype != torch.float32:
        return None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return attention(query, key, value, bias, dropout_p, factor)


_ANSWERS: dict[Any, Callable[..., Tensor | None]] = {
    functional.dropout: _own_dropout,
    functional.scaled_dot_product_attention: _own_attention,
}
