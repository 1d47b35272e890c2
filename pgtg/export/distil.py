"""A linear head in the place of another: least squares on states, and what is lost by it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from pgtg.explain.runs import Run
from pgtg.models.batch import per_token, right_padded
from pgtg.models.budget import token_budget
from pgtg.models.reward import HeadSpec, RewardModel
from pgtg.ops.credit import spearman
from pgtg.pipeline.stages.align import PlackettLuce, group_batch, heldout_metrics
from pgtg.runs.log import RunLog
from pgtg.types import Generations, TokenBatch

RIDGE = 1e-10  # of the states' variance, all of it: float32 noise lies below


@dataclass(frozen=True)
class Fidelity:
    """How a linear head stands for the head that it was fitted to.

    Args:
        of: The texts: "heldout", or "train", which it was fitted to as well.
        pairs: Share [0, 1] of pairs that the run's own head orders as they are preferred; None
            where no pair is.
        pairs_distilled: The same of the linear head.
        spearman: Rank correlation of the two over all tokens.
        tokens: How many these are.
    """

    of: str
    pairs: float | None
    pairs_distilled: float | None
    spearman: float
    tokens: int

    @property
    def line(self) -> str:
        where = {"heldout": "held-out texts", "train": "texts that it was fitted to"}[self.of]
        said = f"Spearman {self.spearman:.3f} over {self.tokens} tokens of {where}"
        if self.pairs is None or self.pairs_distilled is None:
            return said
        pairs = f"{100 * self.pairs:.1f} % -> {100 * self.pairs_distilled:.1f} %"
        return f"{said}, pairs ordered right {pairs}"


class LeastSquares:
    """Moments of states and z over the tokens of batches, and the linear layer that fits them.

    Minimises sum_t (w · h_t + b - z_t)^2 + ridge |w|^2 in float64.
    """

    def __init__(self, model: RewardModel):
        size = model.backbone.width
        self.model, self.tokens = model, 0
        self.states, self.z = (
            torch.zeros(size, dtype=torch.float64),
            torch.zeros((), dtype=torch.float64),
        )
        self.squares = torch.zeros(size, size, dtype=torch.float64)
        self.products = torch.zeros(size, dtype=torch.float64)

    @torch.no_grad()
    def add(self, batch: TokenBatch) -> Tensor:
        """Count a batch's tokens; its z [N, T]."""
        z, mask = self.model.raw(batch), batch.mask
        states = self.model.backbone.states(right_padded(batch))[:, 1:]
        x, y = states[mask].cpu().double(), z[mask].cpu().double()
        self.tokens += len(y)
        self.states += x.sum(0)
        self.z += y.sum()
        self.squares += x.T @ x
        self.products += x.T @ y
        return z

    def solve(self) -> tuple[Tensor, Tensor]:
        """w [D] and b, float64."""
        mean, level = self.states / self.tokens, self.z / self.tokens
        covariance = self.squares / self.tokens - mean[:, None] * mean
        ridge = RIDGE * covariance.trace()
        left = covariance + ridge * torch.eye(len(mean), dtype=torch.float64)
        weight = torch.linalg.lstsq(left, (self.products / self.tokens - mean * level)[:, None])
        found = weight.solution.squeeze(-1)
        return found, level - mean @ found


def distilled(
    run: Run, model: RewardModel, texts: Generations, device: torch.device, log: RunLog
) -> RewardModel:
    """The same backbone under a linear head, fitted to the model's z on the texts' tokens."""
    fit = LeastSquares(model)
    _read(run, fit.add, texts, device)
    if fit.tokens < 10 * model.backbone.width:
        log.warn(
            f"only {fit.tokens} tokens for a linear head of {model.backbone.width} weights: it may "
            "not hold for other texts"
        )
    linear = RewardModel(model.backbone, HeadSpec("linear", model.spec.bound, 1)).to(device)
    weight, bias = fit.solve()
    score = linear.head.get_submodule("score")
    assert isinstance(score, nn.Linear)
    with torch.no_grad():
        score.weight.copy_(weight[None])
        score.bias.copy_(bias)
    return linear.eval()


def fidelity(
    run: Run,
    model: RewardModel,
    linear: RewardModel,
    texts: Generations,
    part: str,
    device: torch.device,
) -> Fidelity:
    """How the linear head stands for the model's own, on texts of a part of the samples."""
    both = (model, linear)
    ours, its = ([float(r) for row in _read(run, one, texts, device) for r in row] for one in both)
    found = Fidelity(part, None, None, spearman(ours, its), len(ours))
    compared = run.task.all_comparisons(texts)
    if not len(compared):
        return found
    parts = compared.split(run.cfg.reward.fit.micro_batch)
    batches = [group_batch(texts, each, device) for each in parts]
    pairs = [
        heldout_metrics(PlackettLuce(one, run.aggregator), batches)["align/heldout_pair_accuracy"]
        for one in both
    ]
    return replace(found, pairs=pairs[0], pairs_distilled=pairs[1])


def _read(
    run: Run,
    value: Callable[[TokenBatch], Tensor],
    texts: Generations,
    device: torch.device,
) -> list[np.ndarray]:
    given = texts.sources, texts.tokens, texts.origin
    return per_token(value, *given, batch_tokens=token_budget(run.batch_tokens), device=device)
