"""Attention of few queries on a CPU: torch's kernel, and two products (pgtg.models.backends).

    python benchmarks/attention.py [--threads 1] [--repeats 9]

Float32, head size 64, a mask of numbers that is added to the scores, keys and values of six layers
after one another so that none is in the processor's cache. Milliseconds of a layer, median, calls
alternating; the products once with values as they come, once in columns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from pgtg.models.backends.attention import by_products, in_columns

LAYERS, WIDTH = 6, 64
# rows, heads and keys: a decoder over 8 and 32 sources, its own tokens, GPT-2's prompts
SHAPES = [(8, 8, 512), (32, 8, 512), (96, 8, 40), (24, 12, 128)]
QUERIES = [1, 2, 3, 4, 8]


def milliseconds(calls: list[Callable[[int], object]], repeats: int) -> list[float]:
    """Of a layer, for each of the calls."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, found, strict=True):
            begin = time.perf_counter()
            for layer in range(LAYERS):
                call(layer)
            times.append(1000 * (time.perf_counter() - begin) / LAYERS)
    return [statistics.median(times) for times in found]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print("rows heads keys  queries  kernel [ms]  products  in columns")
    for rows, heads, length in SHAPES:
        shape = rows, heads, length, WIDTH
        keys, values = ([torch.randn(shape) for _ in range(LAYERS)] for _ in range(2))
        columns = [in_columns(value) for value in values]
        for number in QUERIES:
            query = torch.randn(rows, heads, number, WIDTH)
            mask = torch.zeros(1, heads, number, length)

            def kernel(i: int) -> object:
                return scaled_dot_product_attention(query, keys[i], values[i], mask)  # noqa: B023

            def products(i: int) -> object:
                return by_products(query, keys[i], values[i], [mask])  # noqa: B023

            def laid_out(i: int) -> object:
                return by_products(query, keys[i], columns[i], [mask])  # noqa: B023

            times = milliseconds([kernel, products, laid_out], asked.repeats)
            shown = "  ".join(f"{one:9.3f} ({one / times[0]:.2f})" for one in times)
            print(f"{rows:4} {heads:5} {length:4}  {number:7}  {shown}", flush=True)


if __name__ == "__main__":
    main()
