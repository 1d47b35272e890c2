"""(D) Align: train r_phi so that its sequence evaluations order generations as the judge does.

Scoring (B) and aggregating (C) happen inside the loss: token rewards of all candidates in a batch
of comparison groups, the aggregator over each, Plackett–Luce over the group. Groups whose judge's
scores are all equal teach nothing; they are left out and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.config import AggregatorConfig
from pgtg.errors import ConfigError, DataError
from pgtg.loop import Where, fit, load_weights
from pgtg.models.batch import token_batch
from pgtg.models.loading import load_language_model
from pgtg.models.reward import (
    HeadSpec,
    RewardModel,
    build_reward_model,
    load_reward_model,
    save_reward_model,
)
from pgtg.ops.aggregate import evaluate_groups
from pgtg.ops.ranking import informative, pair_accuracy, plackett_luce_nll
from pgtg.ops.sampling import derive_seed
from pgtg.stages.context import Context
from pgtg.stages.sample import read_generations
from pgtg.store import Artifact, hash_of
from pgtg.types import Generations, Loss, TokenBatch, Window


@dataclass(frozen=True)
class GroupBatch:
    """Comparison groups with all their candidates."""

    batch: TokenBatch
    groups: Int[Tensor, "G J"]  # rows into the batch's sequences
    preference: Float[Tensor, "G J"]  # judge's scores


@dataclass(frozen=True)
class PlackettLuce:
    """Mean over groups of the Plackett–Luce NLL of the judge's order [nats]."""

    model: RewardModel
    aggregator: AggregatorConfig

    def count(self, batch: GroupBatch) -> Window:
        return Window(len(batch.groups), int(batch.batch.mask.sum()))

    def evaluations(self, batch: GroupBatch) -> Float[Tensor, "G J"]:
        return evaluate_groups(
            self.aggregator.name,
            self.model(batch.batch),
            batch.batch.mask,
            batch.groups,
            temperature=self.aggregator.temperature,
            length_normalized=self.aggregator.length_normalized,
        )

    def __call__(self, batch: GroupBatch, window: Window) -> Loss:
        evaluations = self.evaluations(batch)
        loss = plackett_luce_nll(evaluations, batch.preference).sum() / window.sequences
        share = len(batch.groups) / window.sequences
        accuracy = pair_accuracy(evaluations.detach(), batch.preference)
        return Loss(loss, {"pair_accuracy": accuracy * share})


def align(ctx: Context, round: int, *, head: str = "") -> Artifact:
    """Train the reward model on a round's samples, from the last round's reward model.

    Args:
        round: The round whose samples are learned from.
        head: Train another head than the config's, for comparison only.
    """
    samples = ctx.need(ctx.artifact(round, "sample"), "sample")
    artifact = ctx.artifact(round, "align", head=head)
    before = ctx.artifact(round - 1, "align") if round > 0 and not head else None
    parents = [*ctx.parents(0), samples] + ([ctx.need(before, "align")] if before else [])
    part = ctx.config_part("policy", "reward", "aggregator") | {"round": round, "head": head}
    inputs = hash_of(parents, part)
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    model, tokenizer = _reward_model(ctx, before, head or ctx.cfg.reward.head)
    metrics, probe = _train(ctx, model, samples, working, inputs, round, head)
    save_reward_model(model, working / "reward", probe, tokenizer)
    return artifact.commit(
        inputs=inputs, metrics=metrics, position=ctx.committed(), round=round, head=head
    )


def _train(
    ctx: Context,
    model: RewardModel,
    samples: Artifact,
    working: Path,
    inputs: str,
    round: int,
    head: str,
) -> tuple[dict[str, float], TokenBatch]:
    """Fit, and put the kept weights into the model. Returns held-out metrics and a probe batch."""
    cfg = ctx.cfg.reward.fit
    train, held = read_generations(samples, "train"), read_generations(samples, "heldout")
    objective = PlackettLuce(model, ctx.cfg.aggregator)
    rows, held_rows = usable(train), usable(held)
    checks = [group_batch(held, part, ctx.device) for part in split(held_rows, cfg.micro_batch)]
    if not checks:
        raise DataError("no held-out source has generations that the judge tells apart")

    def windows(step: int) -> list[GroupBatch]:
        size = cfg.micro_batch * cfg.accumulate
        chosen = _draw(rows, size, derive_seed(ctx.cfg.seed, "align", round), step)
        return [group_batch(train, part, ctx.device) for part in split(chosen, cfg.micro_batch)]

    where = Where(ctx.cfg.seed, "align", round, head, offset=round * cfg.updates)
    model.train()
    result = fit(
        model,
        windows,
        objective,
        cfg,
        where=where,
        folder=working,
        inputs=inputs,
        log=ctx.log,
        validate=lambda: heldout_metrics(objective, checks),
        select="align/heldout_nll",
    )
    if cfg.keep == "best" and result.best is not None:
        load_weights(model, result.best)
    Artifact(working / "state").remove()
    model.eval()
    metrics = heldout_metrics(objective, checks) | {
        "align/updates": result.steps,
        "align/kept_update": result.best_step if cfg.keep == "best" else result.steps,
        "align/tied_groups_skipped": len(train.groups) - len(rows),
    }
    ctx.log.say(
        f"{where.prefix} round {round}: {result.steps} updates, "
        f"kept {metrics['align/kept_update']}; "
        f"held-out pairs {100 * metrics['align/heldout_pair_accuracy']:.1f} %;"
        f" {metrics['align/tied_groups_skipped']} of {len(train.groups)} groups tied, left out"
    )
    return metrics, checks[0].batch


@torch.no_grad()
def heldout_metrics(objective: PlackettLuce, checks: Sequence[GroupBatch]) -> dict[str, float]:
    """Means over held-out groups, not over batches."""
    evaluations = torch.cat([objective.evaluations(batch) for batch in checks])
    preference = torch.cat([batch.preference for batch in checks])
    return {
        "align/heldout_nll": plackett_luce_nll(evaluations, preference).double().mean().item(),
        "align/heldout_pair_accuracy": pair_accuracy(evaluations, preference),
    }


def _reward_model(ctx: Context, before: Artifact | None, head: str):
    """The reward model to train on, and its tokenizer: the last round's, or a fresh head on the
    reward backbone."""
    cfg = ctx.cfg.reward
    start_lm, codec = ctx.load_start()
    if before is not None:
        return load_reward_model(before.file("reward")).to(ctx.device), codec.tokenizer
    spec = HeadSpec(head, cfg.bound, cfg.mlp_width)
    seed = derive_seed(ctx.cfg.seed, "head", head)
    path = cfg.path or ctx.cfg.policy.path
    if cfg.path is None and ctx.cfg.policy.tiny_t5 is not None:
        path = str(ctx.start_artifact().file("policy"))
    revision = cfg.revision if cfg.path else ctx.cfg.policy.revision
    backbone, tokenizer = load_language_model(
        str(path), revision=revision, dtype=ctx.cfg.policy.dtype, layers=cfg.layers
    )
    if tokenizer.get_vocab() != codec.tokenizer.get_vocab():
        raise ConfigError(
            f"reward.path={path}: its tokenizer has other tokens than the policy's; token rewards "
            "need one vocabulary, choose a smaller model of the policy's family"
        )
    if backbone.is_encoder_decoder != start_lm.is_encoder_decoder:
        raise ConfigError(
            f"reward.path={path}: policy and reward backbone must both be encoder-decoders or both "
            "causal, since they read the same token ids"
        )
    return build_reward_model(backbone.to(ctx.device), spec, seed), tokenizer


def usable(generations: Generations) -> list[int]:
    """Rows of the groups that hold a preference."""
    scores = torch.tensor(generations.scores, dtype=torch.float64)
    return informative(scores[generations.groups]).nonzero().squeeze(-1).tolist()


def group_batch(generations: Generations, rows: Sequence[int], device: torch.device) -> GroupBatch:
    """The groups named, with each candidate and each source once."""
    groups = generations.groups[list(rows)]
    members = sorted(set(groups.flatten().tolist()))
    place = {member: i for i, member in enumerate(members)}
    origins = sorted({generations.origin[m] for m in members})
    source_place = {origin: i for i, origin in enumerate(origins)}
    batch = token_batch(
        [generations.sources[o] for o in origins],
        [generations.tokens[m] for m in members],
        [source_place[generations.origin[m]] for m in members],
        device,
    )
    local = torch.tensor([[place[m] for m in group] for group in groups.tolist()])
    scores = torch.tensor(generations.scores, dtype=torch.float32)
    return GroupBatch(batch, local.to(device), scores[groups].to(device))


def split(rows: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive parts of at most `size` rows."""
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


def _draw(rows: Sequence[int], size: int, seed: int, step: int) -> list[int]:
    """`size` rows of update `step`: passes over all rows, each in a random order of its own."""
    chosen: list[int] = []
    place = step * size
    while len(chosen) < min(size, len(rows)):
        epoch, offset = divmod(place + len(chosen), len(rows))
        order = np.random.default_rng(derive_seed(seed, epoch)).permutation(len(rows))
        take = order[offset : offset + size - len(chosen)]
        chosen += [rows[i] for i in take]
    return chosen
