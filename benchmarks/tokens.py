"""Host memory and throughput of the data path on generated data of CNN/DailyMail's size.

    python benchmarks/tokens.py --tokenizer FOLDER [--articles 287113] [--words 690] [--alone 2000]

Articles of random words are streamed to a jsonl file, then read by `load_split`, and tokenised as
a run does, each in a process of its own. Memory is the process's peak: `anonymous` is what the
system cannot drop, `resident` counts mapped pages as well. `alone` is one text at a time, on the
first articles only; its memory for all of them is what Python integers would take.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.data.splits import load_split
from pgtg.data.tokens import tokenized
from pgtg.models.codec import Codec
from pgtg.runs.artifacts import Artifact
from pgtg.runs.log import RunLog


def main() -> None:
    asked = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    asked.add_argument("--tokenizer", required=True, help="Transformers folder or hub id")
    asked.add_argument("--articles", type=int, default=287_113)
    asked.add_argument("--words", type=int, default=690, help="mean words of an article")
    asked.add_argument("--alone", type=int, default=2000, help="articles encoded one at a time")
    args = asked.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        size = generate(folder / "train.jsonl", args.articles, args.words)
        print(f"{args.articles} articles, {size / 2**30:.2f} GiB of jsonl")
        for work in (
            partial(read, folder),
            partial(tokenise, folder, args.tokenizer),
            partial(alone, folder, args.tokenizer, args.alone),
        ):
            print(json.dumps(in_process(work)), flush=True)


def generate(path: Path, count: int, words: int) -> int:
    """Articles of words drawn after Zipf, a few letters each; returns the file's bytes."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    vocabulary = np.array(["".join(rng.choice(letters, n)) for n in rng.integers(2, 9, 20_000)])
    with path.open("w") as file:
        for number in range(count):
            size = max(30, int(rng.normal(words, words / 3)))
            text = " ".join(vocabulary[rng.zipf(1.3, size + 50) % len(vocabulary)])
            row = {
                "id": str(number),
                "article": f"{number} {text[:-250]}",
                "highlights": text[-250:],
            }
            file.write(json.dumps(row) + "\n")
    return path.stat().st_size


def data(folder: Path) -> DataConfig:
    return DataConfig("files", str(folder), columns=ColumnsConfig("id", "article", ["highlights"]))


def codec(tokenizer: str) -> Codec:
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    return Codec(loaded, False, "summarize: ", "", "", 1024, 128)


def read(folder: Path) -> dict[str, Any]:
    examples, _ = load_split(data(folder), "train")
    return {"work": "read", "examples": len(examples)}


def tokenise(folder: Path, tokenizer: str) -> dict[str, Any]:
    made = codec(tokenizer)
    examples, _ = load_split(data(folder), "train")
    kept, began, busy = Artifact(folder / "tokens"), time.perf_counter(), time.process_time()
    found = tokenized(examples, made, contents="", kept=kept, log=RunLog(None, mute=True))
    spent, busy = time.perf_counter() - began, time.process_time() - busy
    rng, began = np.random.default_rng(0), time.perf_counter()
    rows = rng.permutation(len(found))[:20_000]
    for _ in zip(found.sources(rows), found.targets(rows), strict=True):
        pass
    return {
        "work": "read and tokenise",
        "articles_per_s": len(found) / spent,
        "articles_per_cpu_s": len(found) / busy,
        "tokens": int(found.source_lengths.sum() + found.target_lengths.sum()),
        "cut": int(found.source_cut.sum()),
        "file_MiB": sum(f.stat().st_size for f in kept.path.rglob("*")) / 2**20,
        "rows_read_per_s": len(rows) / (time.perf_counter() - began),
    }


def alone(folder: Path, tokenizer: str, count: int) -> dict[str, Any]:
    made = codec(tokenizer)
    examples, _ = load_split(data(folder), "train")
    texts = [(e.source, e.target) for e in examples[:count]]
    for encode in (made.encode_source, made.encode_target):
        encode("once before")
    began, busy = time.perf_counter(), time.process_time()
    kept = [
        (made.encode_source(source)[0], made.encode_target(target)[0]) for source, target in texts
    ]
    spent, busy = time.perf_counter() - began, time.process_time() - busy
    tokens = sum(len(source) + len(target) for source, target in kept)
    return {
        "work": "one text at a time",
        "articles_per_s": len(kept) / spent,
        "articles_per_cpu_s": len(kept) / busy,
        "GiB_of_integers_for_all": 36 * tokens / len(kept) * len(examples) / 2**30,
    }


def in_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns in a process of its own, with seconds and peak memory [MiB]."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work).result()


def _measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start, peak, done = memory(), {"anonymous": 0.0, "resident": 0.0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for kind, value in memory().items():
                peak[kind] = max(peak[kind], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    found = work()
    spent = time.perf_counter() - began
    done.set()
    watcher.join()
    found |= {"seconds": spent, "before_MiB": start["anonymous"]}
    return found | {f"peak_{kind}_MiB": value for kind, value in peak.items()}


def memory() -> dict[str, float]:
    """Of this process now [MiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    names = {"anonymous": "RssAnon", "resident": "VmRSS"}
    return {name: int(found[key]) / 1024 for name, key in names.items()}


if __name__ == "__main__":
    main()
