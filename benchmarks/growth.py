"""How time and memory grow with K, lengths, sources and model size; memory of long sampling.

    python benchmarks/growth.py [--repeats 3] [--only "K"] [--stream 10000 100000] [--save]

A reward step (forward, backward, update) and sampling at T5-small's width, one thread, random
weights; one thing grows at a time. Time is the process's CPU time, the median of repeats that
alternate over the sizes; memory is the peak above what stood before a first call, in a process of
its own (Linux only). Each curve is fitted by a + b x: R2 says how straight it is. `--save` writes
benchmarks/growth.json and growth.svg. `--stream` runs `pgtg sample` at these numbers of generations
and shows the peak memory of the process: what is generated goes to disk chunk by chunk.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import rows, stepped
from memory import children_mib, peak_mib
from transformers import T5Config, T5ForConditionalGeneration

from pgtg.config import AggregatorConfig
from pgtg.models.batch import token_batch
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, build_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.pipeline.stages.align import GroupBatch, PlackettLuce

START: dict[str, Any] = {"decoder_start_token_id": 0}
SAVED = Path(__file__).with_name("growth.json")


@dataclass(frozen=True)
class Size:
    """What one call works on."""

    sources: int = 4
    source_tokens: int = 256
    k: int = 3
    tokens: int = 32
    layers: int = 2


GROWING: dict[str, tuple[str, list[int]]] = {
    "K": ("k", [2, 4, 8, 12]),
    "source tokens": ("source_tokens", [128, 256, 512, 1024]),
    "generated tokens": ("tokens", [16, 32, 64, 128]),
    "sources": ("sources", [2, 4, 8, 16]),
    "layers": ("layers", [1, 2, 4, 6]),
}


def model(size: Size) -> LanguageModel:
    config = T5Config(**START, num_layers=size.layers, num_decoder_layers=size.layers)
    return LanguageModel(T5ForConditionalGeneration(config).eval())


def sampling(size: Size) -> Callable[[], None]:
    lm, sources = model(size), rows(size.sources, size.source_tokens, 0)
    names, decoding = [str(i) for i in range(size.sources)], Decoding(False, size.tokens, top_k=50)
    limits = {"eos_ids": [], "batch_tokens": 10**9}

    def run() -> None:
        for _ in generate(lm, sources, names, k=size.k, decoding=decoding, seed_key=(0,), **limits):
            pass

    return run


def reward_step(size: Size) -> Callable[[], None]:
    reward = build_reward_model(model(size), HeadSpec("paper", "softplus", 2048), 0)
    sources = rows(size.sources, size.source_tokens, 0)
    tokens = rows(size.sources * size.k, size.tokens, 1)
    batch = token_batch(sources, tokens, [i // size.k for i in range(len(tokens))])
    groups = torch.arange(len(tokens)).reshape(size.sources, size.k)
    compared = GroupBatch(batch, groups, torch.rand(groups.shape))
    objective = PlackettLuce(reward, Aggregator.of(AggregatorConfig("avg", 2.0, False)))
    return stepped(reward, lambda: objective(compared, objective.count(compared)).value)


WORK = {"sampling": sampling, "reward step": reward_step}


def peak_elsewhere(work: str, size: Size) -> float:
    """Peak memory of a first call above what stood before it [MiB], in a process of its own."""
    command = [sys.executable, __file__, "--peak", json.dumps([work, asdict(size)])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cpu_seconds(run: Callable[[], None]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def straightness(x: list[int], y: list[float]) -> float:
    """R2 of the least-squares line through the points."""
    found = np.polyval(np.polyfit(x, y, 1), x)
    return float(1 - np.square(found - y).sum() / np.square(np.array(y) - np.mean(y)).sum())


def curve(work: str, field: str, values: list[int], repeats: int) -> dict[str, list[float]]:
    sizes = [replace(Size(), **{field: value}) for value in values]
    memory = [peak_elsewhere(work, size) for size in sizes]
    calls = [WORK[work](size) for size in sizes]
    for call in calls:  # warm up
        call()
    times = [[cpu_seconds(call) for call in calls] for _ in range(repeats)]
    return {"seconds": [statistics.median(t) for t in zip(*times, strict=True)], "mib": memory}


def plot(found: dict[str, dict], path: Path) -> None:
    """One panel for each thing that grows; time and memory relative to the first size."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3.4), squeeze=False)
    for panel, (name, curves) in zip(panels[0], found.items(), strict=True):
        x = GROWING[name][1]
        for colour, (work, row) in zip(("tab:blue", "tab:orange"), curves.items(), strict=True):
            for key, style in (("seconds", "-o"), ("mib", "--s")):
                y = np.array(row[key]) / row[key][0]
                label = f"{work}, {'time' if key == 'seconds' else 'memory'}"
                panel.plot(x, y, style, color=colour, label=label, markersize=4)
        panel.plot(x, np.array(x) / x[0], ":", color="grey", label="proportional")
        panel.set(xlabel=name, xlim=(0, None), ylim=(0, None))
    panels[0][0].set_ylabel("relative to the smallest")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def stream(generations: int) -> float:
    """Peak memory [MiB] of `pgtg sample` at so many generations, the default's model untrained."""
    k = 5
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "run_dir": f"{folder}/run",
            "cache": "off",
            "data.newswire.train": generations // k + 100,
            "sample.sources": generations // k,
            "sample.heldout_sources": 10,
            "sample.k": k,
            "policy.tiny_t5.copy_updates": 1,
            "policy.tiny_t5.warm_start.updates": 1,
        }
        options = [f"{key}={value}" for key, value in given.items()]
        full = [sys.executable, "-m", "pgtg", "sample", "summarize", *options]
        subprocess.run(full, check=True, capture_output=True)
    return children_mib()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=GROWING)
    parser.add_argument("--stream", type=int, nargs="*")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak is not None:
        work, size = json.loads(args.peak)
        print(peak_mib(WORK[work](Size(**size))))
        return
    if args.stream is not None:
        for generations in sorted(args.stream):
            print(f"{generations:7} generations: peak memory {stream(generations):.0f} MiB")
        return
    found: dict[str, dict] = {}
    for name in [args.only] if args.only else GROWING:
        field, values = GROWING[name]
        found[name] = {}
        for work in WORK:
            row = curve(work, field, values, args.repeats)
            found[name][work] = row | {name: values}
            for key, unit in (("seconds", "s CPU"), ("mib", "MiB")):
                shown = "  ".join(f"{x}: {y:.3g}" for x, y in zip(values, row[key], strict=True))
                print(
                    f"{name:<17} {work:<12} {shown} {unit}  R2 {straightness(values, row[key]):.3f}"
                )
    if args.save:
        SAVED.write_text(json.dumps(found, indent=1) + "\n")
        plot(found, SAVED.with_suffix(".svg"))


if __name__ == "__main__":
    main()
