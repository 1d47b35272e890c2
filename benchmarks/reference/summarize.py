"""Summarisation: both sides on the same sources, targets and lengths of generations.

Sources, targets and the given generations are random tokens. A source has K generations, all of
one length (or of row 3's spread of lengths), forced on both sides, since random weights end none.
"""

import itertools

import numpy as np
import torch
from lengths import Stops, stops_in_pgtg
from measure import quiet
from options import K, Options
from shim import module, summarize
from sizes import t5_config, t5_tokenizer, token_rows
from torch import nn
from training import Trained, method_config
from transformers import LogitsProcessorList, T5ForConditionalGeneration, T5Model

from pgtg.config import AggregatorConfig, TextJudgeConfig
from pgtg.data.comparisons import in_passes, of_sources
from pgtg.judges.pool import JudgePool
from pgtg.methods.objective import Improvement, SupervisedBatch
from pgtg.models.batch import per_token, token_batch
from pgtg.models.codec import Codec
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, build_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.objectives import mle_weights
from pgtg.pipeline.stages.align import PlackettLuce, group_batch
from pgtg.types import Generations

EOS = 1
MICRO_BATCHES = 4  # of an update


class Work:
    """What both sides work on."""

    def __init__(self, options: Options) -> None:
        self.config = t5_config(options.tiny)
        torch.manual_seed(0)
        size, number = self.config.vocab_size, options.sources
        assert options.texts is not None
        self.options = options
        self.tokenizer = t5_tokenizer(size, options.texts)
        self.targets = token_rows(number, options.tokens, 1, size)
        # sources of an update, and lengths of their generations: of one length, then of a spread
        self.update = token_rows(MICRO_BATCHES * number, options.source_tokens, 0, size)
        self.sources = self.update[:number]
        self.full = [options.tokens] * (MICRO_BATCHES * number * K)
        drawn = np.rint(np.random.default_rng(0).normal(60, 20, len(self.full)))
        self.spread = np.clip(drawn, 8, options.new).astype(int).tolist()
        self.references = [str(self.tokenizer.decode(ids)) for ids in self.targets]

    def given(self) -> Generations:
        """Fixed generations with scores, for row 2."""
        number = self.options.sources * K
        return Generations(
            source_ids=[str(i) for i in range(self.options.sources)],
            sources=self.sources,
            origin=[i // K for i in range(number)],
            tokens=token_rows(number, self.options.tokens, 2, self.config.vocab_size),
            texts=[""] * number,
            scores=np.random.default_rng(0).random(number).tolist(),
            groups=torch.arange(number).view(-1, K),
        )


class Ours:
    """pgtg's side."""

    def __init__(self, work: Work) -> None:
        self.work, self.number = work, work.options.sources
        self.lm = LanguageModel(T5ForConditionalGeneration(work.config).eval())
        backbone = LanguageModel(T5ForConditionalGeneration(work.config).eval())
        self.reward = build_reward_model(backbone, HeadSpec("paper", "softplus", 2048), 0)
        self.codec = Codec(work.tokenizer, True, "", "", "", 1024, 128)
        self.pool = JudgePool(TextJudgeConfig("meteor", 0))
        self.ids = [str(i) for i in range(self.number)]
        self.aligning = PlackettLuce(
            self.reward, Aggregator.of(AggregatorConfig("avg", 2.0, False))
        )
        self.align_fit = Trained(self.reward, self.aligning, "align")
        decoding = Decoding(True, work.options.tokens)
        improvement = Improvement(self.lm, method_config(), decoding)
        self.improve_fit = Trained(self.lm, improvement, "improve", optimizer="adamw")
        self.rewards = [
            np.random.default_rng(i).random(len(target), np.float32) + 0.1
            for i, target in enumerate(work.targets)
        ]
        self.calls = itertools.count(1)

    def sample(self, lengths: list[int]) -> dict[int, list[list[int]]]:
        """A micro-batch's generations in one batch, as the reference makes them."""
        return self._generated(self.work.sources, lengths, 10**6)

    def sample_update(self, lengths: list[int]) -> None:
        """An update's generations in the batches that the sample stage takes."""
        self._generated(self.work.update, lengths, "auto")

    def _generated(
        self, sources: list[list[int]], lengths: list[int], batch_tokens: int | str
    ) -> dict[int, list[list[int]]]:
        self.lm.eval()
        lengths = lengths[: len(sources) * K]
        with stops_in_pgtg(lengths, EOS):
            return dict(
                generate(
                    self.lm,
                    sources,
                    [str(i) for i in range(len(sources))],
                    k=K,
                    eos_ids=[EOS],
                    decoding=Decoding(False, max(lengths), top_k=50),
                    batch_tokens=batch_tokens,
                    seed_key=(next(self.calls),),
                )
            )

    def judge(self, found: dict[int, list[list[int]]]) -> Generations:
        rows = [(i, tokens) for i in range(self.number) for tokens in found[i]]
        texts = [self.codec.decode(tokens) for _, tokens in rows]
        scores = self.pool.score(texts, [[self.work.references[i]] for i, _ in rows])
        return Generations(
            source_ids=self.ids,
            sources=self.work.sources,
            origin=[i for i, _ in rows],
            tokens=[tokens for _, tokens in rows],
            texts=texts,
            # random words tie: no group may be left out for it
            scores=[score + 1e-6 * i for i, score in enumerate(scores)],
            groups=torch.arange(len(rows)).view(-1, K),
        )

    def align(self, generations: Generations) -> None:
        self.reward.train()
        compared, cpu = of_sources(generations), torch.device("cpu")
        self.align_fit.update(
            lambda step: group_batch(generations, in_passes(compared, self.number, 0, step), cpu)
        )
        self.reward.eval()

    def reward_step(self) -> None:
        """Sample, judge, learn."""
        self.align(self.judge(self.sample(self.work.full)))

    def forward_backward(self) -> None:
        """The reward model's loss on given generations, and its gradients."""
        self.reward.train()
        generations = self.work.given()
        batch = group_batch(generations, of_sources(generations), torch.device("cpu"))
        self.aligning(batch, self.aligning.count(batch)).value.backward()
        self.reward.zero_grad(set_to_none=True)

    def policy_step(self) -> None:
        """An update of the policy; the targets' token rewards are given."""
        self.lm.train()
        batch = token_batch(self.work.sources, self.work.targets, range(self.number))
        values = torch.zeros(batch.mask.shape)
        for row, own in enumerate(self.rewards):
            values[row, : len(own)] = torch.from_numpy(own)
        self.improve_fit.update(
            lambda step: SupervisedBatch(batch, mle_weights(values, batch.mask))
        )

    def target_rewards(self) -> None:
        """The targets' token rewards, once."""
        self.reward.eval()
        sources, targets = self.work.sources, self.work.targets
        per_token(self.reward, sources, targets, range(self.number), batch_tokens=10**6)


class Reference:
    """The reference's side: its own functions, and the bodies of its training loops."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.policy = T5ForConditionalGeneration(work.config)
        assert self.policy.generation_config is not None
        self.policy.generation_config.top_k = 50  # transformers' default when it was written
        source, target = torch.tensor(work.sources), torch.tensor(work.targets)
        start = torch.zeros(len(target), 1, dtype=torch.long)
        self.batch = {
            "input_ids": source,
            "attention_mask": torch.ones_like(source),
            "labels": target,
            "decoder_input_ids": torch.cat([start, target[:, :-1]], 1),
        }
        with quiet():
            self.rewards, self.trainer = summarize(
                self.policy, T5Model(work.config), work.tokenizer, [self.batch]
            )
        self.policy_optimizer = self.trainer.optimizer
        self.reward_optimizer = self.rewards.optimizer

    def _set_lengths(self, lengths: list[int]) -> None:
        self.rewards.gen_kwargs = {
            "max_length": max(lengths) + 1,
            "num_beams": 1,
            "logits_processor": LogitsProcessorList([Stops(lengths, EOS)]),
        }

    def sample(self, lengths: list[int]) -> None:
        """A micro-batch's generations."""
        self._generate(self.work.sources, lengths)

    def sample_update(self, lengths: list[int]) -> None:
        """An update's generations, a micro-batch after another."""
        number = self.work.options.sources
        for start in range(0, len(self.work.update), number):
            sources = self.work.update[start : start + number]
            self._generate(sources, lengths[start * K : (start + number) * K])

    def _generate(self, sources: list[list[int]], lengths: list[int]) -> None:
        self.policy.eval()
        self._set_lengths(lengths[: len(sources) * K])
        ids = torch.tensor(sources)
        batch = self.batch | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            self.rewards.get_sample_summaries(batch)

    def reward_step(self) -> None:
        """One pass of the body of RewardModelTrainer.train with one micro-batch."""
        model = self.rewards.module
        model.train()
        self.policy.eval()
        self._set_lengths(self.work.full[: self.work.options.sources * K])
        loss = self.rewards.get_loss(dict(self.batch))
        loss.backward()
        float(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), self.rewards.gradient_clip_norm)
        self.reward_optimizer.step()
        self.reward_optimizer.zero_grad(set_to_none=True)
        model.eval()

    def forward_backward(self) -> None:
        """What get_loss does after the judge."""
        model, given = self.rewards.module, self.work.given()
        model.train()
        start = torch.zeros(len(given.tokens), 1, dtype=torch.long)
        tokens = torch.cat([start, torch.tensor(given.tokens)], 1)
        rewards = model.forward(
            input_ids=self.batch["input_ids"].repeat_interleave(K, dim=0),
            attention_mask=self.batch["attention_mask"].repeat_interleave(K, dim=0),
            decoder_input_ids=tokens,
        )
        module("reward_losses").listMLELoss(
            y_pred=self.rewards.agg_func(rewards, (tokens != 0).int()),
            y_true=torch.tensor(given.scores).view(-1, K),
            listmle_temp=1.0,
        ).backward()
        model.zero_grad(set_to_none=True)

    def policy_step(self) -> None:
        """One pass of the body of RewardPolicyTrainer.train with one micro-batch.

        It computes the targets' token rewards in every step.
        """
        self.policy.train()
        self.trainer.reward_model.eval()
        loss, _ = self.trainer.get_loss(dict(self.batch))
        loss.backward()
        float(loss.item())
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.trainer.gradient_clip_norm)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad(set_to_none=True)
