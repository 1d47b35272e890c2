"""The planted truth as token weights: what a perfect reward could gain, where truth is planted.

A token that is a planted flaw (a wrong fact, boilerplate) weighs 0, all others of its target the
same. How much of the oracle's gain over uniform weights a learned reward recovers is what it is
worth.
"""

import torch
from torch import Tensor

from pgtg.data.examples import Examples
from pgtg.errors import DataError
from pgtg.methods.method import Method
from pgtg.methods.supervised import SupervisedTrainer
from pgtg.ops.objectives import mle_weights
from pgtg.types import TokenBatch


class OracleTrainer(SupervisedTrainer):
    """w_t = 1 / (tokens that are no flaw), 0 at flaws."""

    def weights(
        self, examples: Examples, batch: TokenBatch, rewards: Tensor | None, seed: int
    ) -> Tensor:
        """As in the base class.

        Raises:
            DataError: A target's truth is not known: it is cut.
        """
        right = torch.zeros(batch.mask.shape)
        targets = self.tokens.targets(examples.rows)
        for line, example, tokens in zip(right, examples, targets, strict=True):
            flaws = self.task.target_flaws(example, tokens)
            if flaws is None:
                raise DataError(
                    f"method.controls: oracle reads each target's planted truth, and {example.id} "
                    "has none that fits: give a larger policy.max_target_tokens, or leave it out"
                )
            line[: len(flaws)] = 1 - torch.tensor(flaws).float()
        return mle_weights(right.to(batch.mask.device), batch.mask)


METHOD = Method("oracle", ("improve",), OracleTrainer, needs_reward=False)
