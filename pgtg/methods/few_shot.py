"""Training on the prompt task's few labelled examples: batches, optimiser, what is counted.

AdamW without decay, gradients clipped at 1, a rate that falls linearly to 0 over the updates; the
weights of the best check on dev are kept where `improve.keep=best`.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pgtg.config import FitConfig
from pgtg.methods.fresh import prompt_task, validations
from pgtg.methods.method import Improving, PolicyTrainer
from pgtg.methods.prompt_options import FewShot
from pgtg.ops.sampling import derive_seed


def batch_rows(number: int, size: int, step: int, seed: int | None) -> list[int]:
    """Rows of an update's batch: those of epochs one after the other.

    An epoch's last batch is smaller where the size does not divide the number.

    Args:
        seed: Each epoch in an order of its own; None: in the order of the file.
    """
    batches = -(-number // size)
    epoch, place = divmod(step, batches)
    order = np.arange(number)
    if seed is not None:
        order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(number)
    return order[place * size : (place + 1) * size].tolist()


class FewShotTrainer(PolicyTrainer):
    """What such trainings share.

    Args:
        given: What the stage gives a trainer.
        options: The method's.
        seed: Of the order of the examples, where it is not the file's.
    """

    validates = True

    def __init__(self, given: Improving, options: FewShot, seed: int):
        super().__init__(given)
        self.task, self._few, self._seed = prompt_task(given.ctx), options, seed
        self.examples = self.task.labelled("train") or []

    def fit_config(self) -> FitConfig:
        return replace(
            super().fit_config(),
            optimizer="adamw",
            weight_decay=0.0,
            lr=self._few.lr,
            clip=1.0,
            schedule="linear",
            patience=0,
            micro_batch=self._few.batch,
            accumulate=1,
            validate_every=self._few.check_every,
        )

    def rows(self, step: int) -> list[int]:
        """The examples of an update's batch."""
        seed = None if self._few.order == "released" else self._seed
        return batch_rows(len(self.examples), self._few.batch, step, seed)

    def judged_prompts(self, steps: int) -> Mapping[str, float]:
        return {"improve/dev_judged_prompts": float(validations(steps, self.fit_config()))}

    def measured(self) -> Mapping[str, float]:
        read = sum(len(self.rows(step)) for step in range(self._few.updates))
        return {"improve/gradient_sequences": float(read)}
