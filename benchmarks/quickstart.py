"""Median and spread over seeds of what quickstart runs found, as a Markdown table.

pgtg train summarize -m seed=0,1,2 run_dir=outputs/bars
python benchmarks/quickstart.py outputs/bars/*
"""

import json
import statistics
import sys
from pathlib import Path


def main(folders: list[str]) -> None:
    runs = [Path(folder) for folder in folders if (Path(folder) / "summary.json").is_file()]
    if not runs:
        sys.exit(__doc__)
    rows: dict[str, list[float]] = {}
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        start = json.loads((run / "rounds/00/aggregate/manifest.json").read_text())["metrics"]
        for name, value in start.items():
            rows.setdefault(name.replace("aggregate/", "round 0 "), []).append(value)
        for name, value in summary.items():
            if name.startswith("reward/"):
                rows.setdefault(name.replace("reward/", "last round "), []).append(value)
        results = json.loads((run / "eval/results_test.json").read_text())
        for system, found in results.items():
            for decoding, inner in found["decodings"].items():
                for column, value in inner["mean"].items():
                    rows.setdefault(f"test {decoding} {system} {column}", []).append(value)
    print(f"| figure ({len(runs)} seeds) | median | min | max |\n|---|---|---|---|")
    for name, values in rows.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.4g} | {min(values):.4g} | {max(values):.4g} |")


if __name__ == "__main__":
    main(sys.argv[1:])
