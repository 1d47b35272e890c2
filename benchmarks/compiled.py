"""Sampling with the step of a token compiled (`sample.compile`), alongside the usual one.

    python benchmarks/compiled.py [--repeats 3] [--device cpu] [--only "T5, 64 wide"]

Random weights; K = 3 generations of each source, sampled to full length. Tokens per second of CPU
time (wall time on an accelerator), the median of several repeats, alternating; and the seconds that
compiling takes at first, and for a second policy of the same build.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel

SOURCES, K, NEW = 10, 3, 64
START: dict[str, Any] = {"decoder_start_token_id": 0}


def t5(width: int, layers: int, vocabulary: int) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            d_model=width,
            d_kv=max(16, width // 8),
            num_heads=width // max(16, width // 8),
            d_ff=4 * width,
            num_layers=layers,
            vocab_size=vocabulary,
            **START,
        )
    )


def llama(width: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 16 if width < 512 else width // 64,
            vocab_size=vocabulary,
        )
    )


MODELS = {  # how it is made, its size, and tokens of a source
    "T5, 64 wide": (t5, (64, 2, 2000), 60),
    "Llama, 64 wide": (llama, (64, 4, 2000), 60),
    "T5-small": (t5, (512, 6, 32128), 256),
    "Llama, 512 wide": (llama, (512, 8, 32000), 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=MODELS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    for name in [args.only] if args.only else MODELS:
        make, size, length = MODELS[name]
        sources = torch.randint(5, size[2], (SOURCES, length)).tolist()

        def seconds(lm: LanguageModel, compiled: bool, sources=sources) -> float:
            begin = clock()
            options = {"eos_ids": [], "batch_tokens": 10**6, "seed_key": (0,)}
            how = Decoding(False, NEW)
            names = [str(i) for i in range(SOURCES)]
            for _ in generate(lm, sources, names, k=K, decoding=how, compiled=compiled, **options):
                pass
            return clock() - begin

        torch.manual_seed(0)
        first, second = (LanguageModel(make(*size)).eval().to(args.device) for _ in range(2))
        begin = time.perf_counter()
        first.require_compiled()
        seconds(first, True)
        new = time.perf_counter() - begin
        begin = time.perf_counter()
        second.require_compiled()
        seconds(second, True)
        again = time.perf_counter() - begin
        found = [(seconds(first, False), seconds(first, True)) for _ in range(args.repeats)]
        usual, step = (statistics.median(column) for column in zip(*found, strict=True))
        ratios = sorted(a / b for a, b in found)
        tokens = SOURCES * K * NEW
        print(
            f"{name}: {tokens / usual:,.0f} tokens/s, compiled {tokens / step:,.0f}: "
            f"{statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
            f"first use {new:.0f} s, a second policy's {again:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
