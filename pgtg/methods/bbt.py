"""Black-box tuning: an evolution strategy over vectors on top of a prompt's tokens.

CMA-ES (the package `cma`) searches a space of a few dimensions, which a fixed random projection
maps to one vector for each of some arbitrary tokens in the template. Vectors are added to the
output of the classifier's embedding block (for a causal LM to the embeddings), and the classifier
is only asked for answers, never for gradients.

The release searches the tokens' place by the first occurrence of an id in the whole text, and sets
a bias to zero that its model does not read; neither is done here.

Source: Sun et al. 2022 (arXiv:2201.03514), with the settings of RLPrompt's copy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pgtg.errors import ConfigError
from pgtg.judges.candidate import Candidate
from pgtg.judges.classifier import Classifier
from pgtg.judges.template import Prompt
from pgtg.methods.fresh import prompt_task
from pgtg.methods.method import Method
from pgtg.methods.prompt_options import BBT
from pgtg.methods.search import Question
from pgtg.methods.setting import Setting
from pgtg.ops.evolution import label_cross_entropy, label_hinge, projection_scale
from pgtg.ops.gap import accuracy
from pgtg.ops.sampling import derive_seed
from pgtg.tasks.prompt import PromptTask

FIRST_ID = 1000  # of the hard tokens, and of the embedding rows that the projection is scaled by
ROWS = 1000  # as many of them
MARGIN = 2.0  # of the hinge loss [nats]


class BBTSearch:
    """The search from the hard tokens alone, to which no vectors are added.

    Args:
        hard: Ids of the tokens that hold the vectors' places.
        projection: From the space that is searched to all vectors' entries.
        seed: Of the strategy's normal numbers.
    """

    def __init__(
        self,
        task: PromptTask,
        options: BBT,
        hard: Sequence[int],
        projection: Float[np.ndarray, "LD K"],
        seed: int,
    ):
        import cma

        self.task, self.options, self.projection = task, options, projection
        self.prompt = Prompt(f"({len(hard)} vectors)", tuple(hard))
        self.total: int | None = sum(options.asked())
        normal = np.random.default_rng(derive_seed(seed, "bbt", "normal"))
        bound = options.bound if options.bound > 0 else None
        self._strategy: Any = cma.CMAEvolutionStrategy(
            [0.0] * options.dim,
            options.sigma,
            {
                "popsize": options.popsize,
                "maxiter": options.budget // options.popsize,
                "bounds": [None if bound is None else -bound, bound],
                "seed": np.nan,  # its own seed would be that of numpy's global generator
                "randn": lambda *shape: normal.standard_normal(shape),
                "verbose": -9,
            },
        )
        self.fitness: list[list[float]] = []  # of each generation so far
        self.due: list[list[float]] = []  # candidates whose dev accuracy is to be known next
        self.kept: list[float] = [0.0] * options.dim
        self.kept_accuracy = 0.0
        self._solutions: list[np.ndarray] | None = None

    def ask(self) -> Question | None:
        if self.due:
            return Question("dev", [self.candidate(z) for z in self.due])
        if self._solutions is None:
            if self._strategy.stop():
                return None
            self._solutions = self._strategy.ask()
        return Question("train", [self.candidate(z) for z in self._solutions or []])

    def tell(self, answers: Float[np.ndarray, "P E C"]) -> None:
        values = torch.from_numpy(answers).double()
        split = "dev" if self.due else "train"
        labels = torch.tensor([example.label for example in self.task.labelled(split) or []])
        if self.due:
            for z, found in zip(self.due, accuracy(values, labels).tolist(), strict=True):
                if found > self.kept_accuracy:
                    self.kept, self.kept_accuracy = z, found
            self.due = []
            return
        if self.options.loss == "hinge":
            losses = label_hinge(values, labels, MARGIN).tolist()
        else:
            losses = label_cross_entropy(values, labels).tolist()
        solutions = [z.tolist() for z in self._solutions or []]
        self._generation(losses)
        chosen = self._checked(losses)
        self.due = [solutions[i] for i in chosen]

    def state(self) -> Mapping[str, Any]:
        """The strategy itself is made again from the losses that it was told."""
        names = ("fitness", "due", "kept", "kept_accuracy")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        for losses in state["fitness"]:
            self._solutions = self._strategy.ask()
            self._generation(losses)
        for name, value in state.items():
            setattr(self, name, value)

    def best(self) -> Sequence[Candidate]:
        return [self.candidate(self.kept)]

    def measured(self) -> Mapping[str, float]:
        return {}

    def candidate(self, z: Sequence[float] | np.ndarray) -> Candidate:
        offset = self.projection @ np.asarray(z, np.float32)
        vectors = offset.reshape(len(self.prompt.ids or ()), -1)
        template = self.options.template or ""
        return Candidate(self.prompt, template, tokens=True, offset=vectors, block=True)

    def _generation(self, losses: list[float]) -> None:
        self._strategy.tell(self._solutions, losses)
        self.fitness.append(losses)
        self._solutions = None

    def _checked(self, losses: list[float]) -> list[int]:
        """Which of the last generation are checked on dev: each whose number is due (as released:
        chosen by its number alone), or the generation's best if a number in it is due."""
        before = sum(len(own) for own in self.fitness) - len(losses)
        every = self.options.check_every
        due = [i for i in range(len(losses)) if (before + i + 1) % every == 0]
        if self.options.released or not due:
            return due
        return [int(np.argmin(losses))]


def hard_tokens(classifier: Classifier, number: int) -> list[int]:
    """Ids from 1000 on; of a smaller vocabulary the first that are not special.

    Raises:
        ConfigError: The vocabulary is too small.
    """
    rows = len(classifier.word_embeddings)
    special = set(classifier.tokenizer.all_special_ids)
    ordinary = [i for i in range(rows) if i not in special]
    found = range(FIRST_ID, FIRST_ID + number) if rows >= FIRST_ID + number else ordinary[:number]
    if len(found) < number:
        raise ConfigError(f"method.tokens: found {number}, but the classifier has {len(ordinary)}")
    return list(found)


def begin(ctx: Setting) -> BBTSearch:
    task, options = prompt_task(ctx), BBT.of(ctx.cfg.method)
    classifier = task.scorer(options.template or task.classifier.template, tokens=True).classifier
    assert isinstance(classifier, Classifier)
    table = classifier.word_embeddings.float()
    rows = table[FIRST_ID : FIRST_ID + ROWS] if len(table) >= FIRST_ID + ROWS else table
    mean, std = projection_scale(
        rows.mean().item(),
        rows.std(unbiased=False).item(),
        options.dim,
        sigma=options.sigma,
        alpha=options.alpha,
        centred=options.projection == "centred",
    )
    entries = np.random.default_rng(derive_seed(ctx.cfg.seed, "bbt", "projection"))
    shape = (options.tokens * table.shape[1], options.dim)
    projection = entries.normal(mean, std, shape).astype(np.float32)
    hard = hard_tokens(classifier, options.tokens)
    return BBTSearch(task, options, hard, projection, ctx.cfg.seed)


METHOD = Method("bbt", ("improve",), None, needs_reward=False, search=begin)
