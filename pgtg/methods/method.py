"""What a supervised method of improvement is."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from pgtg.config import MethodConfig

Weigh = Callable[
    [Float[Tensor, "N T"] | None, Bool[Tensor, "N T"], MethodConfig, int], Float[Tensor, "N T"]
]


@dataclass(frozen=True)
class Method:
    """A name, and how the tokens of N targets are weighed.

    Args:
        name: As in the config and in result tables.
        needs_reward: Whether `weigh` reads token rewards.
        weigh: (token rewards or None, mask, options, seed of this batch) -> weights that add up
            to 1 over each target.
        samples: Whether the policy-gradient term of the options applies.
    """

    name: str
    needs_reward: bool
    weigh: Weigh
    samples: bool = False
