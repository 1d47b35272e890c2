"""What reading each source once is worth: reward forward + backward, K generations a source.

    python benchmarks/encode_once.py [--sources 2] [--source-tokens 512] [--tokens 64] [--k 3]

A T5-small of random weights. "shared" is what pgtg does; "copied" hands it every source K times, as
the paper's released code does. The two alternate; the figure is the median of the ratios.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from pgtg.models.batch import token_batch
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, build_reward_model

START: dict[str, Any] = {"decoder_start_token_id": 0}


def seconds(model: torch.nn.Module, batch) -> float:
    begin = time.perf_counter()
    model(batch)[batch.mask].sum().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("sources", 2), ("source-tokens", 512), ("tokens", 64), ("k", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = T5Config(**START, d_ff=2048, num_layers=6, num_decoder_layers=6)
    model = build_reward_model(
        LanguageModel(T5ForConditionalGeneration(config)), HeadSpec("paper", "softplus", 2048), 0
    )
    generator = torch.Generator().manual_seed(0)

    def rows(number: int, length: int) -> list[list[int]]:
        return torch.randint(5, 32000, (number, length), generator=generator).tolist()

    sources = rows(args.sources, args.source_tokens)
    tokens = rows(args.sources * args.k, args.tokens)
    origin = [i // args.k for i in range(len(tokens))]
    shared = token_batch(sources, tokens, origin)
    copied = token_batch([sources[i] for i in origin], tokens, range(len(tokens)))
    pairs = [(seconds(model, copied), seconds(model, shared)) for _ in range(args.repeats + 1)][1:]
    ratios = [slow / fast for slow, fast in pairs]
    print(f"copied / shared: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    print(f"shared: {statistics.median(fast for _, fast in pairs):.2f} s, k={args.k}")


if __name__ == "__main__":
    main()
