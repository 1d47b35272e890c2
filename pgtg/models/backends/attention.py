"""Attention of few queries on a CPU, as each decoded token asks for it: two batched products.

torch's own kernel takes queries a block at a time, made for many of them. A token brings one query
a row, or the K of the rows that share a source, and is answered faster by the scores' product and
the values'. Both read keys and values at nearly the memory's rate; the second only where a value's
numbers stand in columns (`in_columns`). The same arithmetic, float32, in another order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa"  # Transformers' name for torch's own kernel
FEW = 3  # queries to a row's keys; with more the kernel is as fast (benchmarks/attention.py)
# of Transformers' kernel; with any of them it is not the plain formula
SPECIAL = ("softcap", "output_attentions", "cache", "s_aux")


@contextmanager
def few_queries() -> Iterator[None]:
    """Within, attention that torch's kernel would compute is by products where queries are few.

    Only without gradients, on a CPU and in float32; all else is left to the kernel.
    """
    kernel = ALL_ATTENTION_FUNCTIONS[NAME]

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if not _few(module, query, key, value, attention_mask, options):
            return kernel(module, query, key, value, attention_mask, **options)
        found = by_products(
            query,
            key,
            value,
            [attention_mask, options.get("position_bias")],
            scale=options.get("scaling"),
        )
        return found.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS[NAME] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[NAME] = kernel


def _few(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> bool:
    """Whether `by_products` gives what the kernel would, and faster."""
    number = query.shape[2]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return (
        are_few(number * query.shape[1], key)
        and query.dtype == value.dtype == key.dtype
        and (number == 1 or mask is not None or not causal)
        and not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad))
        and not options.get("dropout")
        and not any(options.get(name) for name in SPECIAL)
        and all(part.stride(0) == part.shape[1] * part.stride(1) for part in (key, value))
    )


def are_few(queries: int, keys: Float[Tensor, "B G S D"]) -> bool:
    """Whether so many queries to a row's keys, of all heads, are answered faster by products."""
    plain = keys.dtype == torch.float32 and keys.device.type == "cpu"
    return plain and queries <= FEW * keys.shape[1]


def by_products(
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G S D"],
    value: Float[Tensor, "B G S D"],
    added: list[Tensor | None],
    *,
    scale: float | None = None,
) -> Float[Tensor, "B H N D"]:
    """softmax(scale Q K^T + added) V, H / G heads after another with the same keys and values.

    Args:
        added: What is added to the scores, broadcast to [B, H, N, S]; true and false: attended to
            or not. A query that may attend to nothing gets zeros, or, where numbers are added as
            well, the values' mean: as Transformers has it from the kernel.
        scale: 1 / sqrt(D) if None.
    """
    rows, heads, number, width = query.shape
    groups = rows * key.shape[1]
    queries = (query * (width**-0.5 if scale is None else scale)).reshape(groups, -1, width)
    keys, values = (part.flatten(0, 1) for part in (key, value))
    scores = torch.bmm(queries, keys.transpose(1, 2)).view(rows, heads, number, -1)
    parts = [part for part in added if part is not None]
    for part in parts:
        if part.dtype == torch.bool:
            scores.masked_fill_(~part, torch.finfo(scores.dtype).min)
        else:
            scores += part
    shares = scores.softmax(-1)
    if [part.dtype for part in parts] == [torch.bool]:
        shares *= parts[0].any(-1, keepdim=True)
    shares = shares.view(groups, -1, keys.shape[1])
    if values.stride(1) == 1:
        found = torch.bmm(values.transpose(1, 2), shares.transpose(1, 2)).transpose(1, 2)
    else:
        found = torch.bmm(shares, values)
    return found.reshape(rows, heads, number, width)


def in_columns(values: Float[Tensor, "B G S D"]) -> Float[Tensor, "B G S D"]:
    """The same numbers, all S of one of the D places after another in memory."""
    return values.transpose(2, 3).contiguous().transpose(2, 3)
