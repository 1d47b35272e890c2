"""The type of the weights in passes without gradients: sampling, token rewards, evaluation, judge.

Log-probabilities, log-sum-exp, heads and draws are computed in float32 or wider either way. Of a
sample drawn in bf16 only the tokens are kept: where it is trained on, its log-probabilities are
computed by the learner, in the learner's type.
"""

import time

import torch
from torch import nn

from pgtg.errors import ConfigError

PRECISIONS = ("auto", "no", "bf16")
PROBED = 512  # rows and columns of the products that are timed


def read_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that weights are read in; None leaves them as they are.

    Args:
        precision: "auto": bf16 on GPUs that have it, else as the weights are; "no"; "bf16".

    Raises:
        ConfigError: Unknown, or the device has no bf16.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: found {precision!r}, expected one of {PRECISIONS}")
    if precision == "bf16":
        try:
            ones = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
            (ones @ ones).float().sum()
        except (RuntimeError, TypeError) as error:
            found = str(error).splitlines()[0]
            raise ConfigError(
                f"sample.precision: found bf16, which torch lacks on {device.type}: {found}"
            ) from error
    wanted = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    return torch.bfloat16 if wanted else None


def computes_bf16(device: torch.device) -> bool:
    """Whether this is a GPU whose products in bf16 are its own, not made by float32's."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def judge_dtype(dtype: str, device: torch.device) -> str:
    """The name of the type of a judge's weights, of which "auto" is one."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if computes_bf16(device) else "float32"


def bf16_speed(device: torch.device) -> float:
    """How many times as fast as float32's this device's products in bf16 are, by a probe."""
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(PROBED, PROBED, dtype=dtype, device=device)
        rounds = []
        for _ in range(4):  # the first warms up
            begin = time.perf_counter()
            (square @ square)[0, 0].item()
            rounds.append(time.perf_counter() - begin)
        times[dtype] = min(rounds[1:])
    return times[torch.float32] / times[torch.bfloat16]


def as_read(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model, its float32 weights narrowed in place; for passes without gradients alone."""
    if dtype is None:
        return model
    for part in [*model.parameters(), *model.buffers()]:
        if part.dtype == torch.float32:
            part.data = part.data.to(dtype)
    return model.requires_grad_(False)
