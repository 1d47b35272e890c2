"""A training step of `method=rlprompt` against the released RLPrompt, in one process, alternating.

    git clone https://github.com/mingkaid/rl-prompt release
    OMP_NUM_THREADS=1 python benchmarks/reference/rlprompt_release.py --release release \\
        [--classifier base|large] [--repeats 3] [--threads 1] [--size paper|tiny] [--save row.json]

Both sides train the same policy (distilgpt2's size, an adaptor of 2048) on the same 32 sentences
of SST-2's lengths with the same classifier (RoBERTa's size), random weights, float32, and the
published settings: 16 prompts of 5 tokens a step, each judged on all 32 sentences, so 512
sequences, scores standardised, loss v2_v2r_v3_v3r, a target network. What counts: of the release,
`Trainer._train_step` without what it prints; of pgtg, the trainer's own window and the training
loop's update. Prompts are new at each step, so neither side judges one twice. Ratio of CPU times,
median (least to largest). The release's files are used as they lie there; its device is the CPU,
and what it would load from the hub are the models of the other side.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROMPTS, TEXTS = 16, 32


def theirs(release: Path, cfg: Any, texts: list[str], labels: list[int]) -> Callable[[], object]:
    """A step of the released trainer, as run_fsc.py builds it with fsc_config.yaml."""
    import shim
    import torch

    for folder in (release, release / "examples" / "few-shot-classification"):
        if not folder.is_dir():
            raise SystemExit(f"--release {release}: {folder} is missing")
        sys.path.append(str(folder.resolve()))
    sys.meta_path.insert(0, shim.OnCpu())
    trainer = _trainer(shim, _module(shim, _policy(shim, cfg), _judge(shim, cfg)))
    batch = {"source_texts": texts, "class_labels": torch.tensor(labels)}
    steps = iter(range(10**9))
    return lambda: trainer._train_step(next(steps), batch)


def _policy(shim: Any, cfg: Any) -> Any:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    writer = GPT2LMHeadModel.from_pretrained(cfg.policy.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(cfg.policy.path)
    adaptor, models = (
        shim.module("rlprompt.models.lm_adaptor_model"),
        shim.module("rlprompt.models"),
    )
    adaptor.AutoTokenizer = shim.gives(tokenizer)
    adaptor.LM_HIDDEN_SIZES = {"distilgpt2": writer.config.n_embd}
    adaptor.pipeline = lambda *_, **__: SimpleNamespace(model=writer, tokenizer=tokenizer)
    policy = models.LMAdaptorModel(
        policy_lm="distilgpt2",
        hidden_size=2048,
        logit_bias=-10.0,
        fluent=False,
        fluent_top_k=20,
        max_decoding_length=5,
        eos_token_id=None,
    )
    return models.SinglePromptModel(policy, 5, PROMPTS, 1, "<s>")


def _judge(shim: Any, cfg: Any) -> Any:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    judging, path = shim.module("fsc_reward"), cfg.judge.classifier.path
    judging.AutoTokenizer = shim.gives(AutoTokenizer.from_pretrained(path))
    judging.AutoModelForMaskedLM = shim.gives(AutoModelForMaskedLM.from_pretrained(path).eval())
    return judging.PromptedClassificationReward(
        task_lm="roberta-base",
        is_mask_lm=None,
        compute_zscore=True,
        incorrect_coeff=180.0,
        correct_coeff=200.0,
        num_classes=2,
        verbalizers=["terrible", "great"],
        template="{sentence_1} {prompt} <mask> .",
    )


def _module(shim: Any, policy: Any, reward: Any) -> Any:
    return shim.module("rlprompt.modules.sql_module").SQLModule(
        model=policy,
        target_model=None,
        reward=reward,
        sql_loss_impl="v2_v2r_v3_v3r",
        training_mode="sql-onpolicy",
        mix_strategy=None,
        target_update_method="polyak",
        target_update_steps=None,
        target_learning_rate=0.001,
        reward_shaping=True,
        reward_shaping_old_min=0,
        reward_shaping_old_max=1,
        reward_shaping_new_min=0,
        reward_shaping_new_max=5,
        top_k=256,
        top_p=1.0,
        num_beams=1,
    )


def _trainer(shim: Any, module: Any) -> Any:
    return shim.module("rlprompt.trainers.trainer").Trainer(
        module=module,
        train_dataset=None,
        train_batch_size=TEXTS,
        train_shuffle=False,
        train_drop_last=True,
        num_train_epochs=1,
        max_train_steps=-1,
        do_eval=False,
        eval_dataset=None,
        eval_batch_size=TEXTS,
        eval_steps=-1,
        do_save=False,
        save_dir="",
        save_steps=-1,
        learning_rate=5e-5,
        gradient_clip=True,
        gradient_clip_norm=5.0,
        checkpoint_path=None,
        random_seed=None,
        report_to_wandb=False,
        project_name=None,
        run_name=None,
    )


def ours(ctx: Any, working: Path) -> Callable[[], object]:
    """A step of pgtg's trainer, with the optimiser and the update of its training loop."""
    from pgtg.methods import method_of
    from pgtg.methods.method import Improving, Shared
    from pgtg.training.update import Training, Where, update

    method, (lm, codec) = method_of(ctx.cfg), ctx.load_start()
    shared = Shared(ctx.artifact(0, "targets"), "benchmark")
    given = Improving(ctx, lm, codec, None, [], working, 0, 10**6, shared)
    assert method.trainer is not None
    trainer: Any = method.trainer(method, given)
    training = Training.begun(trainer.module, trainer.fit_config(), Where(0, "improve", 0))

    def step() -> None:
        trainer.begin(training.progress.step)
        update(training, trainer.window, trainer.objective)

    return step


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--classifier", choices=["base", "large"], default="base")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=["paper", "tiny"], default="paper")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.path.append(str(Path(__file__).parents[1]))
    import paper_runs
    import torch
    from measure import Meter

    from pgtg.pipeline.run import session

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # what the release draws: a prompt that holds <mask> ends its step
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        more = ["method=rlprompt", "cache=off"]
        cfg = paper_runs.prompts(
            folder, options.size == "tiny", "cpu", more, classifier=options.classifier
        )
        with session(cfg, folder / "run", False) as ctx:
            examples = ctx.task.labelled("train")  # type: ignore[attr-defined]
            texts, labels = [one.text for one in examples], [one.label for one in examples]
            assert len(texts) == TEXTS
            sides = theirs(options.release, cfg, texts, labels), ours(ctx, folder / "working")
            row = Meter(options.repeats).compare("rlprompt, a training step", "2.0", *sides)
    for side in ("reference", "ours"):
        rate = PROMPTS * TEXTS / row[side]["cpu_s"]
        print(f"{side}: {rate:.1f} sequences judged per second of CPU time")
    if options.save:
        options.save.write_text(
            json.dumps(row | {"classifier": options.classifier}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
