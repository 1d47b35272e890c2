"""The options of each method: what its section of the config has in addition to common keys.

Plain dataclasses that load no torch, since a config is composed and checked before anything runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from pgtg.config import MISSING, MethodConfig
from pgtg.config.checks import local_model
from pgtg.config.paths import policy_folder


@dataclass
class Options(MethodConfig):
    """A method's own options, which a run of another method, whose control it is, lacks."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {}  # the value of an option that a run lacks

    @classmethod
    def of(cls, method: MethodConfig) -> Self:
        """These options as a run's method has them; neutral values for those that it lacks."""
        names = [option.name for option in fields(cls)]
        given = {name: getattr(method, name) for name in names if hasattr(method, name)}
        return cls(**{**cls.NEUTRAL, **given})

    # what `problems` of the methods say of their values; null passes

    def above_zero(self, *names: str) -> Iterator[str]:
        return self._expected(names, lambda value: value > 0, "above 0")

    def not_negative(self, *names: str) -> Iterator[str]:
        return self._expected(names, lambda value: value >= 0, "0 or more")

    def at_least_one(self, *names: str) -> Iterator[str]:
        return self._expected(names, lambda value: value >= 1, "at least 1")

    def between(self, low: float, high: float, *names: str) -> Iterator[str]:
        """Both ends included."""
        return self._expected(names, lambda value: low <= value <= high, f"in [{low}, {high}]")

    def one_of(self, name: str, known: Sequence[str]) -> Iterator[str]:
        said = f"{', '.join(known[:-1])} or {known[-1]}"
        return self._expected([name], lambda value: value in known, said)

    def _expected(
        self, names: Sequence[str], holds: Callable[[Any], bool], said: str
    ) -> Iterator[str]:
        for name in names:
            value = getattr(self, name)
            if value is not None and not holds(value):
                shown = f"'{value}'" if isinstance(value, str) else value
                yield f"{name}: found {shown}, expected {said}"


@dataclass
class _Trained(Options):
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

    @property
    def keeps_start(self) -> bool:
        return self.kl > 0


@dataclass
class WeightedMLE(_Trained):
    """Reward-weighted MLE, and the policy-gradient term on own generations in addition."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **_Trained.NEUTRAL,
        "mle": 1.0,
        "weights": "share",
        "threshold": None,
        "negative": 0.0,
        "transform": "none",
        "reward_to_go": False,
        "reinforce": 0.0,
        "baseline": "none",
        "token_share": 1.0,
        "samples": 1,
        "filter_share": 1.0,
    }

    mle: float = MISSING
    weights: str = MISSING
    threshold: float | None = MISSING
    negative: float = MISSING
    transform: str = MISSING
    reward_to_go: bool = MISSING
    reinforce: float = MISSING
    baseline: str = MISSING
    token_share: float = MISSING
    samples: int = MISSING
    filter_share: float = MISSING

    @property
    def below(self) -> float:
        """Weight of a token below the threshold, where one above it has 1."""
        return -self.negative if self.weights == "sign" else 0.0

    @property
    def own_samples(self) -> float:
        return self.samples if self.reinforce > 0 else 0

    @property
    def keeps_start(self) -> bool:
        return self.reinforce * self.kl > 0

    def problems(self) -> Iterator[str]:
        if not self.mle and not self.reinforce:
            yield "mle: found 0, and reinforce=0 as well: nothing would be trained"
        if self.weights == "share" and self.threshold is not None:
            yield f"threshold: found {self.threshold}, which weights=share does not read"
        if self.weights != "share" and (self.transform != "none" or self.reward_to_go):
            yield f"weights: {self.weights} goes with transform=none and reward_to_go=false alone"
        if self.baseline in ("group", "loo_at_t") and self.reinforce and self.samples < 2:
            found = f"found {self.samples}"
            needs = f"baseline={self.baseline} needs at least 2 generations per source"
            yield f"samples: {found}, but {needs}"


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


@dataclass
class _Preferred(Options):
    """What methods have that learn from the judged generations themselves, without a reward model.

    Neutral values are the defaults of their yaml, so that a control is what it is alone.
    """

    NEUTRAL: ClassVar[Mapping[str, Any]] = {"lr_share": 0.1}

    lr_share: float = MISSING

    def problems(self) -> Iterator[str]:
        yield from self.above_zero("lr_share")


@dataclass
class BestOfK(_Preferred):
    """Plain MLE on each source's best generation."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {"lr_share": 1.0}


@dataclass
class _Pairs(_Preferred):
    """A loss on pairs of a source's generations."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {**_Preferred.NEUTRAL, "pairs": "best_worst"}

    pairs: str = MISSING
    beta: float = MISSING

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.one_of("pairs", ("best_worst", "all"))
        yield from self.above_zero("beta")


@dataclass
class DPO(_Pairs):
    """The log-ratio of the better text is to exceed the other's."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **_Pairs.NEUTRAL,
        "beta": 0.1,
        "loss": "sigmoid",
        "smoothing": 0.0,
    }

    loss: str = MISSING
    smoothing: float = MISSING

    @property
    def keeps_start(self) -> bool:
        return True

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.one_of("loss", ("sigmoid", "ipo"))
        if not 0 <= self.smoothing < 0.5:
            yield f"smoothing: found {self.smoothing}, expected 0 or more, below 0.5"
        elif self.smoothing and self.loss == "ipo":
            yield f"smoothing: found {self.smoothing}, but loss=ipo has none; expected 0"


@dataclass
class SimPO(_Pairs):
    """The mean log-probability of the better text is to exceed the other's, without a reference."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {**_Pairs.NEUTRAL, "beta": 2.0, "gamma": 1.0}

    gamma: float = MISSING


@dataclass
class TDPO(_Pairs):
    """DPO with the token-level divergence of both texts."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {**_Pairs.NEUTRAL, "beta": 0.1, "alpha": 0.5}

    alpha: float | None = MISSING

    @property
    def keeps_start(self) -> bool:
        return True


@dataclass
class GroupGradient(_Preferred):
    """The clipped policy gradient on the round's groups of judged generations."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {**_Preferred.NEUTRAL, "clip": 0.2, "kl": 0.0}

    clip: float = MISSING
    kl: float = MISSING

    @property
    def keeps_start(self) -> bool:
        return self.kl > 0

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 0 < self.clip < 1:
            yield f"clip: found {self.clip}, expected between 0 and 1"
        yield from self.not_negative("kl")


@dataclass
class SelfDistill(GroupGradient):
    """The clipped policy gradient towards what the policy says once it has read the winner."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **GroupGradient.NEUTRAL,
        "hint": "A good answer: {winner}\n\n{source}",
    }

    hint: str = MISSING

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name in ("winner", "source"):
            if "{" + name + "}" not in self.hint:
                yield f"hint: found {self.hint!r}, expected {{{name}}} somewhere in it"


@dataclass
class _ActorCritic(_Preferred):
    """Proximal policy optimisation with a critic, on generations of its own."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **_Preferred.NEUTRAL,
        "judge_scale": 0.01,
        "normalize_rewards": False,
        "rollouts": 128,
        "epochs": 4,
        "clip": 0.2,
        "value_clip": None,
        "value_coef": 0.5,
        "critic": "own",
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "kl": 0.05,
        "kl_target": 0.1,
        "entropy": 0.0,
        "stop_kl": None,
    }

    judge_scale: float = MISSING
    normalize_rewards: bool = MISSING
    rollouts: int = MISSING
    epochs: int = MISSING
    clip: float = MISSING
    value_clip: float | None = MISSING
    value_coef: float = MISSING
    critic: str = MISSING
    gamma: float = MISSING
    gae_lambda: float = MISSING
    kl: float = MISSING
    kl_target: float | None = MISSING
    entropy: float = MISSING
    stop_kl: float | None = MISSING

    @property
    def own_samples(self) -> float:
        return 1 / self.epochs

    @property
    def trains_critic(self) -> bool:
        return self.critic == "own"

    @property
    def keeps_start(self) -> bool:
        return self.kl > 0

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least_one("rollouts", "epochs")
        if not 0 < self.clip < 1:
            yield f"clip: found {self.clip}, expected between 0 and 1"
        yield from self.above_zero("judge_scale", "value_clip", "kl_target", "stop_kl")
        yield from self.not_negative("value_coef", "entropy", "kl")
        yield from self.between(0, 1, "gamma", "gae_lambda")
        yield from self.one_of("critic", ("own", "shared"))


@dataclass
class PPO(_ActorCritic):
    """Rewarded by the judge at the end of a text, or by the learned reward at each token."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **_ActorCritic.NEUTRAL,
        "reward": "judge",
        "released": False,
    }

    reward: str = MISSING
    released: bool = MISSING

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.one_of("reward", ("judge", "learned"))


@dataclass
class NLPO(PPO):
    """PPO whose policy is closed to what an earlier policy finds unlikely."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {
        **PPO.NEUTRAL,
        "top_p": 0.9,
        "least": 100,
        "mask_every": 20,
    }

    top_p: float = MISSING
    least: int = MISSING
    mask_every: int = MISSING

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 0 < self.top_p <= 1:
            yield f"top_p: found {self.top_p}, expected in (0, 1]"
        yield from self.at_least_one("least", "mask_every")


@dataclass
class RTO(_ActorCritic):
    """PPO with token rewards of a policy that DPO has trained."""

    dpo: str = MISSING
    dpo_scale: float = MISSING
    dpo_clip: float | None = MISSING
    score_clip: float = MISSING

    @property
    def keeps_start(self) -> bool:
        return True

    @property
    def models(self) -> list[str]:
        return [policy_folder(self.dpo)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.above_zero("dpo_scale", "dpo_clip", "score_clip")
        yield from local_model("dpo", policy_folder(self.dpo))
