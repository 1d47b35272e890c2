"""A PPO iteration alongside a GRPO step of TRL (extra `trl`), interleaved in one process.

    python benchmarks/ppo_cost.py [--texts 32] [--source 64] [--new 48] [--steps 6] [--critic own]

The same causal model with random weights, float32, one thread; as many texts of the same lengths,
one pass over them with gradients, a KL term to the start policy. TRL's GRPO has no critic; ours
reads each text with policy, critic and start policy and trains a critic of the policy's size as
well, or with `--critic shared` a head on the policy's states.
Judging costs both next to nothing. Wall time, and the process's CPU time, which other work on the
machine does not lengthen; the first of each is left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import pgtg.tasks.texts as texts
from pgtg.config.compose import run_config
from pgtg.judges.judge import Judge
from pgtg.methods import method_of
from pgtg.methods.method import Improving
from pgtg.models.tiny.lm import build_tokenizer
from pgtg.pipeline.run import session
from pgtg.training.update import Training, Where, update


class Shorter(Judge):
    """The shorter the better."""

    def __call__(self, tokens: Any, texts: Any, examples: Any, codec: Any) -> Future:
        found: Future = Future()
        found.set_result({"score": [-float(len(text)) for text in texts]})
        return found

    def describe(self) -> dict[str, Any]:
        return {"judge": "shorter"}


def main() -> None:
    asked = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    for name, value in {"texts": 32, "source": 64, "new": 48, "steps": 6}.items():
        asked.add_argument(f"--{name}", type=int, default=value)
    asked.add_argument("--critic", choices=("own", "shared"), default="own")
    args = asked.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = prepare(folder, args)
        own = iterations(folder, args)
        theirs, ours = interleaved(folder, prompts, args, own)
    print(json.dumps({"ours [s]": ours, "TRL [s]": theirs}))
    for i, kind in enumerate(("wall", "CPU")):
        ratios = [a[i] / b[i] for a, b in zip(ours[1:], theirs[1:], strict=True)]
        middle = statistics.median(ratios)
        print(f"{kind}, ours / TRL: median {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def prepare(folder: Path, args: argparse.Namespace) -> list[str]:
    """A model folder and files of prompts; returns the prompts."""
    words = [f"w{i}" for i in range(8000)]
    tokenizer = build_tokenizer(words, masked=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        bos_token_id=None,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad")},
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(words), (256, args.source))
    prompts = [" ".join(words[i] for i in row) for row in drawn]
    rows = [json.dumps({"source": prompt, "target": words[0]}) for prompt in prompts]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return prompts


Times = tuple[float, float]  # wall, CPU [s]


def now() -> Times:
    return time.perf_counter(), time.process_time()


def since(start: Times) -> Times:
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


def iterations(folder: Path, args: argparse.Namespace) -> Iterator[Times]:
    """Times of one iteration of PPO after another: sampling, reading, one update."""
    texts.open_judge = lambda cfg: Shorter()
    cfg = run_config(
        "summarize",
        [
            *("experiment=none", "data=files", f"data.path={folder}", "policy=pretrained"),
            *(f"policy.path={folder / 'model'}", "method=ppo", "method.epochs=1"),
            f"method.critic={args.critic}",
            *(f"method.rollouts={args.texts}", f"sample.max_new_tokens={args.new}"),
            *(f"improve.micro_batch={args.texts}", "improve.accumulate=1", "threads=1"),
            *("sample.top_k=0", "cache=off", "device=cpu", "logger=none"),
        ],
    )
    with session(cfg, folder / "run", True) as ctx:
        lm, codec = ctx.load_start()
        method = method_of(cfg)
        assert method.trainer is not None
        given = Improving(ctx, lm, codec, None, [], folder / "working", 0, args.steps + 1)
        made = method.trainer(method, given)
        training = Training.begun(made.module, made.fit_config(), Where(0, "improve", 0))
        made.module.train()
        for step in range(args.steps + 1):
            start = now()
            made.begin(step)
            update(training, made.window, made.objective)
            yield since(start)


class Alternating(TrainerCallback):
    """Times each step of a Trainer, and runs one of ours after it."""

    def __init__(self, own: Iterator[Times]):
        self.own, self.theirs, self.ours = own, list[Times](), list[Times]()
        self.start = now()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.theirs.append(since(self.start))
        self.ours.append(next(self.own))


def interleaved(
    folder: Path, prompts: list[str], args: argparse.Namespace, own: Iterator[Times]
) -> tuple[list[Times], list[Times]]:
    """Times of TRL's steps and of our iterations, in turn."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    clock = Alternating(own)
    GRPOTrainer(
        model=str(folder / "model"),
        processing_class=AutoTokenizer.from_pretrained(folder / "model", padding_side="left"),
        reward_funcs=lambda completions, **_: [-float(len(text)) for text in completions],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            max_steps=args.steps + 1,
            per_device_train_batch_size=args.texts,
            num_generations=8,
            steps_per_generation=1,
            max_completion_length=args.new,
            beta=0.05,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        callbacks=[clock],
    ).train()
    return clock.theirs, clock.ours


if __name__ == "__main__":
    main()
