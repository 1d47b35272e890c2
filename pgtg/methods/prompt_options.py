"""The options of the prompt task's rivals; as `options`, they load no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from pgtg.config import MISSING
from pgtg.methods.options import Options

# names of the released code, see ops.soft_q
LOSSES = ("v0", "v1", "v2", "v3", "v2_v2r", "v3_v3r", "v2_v2r_v3_v3r")


@dataclass
class Asking(Options):
    """What searches have that only ask the judge: they train nothing."""

    @property
    def own_updates(self) -> int:
        return 0


@dataclass
class FewShot(Options):
    """What is trained by gradient on the few labelled examples."""

    updates: int = MISSING
    batch: int = MISSING
    lr: float = MISSING
    order: str = MISSING
    label_words_only: bool = MISSING
    check_every: int = MISSING

    @property
    def own_updates(self) -> int:
        return self.updates

    def asked(self) -> tuple[int, int]:
        return 0, -(-self.updates // self.check_every)

    def problems(self) -> Iterator[str]:
        yield from self.at_least_one("updates", "batch", "check_every")
        yield from self.one_of("order", ("shuffled", "released"))
        yield from self.above_zero("lr")


@dataclass
class GrIPS(Asking):
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

    def asked(self) -> tuple[int, int]:
        return 1 + self.iterations * self.candidates, 0

    def problems(self) -> Iterator[str]:
        yield from self.at_least_one("iterations", "candidates", "patience")
        yield from self.one_of("score", ("accuracy", "balanced", "gap"))
        yield from self.one_of("phrases", ("rules", "words"))


@dataclass
class BBT(Asking):
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

    def asked(self) -> tuple[int, int]:
        train = self.budget // self.popsize * self.popsize
        return train, train // self.check_every

    def problems(self) -> Iterator[str]:
        if find_spec("cma") is None:
            yield "name: bbt needs the package cma; pip install cma"
        yield from self.at_least_one("tokens", "dim", "popsize", "budget", "check_every")
        if 1 <= self.budget < self.popsize:
            yield f"budget: found {self.budget}, expected at least popsize={self.popsize}"
        yield from self.above_zero("sigma", "alpha")
        yield from self.one_of("projection", ("released", "centred"))
        yield from self.one_of("loss", ("ce", "hinge"))


@dataclass
class AutoPrompt(Asking):
    """Trigger tokens replaced by gradient and trial."""

    tokens: int = MISSING
    iterations: int = MISSING
    candidates: int = MISSING
    batch: int = MISSING
    accumulation: int = MISSING
    special: bool = MISSING
    start: str | None = MISSING
    template: str | None = MISSING

    def asked(self) -> tuple[int, int]:
        return self.iterations * (self.candidates + 1), self.iterations

    def problems(self) -> Iterator[str]:
        yield from self.at_least_one("tokens", "iterations", "candidates", "accumulation")
        yield from self.not_negative("batch")


@dataclass
class RLPrompt(Options):
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
        yield from self.at_least_one("updates", "prompts", "check_every")
        yield from self.one_of("loss", LOSSES)
        yield from self.above_zero("lr", "target_rate", "scale")
        yield from self.between(0, 1, "target_rate", "coefficient")


@dataclass
class SoftPrompt(FewShot):
    """The embeddings of a prompt's tokens, trained by gradient."""

    tokens: int = MISSING
    template: str | None = MISSING

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least_one("tokens")


@dataclass
class FineTune(FewShot):
    """The classifier LM trained on the few examples."""

    kind: str = MISSING
    trainable_layers: int | None = MISSING
    max_tokens: int = MISSING

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least_one("max_tokens")
        yield from self.one_of("kind", ("head", "prompt"))
        yield from self.not_negative("trainable_layers")
