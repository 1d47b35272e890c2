"""(2) Improve: train the policy on its data with the guidance of the round's reward model.

Token rewards of the targets do not change while the policy learns, so those that a round uses are
computed once, in length-sorted batches. A control trains on the same batches from the same start
with other weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgtg.loop import FitResult, Where, fit, load_weights
from pgtg.methods import CONTROLS, METHODS
from pgtg.methods.method import Method
from pgtg.methods.objective import Improvement, Sampled, SupervisedBatch, sampled_log_probs
from pgtg.models.batch import token_batch
from pgtg.models.codec import Codec
from pgtg.models.generate import generate
from pgtg.models.language import LanguageModel
from pgtg.models.loading import save_language_model, train_only_top_layers
from pgtg.models.reward import RewardModel, load_reward_model
from pgtg.ops.aggregate import AGGREGATORS
from pgtg.ops.objectives import advantages
from pgtg.stages.context import Context
from pgtg.stages.score import rewards
from pgtg.store import Artifact, hash_of, load_tensors, read_table, save_tensors, write_table
from pgtg.types import Example, TokenIds


def improve(ctx: Context, round: int, *, control: str = "") -> Artifact:
    """Train the policy for the round's segment of updates.

    Args:
        round: Its reward model guides; the policy of the round before is trained on.
        control: Train this control's policy instead of the method's.
    """
    method = CONTROLS[control] if control else METHODS[ctx.cfg.method.name]
    updates = ctx.task.segments()
    artifact = ctx.artifact(round, "improve", control=control)
    parents = ctx.parents(round, control)
    aligned = ctx.artifact(round, "align")
    if method.needs_reward:
        parents.append(ctx.need(aligned, "align"))
    names = ("data", "policy", "sample", "judge", "method", "aggregator", "improve", "schedule")
    inputs = hash_of(parents, ctx.config_part(*names) | {"round": round, "control": control})
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    lm, codec = ctx.load_policy(round, control)
    train_only_top_layers(lm, ctx.cfg.policy.trainable_layers)
    model = load_reward_model(aligned.file("reward")) if method.needs_reward else None
    guide = Guide(ctx, method, lm, codec, model, working, sum(updates[:round]), updates[round])
    result, metrics = _train(ctx, guide, round, control, inputs, updates)
    save_language_model(lm, codec.tokenizer, working / "policy")
    if result.best is not None:
        load_weights(lm, result.best)
        save_language_model(lm, codec.tokenizer, working / "best")
    save_tensors(working / "optimizer.safetensors", result.optimizer)
    return artifact.commit(
        inputs=inputs, metrics=metrics, position=ctx.committed(), round=round, control=control
    )


def kept_policy(ctx: Context, rounds: int, control: str = "") -> tuple[int, Path, Artifact]:
    """Round, folder and artifact of the policy to keep among the first `rounds` rounds.

    improve.keep: "best" by the judge's score of greedy text on held-out sources, or "last".
    """
    made = [ctx.artifact(i, "improve", control=control) for i in range(rounds)]
    best = rounds - 1
    if ctx.cfg.improve.keep == "best":
        values = [a.manifest()["metrics"]["improve/best_heldout_score"] for a in made]
        best = values.index(max(values))
        if made[best].file("best").is_dir():
            return best, made[best].file("best"), made[best]
    return best, made[best].file("policy"), made[best]


def _train(
    ctx: Context, guide: "Guide", round: int, control: str, inputs: str, updates: Sequence[int]
) -> tuple[FitResult, dict[str, float]]:
    """The round's segment of policy training; the optimiser goes on from the round before."""
    optimizer = None
    if round > 0:
        before = ctx.artifact(round - 1, "improve", control=control)
        optimizer = load_tensors(before.file("optimizer.safetensors"))
    offset = sum(updates[:round])
    guide.lm.train()
    result = fit(
        guide.lm,
        guide.window,
        Improvement(guide.lm, guide.options, ctx.sampling()),
        replace(ctx.cfg.improve, updates=updates[round]),
        where=Where(ctx.cfg.seed, "improve", round, control, offset),
        folder=guide.working,
        inputs=inputs,
        log=ctx.log,
        validate=guide.validate,
        select="improve/negative_heldout_score",
        optimizer_state=optimizer,
    )
    Artifact(guide.working / "state").remove()
    guide.lm.eval()
    metrics = {
        "improve/updates": result.steps,
        "improve/best_heldout_score": -result.best_value,
        "improve/best_update": offset + result.best_step,
        "improve/examples_cut": guide.cut,
    }
    label = control or ctx.cfg.method.name
    if guide.cut:
        ctx.log.warn(
            f"improve {label} round {round}: {guide.cut} examples were cut to "
            f"policy.max_source_tokens={ctx.cfg.policy.max_source_tokens} or "
            f"policy.max_target_tokens={ctx.cfg.policy.max_target_tokens}"
        )
    ctx.log.say(
        f"improve {label} round {round}: {result.steps} updates; {ctx.cfg.judge.name} of greedy "
        f"text on held-out sources {-result.best_value:.2f} "
        f"(best, at update {offset + result.best_step})"
    )
    return result, metrics


class Guide:
    """The stream of one round's training batches, with token weights and the policy's samples.

    Args:
        lm: The policy in training.
        model: The round's reward model, None for a method without.
        first: Number of the round's first update, counted over all rounds.
        updates: Updates of the round.
    """

    def __init__(
        self,
        ctx: Context,
        method: Method,
        lm: LanguageModel,
        codec: Codec,
        model: RewardModel | None,
        working: Path,
        first: int,
        updates: int,
    ):
        self.ctx, self.method, self.lm, self.codec = ctx, method, lm, codec
        self.model = None if model is None else model.to(ctx.device).eval().requires_grad_(False)
        self.working, self.first, self.updates, self.cut = working, first, updates, 0
        extra = ctx.cfg.method if method.samples else replace(ctx.cfg.method, reinforce=0.0)
        self.options = extra if method.needs_reward else replace(extra, entropy=0.0)
        self.start = ctx.load_start()[0] if self.options.reinforce * self.options.kl > 0 else None
        self._encoded: dict[str, tuple[TokenIds, TokenIds]] = {}
        used = self._used()
        for example in used.values():  # now, so that a resumed run counts the same cuts
            self.encoded(example)
        self._rewards = self._target_rewards(used) if self.model is not None else {}

    def _used(self) -> dict[str, Example]:
        """The examples of the round, by id."""
        windows = (self.ctx.task.window(self.first + step) for step in range(self.updates))
        return {e.id: e for window in windows for part in window for e in part}

    def encoded(self, example: Example) -> tuple[TokenIds, TokenIds]:
        """Ids of source and target; how many had to be cut is counted."""
        if example.id not in self._encoded:
            source, source_cut = self.codec.encode_source(example.source)
            target, target_cut = self.codec.encode_target(example.target)
            self.cut += source_cut or target_cut
            self._encoded[example.id] = (source, target)
        return self._encoded[example.id]

    def window(self, step: int) -> list[SupervisedBatch]:
        """The micro-batches of the round's update number `step`."""
        parts = self.ctx.task.window(self.first + step)
        return [self._batch(part, self.first + step, i) for i, part in enumerate(parts)]

    def _batch(self, examples: Sequence[Example], update: int, place: int) -> SupervisedBatch:
        pairs = [self.encoded(example) for example in examples]
        batch = token_batch(
            [source for source, _ in pairs],
            [target for _, target in pairs],
            range(len(pairs)),
            self.ctx.device,
        )
        values = None
        if self.model is not None:
            values = torch.zeros(batch.mask.shape)
            for row, example in enumerate(examples):
                values[row, : len(pairs[row][1])] = torch.from_numpy(self._rewards[example.id])
            values = values.to(self.ctx.device)
        seed = Where(self.ctx.cfg.seed, "improve", 0).seed_at(update, "weights", place)
        weights = self.method.weigh(values, batch.mask, self.ctx.cfg.method, seed)
        sampled = self._sampled(examples, update) if self.options.reinforce > 0 else None
        return SupervisedBatch(batch, weights, sampled)

    def _target_rewards(self, used: dict[str, Example]) -> dict[str, np.ndarray]:
        """Token rewards of the targets that the round uses, kept in a file for a resume."""
        path = self.working / "target_rewards.parquet"
        if not path.is_file():
            pairs = [self.encoded(example) for example in used.values()]
            values = rewards(
                self.ctx,
                self.model,
                [source for source, _ in pairs],
                [target for _, target in pairs],
                range(len(pairs)),
            )
            columns = {"source_id": list(used), "reward": [row.tolist() for row in values]}
            write_table(path, columns)
        table = read_table(path)
        return {
            i: np.array(row, np.float32)
            for i, row in zip(table["source_id"], table["reward"], strict=True)
        }

    @torch.no_grad()
    def _sampled(self, examples: Sequence[Example], update: int) -> Sampled:
        """Samples of the policy as it is now, with their advantages under the reward model."""
        assert self.model is not None
        training = self.lm.training
        self.lm.eval()
        sources = [self.encoded(example)[0] for example in examples]
        found = dict(
            generate(
                self.lm,
                sources,
                [example.id for example in examples],
                k=self.options.samples,
                eos_ids=self.codec.eos_ids,
                decoding=self.ctx.sampling(),
                batch_tokens=self.ctx.cfg.sample.batch_tokens,
                seed_key=(self.ctx.cfg.seed, "improve", update),
            )
        )
        rows = [(i, tokens) for i in range(len(examples)) for tokens in found[i]]
        batch = token_batch(
            sources, [tokens for _, tokens in rows], [i for i, _ in rows], self.ctx.device
        )
        start = None
        if self.start is not None:
            start = sampled_log_probs(self.start, batch, self.ctx.sampling())
        advantage = self._advantage(self.model(batch), batch.mask, batch.origin)
        self.lm.train(training)
        return Sampled(batch, advantage, start)

    def _advantage(self, token_rewards: Tensor, mask: Tensor, origin: Tensor) -> Tensor:
        cfg = self.ctx.cfg.aggregator
        aggregator = AGGREGATORS[cfg.name]
        evaluations = aggregator(token_rewards, mask, cfg.temperature, cfg.length_normalized)
        return advantages(
            token_rewards,
            evaluations,
            mask,
            origin,
            baseline=self.options.baseline,
            token_share=self.options.token_share,
            to_go=self.options.reward_to_go,
        )

    def validate(self) -> dict[str, float]:
        """The judge's mean score [its unit] of greedy text on the held-out sources, negated."""
        examples = self.ctx.task.heldout()
        found = dict(
            generate(
                self.lm,
                [self.codec.encode_source(example.source)[0] for example in examples],
                [example.id for example in examples],
                k=1,
                eos_ids=self.codec.eos_ids,
                decoding=self.ctx.greedy(),
                batch_tokens=self.ctx.cfg.sample.batch_tokens,
                seed_key=(),
            )
        )
        texts = [self.codec.decode(found[i][0]) for i in range(len(examples))]
        scores = self.ctx.judge.score(texts, [example.references for example in examples])
        return {"improve/negative_heldout_score": -sum(scores) / len(scores)}
