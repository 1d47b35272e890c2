"""What trainers of a policy that writes texts share: how it is checked on held-out sources."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import islice

from pgtg.judges.judge import judged
from pgtg.methods.method import Improving, PolicyTrainer
from pgtg.runtime import distributed
from pgtg.types import Example, TokenIds

JUDGED_AT_ONCE = 128  # texts


class TextTrainer(PolicyTrainer):
    """A policy, validated by the judge's score of its greedy text, or without a judge by the
    log-likelihood of held-out targets."""

    def __init__(self, given: Improving):
        super().__init__(given)
        ctx = given.ctx
        assert ctx.task.targets is not None  # what the method needs
        self.task, self.targets = ctx.task, ctx.task.targets
        self.lm, self.codec = given.lm, given.codec
        self.validates = ctx.cfg.sample.heldout_sources > 0
        self.heldout = "log-likelihood of held-out targets, a token"
        if ctx.task.judge is not None:
            self.heldout = f"{ctx.cfg.judge.name} of greedy text on held-out sources"

    def validate(self) -> dict[str, float]:
        """The judge's mean score [its unit] of greedy text on the held-out sources, negated.

        Without a judge: minus the mean log-likelihood of the held-out targets' tokens [nats].
        """
        heldout = self.ctx.task.heldout()
        if self.ctx.task.judge is None:
            scores = self._log_likelihoods(heldout)
        else:
            scores = judged(distributed.spread(self._judged, heldout), "held-out texts")
        return {"improve/negative_heldout_score": -sum(scores) / len(scores)}

    def _log_likelihoods(self, examples: Sequence[Example]) -> list[float]:
        """Mean log-probability of each target's tokens [nats], in the order of the examples."""
        sources = self.codec.encode_sources([example.source for example in examples])
        targets = self.codec.encode_targets([example.target for example in examples])
        given = [ids for ids, _ in sources], [ids for ids, _ in targets]
        with self.ctx.reading(self.lm):
            value, rows = self.lm.log_probabilities, range(len(examples))
            values = self.ctx.per_token(value, *given, rows, recurring=True)
        return [float(row.mean()) for row in values]

    def _judged(self, examples: Sequence[Example]) -> list[float]:
        """The judge's scores of greedy text; it judges while the next is generated."""
        sampler = self.ctx.sampler(self.lm, self.codec, greedy=True)
        found = sampler(
            self.task.sources(examples, self.codec).ids, [example.id for example in examples]
        )
        parts: list[tuple[list[int], Future]] = []
        while rows := self._next(found):
            places, tokens = [i for i, _ in rows], [drawn[0] for _, drawn in rows]
            texts = [self.codec.decode(ids) for ids in tokens]
            own = [examples[i] for i in places]
            assert self.task.judge is not None
            parts.append((places, self.task.judge(tokens, texts, own, self.codec)))
        scores = {
            i: score
            for places, future in parts
            for i, score in zip(places, future.result()["score"], strict=True)
        }
        return [scores[i] for i in range(len(examples))]

    def _next(self, found: Iterator[tuple[int, list[TokenIds]]]) -> list:
        """The next texts that are judged at once."""
        with self.ctx.reading(self.lm):
            return list(islice(found, JUDGED_AT_ONCE))
