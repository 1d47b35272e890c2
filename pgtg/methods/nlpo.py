"""PPO within the tokens that an earlier policy finds likely (NLPO: arXiv:2210.01241, Sec. 4.2).

At each state a mask policy leaves open its likeliest tokens, until they hold `top_p`; the policy is
what is left of it there, renormalised: that is what is sampled, and what ratio, entropy and loss
are of. The divergence from the start policy is that of the policies without masks. The mask policy
is the start policy, and every `mask_every` iterations a copy of the policy as it then sampled.

With `released` it is what the released code does: its copy never reaches the sampler, so the mask
is the start policy's all along, and log-probabilities are those of the whole softmax; that is PPO
on samples from the start policy's nucleus.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from pgtg.methods import options as named
from pgtg.methods.method import STAGES, Improving, Method
from pgtg.methods.ppo import PPOTrainer
from pgtg.models.language import LanguageModel
from pgtg.models.reading import Reading
from pgtg.models.value import load_trained, save_trained
from pgtg.ops.actor_critic import nucleus
from pgtg.runs.files import atomic
from pgtg.runtime import distributed
from pgtg.types import TokenBatch

MASK = "mask.safetensors"
AFTER_ALL = 10**9  # an update later than any


@dataclass
class _BothRead:
    """What a policy and its mask policy remember of the same rows, as `models.generate` asks."""

    policy: Reading
    mask: Reading
    closed: Any  # (logits, mask policy's logits) -> logits

    @property
    def output(self) -> Tensor:
        return self.closed(self.policy.output, self.mask.output)

    def select(self, rows: Sequence[int]) -> "_BothRead":
        return _BothRead(self.policy.select(rows), self.mask.select(rows), self.closed)

    def reserve(self, tokens: int) -> list[str]:
        return self.policy.reserve(tokens) + self.mask.reserve(tokens)


class MaskedWriter:
    """A policy that can write only what a mask policy leaves open, for `models.generate`."""

    def __init__(self, policy: LanguageModel, mask: LanguageModel, closed: Any):
        self.policy, self.mask, self.closed = policy, mask, closed

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def model(self) -> Any:
        return self.policy.model

    @property
    def width(self) -> int:
        return self.policy.width

    @property
    def reads_sources_once(self) -> bool:
        return self.policy.reads_sources_once and self.mask.reads_sources_once

    def prefill(self, source: Tensor, mask: Tensor, *, logits: bool) -> _BothRead:
        own = self.policy.prefill(source, mask, logits=logits)
        return _BothRead(own, self.mask.prefill(source, mask, logits=logits), self.closed)

    def lay_out_for_few_queries(self, reading: _BothRead) -> None:
        self.policy.lay_out_for_few_queries(reading.policy)
        self.mask.lay_out_for_few_queries(reading.mask)

    def extend(self, reading: _BothRead, tokens: Tensor, mask: Tensor, *, logits: bool) -> Tensor:
        self.policy.extend(reading.policy, tokens, mask, logits=logits)
        self.mask.extend(reading.mask, tokens, mask, logits=logits)
        return reading.output


class NLPOTrainer(PPOTrainer):
    kind: ClassVar[type[Any]] = named.NLPO

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        self.masks = not self.released
        self.mask = self.ctx.load_start()[0]
        self.ctx.choose_trained(self.mask)  # so that the policy's trained weights fit
        self.mask.requires_grad_(False).eval()
        special = self.codec.tokenizer.all_special_ids
        self.special = torch.tensor(special, dtype=torch.long, device=self.ctx.device)

    def writer(self) -> LanguageModel:
        return cast(LanguageModel, MaskedWriter(self.lm, self.mask, self._closed))

    def _closed(self, logits: Tensor, others: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The policy's logits, -inf where the mask policy leaves a token closed.

        Args:
            tokens: What was sampled, and so was open when it was.
        """
        options = self.options
        found = nucleus(others, options.top_p, min(options.least, logits.shape[-1]), self.special)
        if tokens is not None:
            found = found.scatter(-1, tokens[..., None], True)
        return logits.masked_fill(~found, -torch.inf)

    def opened(self, logits: Tensor, batch: TokenBatch) -> Tensor:
        if self.released:
            return logits
        with torch.no_grad():
            others = self.mask.logits(batch)
        return self._closed(logits, others, batch.tokens)

    # the mask policy: a file for each copy, so that a resumed training finds the one it used

    def _copy(self, first: int) -> Path | None:
        """The mask policy's weights in the iteration that begins with update `first`."""
        copies = sorted(self.folder.glob(f"*.{MASK}"))
        own = [path for path in copies if int(path.name.partition(".")[0]) < first]
        if own or self.given.before is None:
            return own[-1] if own else None
        before = self.given.before.file(MASK)
        return before if before.is_file() else None

    def prepare(self, first: int) -> None:
        copy = self._copy(first)
        if copy is not None:
            load_trained(self.mask, copy)

    def sampled(self, first: int, number: int) -> None:
        if self.masks and number % self.options.mask_every == 0:
            save_trained(self.lm, self.folder / f"{first:06d}.{MASK}")

    def keep(self, folder: Path) -> None:
        super().keep(folder)
        self._keep_mask(folder)

    @distributed.first
    def _keep_mask(self, folder: Path) -> None:
        """The newest copy serves the next round; the others have served.

        Done again where it was cut off, it keeps the same one: the newest goes last.
        """
        own = sorted(self.folder.glob(f"*.{MASK}"))
        if own or not (folder / MASK).exists():
            newest = self._copy(AFTER_ALL)
            if newest is not None:
                with atomic(folder / MASK) as path:
                    shutil.copyfile(newest, path)
        for copy in own:
            copy.unlink()


NLPO = Method("nlpo", ("improve",), NLPOTrainer, needs_reward=False)
DENSE_NLPO = Method("nlpo", STAGES, NLPOTrainer, needs_samples=True)
