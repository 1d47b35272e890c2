"""Memory of two processes that train one model together, its weights whole or divided (FSDP2).

    python benchmarks/sharded.py [--layers 12] [--width 768]

T5-base's size with random weights, on CPUs (gloo), one thread each; two updates of a micro-batch
of 2 sources of 128 tokens for each process. Shown, of the larger process: its peak above what stood
before the model was made, and what it holds between updates (weights, Adam's moments). Linux only.
"""

import argparse
import multiprocessing
import os
import socket
from dataclasses import dataclass
from typing import Any

import torch
from bench import rows
from memory import held_mib, peak_mib
from transformers import T5Config, T5ForConditionalGeneration

from pgtg.config.compose import run_config
from pgtg.models.batch import token_batch
from pgtg.models.language import LanguageModel
from pgtg.runtime import distributed
from pgtg.training.update import Training, Where, update
from pgtg.types import Loss, TokenBatch, Window

COUNT = 2
START: dict[str, Any] = {"decoder_start_token_id": 0}
DIVIDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@dataclass(frozen=True)
class MeanSquare:
    lm: LanguageModel

    def count(self, batch: TokenBatch) -> Window:
        return Window(len(batch.tokens), int(batch.mask.sum()))

    def __call__(self, batch: TokenBatch, window: Window) -> Loss:
        return Loss(self.lm.logits(batch)[batch.mask].square().sum() / window.tokens, {})


def member(rank: int, port: int, told: dict[str, str], layers: int, width: int, results) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT}
    os.environ.update({name: str(value) for name, value in names.items()} | told)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.join("cpu")
    cfg = run_config("summarize", []).improve
    parts = [token_batch(rows(2, 128, i), rows(2, 32, i), range(2)) for i in range(COUNT)]
    before = held_mib()
    kept = []

    def train() -> None:
        config = T5Config(
            **START,
            d_model=width,
            d_kv=64,
            d_ff=4 * width,
            num_heads=width // 64,
            num_layers=layers,
            num_decoder_layers=layers,
        )
        lm = LanguageModel(T5ForConditionalGeneration(config).train())
        training = Training.begun(lm, cfg, Where(0, "improve", 0))
        makes = [lambda part=part: part for part in parts]
        for _ in range(2):
            update(training, lambda step: makes, MeanSquare(lm))
        kept.append(training)

    peak = peak_mib(train)
    results.put((peak, held_mib() - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    asked = parser.parse_args()
    # for the processes to come: what they free goes back to the system at once
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    for name, told in {"whole": {}, "divided": DIVIDED}.items():
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        results = context.Queue()
        given = (port, told, asked.layers, asked.width, results)
        members = [context.Process(target=member, args=(rank, *given)) for rank in range(COUNT)]
        for one in members:
            one.start()
        found = [results.get() for _ in members]
        for one in members:
            one.join()
        peak, held = (max(values) for values in zip(*found, strict=True))
        print(f"{name:<8} peak {peak:6.0f} MiB, held between updates {held:6.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
