"""Prompts that are sampled from a policy and judged for the update that needs them.

The released code learns its token reward so: for every update 16 prompts of the frozen policy, 64
groups of 5 drawn from them, the judge's mean over a random 80 % of the training texts; its loss is
checked on prompts and groups made in the same way, judged on dev.

What is drawn for an update is a function of seed, round, update and policy alone, and what the
judge said of it stands at the update's own place in a file (`judges.record`). So a training that is
killed and resumed asks for the same prompts again, and counts each once. Updates whose prompts come
from one policy are drawn and judged in blocks, which end where a validation may end the training.

Source: arXiv:2306.00398, Sec. 2.1; the released code's `RewardModelTrainer`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pgtg.config import FitConfig
from pgtg.data.comparisons import Comparisons, from_fresh
from pgtg.judges.record import Record, write_judged
from pgtg.methods.setting import Setting
from pgtg.models.adaptor import AdaptedLanguageModel, Drawn, draw_prompts
from pgtg.models.batch import continuing, moved, token_batch
from pgtg.models.codec import Codec
from pgtg.models.generate import streams
from pgtg.models.language import LanguageModel
from pgtg.ops.ranking import informative
from pgtg.ops.sampling import derive_seed
from pgtg.runtime import distributed
from pgtg.tasks.prompt import PromptTask
from pgtg.types import Generations, TokenBatch, TokenIds

PROMPT = "prompt"  # the one source's name, part of the random streams' key
BLOCK = 25  # updates whose prompts are drawn and judged together
Key = tuple[int | str, ...]


def draw(
    ctx: Setting, lm: LanguageModel, codec: Codec, number: int, keys: Sequence[Key]
) -> tuple[list[TokenIds], Drawn | None]:
    """`draw_batch`, the prompts fetched from the device.

    Raises:
        DivergedError: The policy's logits are not finite.
    """
    batch, drawn = draw_batch(ctx, lm, codec, number, keys)
    if drawn is not None:
        drawn.require_finite()
    lengths = batch.mask.sum(-1).tolist()
    return [row[:n] for row, n in zip(batch.tokens.tolist(), lengths, strict=True)], drawn


def draw_batch(
    ctx: Setting, lm: LanguageModel, codec: Codec, number: int, keys: Sequence[Key]
) -> tuple[TokenBatch, Drawn | None]:
    """Prompts of a policy as it is, `number` for each key, those of a key side by side.

    Args:
        keys: What the random streams are a function of, apart from the number of the prompt.

    Returns:
        The prompts, left on the device, and how they were drawn if the policy is an adaptor on a
        frozen model.
    """
    sampling, (source, _) = ctx.sampling(), codec.encode_source("")
    with ctx.reading(lm):
        if isinstance(lm, AdaptedLanguageModel):
            noise = [streams(sampling.max_new_tokens, number, key, [PROMPT]) for key in keys]
            drawn = draw_prompts(lm, source, moved(torch.cat(noise), lm.device), sampling)
            return continuing(source, drawn.tokens), drawn
        found: list[TokenIds] = []
        for key in keys:
            ((_, own),) = ctx.sampler(lm, codec)([source], [PROMPT], k=number, seed_key=key)
            found += own
    return token_batch([source], found, [0] * len(found), ctx.device), None


def judge(ctx: Setting, codec: Codec, prompts: Sequence[TokenIds], split: str) -> np.ndarray:
    """float32 [P, E]: gap scores on a split's examples, by all processes together."""
    task = prompt_task(ctx)

    def judged(own: Sequence[TokenIds]) -> list[np.ndarray]:
        texts = [codec.decode(ids) for ids in own]
        return list(task.gaps(task.prompts(own, texts), split))

    return np.stack(distributed.spread(judged, prompts))


def validations(steps: int, fit: FitConfig) -> int:
    """How often a training of `steps` updates was validated: at every so many, and at its end."""
    return -(-steps // fit.validate_every) if fit.validate_every else min(steps, 1)


class FreshComparisons:
    """Comparison groups for one training of the reward model, each update's of its own prompts.

    Args:
        policy: That of the line at the round's start, frozen here: it is sampled.
        folder: Working folder of the training, where the judge's answers are kept.
        shuffle: Permute the scores among an update's prompts: the control without information.
    """

    def __init__(
        self,
        ctx: Setting,
        policy: tuple[LanguageModel, Codec],
        round: int,
        folder: Path,
        shuffle: bool,
    ):
        self.ctx, self.round, self.shuffle = ctx, round, shuffle
        self.fit, self.options = ctx.cfg.reward.fit, prompt_task(ctx).options
        self.lm, self.codec = policy
        ctx.to_read(self.lm).requires_grad_(False).eval()
        length = ctx.cfg.sample.max_new_tokens
        self.records = {
            "train": Record(folder / "judged.train", self.options.pool, length),
            "dev": Record(
                folder / "judged.dev", self.options.pool * max(self.options.fresh_checks, 1), length
            ),
        }
        self.folder, self.last = folder, 0
        self._block: tuple[range, list[tuple[list[TokenIds], np.ndarray]]] = (range(0), [])

    def update(self, step: int, size: int) -> tuple[Generations, Comparisons]:
        """Prompts of update `step`, and `size` groups of them."""
        self.last = step + 1
        steps = self._block[0]
        if step not in steps:
            steps = self._steps(step)
            self._block = steps, self._judged("train", steps, self.options.pool)
        tokens, scores = self._block[1][step - steps.start]
        if self.shuffle:
            seed = derive_seed(self.ctx.cfg.seed, "shuffle", self.round, step)
            scores = scores[np.random.default_rng(seed).permutation(len(scores))]
        seed = derive_seed(self.ctx.cfg.seed, "align", self.round)
        return self._generations(tokens), self._groups(scores, size, seed, step)

    def checks(self, size: int, step: int | None = None) -> list[tuple[Generations, Comparisons]]:
        """Prompts and groups to validate with after update `step`, by default the last asked for.

        Pools in which the judge tells no prompts apart are left out.
        """
        number = validations(self.last if step is None else step, self.fit) - 1
        pools = self.options.fresh_checks
        ((tokens, scores),) = self._judged(
            "dev", range(number, number + 1), pools * self.options.pool
        )
        seed, found = derive_seed(self.ctx.cfg.seed, "align", "dev", self.round), []
        for pool in range(pools):
            own = slice(pool * self.options.pool, (pool + 1) * self.options.pool)
            groups = self._groups(scores[own], size, seed, number * pools + pool)
            if informative(groups.preference).any():
                found.append((self._generations(tokens[own]), groups))
        return found

    def commit(self, steps: int) -> dict[str, float]:
        """Keep what was judged for `steps` updates and their validations; returns its counts."""
        draws = {"train": steps, "dev": 0}
        if self.options.fresh_checks:
            draws["dev"] = validations(steps, self.fit)
        return write_judged(self.folder, self.records, draws, "align")

    def _steps(self, step: int) -> range:
        """The block of updates around `step`, the same wherever a training is resumed."""
        every = self.fit.validate_every or self.fit.updates
        begin = step - step % every
        start = begin + (step - begin) // BLOCK * BLOCK
        return range(start, min(start + BLOCK, begin + every, self.fit.updates))

    def _judged(
        self, split: str, draws: range, number: int
    ) -> list[tuple[list[TokenIds], np.ndarray]]:
        """Prompts and gap scores [P, E] of each draw; the means go to the record."""
        keys: list[Key] = [(self.ctx.cfg.seed, "align", split, self.round, i) for i in draws]
        tokens, _ = draw(self.ctx, self.lm, self.codec, number, keys)
        scores = judge(self.ctx, self.codec, tokens, split)
        self.records[split].put(draws.start, tokens, scores.mean(-1, dtype=np.float64))
        parts = [slice(i * number, (i + 1) * number) for i in range(len(draws))]
        return [(tokens[part], scores[part]) for part in parts]

    def _groups(self, scores: np.ndarray, size: int, seed: int, step: int) -> Comparisons:
        share = prompt_task(self.ctx).classifier.share
        return from_fresh(scores, size, seed, step, k=self.options.group, share=share)

    def _generations(self, tokens: list[TokenIds]) -> Generations:
        source, n = self.codec.encode_source("")[0], len(tokens)
        rows = torch.arange(n)[:, None]
        return Generations([PROMPT], [source], [0] * n, tokens, [], [], rows)


def prompt_task(ctx: Setting) -> PromptTask:
    """The task of a method that searches for prompts."""
    assert ctx.task.search is not None  # what the method needs
    return ctx.task.search


def is_fresh(ctx: Setting) -> bool:
    """Whether reward models learn from prompts made for each update."""
    return ctx.cfg.prompt is not None and ctx.cfg.prompt.fresh
