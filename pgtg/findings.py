"""What a run found, as tables and plain sentences: also where the method does not help."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pgtg.log import RunLog
from pgtg.stages.context import Context
from pgtg.store import read_jsonl

Absent = Mapping[str, str]
NOT_COMPARED = ("tokens", "boilerplate", "rouge1", "rouge2", "rougeL")  # in the tables only


def show(log: RunLog, title: str, results: Mapping[str, Mapping[str, Any]], absent: Absent) -> None:
    """One table a decoding: a row a system, a column a metric."""
    decodings = next(iter(results.values()))["decodings"]
    for decoding in decodings:
        rows = {name: found["decodings"][decoding]["mean"] for name, found in results.items()}
        columns = list(next(iter(rows.values())))
        examples = next(iter(results.values()))["examples"]
        log.table(
            f"{title}, {decoding} decoding, {examples} examples (mean over examples, [0, 100])",
            ["policy", *columns],
            [
                [name, *(round(mean[column], 2) for column in columns)]
                for name, mean in rows.items()
            ],
        )
    for name, reason in absent.items():
        log.warn(f"metric {name} is absent: {reason}")


def compare(ours: Sequence[float], other: Sequence[float]) -> tuple[float, float, str]:
    """Mean paired difference, half of its 95 % interval (normal approximation), and a verdict."""
    differences = [a - b for a, b in zip(ours, other, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / max(n - 1, 1)
    half = 1.96 * math.sqrt(variance / n)
    verdict = "better" if mean > half else "worse" if mean < -half else "no difference shown"
    return mean, half, verdict


def verdicts(ctx: Context, split: str) -> None:
    """Say where the method helps, and where it does not, against its controls."""
    method = ctx.cfg.method.name
    for control in ctx.cfg.method.controls:
        for decoding in ctx.cfg.evaluate.decodings:
            ours, other = (_scores(ctx, split, name, decoding) for name in (method, control))
            said = []
            for column in ours:
                if column not in NOT_COMPARED:
                    mean, half, verdict = compare(ours[column], other[column])
                    said.append(f"{column} {mean:+.2f} ± {half:.2f} ({verdict})")
            ctx.log.say(f"{split}, {decoding}: {method} minus {control}: " + "; ".join(said))


def _scores(ctx: Context, split: str, system: str, decoding: str) -> dict[str, list[float]]:
    """Per-example scores by column."""
    path = ctx.folder.artifact("eval", split, system).file(f"samples_{decoding}.jsonl")
    rows = [row["scores"] for row in read_jsonl(path)]
    return {column: [row[column] for row in rows] for column in rows[0]}


def reward_table(ctx: Context, rounds: int) -> dict[str, float]:
    """Print the token rewards' worth beside the rulers; returns the last round's figures."""
    rows: list[list[Any]] = [["chance", 50.0, 0.5, 0.5, 0.5, 0.5]]
    found: dict[str, float] = {}
    for number in range(rounds):
        for head in ctx.heads(number)[::-1]:  # the one that guides comes last, and is returned
            found = ctx.artifact(number, "aggregate", head=head).manifest()["metrics"]
            name = head or f"{ctx.cfg.reward.head} (guides)"
            rows.append([f"round {number}: {name}", *_columns(found, "pair_accuracy", "")])
        rulers = {
            "log-probability under the start policy": ("log_prob_wins", "log_prob_"),
            "longer wins": ("longer_wins", None),
            "shorter wins": ("shorter_wins", None),
        }
        for name, (pairs, prefix) in rulers.items():
            rows.append([f"round {number}: ruler, {name}", *_columns(found, pairs, prefix)])
    planted = any(cell is not None for row in rows[1:] for cell in row[2:])
    columns = ["token reward", "pairs %", "boilerplate", "facts", "boilerplate|p", "facts|p"]
    title = "token rewards, held-out sources: pairs ordered as the judge does"
    if planted:
        title += "; AUC of content over boilerplate and of right over wrong facts (|p: within "
        title += "strata of equal log-probability)"
    width = len(columns) if planted else 2
    ctx.log.table(title, columns[:width], [row[:width] for row in rows])
    return {f"reward/{key.removeprefix('aggregate/')}": value for key, value in found.items()}


def _columns(found: Mapping[str, float], pairs: str, prefix: str | None) -> list[float | None]:
    """Pairs, then the AUCs of a reward (prefix "") or of the log-probability ruler."""
    aucs = []
    for name in ("auc_boilerplate", "auc_facts", "auc_boilerplate_within", "auc_facts_within"):
        key = f"aggregate/targets_{prefix}{name}"
        aucs.append(round(found[key], 3) if prefix is not None and key in found else None)
    value = found.get(f"aggregate/heldout_{pairs}")
    return [None if value is None else round(100 * value, 1), *aucs]
