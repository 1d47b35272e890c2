"""Bars of the prompt task's embedded default: `python benchmarks/reviews.py RUN...`

For each finished run of `pgtg train prompt` on the generated reviews: scores of random prompts
under the run's own judge, the optimum by coordinate ascent, and where each line of the run stands:

- mean score of its newest 16 judged prompts, against the 95th percentile of single random prompts;
- its best judged prompt, against the 90th percentile of the best of as many random prompts.

Then the median over the runs, with the lowest and highest.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np

from pgtg.config.compose import run_config
from pgtg.data.worlds import reviews
from pgtg.judges.template import Prompt
from pgtg.runs.folder import RunFolder
from pgtg.tasks import open_task
from pgtg.tasks.prompt import PromptTask

RANDOM, RESAMPLES, RESTARTS = 3000, 2000, 3


def bars(run: Path) -> dict[str, dict[str, float]]:
    """Figures of one run, by line; "world" holds those of random prompts and the optimum."""
    folder = RunFolder(run)
    folder.open()
    cfg = run_config("prompt", [], saved=folder.config())
    world = cfg.data.reviews
    assert world is not None
    words, length = reviews.candidates(world), cfg.sample.max_new_tokens
    with open_task(cfg, run) as task:
        assert isinstance(task, PromptTask)

        def judge(prompts: list[tuple[str, ...]]) -> list[float]:
            asked = [Prompt(" ".join(words)) for words in prompts]
            return task.gaps(asked, "train").mean(-1, dtype=np.float64).tolist()

        random = np.array(judge(reviews.random_prompts(words, length, RANDOM, 1)))
        best_words, best = reviews.optimum(judge, words, length, 0, RESTARTS)
    results = json.loads((run / "eval" / "results_test.json").read_text())
    found: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        if "search" not in result:
            continue
        search = result["search"]
        rng = np.random.default_rng(0)
        budget = search["judged_prompts"]
        tops = np.sort(rng.choice(random, (RESAMPLES, budget)).max(-1))
        bar_mean, bar_best = np.quantile(random, 0.95), np.quantile(tops, 0.9)
        found[name] = {
            "last_mean": search["last_mean_score"],
            "over_p95": search["last_mean_score"] - bar_mean,
            "best": search["best_train_score"],
            "over_p90": search["best_train_score"] - bar_best,
            "share_of_optimum": 100 * search["best_train_score"] / best,
            "test": result["decodings"]["best"]["mean"]["accuracy"],
        }
    budget = next(iter(results.values()))["search"]["judged_prompts"]
    tops = np.random.default_rng(0).choice(random, (RESAMPLES, 320)).max(-1)
    found["world"] = {
        "random_mean": float(random.mean()),
        "random_p95": float(np.quantile(random, 0.95)),
        "best_of_320": float(tops.mean()),
        "best_of_320_p90": float(np.quantile(tops, 0.9)),
        "optimum": best,
        "best_of_320_share": 100 * float(tops.mean()) / best,
    }
    print(f"{run}: optimum {' '.join(best_words)!r}", file=sys.stderr)
    return found


def main(runs: list[Path]) -> None:
    figures = [bars(run) for run in runs]
    for name in figures[0]:
        print(name)
        for key in figures[0][name]:
            values = [found[name][key] for found in figures]
            middle = statistics.median(values)
            print(f"  {key:<20} {middle:8.1f}  ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
