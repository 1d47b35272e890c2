"""Few-shot fine-tuning: the classifier LM itself trained on the few examples.

No prompt is searched: what it ends with is a copy of the classifier with other weights, which is
ranked and tested like a prompt. "head" is the published baseline; "prompt" trains the label words'
log-probabilities in the data set's manual template, which needs no new weights.

Source: the baselines of RLPrompt's code (arXiv:2205.12548); LM-BFF (arXiv:2012.15723).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgtg.judges.candidate import Candidate, save_found
from pgtg.judges.finetuned import FineTuned, Tuned
from pgtg.judges.rendering import Rendered
from pgtg.judges.template import Prompt
from pgtg.methods.few_shot import FewShotTrainer
from pgtg.methods.method import Improving, Method
from pgtg.methods.prompt_options import FineTune
from pgtg.ops.sampling import derive_seed
from pgtg.runtime import distributed
from pgtg.types import Loss, Window

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TextBatch:
    """Rows of an update and the targets of their answers: classes, or words' ids."""

    rows: list[Rendered]
    targets: list[int]


@dataclass(frozen=True)
class ClassLoss:
    """L = mean over texts of -log p(class), or with `vocabulary` of the label word among all."""

    model: FineTuned
    vocabulary: bool

    def count(self, batch: TextBatch) -> Window:
        return Window(len(batch.rows), sum(len(row.ids) for row in batch.rows))

    def __call__(self, batch: TextBatch, window: Window) -> Loss:
        logits = self.model.logits(batch.rows, vocabulary=self.vocabulary).float()
        targets = torch.tensor(batch.targets, device=logits.device)
        losses = nn.functional.cross_entropy(logits, targets, reduction="sum")
        right = (logits.argmax(-1) == targets).sum()
        metrics = {"label_nll": losses.detach(), "train_accuracy": 100.0 * right}
        return Loss(
            losses / window.sequences,
            {name: value / window.sequences for name, value in metrics.items()},
        )


class FineTuneTrainer(FewShotTrainer):
    """The LM, or its top layers, and its head."""

    heldout = "accuracy [%] on held-out examples"

    def __init__(self, method: Method, given: Improving):
        self.options = FineTune.of(given.ctx.cfg.method)
        seed, kind = derive_seed(given.ctx.cfg.seed, "finetune"), self.options.kind
        super().__init__(given, self.options, seed)
        layers, longest = self.options.trainable_layers, self.options.max_tokens
        self.tuned = self.task.fine_tuned(kind, longest, layers=layers, seed=seed)
        self.module: Any = self.tuned
        self.texts = self.tuned.rows([example.text for example in self.examples])
        self.cut = sum(text.cut for text in self.texts)
        vocabulary = kind == "prompt" and not self.options.label_words_only
        self.objective = ClassLoss(self.tuned, vocabulary)
        self.targets = [example.label for example in self.examples]
        if vocabulary:
            words = self.task.label_ids("manual")
            self.targets = [words[label] for label in self.targets]

    def window(self, step: int) -> list[Callable[[], TextBatch]]:
        rows = self.rows(step)
        return [lambda: TextBatch([self.texts[i] for i in rows], [self.targets[i] for i in rows])]

    def validate(self) -> Mapping[str, float]:
        """Accuracy [%] on the dev examples, negated."""
        examples = self.task.labelled("dev") or []
        guesses = self.tuned.log_probs(examples).argmax(-1)
        right = sum(int(g) == e.label for g, e in zip(guesses, examples, strict=True))
        return {"improve/negative_heldout_score": -100.0 * right / len(examples)}

    @distributed.first
    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tuned.save(folder / WEIGHTS)
        tuned = Tuned(folder / WEIGHTS, self.options.kind, self.options.max_tokens)
        save_found(folder, [Candidate(Prompt("(fine-tuned)"), "manual", tuned=tuned)])


METHOD = Method("finetune", ("improve",), FineTuneTrainer, needs_reward=False, finds=True)
