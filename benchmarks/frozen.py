"""What kept states of frozen layers save: `python benchmarks/frozen.py MODEL [--top 4] [--rows 8]`

A training update (forward, backward, Adam) of a causal model's top layers, and a pass that gives
log-probabilities, each on the same rows, `--share` of them (1) on one source: as ever, with states
that are computed for it (each text alone through the layers below), and with kept ones. The three
in turn, one thread; printed is time over that of the usual pass, median (lowest to highest), in
wall and in CPU time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pgtg.models.batch import token_batch
from pgtg.models.dropout import silence_dropout
from pgtg.models.frozen import KeptStates
from pgtg.models.loading import load_language_model, train_only_top_layers
from pgtg.ops.masking import masked_sum

SIZE = 2**31  # of what is kept [bytes]


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time and CPU time of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    asked = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    asked.add_argument("model")
    for name, value in {
        "top": 4,
        "rows": 8,
        "source": 260,
        "target": 40,
        "share": 1,
        "repeats": 7,
    }.items():
        asked.add_argument(f"--{name}", type=int, default=value)
    args = asked.parse_args()
    torch.set_num_threads(1)
    lm, _ = load_language_model(args.model)
    silence_dropout(lm.model)
    train_only_top_layers(lm, args.top)
    generator = torch.Generator().manual_seed(0)
    shape = (args.rows, args.source + args.target)
    rows = torch.randint(5, 1000, shape, generator=generator)
    # of unequal lengths, as texts are
    cut = torch.randint(args.source * 3 // 4, args.source + 1, (args.rows,), generator=generator)
    sources = [row[:end].tolist() for row, end in zip(rows, cut.tolist(), strict=True)]
    sources = sources[:: args.share]
    targets = rows[:, args.source :].tolist()
    origin = [row // args.share for row in range(args.rows)]
    batch = token_batch(sources, targets, origin, recurring=True)
    trained = [p for p in lm.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-6, fused=True)

    def update() -> None:
        lm.train()
        (-masked_sum(lm.log_probabilities(batch), batch.mask)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def log_probabilities() -> None:
        lm.eval()
        lm.log_probabilities(batch)

    for run in (update, log_probabilities):
        found: dict[str, list[tuple[float, float]]] = {"as ever": [], "computed": [], "kept": []}
        for _ in range(args.repeats + 1):
            lm.frozen = None
            found["as ever"].append(seconds(run))
            if not lm.keep_frozen(args.top, KeptStates(SIZE)):
                raise SystemExit(f"{args.model} keeps no states")
            assert lm.frozen is not None
            lm.frozen.digest()  # once for a model that is loaded
            found["computed"].append(seconds(run))
            found["kept"].append(seconds(run))
        usual = found.pop("as ever")[1:]  # the first of all warms up
        print(f"{run.__name__}, as ever: {statistics.median(wall for wall, _ in usual):.2f} s")
        for name, times in found.items():
            for place, kind in enumerate(("wall", "CPU")):
                own = [a[place] / b[place] for a, b in zip(times[1:], usual, strict=True)]
                middle = statistics.median(own)
                print(f"  states {name}: {middle:.2f} ({min(own):.2f} to {max(own):.2f}) {kind}")


if __name__ == "__main__":
    main()
