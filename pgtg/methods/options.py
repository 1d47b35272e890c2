"""The options of each method: what its section of the config has in addition to common keys.

Plain dataclasses that load no torch, since a config is composed and checked before anything runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from pgtg.config import MISSING, MethodConfig
from pgtg.config.checks import local_model
from pgtg.config.paths import policy_folder


@dataclass
class _Options(MethodConfig):
    """A method's own options, which a run of another method, whose control it is, lacks."""

    NEUTRAL: ClassVar[Mapping[str, Any]] = {}  # the value of an option that a run lacks

    @classmethod
    def of(cls, method: MethodConfig) -> Self:
        """These options as a run's method has them; neutral values for those that it lacks."""
        names = [option.name for option in fields(cls)]
        given = {name: getattr(method, name) for name in names if hasattr(method, name)}
        return cls(**{**cls.NEUTRAL, **given})


@dataclass
class _Trained(_Options):
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
class _Preferred(_Options):
    """What methods have that learn from the judged generations themselves, without a reward model.

    Neutral values are the defaults of their yaml, so that a control is what it is alone.
    """

    NEUTRAL: ClassVar[Mapping[str, Any]] = {"lr_share": 0.1}

    lr_share: float = MISSING

    def problems(self) -> Iterator[str]:
        if self.lr_share <= 0:
            yield f"lr_share: found {self.lr_share}, expected above 0"


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
        if self.pairs not in ("best_worst", "all"):
            yield f"pairs: found '{self.pairs}', expected best_worst or all"
        if self.beta <= 0:
            yield f"beta: found {self.beta}, expected above 0"


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
        if self.loss not in ("sigmoid", "ipo"):
            yield f"loss: found '{self.loss}', expected sigmoid or ipo"
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
        if self.kl < 0:
            yield f"kl: found {self.kl}, expected 0 or more"


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
        return True

    @property
    def keeps_start(self) -> bool:
        return self.kl > 0

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for key in ("rollouts", "epochs"):
            if getattr(self, key) < 1:
                yield f"{key}: found {getattr(self, key)}, expected at least 1"
        if not 0 < self.clip < 1:
            yield f"clip: found {self.clip}, expected between 0 and 1"
        for key in ("judge_scale", "value_clip", "kl_target", "stop_kl"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                yield f"{key}: found {value}, expected above 0"
        for key in ("value_coef", "entropy", "kl"):
            if getattr(self, key) < 0:
                yield f"{key}: found {getattr(self, key)}, expected 0 or more"
        for key in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, key) <= 1:
                yield f"{key}: found {getattr(self, key)}, expected in [0, 1]"


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
        if self.reward not in ("judge", "learned"):
            yield f"reward: found '{self.reward}', expected judge or learned"


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
        for key in ("least", "mask_every"):
            if getattr(self, key) < 1:
                yield f"{key}: found {getattr(self, key)}, expected at least 1"


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
        for key in ("dpo_scale", "dpo_clip", "score_clip"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                yield f"{key}: found {value}, expected above 0"
        yield from local_model("dpo", policy_folder(self.dpo))


@dataclass
class GrIPS(_Options):
    """Edits of an instruction."""

    iterations: int = MISSING
    candidates: int = MISSING
    patience: int = MISSING
    score: str = MISSING
    phrases: str = MISSING
    released: bool = MISSING
    template: str = MISSING
    instruction: str | None = MISSING
    paraphraser: str | None = MISSING

    @property
    def own_updates(self) -> int:
        return 0

    def asked(self) -> tuple[int, int]:
        return 1 + self.iterations * self.candidates, 0

    def problems(self) -> Iterator[str]:
        yield from _counts(self, "iterations", "candidates", "patience")
        yield from _one_of(self, "score", ("accuracy", "balanced", "gap"))
        yield from _one_of(self, "phrases", ("rules", "words"))


@dataclass
class BBT(_Options):
    """An evolution strategy over vectors on top of tokens."""

    tokens: int = MISSING
    dim: int = MISSING
    popsize: int = MISSING
    budget: int = MISSING
    sigma: float = MISSING
    alpha: float = MISSING
    bound: float = MISSING
    projection: str = MISSING
    loss: str = MISSING
    check_every: int = MISSING
    released: bool = MISSING
    template: str | None = MISSING

    @property
    def own_updates(self) -> int:
        return 0

    def asked(self) -> tuple[int, int]:
        train = self.budget // self.popsize * self.popsize
        return train, train // self.check_every

    def problems(self) -> Iterator[str]:
        if find_spec("cma") is None:
            yield "name: bbt needs the package cma; pip install cma"
        yield from _counts(self, "tokens", "dim", "popsize", "budget", "check_every")
        if 1 <= self.budget < self.popsize:
            yield f"budget: found {self.budget}, expected at least popsize={self.popsize}"
        for name in ("sigma", "alpha"):
            if (value := getattr(self, name)) <= 0:
                yield f"{name}: found {value}, expected above 0"
        yield from _one_of(self, "projection", ("released", "centred"))
        yield from _one_of(self, "loss", ("ce", "hinge"))


@dataclass
class AutoPrompt(_Options):
    """Trigger tokens replaced by gradient and trial."""

    tokens: int = MISSING
    iterations: int = MISSING
    candidates: int = MISSING
    batch: int = MISSING
    accumulation: int = MISSING
    special: bool = MISSING
    start: str | None = MISSING
    template: str | None = MISSING

    @property
    def own_updates(self) -> int:
        return 0

    def asked(self) -> tuple[int, int]:
        return self.iterations * (self.candidates + 1), self.iterations

    def problems(self) -> Iterator[str]:
        yield from _counts(self, "tokens", "iterations", "candidates", "accumulation")
        if self.batch < 0:
            yield f"batch: found {self.batch}, expected 0 or more"


@dataclass
class RLPrompt(_Options):
    """Soft Q-learning on the judge's scores of sampled prompts."""

    updates: int = MISSING
    prompts: int = MISSING
    lr: float = MISSING
    target_rate: float = MISSING
    loss: str = MISSING
    coefficient: float | None = MISSING
    standardize: bool = MISSING
    scale: float = MISSING
    prior: bool = MISSING
    check_every: int = MISSING
    released: bool = MISSING

    @property
    def own_updates(self) -> int:
        return self.updates

    @property
    def keeps_start(self) -> bool:
        return self.prior

    def asked(self) -> tuple[int, int]:
        return self.updates * self.prompts, -(-self.updates // self.check_every)

    def problems(self) -> Iterator[str]:
        yield from _counts(self, "updates", "prompts", "check_every")
        yield from _one_of(self, "loss", LOSSES)
        for name in ("lr", "target_rate", "scale"):
            if (value := getattr(self, name)) <= 0:
                yield f"{name}: found {value}, expected above 0"
        if self.target_rate > 1:
            yield f"target_rate: found {self.target_rate}, expected at most 1"
        if self.coefficient is not None and not 0 <= self.coefficient <= 1:
            yield f"coefficient: found {self.coefficient}, expected 0 to 1, or null"


@dataclass
class SoftPrompt(_Options):
    """The embeddings of a prompt's tokens, trained by gradient."""

    tokens: int = MISSING
    updates: int = MISSING
    batch: int = MISSING
    lr: float = MISSING
    order: str = MISSING
    label_words_only: bool = MISSING
    check_every: int = MISSING
    template: str | None = MISSING

    @property
    def own_updates(self) -> int:
        return self.updates

    def asked(self) -> tuple[int, int]:
        return 0, -(-self.updates // self.check_every)

    def problems(self) -> Iterator[str]:
        yield from _counts(self, "tokens", "updates", "batch", "check_every")
        yield from _one_of(self, "order", ("shuffled", "released"))
        if self.lr <= 0:
            yield f"lr: found {self.lr}, expected above 0"


@dataclass
class FineTune(_Options):
    """The classifier LM trained on the few examples."""

    kind: str = MISSING
    updates: int = MISSING
    batch: int = MISSING
    lr: float = MISSING
    order: str = MISSING
    trainable_layers: int | None = MISSING
    label_words_only: bool = MISSING
    max_tokens: int = MISSING
    check_every: int = MISSING

    @property
    def own_updates(self) -> int:
        return self.updates

    def asked(self) -> tuple[int, int]:
        return 0, -(-self.updates // self.check_every)

    def problems(self) -> Iterator[str]:
        yield from _counts(self, "updates", "batch", "max_tokens", "check_every")
        yield from _one_of(self, "kind", ("head", "prompt"))
        yield from _one_of(self, "order", ("shuffled", "released"))
        if self.lr <= 0:
            yield f"lr: found {self.lr}, expected above 0"
        if self.trainable_layers is not None and self.trainable_layers < 0:
            yield f"trainable_layers: found {self.trainable_layers}, expected 0 or more, or null"


# names of the released code, see ops.soft_q
LOSSES = ("v0", "v1", "v2", "v3", "v2_v2r", "v3_v3r", "v2_v2r_v3_v3r")


def _counts(options: MethodConfig, *names: str) -> Iterator[str]:
    for name in names:
        if (value := getattr(options, name)) < 1:
            yield f"{name}: found {value}, expected 1 or more"


def _one_of(options: MethodConfig, name: str, known: Sequence[str]) -> Iterator[str]:
    if (value := getattr(options, name)) not in known:
        yield f"{name}: found '{value}', expected {', '.join(known[:-1])} or {known[-1]}"
