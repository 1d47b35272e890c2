"""Reward bounds: raw head output z -> token reward r."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def softplus_bound(z: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """y = 1 - softplus(1 - z); r = 1e-8 + softplus(y - 1e-8): smooth, in (1e-8, 1.3133).

    r(0) = 0.5487. Source: the authors' released code; checked by the golden values.
    """
    return 1e-8 + F.softplus(1 - F.softplus(1 - z) - 1e-8)


def sigmoid_bound(z: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """r = 1 / (1 + exp(-z)), in (0, 1)."""
    return z.sigmoid()


def unbounded(z: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """r = z."""
    return z


WIDTHS = {"softplus": math.log1p(math.e), "sigmoid": 1.0}  # of the rewards that a bound allows

BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus_bound,
    "sigmoid": sigmoid_bound,
    "none": unbounded,
}
