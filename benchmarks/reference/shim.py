"""The reference's own modules, made importable on a CPU without the hub.

What is put in place of something else, in memory, and nothing more:
- where two classes of the prompt task set the first GPU as their device, it is the CPU;
- hub loading (`from_pretrained`, `pipeline`) gives random-weight models of the true sizes and a
  tokenizer of one word a token;
- `evaluate.load` loads the given meteor.py, where one is given (the reference loads it by name);
- nltk's `sent_tokenize` is pgtg's splitter on both sides, so that no punkt model is needed: it is
  cheaper than punkt, which favours the reference;
- `num_beams`, which today's transformers refuses as None, is 1 (`summarize.Reference`).
"""

import importlib
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import nltk
import nltk.tokenize
import torch
from transformers import (
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedTokenizerBase,
    RobertaForMaskedLM,
    T5ForConditionalGeneration,
    T5Model,
)

from pgtg.metrics.sentences import split_regex

FOLDERS = ("sum_task", "prompt_task", "prompt_task/examples/few-shot-classification")
ON_GPU = ("rlprompt.models.lm_adaptor_model", "rlprompt.models.reward_model")
FIRST_GPU, CPU = "self.device = 0", "self.device = torch.device('cpu')"


class _OnCpu(SourceFileLoader):
    """Compiles a module with its device replaced; neither reads nor writes compiled files."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        text = self.get_source(fullname)
        if text is None or text.count(FIRST_GPU) + text.count(CPU) != 1:
            raise ImportError(f"{path}: not the file that this comparison knows")
        return compile(text.replace(FIRST_GPU, CPU), path, "exec", dont_inherit=True)


class OnCpu(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in ON_GPU:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _OnCpu(fullname, spec.origin)
        return spec


def module(name: str) -> Any:
    """One of the reference's, or what may not be installed."""
    return importlib.import_module(name)


def _sentences(text: str, language: str = "english") -> list[str]:
    return split_regex(text)


def install(reference: Path, evaluate: Path | None, meteor: Path | None) -> None:
    """Makes the reference's modules importable; call it once, before all else here."""
    folders = [reference / name for name in FOLDERS]
    for folder in folders:
        if not folder.is_dir():
            raise SystemExit(f"--reference {reference}: {folder} is missing")
    sys.path += [str(folder.resolve()) for folder in folders]
    sys.meta_path.insert(0, OnCpu())
    if evaluate:
        sys.path.append(str(evaluate.resolve()))
    if meteor:
        library = module("evaluate")
        load, path = library.load, str(meteor.resolve())
        library.load = lambda name, *rest, **named: load(path)
    nltk.sent_tokenize = nltk.tokenize.sent_tokenize = _sentences


def meteor() -> Any:
    """The reference's judge of summaries."""
    return module("evaluate").load("meteor")


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Where the reference would save models; removed at the end."""
    return tempfile.TemporaryDirectory()


def _arguments() -> Any:
    """The summarisation task's arguments, by its own parser."""
    parser = module("parse_args")
    argv = sys.argv
    sys.argv = ["run_sum.py", "--dataset_name=cnn_dailymail", f"--output_dir={_scratch().name}"]
    try:
        return parser.parse_args()
    finally:
        sys.argv = argv


def summarize(
    policy: T5ForConditionalGeneration,
    reward: T5Model,
    tokenizer: PreTrainedTokenizerBase,
    batches: list[dict[str, torch.Tensor]],
) -> tuple[Any, Any]:
    """(reward trainer, policy trainer), as run_sum.py builds them."""
    rewards = module("reward_model")
    policies = module("policy_trainer")
    arguments = _arguments()
    arguments.device = torch.device("cpu")
    common = {"args": arguments, "policy": policy, "tokenizer": tokenizer, "metric": None}
    trainer = rewards.RewardModelTrainer(
        reward_model=rewards.RewardModel(args=arguments, reward_transformer=reward),
        rew_train_dataloader=batches,
        rew_eval_dataloader=batches,
        **common,
    )
    return trainer, policies.RewardPolicyTrainer(
        reward_trainer=trainer, train_dataloader=batches, eval_dataloader=batches, **common
    )


def gives(model: object) -> SimpleNamespace:
    return SimpleNamespace(from_pretrained=lambda *_, **__: model)


def prompt(
    writer: GPT2LMHeadModel,
    reward: GPT2Model,
    classifier: RobertaForMaskedLM,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    verbalizers: list[str],
    template: str,
) -> tuple[Any, Any]:
    """(policy's module, reward trainer), as run_fsc.py builds them with fsc_config.yaml.

    Args:
        tokenizers: The writer's and the classifier's.
    """
    written, read = tokenizers
    adaptor = module("rlprompt.models.lm_adaptor_model")
    adaptor.AutoTokenizer = gives(written)
    adaptor.pipeline = lambda *_, **__: SimpleNamespace(model=writer, tokenizer=written)
    module("rlprompt.models.reward_model").GPT2Model = gives(reward)
    judging = module("fsc_reward")
    judging.AutoTokenizer, judging.AutoModelForMaskedLM = gives(read), gives(classifier)
    out = _scratch().name
    policies = _policies(str(written.eos_token), _judge(judging, verbalizers, template, out))
    return policies, _reward_trainer(policies, out)


def _judge(judging: Any, verbalizers: list[str], template: str, out: str) -> Any:
    return judging.PromptedClassificationReward(
        task_lm="roberta-base",
        is_mask_lm=None,
        compute_zscore=False,
        incorrect_coeff=180.0,
        correct_coeff=200.0,
        max_train_steps=12000,
        output_folder=out,
        num_classes=len(verbalizers),
        verbalizers=verbalizers,
        template=template,
    )


def _policies(start: str, judge: Any) -> Any:
    """The module that holds policy, judge and reward model."""
    models = module("rlprompt.models")
    policy = models.LMAdaptorModel(
        policy_lm="distilgpt2",
        hidden_size=2048,
        logit_bias=0.0,
        fluent=False,
        fluent_top_k=20,
        max_decoding_length=5,
        eos_token_id=None,
    )
    return module("rlprompt.modules").ReinforceModule(
        model=models.SinglePromptModel(policy, 5, 16, 1, start),
        reward=judge,
        reward_model=models.RewardModel(policy_lm="distilgpt2", hidden_size=2048, use_softplus=1),
        top_k=256,
        top_p=1.0,
        num_beams=1,
        num_samples=64,
        max_entropy_coeff=0.125,
        use_q_for_weight=0,
    )


def _reward_trainer(policies: Any, out: str) -> Any:
    return module("rlprompt.trainers").RewardModelTrainer(
        reward_model=policies.reward_model,
        policy_module=policies,
        train_dataset=[0],
        train_batch_size=32,
        train_shuffle=False,
        train_drop_last=True,
        eval_dataset=[0],
        eval_batch_size=32,
        save_dir=out,
        gradient_clip=True,
        gradient_clip_norm=5.0,
        checkpoint_path=None,
        rew_num_train_epochs=100,
        rew_max_train_steps=10000,
        rew_learning_rate=5e-5,
        reward_learning_samples=5,
        reward_learning_batch_size=64,
        rew_gradient_accumulation_steps=1,
        lr_decay=0.8,
        weight_decay_count=2,
        early_stop_count=7,
        agg_func="sum",
        soft_maxmin_temp=2.0,
        compute_rew_batch_mode=1,
    )
