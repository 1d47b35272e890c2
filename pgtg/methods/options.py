"""The options of each method: what its section of the config has in addition to common keys.

Plain dataclasses that load no torch, since a config is composed and checked before anything runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from pgtg.config import MISSING, MethodConfig


@dataclass
class _Trained(MethodConfig):
    """What the policy gradient of any method has."""

    # the values with which an option changes nothing
    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        "entropy": 0.0,
        "entropy_target": None,
        "kl": 0.0,
    }

    entropy: float = MISSING
    entropy_target: float | None = MISSING
    kl: float = MISSING

    @classmethod
    def of(cls, method: MethodConfig) -> Self:
        """These options as a run's method has them; those that it lacks change nothing."""
        names = [option.name for option in fields(cls)]
        given = {name: getattr(method, name) for name in names if hasattr(method, name)}
        return cls(**{**cls.NEUTRAL, **given})

    @property
    def keeps_start(self) -> bool:
        return self.kl > 0


@dataclass
class WeightedMLE(_Trained):
    """Reward-weighted MLE, and the policy-gradient term on own generations in addition."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **_Trained.NEUTRAL,
        "mle": 1.0,
        "transform": "none",
        "reward_to_go": False,
        "reinforce": 0.0,
        "baseline": "none",
        "token_share": 1.0,
        "samples": 1,
        "filter_share": 1.0,
    }

    mle: float = MISSING
    transform: str = MISSING
    reward_to_go: bool = MISSING
    reinforce: float = MISSING
    baseline: str = MISSING
    token_share: float = MISSING
    samples: int = MISSING
    filter_share: float = MISSING

    @property
    def own_samples(self) -> int:
        return self.samples if self.reinforce > 0 else 0

    @property
    def keeps_start(self) -> bool:
        return self.reinforce * self.kl > 0

    def problems(self) -> Iterator[str]:
        if not self.mle and not self.reinforce:
            yield "mle: found 0, and reinforce=0 as well: nothing would be trained"
        if self.baseline == "group" and self.reinforce and self.samples < 2:
            found = f"found {self.samples}"
            yield f"samples: {found}, but baseline=group needs at least 2 generations per source"


@dataclass
class Sparse(_Trained):
    """REINFORCE on the judge's own scores of prompts."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **_Trained.NEUTRAL,
        "standardize": False,
        "sparse_updates": 1,
        "sparse_lr": 1e-3,
    }

    standardize: bool = MISSING
    sparse_updates: int = MISSING
    sparse_lr: float = MISSING


@dataclass
class Reinforce(Sparse):
    """REINFORCE on learned token rewards of prompts; with the options of its control `sparse`."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **Sparse.NEUTRAL,
        "reward_to_go": False,
        "baseline": "none",
        "token_share": 1.0,
    }

    reward_to_go: bool = MISSING
    baseline: str = MISSING
    token_share: float = MISSING
