"""Tables of finished prompt searches: `python benchmarks/prompts.py RUN...`

One table a data set, as Markdown: a line for each aggregator, control and baseline, with one value
for each data seed, in the order of the seeds. A second one tells how the searches went, round by
round: the judge's mean score of the prompts that were sampled, and the share of pairs of them that
the reward model of the round before, which had not seen them, ordered as the judge did.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pgtg.runs.folder import RunFolder, read_jsonl

COLUMNS = "prompts judged | best train score | dev % | test % | test %, mean of top 3"


def joined(values: Iterable[str]) -> str:
    return " / ".join(values)


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def line(name: str, results: list[dict[str, Any]]) -> str:
    """One system's results on all data seeds."""
    searches = [result.get("search", {}) for result in results]
    best = [result["decodings"]["best"]["mean"]["accuracy"] for result in results]
    top = [result["decodings"].get("top", {}).get("mean", {}).get("accuracy") for result in results]
    cells = [
        [number(search.get("judged_prompts"), 0) for search in searches],
        [number(search.get("best_train_score")) for search in searches],
        [number(result["best_prompt"]["dev_accuracy"]) for result in results],
        [number(value) for value in best],
        [number(value) for value in top],
    ]
    return " | ".join([f"| {name}", *(joined(cell) for cell in cells)]) + " |"


def course(run: Path, name: str, label: str) -> str:
    rows = read_jsonl(run / "metrics.jsonl")

    def series(stage: str, key: str, scale: float = 1) -> str:
        found = [row[key] * scale for row in rows if row["stage"] == stage and key in row]
        return ", ".join(f"{value:.0f}" for value in found) or "–"

    stage = f"sample.{name}" if name else "sample"
    aligned = [
        json.loads(path.read_text())["metrics"].get("align/fresh_pair_accuracy")
        for path in sorted(run.glob("rounds/*/align/manifest.json"))
    ]
    fresh = ", ".join(f"{100 * value:.0f}" for value in aligned if value is not None)
    return f"| {label} | {series(stage, 'sample/train_mean_score')} | {'' if name else fresh} |"


def main(runs: list[Path]) -> None:
    tables: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    courses: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        cfg = RunFolder(run).open().config()
        data, seed, aggregator = cfg["name"], cfg["data_seed"], cfg["aggregator"]["name"]
        results = json.loads((run / "eval" / "results_test.json").read_text())
        for name, result in results.items():
            label = f"PGTG {aggregator}" if name == "pgtg" else name
            tables[data][label][seed] = result
        courses[data].append(course(run, "", f"PGTG {aggregator}, data seed {seed}"))
        if "random" in results:
            courses[data].append(course(run, "random", f"random, data seed {seed}"))
    for data, systems in tables.items():
        seeds = sorted({seed for found in systems.values() for seed in found})
        print(f"| {data}, data seeds {joined(map(str, seeds))} | {COLUMNS} |")
        print("|---|---|---|---|---|---|")
        for name, found in sorted(systems.items(), key=lambda one: not one[0].startswith("PGTG")):
            print(line(name, [found[seed] for seed in sorted(found)]))
        print(f"\n| {data} | judge's mean score of each round's prompts | fresh pairs % |")
        print("|---|---|---|")
        print("\n".join(courses[data]), end="\n\n")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
