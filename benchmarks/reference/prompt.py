"""Prompts: both sides write prompts of five tokens for the same frozen classifier.

The classifier judges random words, as many as SST-2's 16-shot training examples have tokens. It is
one model, shared by both sides, and never trained.
"""

import itertools

import numpy as np
import torch
from measure import quiet
from options import Options
from shim import prompt
from sizes import (
    END,
    gpt2_config,
    gpt2_tokenizer,
    roberta_config,
    roberta_tokenizer,
    sentences,
    token_rows,
)
from torch import nn, optim
from training import Trained, method_config
from transformers import GPT2LMHeadModel, GPT2Model, RobertaForMaskedLM

from pgtg.config import AggregatorConfig
from pgtg.data.comparisons import from_pool
from pgtg.judges.classifier import Classifier
from pgtg.judges.memo import PromptScores
from pgtg.judges.template import Prompt, Template
from pgtg.methods.objective import PolicyGradient, Sampled
from pgtg.models.adaptor import adapt, draw_prompts
from pgtg.models.batch import token_batch
from pgtg.models.codec import PromptCodec
from pgtg.models.generate import Decoding, generate, streams
from pgtg.models.language import LanguageModel, evaluating
from pgtg.models.reward import HeadSpec, build_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.gap import gap_scores
from pgtg.ops.objectives import advantages
from pgtg.pipeline.stages.align import PlackettLuce, group_batch
from pgtg.types import Generations, Labelled

LABEL_WORDS = ["w100", "w200"]
LENGTH, DRAWN, COMPARED = 5, 64, 64  # tokens; prompts of a policy step; groups of a reward step


class Work:
    """What both sides work on."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(0)
        assert options.examples is not None
        self.texts, self.labels = sentences(options.examples)
        self.writer_tokenizer, self.classifier_tokenizer = gpt2_tokenizer(), roberta_tokenizer()
        config = roberta_config(options.tiny, options.classifier)
        self.classifier = RobertaForMaskedLM(config).eval()
        self.config = gpt2_config(options.tiny)
        self.prompts = options.prompts


class Ours:
    """pgtg's side."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.lm = adapt(LanguageModel(GPT2LMHeadModel(work.config).eval()), 2048, 0)
        backbone = LanguageModel(GPT2LMHeadModel(work.config).eval())
        self.reward = build_reward_model(backbone, HeadSpec("paper", "softplus", 2048), 0)
        self.codec = PromptCodec(work.writer_tokenizer, False, "", "", "", 8, 8, start_text=END)
        classifier = Classifier(
            work.classifier,
            work.classifier_tokenizer,
            Template.parse("{sentence} {prompt} {mask} w7"),
            LABEL_WORDS,
            rendering="string",
            max_tokens=512,
        )
        self.scores = PromptScores(classifier, None)
        self.examples = [
            Labelled(str(i), text, label)
            for i, (text, label) in enumerate(zip(work.texts, work.labels, strict=True))
        ]
        self.aggregator = Aggregator.of(AggregatorConfig("sum", 2.0, False))
        aligning = PlackettLuce(self.reward, self.aggregator)
        self.align_fit = Trained(self.reward, aligning, "align")
        self.decoding = Decoding(False, LENGTH, top_k=256)
        self.method = method_config(entropy=0.125)
        objective = PolicyGradient(self.lm, 0.0, self.method.entropy, self.decoding)
        self.improve_fit = Trained(self.lm, objective, "improve")
        self.calls = itertools.count(1)

    def judged(self, number: int) -> Generations:
        """New prompts, judged on a random 80 % of the examples, as the reference does."""
        call = next(self.calls)
        self.lm.eval()
        source, _ = self.codec.encode_source("")
        found = dict(
            generate(
                self.lm,
                [source] * number,
                [f"prompt{i}" for i in range(number)],
                k=1,
                eos_ids=[],
                decoding=self.decoding,
                batch_tokens=10**5,
                seed_key=(call,),
            )
        )
        tokens = [found[i][0] for i in range(number)]
        texts = [self.codec.decode(ids) for ids in tokens]
        all_ = len(self.examples)
        chosen = np.random.default_rng(call).choice(all_, int(np.ceil(0.8 * all_)), replace=False)
        log_probs = self.scores(
            [Prompt(text) for text in texts], "train", [self.examples[i] for i in chosen]
        )
        labels = torch.tensor([self.work.labels[i] for i in chosen])
        gaps = gap_scores(torch.from_numpy(log_probs), labels).numpy()
        return Generations(
            source_ids=["prompt"],
            sources=[source],
            origin=[0] * number,
            tokens=tokens,
            texts=texts,
            scores=gaps.mean(-1).tolist(),
            groups=torch.arange(number)[:, None],
            example_scores=gaps,
        )

    def align(self, generations: Generations) -> None:
        """An update of the reward model on prompts that are judged."""
        self.reward.train()
        cpu = torch.device("cpu")
        self.align_fit.update(
            lambda step: group_batch(
                generations,
                from_pool(generations, COMPARED, 0, step, k=5, pool=16, share=0.8),
                cpu,
            )
        )
        self.reward.eval()

    def reward_step(self) -> None:
        """Sample, judge, learn."""
        self.align(self.judged(self.work.prompts))

    @torch.no_grad()
    def _sampled(self, call: int) -> Sampled:
        source, _ = self.codec.encode_source("")
        with evaluating(self.lm):
            noise = streams(LENGTH, DRAWN, (0, "improve", call), ["prompt"])
            drawn = draw_prompts(self.lm, source, noise, self.decoding)
        made = token_batch([source], drawn.tokens.tolist(), [0] * DRAWN)
        rewards = self.reward(made)
        advantage = advantages(
            rewards,
            self.aggregator(rewards, made.mask),
            made.mask,
            made.origin,
            baseline=self.method.baseline,
            token_share=self.method.token_share,
            to_go=self.method.reward_to_go,
        )
        return Sampled(made, advantage, None, drawn)

    def policy_step(self) -> None:
        """Prompts drawn, their token rewards, and an update; no judge."""
        call = next(self.calls)
        self.lm.train()
        self.reward.eval()
        self.improve_fit.update(lambda step: self._sampled(call))


class Reference:
    """The reference's side: its own functions, and the bodies of its training loops."""

    def __init__(self, work: Work) -> None:
        self.work = work
        with quiet():
            self.module, self.trainer = prompt(
                GPT2LMHeadModel(work.config).eval(),
                GPT2Model(work.config).eval(),
                work.classifier,
                (work.writer_tokenizer, work.classifier_tokenizer),
                LABEL_WORDS,
                "{sentence_1} {prompt} <mask> w7",
            )
        self.policy = self.module._model
        self.policy.prompt_train_batch_size = work.prompts
        self.batch = {"source_texts": work.texts, "class_labels": torch.tensor(work.labels)}
        self.optimizer = optim.Adam(self.policy.parameters(), lr=5e-5)
        self.judge = self.module.compute_rewards
        self.calls = itertools.count()

    def reward_step(self) -> None:
        """Sample, judge, learn."""
        self.trainer.module.train()
        self.trainer.train_step(self.batch)

    def policy_step(self) -> None:
        """RewardPolicyTrainer._train_step, the judging that is only logged answered for nothing."""
        self.module.compute_rewards = lambda **_: (torch.zeros(16), {"acc": 0.0})
        loss, _ = self.module.train()(self.batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.compute_rewards = self.judge

    def logging(self) -> None:
        """That judging alone: new prompts on all training examples, one by one."""
        rows = token_rows(self.work.prompts, LENGTH, next(self.calls), 50000)
        tokens = [[f"w{i}" for i in row] for row in rows]
        self.judge(batch=self.batch, output_tokens=tokens, mode="train")
