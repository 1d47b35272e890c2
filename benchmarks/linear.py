"""A linear layer by torch and by oneDNN, forward and with its gradients, over shapes; and forward
by oneDNN with weights that were brought into its own order beforehand.

    python benchmarks/linear.py [--threads 1] [--repeats 5]

It is what `pgtg.models.backends.linear` decides by: GFLOPS of both ways (2 FLOPs per
multiplication, three times that with gradients), the best of several repeats, alternating. Where
the CPU is one on which torch is as fast, both ways are torch's own for a run; here both are
always called.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from pgtg.models.backends import linear

SHAPES = [  # rows, inputs, outputs
    *[(rows, 64, 64) for rows in (32, 256, 1024)],
    *[(rows, 512, 512) for rows in (1, 4, 24, 200, 4096)],
    *[(rows, 768, 3072) for rows in (1, 4, 24, 200, 4096)],
    *[(rows, 512, 32128) for rows in (24, 1536)],
]


def seconds(run: Callable[[], object]) -> float:
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.05:
        run()
        calls += 1
    return (time.perf_counter() - begin) / calls


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    taken = "oneDNN" if linear.onednn_is_faster() else "torch"
    print(f"pgtg takes {taken} here, from {linear.WORTHWHILE} multiplications on")
    print(f"{'rows':>5} {'in':>5} {'out':>6}  GFLOPS forward: torch, oneDNN, ordered", end="   ")
    print("with gradients: torch, oneDNN")
    for rows, inputs, outputs in SHAPES:
        x = torch.rand(rows, inputs, requires_grad=True)
        weight = torch.rand(outputs, inputs, requires_grad=True)
        grad, work = torch.rand(rows, outputs), 2e-9 * rows * inputs * outputs

        def forward(way: Callable, x=x, weight=weight) -> None:
            with torch.no_grad():
                way(x, weight, None)

        def both(way: Callable, x=x, weight=weight, grad=grad) -> None:
            torch.autograd.grad(way(x, weight, None), [x, weight], grad)

        with torch.no_grad():
            ready = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

        def ordered(x, _, bias, ready=ready):
            return linear._product(x, ready, bias)

        ways = [functional.linear, linear._Linear.apply]
        found = {(run, way): [] for run in (forward, both) for way in ways}
        found[forward, ordered] = []
        for _ in range(args.repeats):
            for run, way in found:
                found[run, way].append(seconds(lambda run=run, way=way: run(way)))
        one, two = [
            [work * n / min(found[run, way]) for way in own]
            for run, n, own in ((forward, 1, [*ways, ordered]), (both, 3, ways))
        ]
        print(
            f"{rows:5} {inputs:5} {outputs:6}  {one[0]:20.0f} {one[1]:7.0f} {one[2]:8.0f}"
            f" {two[0]:17.0f} {two[1]:7.0f}"
        )


if __name__ == "__main__":
    main()
