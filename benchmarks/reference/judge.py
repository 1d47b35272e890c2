"""Row 9: METEOR of the same texts on both sides, and whether the scores are the same bits.

The reference computes one pair at a time through evaluate's metric; what is timed is its
`RewardModelTrainer.compute_rewards`. pgtg's pool has two worker processes, so wall time counts
there; a second measurement scores in the process itself. Every call has texts of its own.
"""

import statistics
from types import SimpleNamespace

import numpy as np
import shim
import torch
from measure import Meter, Row, quiet
from options import K, Options
from sizes import documents

from pgtg.config import TextJudgeConfig
from pgtg.judges.pool import JudgePool

Pair = tuple[str, str]


def pairs_of(options: Options, number: int) -> list[Pair]:
    """(text, reference): the summaries, and K corruptions of each that keep part of the words."""
    assert options.texts is not None
    rng, rows = np.random.default_rng(0), documents(options.texts)
    pairs: list[Pair] = []
    for row in rows * (1 + number // (K * len(rows))):
        found = row.get("summary") or row.get("target") or row.get("tldr") or row["references"]
        target = found[0] if isinstance(found, list) else found
        pool = row["document"].split()
        for _ in range(K):
            words = [
                word if rng.random() < 0.5 else pool[rng.integers(len(pool))]
                for word in target.split()
            ]
            words += [pool[i] for i in rng.integers(len(pool), size=int(rng.integers(10, 40)))]
            pairs.append((" ".join(words), target))
        if len(pairs) >= number:
            break
    return pairs[:number]


class Judges:
    """Both sides' METEOR on the same blocks of pairs."""

    def __init__(self, options: Options) -> None:
        self.size = options.sources * K * 10
        pairs = pairs_of(options, self.size * (options.repeats + 3) * 2)
        self.blocks = [pairs[i : i + self.size] for i in range(0, len(pairs), self.size)]
        with quiet():
            self.metric = shim.meteor()

    def warm(self, pool: JudgePool) -> None:
        for _ in range(4):  # each worker opens WordNet at its first texts
            _score(pool, self.blocks[-1])

    def measured(self, meter: Meter, label: str, target: str, pool: JudgePool) -> Row:
        compute_rewards = shim.module("reward_model").RewardModelTrainer.compute_rewards
        given = {"reference": iter(self.blocks), "ours": iter(self.blocks)}
        scores: dict[str, list[float]] = {"reference": [], "ours": []}

        def kept(**pair: list[str]) -> dict[str, float]:
            # compute_rewards rounds to float32: the metric's own numbers are kept as well
            found = self.metric.compute(**pair)
            scores["reference"].append(found["meteor"])
            return found

        holder = SimpleNamespace(metric=SimpleNamespace(compute=kept), device=torch.device("cpu"))

        def reference() -> None:
            block = next(given["reference"])
            texts, targets = [text for text, _ in block], [target for _, target in block]
            compute_rewards(holder, texts, targets)

        def ours() -> None:
            scores["ours"] += _score(pool, next(given["ours"]))

        row = meter.compare(label, target, reference, ours)
        if row:
            pairs = zip(scores["reference"], scores["ours"], strict=True)
            row["bit_equal"] = all(100.0 * a == b for a, b in pairs)
            mean = statistics.mean(scores["ours"])
            print(
                f"   {len(scores['ours'])} scores, bit-equal: {row['bit_equal']}; mean {mean:.1f}"
            )
        return row


def _score(pool: JudgePool, block: list[Pair]) -> list[float]:
    return pool.score([text for text, _ in block], [[target] for _, target in block])


def row9(options: Options, meter: Meter) -> Row:
    judges = Judges(options)
    label = f"9 METEOR, {judges.size} pairs"
    with JudgePool(TextJudgeConfig("meteor", 2)) as pool:
        judges.warm(pool)
        workers = judges.measured(meter, f"{label}, 2 workers (wall time counts)", ">=8", pool)
    inline = judges.measured(
        meter, f"{label}, pgtg inline", "-", JudgePool(TextJudgeConfig("meteor", 0))
    )
    return {"workers": workers, "inline": inline}
