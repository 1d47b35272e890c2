"""(C) Aggregate: sequence evaluations of the scored generations, held against judge and baselines.

Baselines are what needs no learning: "longer wins", and the start policy's own mean
log-probability. Where truth is planted, the same is asked of single tokens of the held-out targets.
"""

import math

import torch
from torch import Tensor

from pgtg.data.comparisons import Comparisons
from pgtg.data.generations import read_generations
from pgtg.ops.aggregate import Aggregator, padded
from pgtg.ops.credit import relations, spread
from pgtg.ops.masking import masked_mean
from pgtg.ops.ranking import (
    auc,
    calibration_error,
    kendall_tau,
    pair_accuracy,
    pair_margins,
    plackett_luce_nll,
    stratified_auc,
    top1_accuracy,
)
from pgtg.pipeline.context import Context
from pgtg.runs.folder import Artifact, hash_of, read_table, write_table
from pgtg.types import Generations

SHOWN = 100  # generations of a round that a tracker shows


def aggregate(ctx: Context, round: int, *, head: str = "") -> Artifact:
    """Write evaluations per sequence, and how well they order the generations as the judge does."""
    samples = ctx.need(ctx.artifact(round, "sample"), "sample")
    scored = ctx.need(ctx.artifact(round, "score", head=head), "score")
    artifact = ctx.artifact(round, "aggregate", head=head)
    inputs = hash_of([samples, scored], ctx.settings("aggregate"))
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    metrics: dict[str, float] = {}
    for part in ctx.cfg.reward.score:
        table = read_table(scored.file(f"{part}.parquet"))
        if not table["reward"]:  # sample.heldout_sources=0
            found = {"groups": 0.0}
            empty: dict[str, list] = {"source_id": [], "evaluation": [], "score": []}
            write_table(working / f"{part}.parquet", empty)
        elif part == "targets":
            found = token_truth(table)
        else:
            generations = read_generations(samples, part)
            evaluations = _evaluations(ctx, generations, table)
            columns = {"source_id": table["source_id"], "evaluation": evaluations.tolist()}
            write_table(working / f"{part}.parquet", columns | {"score": generations.scores})
            comparisons = ctx.task.all_comparisons(generations)
            found = _ranking(generations, comparisons, evaluations, table)
            lengths = [float(len(row)) for row in table["reward"]]
            if not head:
                _show(ctx, part, round, generations, evaluations)
            found |= spread(Aggregator.of(ctx.cfg.aggregator).weights_of(table["reward"]))
            rows = zip(
                table["source_id"], lengths, evaluations.tolist(), generations.scores, strict=True
            )
            found |= relations(*zip(*(row for row in rows if not math.isnan(row[-1])), strict=True))
        metrics |= {f"aggregate/{part}_{name}": value for name, value in found.items()}
    metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
    name = f"aggregate.{head}" if head else "aggregate"
    ctx.log.metrics(name, round, 0, metrics)
    return artifact.commit(
        inputs=inputs, metrics=metrics, position=ctx.committed(), round=round, head=head
    )


def _evaluations(ctx: Context, generations: Generations, table: dict) -> Tensor:
    """e of each generation, in the group that it was sampled in."""
    rewards, mask = padded(table["reward"])
    grouped = Aggregator.of(ctx.cfg.aggregator).groups(rewards, mask, generations.groups)
    out, there = torch.zeros(len(rewards), dtype=rewards.dtype), generations.groups >= 0
    return out.scatter(0, generations.groups[there], grouped[there])


def _show(
    ctx: Context, part: str, round: int, generations: Generations, evaluations: Tensor
) -> None:
    """The first generations with judge's score and evaluation, for a tracker to show."""
    columns = ["source", "text", "judge's score", "evaluation"]
    rows = [
        [generations.source_ids[origin], text, score, value]
        for origin, text, score, value in zip(
            generations.origin[:SHOWN],
            generations.texts[:SHOWN],
            generations.scores[:SHOWN],
            evaluations[:SHOWN].tolist(),
            strict=True,
        )
    ]
    ctx.log.rows(f"generations_{part}", round, columns, rows)


def _ranking(
    generations: Generations, comparisons: Comparisons, evaluations: Tensor, table: dict
) -> dict[str, float]:
    """How evaluations and baselines order the groups that hold a preference."""
    groups, preference = comparisons.groups, comparisons.preference
    if not len(groups):
        return {"groups": 0}
    lengths = torch.tensor([len(t) for t in generations.tokens], dtype=torch.float64)[groups]
    log_probs = masked_mean(*padded(table["start_log_prob"]))[groups]
    chosen = evaluations[groups]
    found = {
        "groups": len(groups),
        "pair_accuracy": pair_accuracy(chosen, preference),
        "kendall_tau": kendall_tau(chosen, preference),
        "top1_accuracy": top1_accuracy(chosen, preference),
        "nll": plackett_luce_nll(chosen, preference, comparisons.margin).mean().item(),
        "log_prob_wins": pair_accuracy(log_probs, preference),
    }
    margins = pair_margins(chosen, preference)
    found["margin"] = margins.mean().item()
    found["calibration_error"] = calibration_error(margins)
    if lengths.min() < lengths.max():
        found["longer_wins"] = pair_accuracy(lengths, preference)
        found["shorter_wins"] = pair_accuracy(-lengths, preference)
    return found


def token_truth(table: dict) -> dict[str, float]:
    """AUCs of token rewards and of the log-probability baseline against the planted labels.

    `auc_flaws`: a right token above a harmful one, the first of a wrong word or of a tail.
    `auc_boilerplate`: a right word of the summary above one of the tail. `auc_facts`: a right slot
    word above a wrong one. `_within`: the same within ten strata of log-probability.
    """
    if "label" not in table:
        return {}
    labels = [label for row in table["label"] for label in row]
    reward = torch.tensor([value for row in table["reward"] for value in row])
    baseline = torch.tensor([value for row in table["start_log_prob"] for value in row])

    def where(*names: str) -> Tensor:
        return torch.tensor([label in names for label in labels])

    # of a flaw, the first token alone does harm: after it, the rest of it is what fits
    harmful = torch.tensor(
        [
            at == first
            for row, first in zip(table["label"], table["flaw_at"], strict=True)
            for at in range(len(row))
        ]
    )
    pairs = {
        "flaws": (where("content", "fact", "end"), harmful),
        "boilerplate": (where("content", "fact"), where("boilerplate")),
        "facts": (where("fact"), where("wrong")),
    }
    found: dict[str, float] = {}
    for name, (up, down) in pairs.items():
        found[f"auc_{name}"] = auc(reward[up], reward[down])
        found[f"log_prob_auc_{name}"] = auc(baseline[up], baseline[down])
        found[f"auc_{name}_within"] = stratified_auc(
            reward[up], reward[down], baseline[up], baseline[down]
        )
    return found | _same_states(table)


def _same_states(table: dict) -> dict[str, float]:
    """Shares of first flaws whose right token has the higher value at the same state.

    `end_over_tail`: to stop, over the first word of boilerplate. `right_over_wrong`: the right slot
    word over the wrong one. What a policy learns at a state is decided by these alone.
    """
    found: dict[str, float] = {}
    for name, kind in {"end_over_tail": "boilerplate", "right_over_wrong": "wrong"}.items():
        for prefix, column in {"": "reward", "log_prob_": "start_log_prob"}.items():
            won = [
                right > row[at]
                for at, right, row, labels in zip(
                    table["flaw_at"],
                    table[f"right_{column}"],
                    table[column],
                    table["label"],
                    strict=True,
                )
                if at >= 0 and labels[at] == kind
            ]
            found[f"{prefix}{name}"] = sum(won) / len(won) if won else math.nan
    return found
