"""(D) Align: train r_phi so that its sequence evaluations order generations as the judge does.

Scoring (B) and aggregating (C) happen inside the loss: token rewards of all candidates in a batch
of comparison groups, the aggregator over each, Plackett–Luce over the group. Groups whose judge's
scores are all equal teach nothing; they are left out and counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgtg.config import FitConfig
from pgtg.data.comparisons import Comparisons, parts_in_passes
from pgtg.data.generations import joined, read_generations, shuffled_scores
from pgtg.errors import ConfigError, DataError
from pgtg.methods import method_of
from pgtg.methods.fresh import FreshComparisons, is_fresh
from pgtg.models.batch import moved, token_batch
from pgtg.models.language import evaluating
from pgtg.models.loading import load_language_model
from pgtg.models.lora import add_lora
from pgtg.models.reward import (
    HeadSpec,
    RewardModel,
    build_reward_model,
    load_reward_model,
    randomize_head,
    save_reward_model,
)
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.normalizing import ByPlace
from pgtg.ops.ranking import informative, pair_accuracy, plackett_luce_nll, share_of_pairs
from pgtg.ops.sampling import derive_seed
from pgtg.pipeline.context import Context
from pgtg.pipeline.stages.lines import made_for
from pgtg.runs.folder import Artifact, hash_of
from pgtg.runtime import distributed
from pgtg.training.loop import fit
from pgtg.training.state import load_weights
from pgtg.training.update import Where
from pgtg.types import Generations, Loss, TokenBatch, Window


@dataclass(frozen=True)
class GroupBatch:
    """Comparison groups with all their candidates."""

    batch: TokenBatch
    groups: Int[Tensor, "G J"]  # rows into the batch's sequences
    preference: Float[Tensor, "G J"]  # judge's scores; on the CPU
    margin: Float[Tensor, " G"] | None = None  # of groups of two [nats]; on the CPU


@dataclass(frozen=True)
class PlackettLuce:
    """Mean over groups of the Plackett–Luce NLL of the judge's order [nats]."""

    model: RewardModel
    aggregator: Aggregator

    def count(self, batch: GroupBatch) -> Window:
        read, tokens = batch.batch.counted()
        texts, places = len(batch.batch.tokens), batch.batch.source.numel()
        return Window(len(batch.groups), tokens, 0, read, places, texts)

    def evaluations(self, batch: GroupBatch) -> Float[Tensor, "G J"]:
        return self.aggregator.groups(self.model(batch.batch), batch.batch.mask, batch.groups)

    def __call__(self, batch: GroupBatch, window: Window) -> Loss:
        evaluations = self.evaluations(batch)
        losses = plackett_luce_nll(evaluations, batch.preference, batch.margin)
        telling = informative(batch.preference).to(losses.device)
        loss = losses.where(telling, 0.0).sum() / window.sequences
        share = len(batch.groups) / window.sequences
        accuracy = share_of_pairs(evaluations.detach(), batch.preference)
        accuracy = accuracy.nan_to_num(nan=0.5)  # all are tied: nothing to order
        return Loss(loss, {"pair_accuracy": accuracy * share})


def align(ctx: Context, round: int, *, head: str = "", control: str = "") -> Artifact:
    """Train the reward model on a round's samples, from the last round's reward model.

    Args:
        round: The round whose samples, with those of reward.replay rounds before, are learned from.
        head: Train another head than the config's, for comparison only.
        control: Train this control's reward model instead of the method's.

    Raises:
        DataError: The judge gave equal scores to all generations that could be compared.
    """
    artifact = ctx.artifact(round, "align", control=control, head=head)
    replayed = range(max(round - ctx.cfg.reward.replay, 0), round + 1)
    samples = [ctx.need(made_for(ctx, i, "sample", control), "sample") for i in replayed]
    before = ctx.artifact(round - 1, "align", control=control) if round > 0 and not head else None
    parents = [*ctx.parents(0), *samples] + ([ctx.need(before, "align")] if before else [])
    part = ctx.settings("align") | {"round": round, "head": head}
    part |= {"groups": ctx.task.grouping()} | ({"control": control} if control else {})
    fresh = is_fresh(ctx)
    if fresh:  # the policy itself is sampled and its prompts are judged
        parents += ctx.parents(round, control) if round > 0 else []
    inputs = hash_of(parents, part)
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    model, tokenizer = _reward_model(ctx, before, head or ctx.cfg.reward.head)
    _choose_trained(ctx, model, round)
    offset = round * ctx.cfg.reward.fit.updates
    about = f"reward model round {round}"
    if head or control:
        about += f": {control} (control)" if control else f": {head} head (comparison)"
    where = Where(ctx.cfg.seed, "align", round, head or control, offset, about)
    shuffle = method_of(ctx.cfg, control).shuffle_scores
    if fresh:
        policy = ctx.load_policy(round, control)
        stream = _of_the_policy(ctx, FreshComparisons(ctx, policy, round, working, shuffle))
    else:
        rounds = [read_generations(artifact, "train") for artifact in samples]
        if shuffle:
            seeds = [derive_seed(ctx.cfg.seed, "shuffle", i) for i in replayed]
            rounds = [shuffled_scores(one, seed) for one, seed in zip(rounds, seeds, strict=True)]
        stream = _of_samples(ctx, joined(rounds), samples[-1], round)
    metrics, probe = _train(ctx, model, stream, working, inputs, where)
    fit_normalizer(ctx, model, samples[-1])
    if before is not None:
        metrics |= _fresh(ctx, before, samples[-1])
    save_reward_model(model, working / "reward", probe, tokenizer)
    return artifact.commit(
        inputs=inputs, metrics=metrics, position=ctx.committed(), round=round, head=head
    )


@dataclass(frozen=True)
class Comparing:
    """What one training of the reward model compares.

    Args:
        windows: The micro-batches of an update; each is made when it is called.
        checks: What it is checked on after an update, by default the last one; None: it is not.
        ahead: Whether the next update's batches may be made before this one has ended.
        count: After so many updates: what they have cost, and left out.
        groups: Number of them; 0 where each update makes its own.
    """

    windows: Callable[[int], list[Callable[[], GroupBatch]]]
    checks: Callable[[int | None], list[GroupBatch]] | None
    ahead: bool
    count: Callable[[int], dict[str, float]]
    groups: int


def _of_samples(ctx: Context, pool: Generations, samples: Artifact, round: int) -> Comparing:
    """Groups of the round's samples, checked on the held-out ones."""
    compared = ctx.task.all_comparisons(pool)
    if not len(compared):
        raise DataError(
            f"judge {ctx.cfg.judge.name} gave equal scores to all generations of each of the "
            f"{len(pool.sources)} sources: there is no preference to learn from; try a higher "
            "sample.temperature or another judge"
        )
    seed, held = derive_seed(ctx.cfg.seed, "align", round), _checks(ctx, samples)

    def windows(step: int) -> list[Callable[[], GroupBatch]]:
        parts = ctx.task.comparisons(pool, ctx.cfg.reward.fit, seed, step)
        return [partial(group_batch, pool, part, ctx.device) for part in parts]

    checks = (lambda _: held) if held else None
    tied: dict[str, float] = {"align/tied_groups_skipped": compared.tied}
    return Comparing(windows, checks, True, lambda _: tied, len(compared) + compared.tied)


def _of_the_policy(ctx: Context, fresh: FreshComparisons) -> Comparing:
    """Groups of prompts that are sampled and judged for each update, checked on others on dev."""
    cfg, checked = ctx.cfg.reward.fit, ctx.cfg.prompt and ctx.cfg.prompt.fresh_checks
    size = cfg.micro_batch * cfg.accumulate

    def windows(step: int) -> list[Callable[[], GroupBatch]]:
        prompts, chosen = fresh.update(step, size)
        return [
            partial(group_batch, prompts, part, ctx.device)
            for part in chosen.split(cfg.micro_batch)
        ]

    def checks(step: int | None) -> list[GroupBatch]:
        return [group_batch(*found, ctx.device) for found in fresh.checks(size, step)]

    return Comparing(windows, checks if checked else None, False, fresh.commit, 0)


def _train(
    ctx: Context, model: RewardModel, comparing: Comparing, working: Path, inputs: str, where: Where
) -> tuple[dict[str, float], TokenBatch]:
    """Fit, and put the kept weights into the model. Returns metrics and a probe batch."""
    cfg, checks = ctx.cfg.reward.fit, comparing.checks
    objective = PlackettLuce(model, Aggregator.of(ctx.cfg.aggregator))

    def validate(step: int | None = None) -> dict[str, float]:
        found = checks(step) if checks else []
        # a policy that has settled on one prompt leaves nothing to order
        return heldout_metrics(objective, found) if found else {"align/heldout_nll": 0.0}

    model.train()
    result = fit(
        model,
        comparing.windows,
        objective,
        cfg,
        where=where,
        folder=working,
        inputs=inputs,
        log=ctx.log,
        validate=validate if checks else None,
        select="align/heldout_nll",
        ahead=comparing.ahead,
    )
    if cfg.keep == "best" and result.best is not None:
        load_weights(model, result.best)
    Artifact(working / "state").remove()
    model.eval()
    kept = result.best_step if cfg.keep == "best" and checks else result.steps
    metrics = validate(kept) if checks else {}
    metrics |= {"align/updates": result.steps, "align/kept_update": kept}
    metrics |= {"align/trained_texts": result.progress.texts}
    probe = comparing.windows(result.steps - 1)[0]().batch
    metrics |= comparing.count(result.steps)
    _say(ctx, where, metrics, comparing.groups)
    return metrics, probe


def _say(ctx: Context, where: Where, metrics: Mapping[str, float], groups: int) -> None:
    """One line of what came out; of a head that only the report compares, to the log alone."""
    updates, kept = metrics["align/updates"], metrics["align/kept_update"]
    said = [f"{where.title}: {updates} updates, kept {kept}"]
    if "align/heldout_pair_accuracy" in metrics:
        said.append(f"held-out pairs {100 * metrics['align/heldout_pair_accuracy']:.1f} %")
    if "align/tied_groups_skipped" in metrics:
        said.append(f"{metrics['align/tied_groups_skipped']} of {groups} groups tied, left out")
    if "align/train_judged_prompts" in metrics:
        judged = [metrics[f"align/{split}_judged_prompts"] for split in ("train", "dev")]
        said.append(f"{judged[0]:.0f} prompts judged on train, {judged[1]:.0f} on dev")
    tell = ctx.log.note if where.label else ctx.log.say
    tell("; ".join(said))


def _checks(ctx: Context, samples: Artifact) -> list[GroupBatch]:
    """Held-out comparisons, in batches; none if the run samples no held-out sources.

    Raises:
        DataError: The judge tells no held-out generations apart.
    """
    if ctx.cfg.sample.heldout_sources == 0:
        return []
    held = read_generations(samples, "heldout")
    comparisons = ctx.task.all_comparisons(held)
    if not len(comparisons):
        raise DataError("no held-out source has generations that the judge tells apart")
    parts = comparisons.split(ctx.cfg.reward.fit.micro_batch)
    return [group_batch(held, part, ctx.device) for part in parts]


def _fresh(ctx: Context, before: Artifact, samples: Artifact) -> dict[str, float]:
    """How the last round's reward model orders samples that it has never seen: its staleness."""
    fresh = read_generations(samples, "train")
    comparisons = ctx.task.all_comparisons(fresh)
    if not len(comparisons):
        return {}
    model = load_reward_model(before.file("reward")).to(ctx.device).eval()
    ctx.to_read(*model.language_models)
    parts = comparisons.split(ctx.cfg.reward.fit.micro_batch)
    batches = [group_batch(fresh, part, ctx.device) for part in parts]
    found = heldout_metrics(PlackettLuce(model, Aggregator.of(ctx.cfg.aggregator)), batches)
    return {"align/fresh_pair_accuracy": found["align/heldout_pair_accuracy"]}


@torch.no_grad()
def heldout_metrics(objective: PlackettLuce, checks: Sequence[GroupBatch]) -> dict[str, float]:
    """Means over held-out groups, not over batches."""

    def evaluated(batches: Sequence[GroupBatch]) -> list[Tensor]:
        return [objective.evaluations(batch).cpu() for batch in batches]

    with evaluating(objective.model):
        evaluations = torch.cat(distributed.spread(evaluated, checks))
    preference = torch.cat([batch.preference for batch in checks])
    margins = [batch.margin for batch in checks if batch.margin is not None]
    losses = plackett_luce_nll(evaluations, preference, torch.cat(margins) if margins else None)
    return {
        "align/heldout_nll": losses.double().mean().item(),
        "align/heldout_pair_accuracy": pair_accuracy(evaluations, preference),
    }


def _reward_model(ctx: Context, before: Artifact | None, head: str):
    """The reward model to train on, and its tokenizer: the last round's, or a fresh head on the
    reward backbone."""
    cfg = ctx.cfg.reward
    start_lm, codec = ctx.load_start()
    if before is not None:
        model = load_reward_model(before.file("reward")).to(ctx.device)
        model.normalizer = None  # of the round before
        return model, codec.tokenizer
    spec = HeadSpec.of(cfg, head)
    seed = derive_seed(ctx.cfg.seed, "head", head)
    path = cfg.path or ctx.start_path()
    revision = cfg.revision if cfg.path else ctx.cfg.policy.revision
    backbone, tokenizer = load_language_model(
        path, revision=revision, dtype=ctx.cfg.policy.dtype, layers=cfg.layers
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
    backbone = backbone.to(ctx.device)
    return build_reward_model(backbone, spec, seed, tokenizer, start_lm), tokenizer


def fit_normalizer(ctx: Context, model: RewardModel, samples: Artifact) -> None:
    """Give a reward model the normaliser that the config asks for, fitted on held-out samples."""
    if ctx.cfg.reward.normalize == "none":
        return
    held = read_generations(samples, "heldout")
    with evaluating(model):
        found = ctx.per_token(model.unit_rewards, held.sources, held.tokens, held.origin)
    rewards = np.concatenate(found).astype(float)
    places = np.concatenate([np.arange(1, len(own) + 1) for own in found])
    ends = ~np.isnan(rewards)  # tokens within a unit have no reward of their own
    model.normalizer = ByPlace.fit(rewards[ends], places[ends])


def fresh_reward_model(ctx: Context):
    """The reward model as the method's training starts, and its tokenizer."""
    model, tokenizer = _reward_model(ctx, None, ctx.cfg.reward.head)
    _choose_trained(ctx, model, 0)
    return model, tokenizer


def _choose_trained(ctx: Context, model: RewardModel, round: int) -> None:
    """Freeze the backbone, or put low-rank adapters into it, where asked for."""
    lora = ctx.cfg.reward.lora
    if ctx.cfg.reward.trained == "head":
        model.backbone.requires_grad_(False)
    if lora is not None:
        add_lora(model.backbone, lora, derive_seed(ctx.cfg.seed, "lora", round), "reward.lora")


def untrained_reward_model(ctx: Context) -> RewardModel:
    """The reward model as its training would start, its head included."""
    return _reward_model(ctx, None, ctx.cfg.reward.head)[0]


def random_reward_model(ctx: Context) -> RewardModel:
    """The reward model as it would start, its head drawn at full size: it knows nothing."""
    model = untrained_reward_model(ctx)
    randomize_head(model, derive_seed(ctx.cfg.seed, "random_reward_model"))
    return model


def passes(
    pool: Generations,
    compared: Comparisons,
    cfg: FitConfig,
    seed: int,
    device: torch.device,
) -> Callable[[int], list[Callable[[], GroupBatch]]]:
    """What makes the micro-batches of an update: seeded passes over all groups of a pool."""

    def window(step: int) -> list[Callable[[], GroupBatch]]:
        parts = parts_in_passes(pool, compared, cfg, seed, step)
        return [partial(group_batch, pool, part, device) for part in parts]

    return window


def group_batch(
    generations: Generations, comparisons: Comparisons, device: torch.device
) -> GroupBatch:
    """The groups, with each candidate and each source once."""
    groups = comparisons.groups
    members = sorted(set(groups.flatten().tolist()) - {-1})
    place = {member: i for i, member in enumerate(members)} | {-1: -1}
    origins = sorted({generations.origin[m] for m in members})
    source_place = {origin: i for i, origin in enumerate(origins)}
    batch = token_batch(
        [generations.sources[o] for o in origins],
        [generations.tokens[m] for m in members],
        [source_place[generations.origin[m]] for m in members],
        device,
    )
    local = torch.tensor([[place[m] for m in group] for group in groups.tolist()])
    margin = None if comparisons.margin is None else comparisons.margin.float()
    return GroupBatch(batch, moved(local, device), comparisons.preference.float(), margin)
