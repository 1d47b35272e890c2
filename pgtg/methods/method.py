"""What a method of improvement is: the stages it runs, and how its policy is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pgtg.config import FitConfig
from pgtg.methods.search import MakeSearch
from pgtg.methods.setting import Setting
from pgtg.models.codec import Codec
from pgtg.models.language import LanguageModel
from pgtg.models.reward import RewardModel
from pgtg.runs.folder import Artifact

STAGES = ("sample", "align", "score", "aggregate", "improve")


@dataclass(frozen=True)
class Shared:
    """An artifact that the first line of the run makes that reads it, and others read.

    Args:
        inputs: Hash of all that it depends on.
        position: Where the run's log stands, for its manifest [bytes].
    """

    artifact: Artifact
    inputs: str
    position: int = 0

    def file(self, name: str, write: Callable[[Path], None]) -> Path:
        """Its only file, which `write` makes if it is not there."""
        if not self.artifact.made_from(self.inputs):
            write(self.artifact.working(self.inputs) / name)
            self.artifact.commit(inputs=self.inputs, position=self.position)
        return self.artifact.file(name)


@dataclass(frozen=True)
class Improving:
    """What the policy training of one round is given.

    Args:
        ctx: The run's settings, task and models.
        lm: The policy in training.
        codec: Its codec.
        model: The round's reward model, None for a method without.
        samples: The judged generations that its guidance rests on, the round's own last; none for
            a method without.
        working: Folder of the half-done artifact, kept for a resume.
        first: Number of the round's first update, counted over all rounds.
        updates: Updates of the round.
        targets: The token rewards of the round's targets, for all lines of the run that this reward
            model guides.
        before: What the round before left of the same policy's training; None in the first.
    """

    ctx: Setting
    lm: LanguageModel
    codec: Codec
    model: RewardModel | None
    samples: Sequence[Artifact]
    working: Path
    first: int
    updates: int
    targets: Shared | None = None
    before: Artifact | None = None


class Trainer(Protocol):
    """What one training of the stage `improve` is made of.

    A stream of batches (`begin`, `window`), what is minimised on them (`objective`), what they
    train (`module`), how it is checked (`validate`), and how it is kept (`save`).
    """

    module: nn.Module  # its parameters that require gradients are trained
    objective: Any
    cut: int  # examples that had to be cut to fit
    validates: bool  # whether there is held-out data to choose the best weights by
    heldout: str  # what `validate` measures, in words
    ahead: bool  # whether batches depend on neither the policy nor torch's generators

    def fit_config(self) -> FitConfig:
        """Optimiser, length, validation and stopping of the round's training."""
        ...

    def begin(self, step: int) -> None:
        """Called in all processes before update `step`: what several updates read is made here.

        It may keep files in the working folder, so that a resumed training reads what it read.
        """
        ...

    def window(self, step: int) -> Sequence[Callable[[], Any]]:
        """What makes each micro-batch of an update."""
        ...

    def judged_prompts(self, steps: int) -> Mapping[str, float]:
        """Prompts that a training of `steps` updates had judged, by split; called at its end."""
        ...

    def measured(self) -> Mapping[str, float]:
        """What there is to know of the guidance that it trained with; called at its end."""
        ...

    def validate(self) -> Mapping[str, float]:
        """Metrics of the policy as it is; `improve/negative_heldout_score` is minimised."""
        ...

    def save(self, folder: Path) -> None:
        """Keep the policy, so that the next round and the evaluation can load it."""
        ...

    def keep(self, folder: Path) -> None:
        """Keep in the stage's result what else the next round's training continues from."""
        ...


class PolicyTrainer:
    """What trainers of a policy share: it is what is trained, and what is kept."""

    cut = 0
    ahead = False

    def __init__(self, given: Improving):
        self.ctx, self.given = given.ctx, given
        self.module: nn.Module = given.lm

    def fit_config(self) -> FitConfig:
        return replace(self.ctx.cfg.improve, updates=self.given.updates)

    def begin(self, step: int) -> None:
        pass

    def judged_prompts(self, steps: int) -> Mapping[str, float]:
        return {}

    def measured(self) -> Mapping[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        self.ctx.save_policy(self.given.lm, self.given.codec, folder)

    def keep(self, folder: Path) -> None:
        pass


@dataclass(frozen=True)
class Method:
    """A name and what it does.

    Args:
        name: As in the config and in result tables.
        stages: The stages it runs; as a control, it takes the others' results from the main line.
        trainer: Makes a round's policy training; None if it trains no policy.
        weigh: For supervised methods: (token rewards or None, mask, the run's method options, seed
            of this batch) -> weights that add up to 1 over each target, or 1/|y| for a good token
            and at most that for others; then rewards are given less their threshold.
        samples: Whether the options' policy-gradient term applies.
        random_reward: Be guided by a reward model whose layers were drawn at random: a control.
        untrained_reward: Be guided by the reward model as its training would start: a control.
        all_targets: Whether the token rewards that it reads are those of all targets of the
            training split, not of the round's alone.
        shuffle_scores: Learn the reward from the judge's scores in random order: a control.
        needs_reward: Whether policy training reads the round's reward model.
        needs_samples: Whether policy training reads judged generations.
        write: For methods without a policy: (source, sentence splitter) -> the text.
        judges_updates: Whether it may have own samples judged for each update (prompt.fresh).
        search: For methods that propose prompts and train nothing: begins the search of a run.
        finds: Whether what it trains is no policy but something that stands in a template: it is
            saved as candidates (`judges.candidate`).
    """

    name: str
    stages: Sequence[str]
    trainer: Callable[["Method", Improving], Trainer] | None
    weigh: Callable[..., Any] | None = None
    samples: bool = False
    random_reward: bool = False
    untrained_reward: bool = False
    all_targets: bool = False
    shuffle_scores: bool = False
    needs_reward: bool = True
    needs_samples: bool = False
    judges_updates: bool = False
    write: Callable[[str, Callable[[str], list[str]]], str] | None = None
    search: MakeSearch | None = None
    finds: bool = False

    @property
    def published(self) -> str:
        """The folder of a run in which what came out of `improve` is found."""
        return "found" if self.finds or self.search is not None else "policy"
