"""Credit from the policy itself: what it says of a token once it has read the source's winner.

y* is a source's best generation. Of each other one, token t has the advantage

    A_t = w [log pi(a_t | hint(x, y*), s_t) - log pi(a_t | x, s_t) - mean over the source's tokens]

under the policy that sampled, w = sqrt(p (1 - p)), p the share of the source's generations that are
tied for the best. Only a policy that reads hints can say so: y* itself has to be likelier after it.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from pgtg.data.comparisons import Comparisons
from pgtg.errors import ConfigError, DataError
from pgtg.methods import options as named
from pgtg.methods.groups import ClippedGradient, GroupBatch
from pgtg.methods.method import Improving, Method
from pgtg.methods.objective import sampled_log_probs
from pgtg.methods.preferred import JudgedTrainer
from pgtg.models.chat import ChatCodec
from pgtg.models.language import LanguageModel
from pgtg.types import TokenIds

LEAST = 0.05  # nats a token by which its hint has to make the winner likelier


class SelfDistillTrainer(JudgedTrainer):
    """All generations of some sources but their winners, with advantages of each token."""

    kind: ClassVar[type[Any]] = named.SelfDistill

    def __init__(self, method: Method, given: Improving):
        super().__init__(method, given)
        decoding, options = given.ctx.sampling(), self.options
        self.objective = ClippedGradient(self.lm, decoding, options.clip, options.kl, False)
        if isinstance(self.codec, ChatCodec):
            raise ConfigError(
                f"{method.name}: hints are put into texts, and these sources are chats"
            )
        self.sampled = self._log_probs(self.lm, self.pool.sources)
        self.start: list[np.ndarray] | None = None
        if options.keeps_start:
            start = given.ctx.load_start()[0].requires_grad_(False).eval()
            self.start = self._log_probs(start, self.pool.sources)
        self.advantages = self._advantages()

    def _log_probs(self, lm: LanguageModel, sources: Sequence[TokenIds]) -> list[np.ndarray]:
        """Of all tokens of the pool, after these sources, one for each of its own."""
        decoding, pool = self.ctx.sampling(), self.pool
        with torch.no_grad():
            return self.ctx.per_token(
                lambda batch: sampled_log_probs(lm, batch, decoding),
                sources,
                pool.tokens,
                pool.origin,
            )

    def _advantages(self) -> list[np.ndarray]:
        """Of all tokens of the pool, none for winners; `groups` then holds what is learned from.

        Raises:
            ConfigError: The policy reads no hints.
            DataError: No source has a generation that differs from its winner.
        """
        pool, groups = self.pool, self.groups
        best = groups.preference.nan_to_num(-torch.inf).amax(-1, keepdim=True)
        winners = groups.groups.gather(1, (groups.preference == best).int().argmax(-1)[:, None])
        rows = winners.flatten().tolist()
        hinted = self._log_probs(self.lm, self._hints(rows))
        gain = [own - before for own, before in zip(hinted, self.sampled, strict=True)]
        told = float(np.concatenate([gain[row] for row in rows]).mean())
        if told < LEAST:
            raise ConfigError(
                f"{self.method.name}: this policy reads no hints: a generation that stands in the "
                f"hint becomes likelier by {told:.3f} nats a token, expected at least {LEAST}; "
                "choose a larger policy, or another method.hint"
            )
        found = [np.empty(0, np.float32) for _ in pool.tokens]
        shares = (groups.preference == best).sum(-1) / (groups.groups >= 0).sum(-1)
        kept = groups.groups.clone()
        for line, winner, share in zip(kept, rows, shares.tolist(), strict=True):
            for place, row in enumerate(line.tolist()):
                if row >= 0 and pool.tokens[row] == pool.tokens[winner]:
                    line[place] = -1
            others = line[line >= 0].tolist()
            if others:
                mean = np.concatenate([gain[row] for row in others]).mean()
                weight = math.sqrt(share * (1 - share))
                for row in others:
                    found[row] = weight * (gain[row] - mean)
        learned = (kept >= 0).any(-1)
        if not learned.any():
            raise DataError(f"{self.method.name}: all generations of each source are the same")
        self.groups = Comparisons(kept[learned], groups.preference[learned])
        return found

    def _hints(self, winners: list[int]) -> list[TokenIds]:
        """What stands in the place of each source of the pool; without a winner it stays."""
        pool, hints = self.pool, list(self.pool.sources)
        by_id = self.targets.examples("train").named(pool.source_ids)
        cut = 0
        for row in winners:
            place = pool.origin[row]
            text = self.options.hint.replace("{winner}", pool.texts[row])
            text = text.replace("{source}", by_id[pool.source_ids[place]].source)
            hints[place], was_cut = self.codec.encode_source(text)
            cut += was_cut
        if cut:
            said = f"{cut} of {len(winners)} hints were cut to policy.max_source_tokens"
            self.ctx.log.warn(f"improve {self.method.name}: {said}")
        return hints

    def chosen(self, groups: Comparisons) -> Comparisons:
        return groups

    def batch(self, part: Comparisons) -> GroupBatch:
        found = [[row for row in own if row >= 0] for own in part.groups.tolist()]
        rows = [row for own in found for row in own]
        start = None if self.start is None else self.looked_up(self.start, rows)
        advantage, sampled = (
            self.looked_up(values, rows) for values in (self.advantages, self.sampled)
        )
        return GroupBatch(self.texts(found), advantage, sampled, start)


METHOD = Method(
    "self_distill",
    ("sample", "improve"),
    SelfDistillTrainer,
    needs_reward=False,
    needs_samples=True,
)
