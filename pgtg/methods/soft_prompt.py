"""Soft prompt tuning: the embeddings of a prompt's tokens trained by gradient (arXiv:2104.08691).

The classifier is frozen; what is trained is one vector in the place of each of some tokens, which
starts as the embedding of a token drawn at random. It is kept as what is added to these tokens'
embeddings, so whatever reads prompts of tokens reads it.

RLPrompt's baseline cuts batches from files that are sorted by class, so each holds one class, in a
fixed cycle: `method.order=released`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pgtg.judges.candidate import Candidate, save_found
from pgtg.judges.classifier import Classifier
from pgtg.judges.template import Prompt
from pgtg.methods.few_shot import FewShotTrainer
from pgtg.methods.method import Improving, Method
from pgtg.methods.prompt_options import SoftPrompt
from pgtg.ops.sampling import derive_seed
from pgtg.runtime import distributed
from pgtg.types import Labelled, Loss, Window

FIRST_IDS = 5000  # token ids below it are drawn from, as released


class SoftTokens(nn.Module):
    """Vectors in the place of a prompt's tokens: the trained part."""

    def __init__(self, embeddings: Float[Tensor, "L D"]):
        super().__init__()
        self.start: Tensor
        self.register_buffer("start", embeddings.clone(), persistent=False)
        self.prompt = nn.Parameter(embeddings.clone())

    @property
    def on_top(self) -> Float[Tensor, "L D"]:
        """What they add to the tokens' own embeddings."""
        return self.prompt - self.start


@dataclass(frozen=True)
class LabelLoss:
    """L = mean over texts of -log p(label word), among all words or the label words alone."""

    logits: Callable[[Sequence[Labelled]], Float[Tensor, "E V"]]  # at the place of the answer
    words: Sequence[int]  # ids of the label words
    label_words_only: bool

    def count(self, batch: Sequence[Labelled]) -> Window:
        return Window(len(batch), len(batch))

    def __call__(self, batch: Sequence[Labelled], window: Window) -> Loss:
        logits = self.logits(batch)
        labels = torch.tensor([example.label for example in batch], device=logits.device)
        words = torch.tensor(list(self.words), device=logits.device)
        if self.label_words_only:
            logits, targets = logits[:, words], labels
        else:
            targets = words[labels]
        losses = nn.functional.cross_entropy(logits, targets, reduction="sum")
        return Loss(losses / window.sequences, {"label_nll": losses.detach() / window.sequences})


class SoftPromptTrainer(FewShotTrainer):
    """The vectors, trained on the few examples, checked on dev."""

    heldout = "judge's score on held-out examples"

    def __init__(self, method: Method, given: Improving):
        options, seed = SoftPrompt.of(given.ctx.cfg.method), given.ctx.cfg.seed
        super().__init__(given, options, derive_seed(seed, "soft_prompt", "order"))
        template = options.template or self.task.classifier.template
        classifier = self.task.scorer(template, tokens=True).classifier
        assert isinstance(classifier, Classifier)
        table = classifier.word_embeddings.float()
        rng = np.random.default_rng(derive_seed(seed, "soft_prompt", "tokens"))
        ids = rng.permutation(min(len(table), FIRST_IDS))[: options.tokens].tolist()
        prompt = Prompt(f"({len(ids)} vectors)", tuple(ids))
        self.candidate = Candidate(prompt, options.template or "", tokens=True)
        self.tokens = SoftTokens(table[ids])
        self.module: Any = self.tokens
        self.objective = LabelLoss(
            lambda rows: classifier.word_logits(
                self.candidate, rows, self.tokens.on_top, self.examples
            ),
            classifier.label_ids,
            options.label_words_only,
        )

    def window(self, step: int) -> list[Callable[[], list[Labelled]]]:
        return [lambda: [self.examples[row] for row in self.rows(step)]]

    def validate(self) -> Mapping[str, float]:
        """The judge's score on the dev examples, negated."""

        @distributed.first
        def score() -> float:
            values = torch.from_numpy(self.task.answers([self.found()], "dev"))
            return self.task.gap_of(values, "dev").double().mean().item()

        return {"improve/negative_heldout_score": -score()}

    def save(self, folder: Path) -> None:
        found = self.found()

        @distributed.first
        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            save_found(folder, [found])

        write()

    def found(self) -> Candidate:
        return replace(self.candidate, offset=self.tokens.on_top.detach().cpu().numpy())


METHOD = Method("soft_prompt", ("improve",), SoftPromptTrainer, needs_reward=False, finds=True)
