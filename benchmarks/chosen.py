"""Log-probabilities of given tokens and their gradients: from all logits, and some rows at a time.

    python benchmarks/chosen.py [--threads 1] [--repeats 5] [--largest 49152]

A line is the median over the repeats of (CPU time from all logits / CPU time of
`pgtg.models.backends.chosen`), alternating, and the seconds of either; frozen: no gradient in the
LM head's own weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pgtg.models.backends.chosen import chosen_log_prob
from pgtg.models.backends.linear import linear
from pgtg.ops.sampling import log_probability

SHAPES = [(900, 64, 1000), (512, 512, 32128), (1024, 576, 49152)]  # rows, size of a state, words


def of_logits(states: Tensor, weight: Tensor, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = linear(states, weight, None)
    return log_probability(logits.float(), tokens)


def seconds(way: Callable[[], Tensor], wanted: list[Tensor]) -> float:
    begin = time.process_time()
    torch.autograd.grad(way().mean(), wanted)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", type=int, default=49152, help="vocabulary")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(" rows  state   words  products  head       ratio   all logits [s]   by rows [s]")
    for rows, width, words in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for trained in (False, True):
                if words > args.largest:
                    continue
                states = torch.randn(rows, width, requires_grad=True)
                weight = (torch.randn(words, width) * 0.05).requires_grad_(trained)
                wanted = [states, weight] if trained else [states]
                inputs = (states, weight, torch.randint(words, (rows,)), dtype)
                ways = [partial(way, *inputs) for way in (of_logits, chosen_log_prob)]
                for way in ways:
                    seconds(way, wanted)
                pairs = [[seconds(way, wanted) for way in ways] for _ in range(args.repeats)]
                ratio = statistics.median(one / other for one, other in pairs)
                one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
                name, head = str(dtype).removeprefix("torch."), "trained" if trained else "frozen"
                print(
                    f"{rows:5} {width:6} {words:7}  {name:8}  {head:7} {ratio:8.2f}"
                    f" {one:15.4f} {other:13.4f}"
                )


if __name__ == "__main__":
    main()
