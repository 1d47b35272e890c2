"""Proximal policy optimisation with a critic of its own (PPO: arXiv:1707.06347; for text:
arXiv:1909.08593).

An iteration samples a generation for each of some sources, and has the policy and its critic learn
from them for some epochs of minibatches. A token's reward is -beta times its log-ratio to the start
policy; in addition a text's last token has the judge's score of the text (sparse), or each token
its learned reward (dense). Ratios are of the distribution that was sampled; dropout is off.

What an iteration sampled is a file in the working folder, made at its first update, so that a
training that is resumed within it reads what it read. The files stay with the finished stage:
`rollouts/<first update>.parquet`, and next to each the KL coefficient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pgtg.config import FitConfig
from pgtg.judges.judge import judged
from pgtg.methods import options as named
from pgtg.methods.method import STAGES, Improving, Method
from pgtg.methods.objective import of_logits, sampled_log_probs
from pgtg.methods.texts import TextTrainer
from pgtg.models.batch import moved, token_batch
from pgtg.models.dropout import silence_dropout
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel, evaluating
from pgtg.models.value import ActorCritic, Critic, load_trained, save_trained
from pgtg.ops.actor_critic import (
    adapted_coefficient,
    generalized_advantages,
    standardized_rewards,
    token_rewards,
    value_error,
    whitened,
)
from pgtg.ops.masking import masked_sum
from pgtg.ops.objectives import kl_to_start
from pgtg.ops.preferences import clipped_surrogate
from pgtg.ops.sampling import derive_seed, entropy
from pgtg.runs.files import read_json, read_table, write_json, write_table
from pgtg.runtime import distributed
from pgtg.types import Loss, TokenBatch, TokenIds, Window

ROLLOUTS, CRITIC = "rollouts", "critic.safetensors"
FLOATS: dict[str, str] = dict.fromkeys(
    ("log_prob", "log_ratio", "value", "token_reward"), "float32"
)


@dataclass(frozen=True)
class Rollouts:
    """The judged generations of one iteration, with what does not change in its epochs.

    Args:
        first: The round's update that it begins with.
        number: Of the iteration, from 1, counted over all rounds.
        following: The next iteration's KL coefficient.
        rows: Of the training split, one a generation.
        sampled: Log-probabilities of its tokens under the policy that sampled.
        values: What the critic said of their states.
        figures: To be logged with each update.
    """

    first: int
    number: int
    following: float
    rows: np.ndarray
    tokens: list[TokenIds]
    sampled: list[np.ndarray]
    values: list[np.ndarray]
    advantages: list[np.ndarray]
    returns: list[np.ndarray]
    figures: dict[str, float]


@dataclass(frozen=True)
class RolloutBatch:
    """Some generations of an iteration, all but `batch` without gradient and 0 on padding."""

    batch: TokenBatch
    sampled: Float[Tensor, "N T"]
    values: Float[Tensor, "N T"]
    advantage: Float[Tensor, "N T"]  # standardised over the minibatch
    returns: Float[Tensor, "N T"]
    figures: dict[str, float]


@dataclass(frozen=True)
class ClippedActorCritic:
    """L = mean over tokens of [clipped surrogate + c_v (return - V)^2 - alpha H].

    Args:
        opened: (logits, batch) -> logits of the policy's distribution before temperature and
            top-k, where it is not the whole softmax (NLPO).
        decoding: What of them was sampled; that of the ratio.
    """

    module: ActorCritic
    options: Any
    decoding: Decoding
    opened: Callable[[Tensor, TokenBatch], Tensor]
    replaced: bool = False  # how values are clipped: `ops.actor_critic.value_error`

    def count(self, batch: RolloutBatch) -> Window:
        read, tokens = batch.batch.counted()
        return Window(len(batch.batch.tokens), tokens, tokens, read, batch.batch.source.numel())

    def __call__(self, batch: RolloutBatch, window: Window) -> Loss:
        mask, options = batch.batch.mask, self.options
        logits, values = self.module(batch.batch)
        logits = self.opened(logits, batch.batch)
        restricted, log_probs = of_logits(logits, batch.batch.tokens, self.decoding)
        surrogate = clipped_surrogate(
            log_probs, batch.sampled, batch.advantage, mask, clip=options.clip
        )
        clip, replaced = options.value_clip, self.replaced
        error = value_error(values, batch.values, batch.returns, clip=clip, replaced=replaced)
        of_policy = masked_sum(surrogate, mask) / window.sampled
        of_critic = masked_sum(error, mask) / window.sampled
        value = of_policy + options.value_coef * of_critic
        change = (log_probs.detach() - batch.sampled).where(mask, 0.0)
        outside = ((change.exp() - 1).abs() > options.clip).float()
        share = len(batch.batch.tokens) / window.sequences  # micro-batches' metrics add up
        metrics: dict[str, Tensor | float] = {
            "surrogate": of_policy.detach(),
            "value_error": of_critic.detach(),
            "clipped": masked_sum(outside, mask) / window.sampled,
            "kl_to_sampled": masked_sum(kl_to_start(batch.sampled, log_probs.detach()), mask)
            / window.sampled,
            **{name: share * figure for name, figure in batch.figures.items()},
        }
        if options.entropy > 0:
            found = masked_sum(entropy(restricted), mask) / window.sampled
            value = value - options.entropy * found
            metrics["entropy"] = found.detach()
        return Loss(value, metrics)


class PPOTrainer(TextTrainer):
    """Iterations of sampling and of epochs of minibatches; the critic is trained with the policy.

    A minibatch is an update's improve.micro_batch x improve.accumulate generations. A round's last
    iteration ends with the round's updates, as far as it is.
    """

    kind: ClassVar[type[Any]] = named.PPO
    masks = False  # whether `opened` closes tokens

    def __init__(self, method: Method, given: Improving):
        super().__init__(given)
        ctx = given.ctx
        self.method, self.options = method, self.kind.of(ctx.cfg.method)
        self.released = getattr(self.options, "released", False)
        backbone = None
        if self.options.trains_critic:
            backbone = ctx.load_start()[0]
            ctx.choose_trained(backbone)
            silence_dropout(backbone.model)
        silence_dropout(given.lm.model)
        seed = derive_seed(ctx.cfg.seed, "critic")
        self.critic = Critic(given.lm.width, given.lm.device, seed, backbone)
        if given.before is not None:
            load_trained(self.critic, given.before.file(CRITIC))
        self.both = ActorCritic(given.lm, self.critic)
        self.module: nn.Module = self.both
        self.start = self.frozen_start() if self.options.keeps_start else None
        self.decoding = ctx.sampling()
        if self.released:  # the whole softmax, although less of it is sampled
            self.decoding = replace(self.decoding, temperature=1.0, top_k=0, top_p=1.0)
        self.objective = ClippedActorCritic(
            self.both, self.options, self.decoding, self.opened, self.released
        )
        self.folder = given.working / ROLLOUTS
        self.rollouts: Rollouts | None = None
        self._cut: set[int] = set()

    def frozen_start(self) -> LanguageModel:
        return self.ctx.load_start()[0].requires_grad_(False).eval()

    def fit_config(self) -> FitConfig:
        cfg = super().fit_config()
        return replace(cfg, lr=cfg.lr * self.options.lr_share)

    # what a method that is PPO but for its policy, or its rewards, changes

    def writer(self) -> LanguageModel:
        """What samples."""
        return self.lm

    def opened(self, logits: Tensor, batch: TokenBatch) -> Tensor:
        """The logits with all that the policy leaves open."""
        return logits

    def prepare(self, first: int) -> None:
        """Called before the iteration that begins with update `first` is sampled, or read."""

    def sampled(self, first: int, number: int) -> None:
        """Called after iteration `number` was sampled, before anything is learned from it."""

    @property
    def judges(self) -> bool:
        """Whether the judge scores texts as they are sampled."""
        return self.options.reward == "judge"

    def dense(self, sources: Sequence[TokenIds], tokens: Sequence[TokenIds]) -> list[np.ndarray]:
        """A reward of each token's own."""
        model = self.given.model
        if self.judges or model is None:
            return []
        return self.ctx.per_token(model, sources, tokens, range(len(tokens)))

    def shaped(self, dense: Tensor, mask: Tensor) -> Tensor:
        """The same [N, T] as they count: centred, else the longer a text the better, and a text's
        sum on the scale of one token's, as the judge's score is one number."""
        number = mask.sum()
        mean = masked_sum(dense, mask) / number
        return ((dense - mean) * (len(mask) / number)).where(mask, 0.0)

    def of_score(self, scores: Tensor) -> Tensor:
        """What the judge's scores [N] count."""
        return self.options.judge_scale * scores

    # iterations

    def begin(self, step: int) -> None:
        """Sample where an iteration begins; find what was sampled where a training is resumed."""
        if self.rollouts is None:
            made = [path for path in _made(self.folder) if int(path.stem) <= step]
            for path in made:
                self._count_cut(np.array(read_table(path, ["row"])["row"]))
            if made:
                self.prepare(int(made[-1].stem))
                self.rollouts = self._rollouts(made[-1])
        if self.rollouts is None or self._over(step):
            self._iterate(step)

    def _count_cut(self, rows: np.ndarray) -> None:
        """Of the sources that were sampled, those that had to be cut to fit."""
        found = self.targets.tokens("train", self.codec).source_cut[rows]
        self._cut |= {*rows[found].tolist()}
        self.cut = len(self._cut)

    def _over(self, step: int) -> bool:
        """Whether an update is the first of an iteration after the present one."""
        assert self.rollouts is not None
        done, epoch = step - self.rollouts.first, self._updates_of_epoch()
        if done >= epoch * self.options.epochs:
            return True
        limit = self.options.stop_kl
        return limit is not None and done > 0 and done % epoch == 0 and self._moved() > limit

    def _updates_of_epoch(self) -> int:
        assert self.rollouts is not None
        cfg = self.ctx.cfg.improve
        return -(-len(self.rollouts.rows) // (cfg.micro_batch * cfg.accumulate))

    def _moved(self) -> float:
        """Mean over the iteration's tokens of KL(policy that sampled || policy) [nats], k3."""
        found = self.rollouts
        assert found is not None
        now = self._read(self._ratio_log_probs, self._sources(found.rows), found.tokens)
        change = np.concatenate(now) - np.concatenate(found.sampled)
        return float((np.exp(change) - 1 - change).mean())

    def _iterate(self, step: int) -> None:
        """Begin an iteration: sample, judge and read its generations, and keep them in a file."""
        before = self.rollouts
        if before is None and self.given.before is not None:
            made = _made(self.given.before.path / ROLLOUTS)
            before = self._rollouts(made[-1]) if made else None
        number = 1 if before is None else before.number + 1
        coefficient = self.options.kl if before is None else before.following
        self.prepare(step)
        path = self.folder / f"{step:06d}.parquet"
        if not path.is_file():
            with evaluating(self.both):
                columns = self._sample(step)
            self.sampled(step, number)
            _keep(path, columns, number, coefficient, self.options.kl_target)
        self.rollouts = self._rollouts(path)
        self._count_cut(self.rollouts.rows)

    def _sample(self, step: int) -> dict[str, list]:
        """Columns of the generations of an iteration, a row each."""
        examples, size = self.targets.examples("train"), self.options.rollouts
        key = (self.ctx.cfg.seed, "improve", ROLLOUTS, self.given.first + step)
        rng = np.random.default_rng(derive_seed(*key))
        passes = [rng.permutation(len(examples)) for _ in range(-(-size // len(examples)))]
        rows = np.concatenate(passes)[:size]
        sources, chosen = self._sources(rows), examples.chosen(rows)

        def written(places: Sequence[int]) -> list[tuple[TokenIds, str, float]]:
            with self.ctx.reading(self.lm):
                sampler = self.ctx.sampler(self.writer(), self.codec)
                own, names = [sources[i] for i in places], [str(i) for i in places]
                found = dict(sampler(own, names, seed_key=key))
            tokens = [found[n][0] for n in range(len(places))]
            texts, scores = [self.codec.decode(ids) for ids in tokens], [0.0] * len(places)
            if self.judges:
                assert self.task.judge is not None  # what the method needs
                those = [chosen[i] for i in places]
                scores = self.task.judge(tokens, texts, those, self.codec).result()["score"]
            return list(zip(tokens, texts, scores, strict=True))

        tokens, texts, scores = map(
            list, zip(*distributed.spread(written, range(size)), strict=True)
        )
        judged(scores, "sampled texts")
        own, values = zip(
            *map(np.transpose, self._read(self._ratios_and_values, sources, tokens)), strict=True
        )
        ratio = [np.zeros_like(row) for row in own]
        if self.start is not None:
            plain = self._read(self._log_probs_of(self.lm), sources, tokens) if self.masks else own
            start = self._read(self._log_probs_of(self.start), sources, tokens)
            ratio = [a - b for a, b in zip(plain, start, strict=True)]
        return {
            "row": rows.tolist(),
            "text": texts,
            "tokens": tokens,
            "score": scores,
            "log_prob": _lists(own),
            "log_ratio": _lists(ratio),
            "value": _lists(values),
            "token_reward": _lists(self.dense(sources, tokens)) or [[]] * size,
        }

    def _sources(self, rows: np.ndarray) -> list[TokenIds]:
        return list(self.targets.tokens("train", self.codec).sources(rows))

    def _read(
        self,
        value: Callable[[TokenBatch], Tensor],
        sources: Sequence[TokenIds],
        tokens: Sequence[TokenIds],
    ) -> list[np.ndarray]:
        """A value of each token, as it is now, in the precision that it is trained in."""
        with evaluating(self.both):
            return self.ctx.per_token(value, sources, tokens, range(len(tokens)))

    def _ratio_log_probs(self, batch: TokenBatch) -> Tensor:
        logits = self.opened(self.lm.logits(batch), batch)
        return of_logits(logits, batch.tokens, self.decoding)[1]

    def _ratios_and_values(self, batch: TokenBatch) -> Float[Tensor, "N T 2"]:
        """What the ratio is of, and what the critic says of the state."""
        logits, values = self.both(batch)
        log_probs = of_logits(self.opened(logits, batch), batch.tokens, self.decoding)[1]
        return torch.stack([log_probs, values], -1)

    def _log_probs_of(self, lm: LanguageModel) -> Callable[[TokenBatch], Tensor]:
        return lambda batch: sampled_log_probs(lm, batch, self.decoding)

    def _rollouts(self, path: Path) -> Rollouts:
        """What an iteration's file holds, without texts that were not judged."""
        table, numbers = read_table(path), read_json(path.with_suffix(".json"))
        real = [i for i, score in enumerate(table["score"]) if score == score]  # not NaN
        tokens = [table["tokens"][i] for i in real]
        arrays = {name: [np.array(table[name][i], np.float32) for i in real] for name in FLOATS}
        lengths = [len(row) for row in tokens]
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        scores = torch.tensor([table["score"][i] for i in real], dtype=torch.float64)
        dense = None
        if any(map(len, arrays["token_reward"])):
            dense = _stacked(arrays["token_reward"], mask)
        rewards = token_rewards(
            _stacked(arrays["log_ratio"], mask),
            self.of_score(scores),
            mask,
            coefficient=numbers["coefficient"],
            dense=dense if dense is None else self.shaped(dense, mask),
        )
        if self.options.normalize_rewards:
            rewards = standardized_rewards(rewards, mask)
        how = {"gamma": self.options.gamma, "gae_lambda": self.options.gae_lambda}
        values = _stacked(arrays["value"], mask)
        advantages, returns = generalized_advantages(rewards, values, mask, **how)
        figures = {
            "rollout_reward": float(rewards.sum(-1).mean()),
            "rollout_tokens": sum(lengths) / len(lengths),
            "kl_to_start": numbers["mean_kl"],
            "kl_coefficient": numbers["coefficient"],
        }
        if self.judges:
            figures["rollout_score"] = float(scores.mean())
        if dense is not None:
            figures["rollout_token_reward"] = float(dense[mask].mean())
        return Rollouts(
            first=int(path.stem),
            number=numbers["number"],
            following=numbers["following"],
            rows=np.array(table["row"])[real],
            tokens=tokens,
            sampled=arrays["log_prob"],
            values=arrays["value"],
            advantages=_unstacked(advantages, lengths),
            returns=_unstacked(returns, lengths),
            figures=figures,
        )

    # updates

    def window(self, step: int) -> list[Callable[[], RolloutBatch]]:
        found, cfg = self.rollouts, self.ctx.cfg.improve
        assert found is not None  # `begin` has been called
        epoch, place = divmod(step - found.first, self._updates_of_epoch())
        key = (self.ctx.cfg.seed, "improve", "minibatches", self.given.first + found.first, epoch)
        order = np.random.default_rng(derive_seed(*key)).permutation(len(found.rows))
        size = cfg.micro_batch * cfg.accumulate
        rows = order[place * size : (place + 1) * size].tolist()
        advantages = torch.from_numpy(np.concatenate([found.advantages[row] for row in rows]))
        lengths = [len(found.tokens[row]) for row in rows]
        own = dict(zip(rows, whitened(advantages).split(lengths), strict=True))
        parts = [rows[i : i + cfg.micro_batch] for i in range(0, len(rows), cfg.micro_batch)]
        return [partial(self._batch, found, part, own) for part in parts]

    def _batch(self, found: Rollouts, rows: list[int], advantages: dict[int, Tensor]):
        sources, tokens = self._sources(found.rows[rows]), [found.tokens[row] for row in rows]
        batch = token_batch(sources, tokens, range(len(rows)), self.ctx.device)
        width = batch.mask.shape[1]

        def of(values: Sequence[Any]) -> Tensor:
            lines = torch.zeros(len(rows), width)
            for line, value in zip(lines, values, strict=True):
                line[: len(value)] = torch.as_tensor(value)
            return moved(lines, self.ctx.device)

        return RolloutBatch(
            batch,
            sampled=of([found.sampled[row] for row in rows]),
            values=of([found.values[row] for row in rows]),
            advantage=of([advantages[row] for row in rows]),
            returns=of([found.returns[row] for row in rows]),
            figures=found.figures,
        )

    # the end of a round

    def judged_prompts(self, steps: int) -> dict[str, float]:
        """Texts that were sampled and, unless rewards are learned, judged."""
        numbers = [read_json(path.with_suffix(".json")) for path in _made(self.folder)]
        sampled = float(sum(one["sampled"] for one in numbers))
        found = {"improve/sampled_texts": sampled}
        if self.judges:
            found["improve/judged_texts"] = sampled
            if unjudged := sum(one["unjudged"] for one in numbers):
                found["improve/unjudged_texts"] = float(unjudged)
                self.ctx.log.note(f"improve {self.method.name}: {unjudged} texts were not judged")
        return found

    def keep(self, folder: Path) -> None:
        save_trained(self.critic, folder / CRITIC)


def _made(folder: Path) -> list[Path]:
    """Files of the iterations, in their order."""
    return sorted(folder.glob("*.parquet"))


@distributed.first
def _keep(
    path: Path, columns: dict[str, list], number: int, coefficient: float, target: float | None
) -> None:
    """Write an iteration's file, and before it what was computed over all of its tokens."""
    ratios = np.concatenate([np.asarray(row) for row in columns["log_ratio"]])
    mean_kl = float(ratios.mean())
    numbers = {
        "number": number,
        "coefficient": coefficient,
        "mean_kl": mean_kl,
        "following": adapted_coefficient(coefficient, mean_kl, target),
        "sampled": len(columns["score"]),
        "unjudged": sum(score != score for score in columns["score"]),
    }
    write_json(path.with_suffix(".json"), numbers)
    write_table(path, columns, FLOATS)


def _lists(rows: Sequence[np.ndarray]) -> list[list[float]]:
    return [row.tolist() for row in rows]


def _stacked(rows: Sequence[np.ndarray], mask: Tensor) -> Tensor:
    """Rows below each other, 0 on padding."""
    found = torch.zeros(mask.shape)
    found[mask] = torch.from_numpy(np.concatenate(rows))
    return found


def _unstacked(values: Tensor, lengths: Sequence[int]) -> list[np.ndarray]:
    return [row[:length].numpy() for row, length in zip(values, lengths, strict=True)]


PPO = Method("ppo", ("improve",), PPOTrainer, needs_reward=False)
DENSE_PPO = Method("ppo", STAGES, PPOTrainer, needs_samples=True)
