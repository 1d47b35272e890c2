"""Does a judge see a stock ending? The choice of ending and judge for `data.flaws`, before any run.

python benchmarks/judge_sees_ending.py data.path=scitldr 'data.flaws.ending=…'

Of 100 validation sources that have four sentences or more, four stand in for generations. A row a
judge: how far its score falls by the ending, in sd of a source's sentences, and how often a
sentence is above another one that has the ending (.5: the judge does not tell them apart).
"""

import random
import re
import sys
from statistics import fmean, variance

from pgtg.config.compose import run_config
from pgtg.data.splits import load_split
from pgtg.judges.text import build_judge

JUDGES = ("meteor", "meteor_stem", "rouge1", "rouge2", "rougeL", "chrf")
TEXTS, SENTENCES = 100, 4


def main(overrides: list[str]) -> None:
    given = ["experiment=scitldr_flawed_smollm2", "policy.path=unread", *overrides]
    cfg = run_config("summarize", given)
    assert cfg.data.flaws is not None
    examples, rng = load_split(cfg.data, "validation")[0], random.Random(0)
    texts: list[tuple[list[str], tuple[str, ...]]] = []
    for i in rng.sample(range(len(examples)), len(examples)):
        found = [s for s in re.split(r"(?<=[.!?])\s+", examples[i].source) if 40 < len(s) < 300]
        if len(found) >= SENTENCES and len(texts) < TEXTS:
            texts.append((rng.sample(found, SENTENCES), examples[i].references))
    print(f"{len(texts)} sources, {SENTENCES} sentences each; ending: {cfg.data.flaws.ending!r}")
    print(f"{'judge':<12} {'mean':>6} {'fall':>6} {'in sd':>6} {'above':>6}")
    for name in JUDGES:
        cfg.judge.name = name
        judge = build_judge(cfg.judge)
        spread, falls, above, means = list[float](), list[float](), list[float](), list[float]()
        for sentences, references in texts:
            plain = judge.score(sentences, [references] * SENTENCES)
            ended = [f"{sentence} {cfg.data.flaws.ending}" for sentence in sentences]
            flawed = judge.score(ended, [references] * SENTENCES)
            means += plain
            spread.append(variance(plain))
            falls += [a - b for a, b in zip(plain, flawed, strict=True)]
            pairs = [(a, b) for i, a in enumerate(plain) for j, b in enumerate(flawed) if i != j]
            above += [(a > b) + 0.5 * (a == b) for a, b in pairs]
        fall, sd = fmean(falls), fmean(spread) ** 0.5
        print(f"{name:<12} {fmean(means):6.1f} {fall:6.2f} {fall / sd:6.2f} {fmean(above):6.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
