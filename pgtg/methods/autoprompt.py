"""AutoPrompt: trigger tokens replaced one at a time, by gradient and trial (arXiv:2010.15980).

An iteration takes the gradient of the label words' loss with respect to the embeddings at the
trigger's places, draws a place, has the tokens tried there that should lower the loss most to first
order, and takes the best if it classifies strictly more of a batch right. The trigger with the best
dev accuracy is the result. Tokens are put in as they are, never through text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pgtg.errors import ConfigError
from pgtg.judges.candidate import Candidate
from pgtg.judges.classifier import Classifier
from pgtg.judges.template import Prompt
from pgtg.methods.fresh import prompt_task
from pgtg.methods.method import Method
from pgtg.methods.prompt_options import AutoPrompt
from pgtg.methods.search import Question
from pgtg.methods.setting import Setting
from pgtg.ops.gap import accuracy
from pgtg.ops.sampling import derive_seed
from pgtg.ops.triggers import best_tokens, first_order_scores, strictly_right
from pgtg.runtime import distributed
from pgtg.tasks.prompt import PromptTask
from pgtg.types import Labelled

ROWS = 16  # texts of one pass with gradients
Gradient = Callable[[Sequence[int], Sequence[Labelled]], Float[Tensor, "L D"]]


class AutoPromptSearch:
    """The search from one trigger.

    Args:
        embeddings: The classifier's, a row for each id.
        gradient: (trigger, examples) -> gradient of their mean loss at the trigger's embeddings.
        start: Ids of the first trigger.
        text: Of ids.
        allowed: The only ids that may stand in a trigger; None for all.
        seed: Of batches and places, with the number of the iteration.
    """

    def __init__(
        self,
        task: PromptTask,
        options: AutoPrompt,
        embeddings: Float[Tensor, "V D"],
        gradient: Gradient,
        *,
        start: Sequence[int],
        text: Callable[[Sequence[int]], str],
        allowed: Sequence[int] | None,
        seed: int,
    ):
        self.task, self.options, self.seed = task, options, seed
        self._embeddings, self._gradient = embeddings, gradient
        self._text, self._allowed = text, allowed
        self.total: int | None = sum(options.asked())
        self.trigger, self.kept = list(start), list(start)
        self.kept_accuracy = -1.0
        self.iteration = 0
        self.accepted = False  # whether the trigger is new, so that its dev accuracy is due
        self._tried: list[list[int]] = []

    def ask(self) -> Question | None:
        if self.accepted:
            return Question("dev", [self._candidate(self.trigger)])
        if self.iteration == self.options.iterations:
            return None
        if not self._tried:
            self._tried = [self.trigger, *self._triggers()]
        return Question("train", [self._candidate(ids) for ids in self._tried])

    def tell(self, answers: Float[np.ndarray, "P E C"]) -> None:
        values = torch.from_numpy(answers)
        if self.accepted:
            self.accepted = False
            found = accuracy(values, self._labels("dev"))[0].item()
            if found > self.kept_accuracy:
                self.kept, self.kept_accuracy = self.trigger, found
            return
        rows = self._batch("trial", 0)
        right = strictly_right(values, self._labels("train"))[:, rows].sum(-1).tolist()
        best = max(range(1, len(right)), key=lambda i: right[i])  # of equals the first
        self.iteration += 1
        if right[best] > right[0]:
            self.trigger, self.accepted = self._tried[best], True
        self._tried = []

    def state(self) -> Mapping[str, Any]:
        names = ("trigger", "kept", "kept_accuracy", "iteration", "accepted")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._tried = []

    def best(self) -> Sequence[Candidate]:
        return [self._candidate(self.kept)]

    def measured(self) -> Mapping[str, float]:
        texts = self.iteration * self.options.accumulation * len(self._batch("gradient", 0))
        return {"improve/gradient_sequences": float(texts)}

    def _triggers(self) -> list[list[int]]:
        """The present trigger with each of the likeliest tokens in a place that is drawn."""
        examples = self.task.labelled("train") or []
        gradients = [
            self._gradient(self.trigger, [examples[row] for row in self._batch("gradient", part)])
            for part in range(self.options.accumulation)
        ]
        place = int(self._draws("place", 0).integers(len(self.trigger)))
        gradient = torch.stack(gradients).mean(0)[place]
        scores = first_order_scores(self._embeddings, gradient)
        tokens = best_tokens(scores, self.options.candidates, self._allowed)
        return [[*self.trigger[:place], token, *self.trigger[place + 1 :]] for token in tokens]

    def _batch(self, purpose: str, part: int) -> list[int]:
        """Rows of the training examples, others for each purpose and iteration."""
        number = len(self.task.labelled("train") or [])
        size = min(self.options.batch or number, number)
        return sorted(self._draws(purpose, part).permutation(number)[:size].tolist())

    def _draws(self, purpose: str, part: int) -> np.random.Generator:
        key = derive_seed(self.seed, "autoprompt", self.iteration, purpose, part)
        return np.random.default_rng(key)

    def _labels(self, split: str) -> Tensor:
        return torch.tensor([example.label for example in self.task.labelled(split) or []])

    def _candidate(self, ids: Sequence[int]) -> Candidate:
        prompt = Prompt(self._text(ids), tuple(ids))
        return Candidate(prompt, self.options.template or "", tokens=True)


def embedding_gradient(
    classifier: Classifier, candidate: Candidate, examples: Sequence[Labelled]
) -> Float[Tensor, "L D"]:
    """Gradient of the examples' mean loss [nats] with respect to the embeddings of the prompt.

    The loss is -log p(label word) among all words. What all texts share is one prompt, so the
    texts' gradients add up.
    """
    words = torch.tensor(classifier.label_ids)
    assert candidate.prompt.ids is not None
    table = classifier.word_embeddings
    total = torch.zeros(len(candidate.prompt.ids), table.shape[1])
    for start in range(0, len(examples), ROWS):
        own = examples[start : start + ROWS]
        vectors = torch.zeros(total.shape, device=table.device, requires_grad=True)
        log_probs = classifier.word_logits(candidate, own, vectors, examples).log_softmax(-1)
        labels = words[[example.label for example in own]].to(log_probs.device)
        loss = -log_probs.gather(-1, labels[:, None]).sum() / len(examples)
        total += torch.autograd.grad(loss, vectors)[0].cpu()
    return total


def begin(ctx: Setting) -> AutoPromptSearch:
    task, options = prompt_task(ctx), AutoPrompt.of(ctx.cfg.method)
    template = options.template or task.classifier.template
    classifier = task.scorer(template, tokens=True).classifier
    assert isinstance(classifier, Classifier)
    tokenizer = classifier.tokenizer
    allowed = task.allowed(tokenizer)
    if allowed is None and not options.special:
        special = set(tokenizer.all_special_ids)
        allowed = [i for i in range(len(classifier.word_embeddings)) if i not in special]

    @distributed.first  # the same in all processes, to the bit
    def gradient(ids: Sequence[int], examples: Sequence[Labelled]) -> Tensor:
        given = Candidate(Prompt("", tuple(ids)), template, tokens=True)
        return embedding_gradient(classifier, given, examples)

    return AutoPromptSearch(
        task,
        options,
        classifier.word_embeddings.float().cpu(),
        gradient,
        start=[_first_token(classifier, options.start)] * options.tokens,
        text=lambda ids: str(tokenizer.decode(list(ids))),
        allowed=allowed,
        seed=ctx.cfg.seed,
    )


def _first_token(classifier: Classifier, text: str | None) -> int:
    """The token that stands in all places at the start: a text's, or by default the mask, and where
    there is no mask that of " the".

    Raises:
        ConfigError: A text of several tokens.
    """
    tokenizer: Any = classifier.tokenizer
    if text is None and tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    given = " the" if text is None else text
    ids = tokenizer(given, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(f"method.start: {given!r} is {len(ids)} tokens; give a text of one")
    return int(ids[0])


METHOD = Method("autoprompt", ("improve",), None, needs_reward=False, search=begin)
