"""GrIPS: edits of an instruction, kept while they help (arXiv:2203.07281).

An iteration draws a few edits of the text, each of one phrase: delete it, swap it with another, add
a phrase that was deleted before, or paraphrase it (with a model of the user's). All are scored on
the training examples; the best is kept if it is better than the text it came from, otherwise the
search loses patience.

The published row has the released code's edits (`method.released`), whose swap copies a phrase over
another instead of exchanging the two; see `ops.edits`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pgtg.errors import ConfigError
from pgtg.judges.candidate import Candidate
from pgtg.judges.template import Prompt
from pgtg.methods.fresh import prompt_task
from pgtg.methods.method import Method
from pgtg.methods.prompt_options import GrIPS
from pgtg.methods.search import Question
from pgtg.methods.setting import Setting
from pgtg.models.loading import load_language_model
from pgtg.ops import edits
from pgtg.ops.gap import accuracy, balanced_entropy
from pgtg.ops.sampling import derive_seed
from pgtg.tasks.prompt import PromptTask

BEAMS = 10  # of the paraphraser, which returns as many texts


@dataclass(frozen=True)
class Edited:
    """A text with one edit, and what the edit did to the pool of deleted phrases."""

    text: str
    puts: str | None = None
    takes: str | None = None


class GripsSearch:
    """The search from one instruction.

    Args:
        task: Its instructions template holds the text, and its training examples score it.
        seed: Of all draws, with the number of the iteration.
    """

    def __init__(self, task: PromptTask, options: GrIPS, seed: int, device: torch.device):
        self.task, self.options, self.seed, self.device = task, options, seed, device
        given = options.instruction or task.template(options.template).instruction
        if given is None:
            raise ConfigError(
                f"method.instruction: no value, and the data set's template {options.template} has "
                "no instruction to start from; give a text"
            )
        self.text = given
        self.score: float | None = None
        self.pool: list[str] = []
        self.failures = self.iteration = 0
        self.total: int | None = 1 + options.iterations * options.candidates
        self._drawn: list[Edited] | None = None

    def ask(self) -> Question | None:
        if self.score is None:
            return self._question([self.text])
        ended = self.iteration == self.options.iterations or self.failures >= self.options.patience
        if ended or not self._edits():
            return None
        return self._question([edit.text for edit in self._edits()])

    def tell(self, answers: Float[np.ndarray, "P E C"]) -> None:
        scores = self.scores(answers)
        if self.score is None:
            self.score = scores[0]
            return
        best = int(np.argmax(scores))  # of equals the first
        self.iteration += 1
        self.failures += 1
        if scores[best] > self.score:
            self._accept(self._edits()[best], scores[best])
        self._drawn = None

    def scores(self, answers: Float[np.ndarray, "P E C"]) -> list[float]:
        """What each text is worth: `method.score` of the classifier's answers to it."""
        values = torch.from_numpy(answers)
        labels = torch.tensor([example.label for example in self.task.labelled("train") or []])
        if self.options.score == "gap":
            return self.task.gap_of(values, "train").double().mean(-1).tolist()
        if self.options.score == "balanced":
            return [balanced_entropy(own, labels) for own in values]
        return (100.0 * accuracy(values, labels)).tolist()

    def state(self) -> Mapping[str, Any]:
        names = ("text", "score", "pool", "failures", "iteration")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._drawn = None

    def best(self) -> Sequence[Candidate]:
        return [self._candidate(self.text)]

    def measured(self) -> Mapping[str, float]:
        return {}

    def _accept(self, edit: Edited, score: float) -> None:
        self.text, self.score, self.failures = edit.text, score, 0
        if self.options.released:  # the text that is kept was never scored itself
            self.text = edits.normalized(edit.text)
        if edit.takes is not None:
            self.pool.remove(edit.takes)
        if edit.puts is not None:
            self.pool.append(edit.puts)

    def _question(self, texts: Sequence[str]) -> Question:
        return Question("train", [self._candidate(text) for text in texts])

    def _candidate(self, text: str) -> Candidate:
        return Candidate(Prompt(text), self.options.template, edited=True)

    def _edits(self) -> list[Edited]:
        if self._drawn is None:
            self._drawn = self.draw()
        return self._drawn

    def draw(self) -> list[Edited]:
        """The iteration's edits; none if nothing can be edited."""
        rng = np.random.default_rng(derive_seed(self.seed, "grips", self.iteration))
        pieces = edits.pieces_of(self.text, self.options.phrases)
        places = [i for i, piece in enumerate(pieces) if edits.is_phrase(piece)]
        kinds = ["delete"] if len(places) > 1 else []
        kinds += ["swap"] if len(places) > 1 else []
        kinds += ["paraphrase"] if places and self.options.paraphraser else []
        kinds += ["add"] if self.pool else []
        if not kinds:
            return []
        return [
            self._edited(str(rng.choice(kinds)), pieces, places, rng)
            for _ in range(self.options.candidates)
        ]

    def _edited(
        self, kind: str, pieces: list[str], places: list[int], rng: np.random.Generator
    ) -> Edited:
        """One edit of a kind at places drawn uniformly."""
        released, text = self.options.released, self.text
        if kind == "swap":
            one, other = (int(i) for i in rng.choice(places, 2, replace=False))
            if released:
                return Edited(edits.swap_released(text, pieces[one], pieces[other]))
            return Edited(edits.text_of(edits.swapped(pieces, one, other)))
        if kind == "add":
            phrase = self.pool[int(rng.integers(len(self.pool)))]
            after = [-1, *places][int(rng.integers(len(places) + 1))]  # -1: in front of all
            if released:
                after_text = pieces[after] if after >= 0 else ""
                return Edited(edits.add_released(text, phrase, after_text), takes=phrase)
            return Edited(edits.text_of(edits.added(pieces, after + 1, phrase)), takes=phrase)
        at = int(rng.choice(places))
        phrase = pieces[at]
        if kind == "delete":
            if released:
                return Edited(edits.delete_released(text, phrase), puts=phrase)
            return Edited(edits.text_of(edits.deleted(pieces, at)), puts=phrase)
        found = _paraphrases(self.options.paraphraser or "", phrase, str(self.device))
        other = found[int(rng.integers(len(found)))].strip(".")
        if released:
            return Edited(edits.substitute_released(text, phrase, other))
        return Edited(edits.text_of(edits.substituted(pieces, at, other)))


@cache
def _paraphrases(path: str, phrase: str, device: str) -> list[str]:
    """What a sequence-to-sequence model makes of a phrase, the likeliest first.

    Raises:
        MissingResourceError: The model is not there.
        ConfigError: It is no sequence-to-sequence model.
    """
    model, tokenizer = _paraphraser(path, device)
    given = tokenizer(phrase, return_tensors="pt").to(device)
    ids = model.generate(
        **given, num_beams=BEAMS, num_return_sequences=BEAMS, max_new_tokens=60, do_sample=False
    )
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@cache
def _paraphraser(path: str, device: str) -> tuple[Any, Any]:
    lm, tokenizer = load_language_model(path)
    if not lm.is_encoder_decoder:
        raise ConfigError(f"method.paraphraser={path}: expected a sequence-to-sequence model")
    return lm.model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def begin(ctx: Setting) -> GripsSearch:
    return GripsSearch(prompt_task(ctx), GrIPS.of(ctx.cfg.method), ctx.cfg.seed, ctx.device)


METHOD = Method("grips", ("improve",), None, needs_reward=False, search=begin)
