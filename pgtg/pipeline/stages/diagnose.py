"""Diagnose: is the learned credit the judge's own? Asked of the last round, after all training.

- *Staleness*: how the reward model of round i orders the samples of round j.
- *Faithfulness*: the judge's score after deleting the k tokens of highest reward, against k random
  ones; and the rank correlation, within a text, of rewards with what leaving each token out costs.

It never feeds back into training.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pgtg.data.generations import read_generations
from pgtg.models.reward import load_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.credit import spearman
from pgtg.ops.sampling import derive_seed
from pgtg.pipeline.context import Context
from pgtg.pipeline.stages.align import PlackettLuce, group_batch, heldout_metrics
from pgtg.runs.folder import Artifact, hash_of, write_json
from pgtg.tasks.task import Judge
from pgtg.types import TokenIds

MOST_DELETED = 3  # tokens
MOST_ROUNDS = 5  # of many, as many are compared, evenly spaced


def diagnose(ctx: Context) -> Artifact:
    """Write staleness.json and faithfulness.json, with their means as metrics."""
    rounds = range(len(ctx.task.segments()))
    aligned = [ctx.artifact(i, "align") for i in rounds]
    samples = [ctx.need(ctx.artifact(i, "sample"), "sample") for i in rounds]
    artifact = ctx.folder.artifact("diagnostics")
    inputs = hash_of([*aligned, *samples], ctx.settings("diagnose"))
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    stale = staleness(ctx, aligned, samples)
    write_json(working / "staleness.json", stale)
    metrics: dict[str, float] = {}
    judge = ctx.task.judge  # without one nobody can say what deleting a token costs
    if judge is not None and not judge.alone:
        ctx.log.say(
            "diagnose: what deleting a token costs is not asked: this judge compares texts of a "
            "source with each other"
        )
    elif judge is not None:
        faithful = faithfulness(ctx, judge, aligned[-1], samples[-1])
        write_json(working / "faithfulness.json", faithful)
        metrics = {f"diagnose/{name}": value for name, value in faithful["means"].items()}
    ctx.log.metrics("diagnose", rounds[-1], 0, metrics)
    return artifact.commit(inputs=inputs, metrics=metrics, position=ctx.committed())


def part_of(ctx: Context) -> str:
    """Held-out generations where a run samples some; else those that were learned from."""
    return "heldout" if ctx.cfg.sample.heldout_sources else "train"


def staleness(
    ctx: Context, aligned: Sequence[Artifact], samples: Sequence[Artifact]
) -> list[dict[str, float]]:
    """Pair accuracy of each kept reward model on each round's samples; some rounds of many."""
    steps = np.linspace(0, len(aligned) - 1, min(len(aligned), MOST_ROUNDS))
    chosen = sorted({round(step) for step in steps})
    rows = []
    for i in chosen:
        folder = aligned[i].file("reward")
        if not any(folder.glob("*.safetensors")):
            continue  # keep_rounds=last has dropped it
        model = load_reward_model(folder).to(ctx.device).eval()
        ctx.to_read(*model.language_models)
        objective = PlackettLuce(model, Aggregator.of(ctx.cfg.aggregator))
        for j in chosen:
            generations = read_generations(samples[j], part_of(ctx))
            compared = ctx.task.all_comparisons(generations)
            if len(compared):
                parts = compared.split(ctx.cfg.reward.fit.micro_batch)
                batches = [group_batch(generations, each, ctx.device) for each in parts]
                found = heldout_metrics(objective, batches)["align/heldout_pair_accuracy"]
                rows.append({"reward_round": i, "sample_round": j, "pair_accuracy": found})
    return rows


def faithfulness(
    ctx: Context, judge: Judge, aligned: Artifact, samples: Artifact
) -> dict[str, Any]:
    """What deleting tokens costs by the judge, for the first evaluate.diagnose generations."""
    generations = read_generations(samples, part_of(ctx))
    rows = [row for row, score in enumerate(generations.scores) if not math.isnan(score)]
    rows = rows[: ctx.cfg.evaluate.diagnose]
    codec = ctx.load_start()[1]
    special = set(codec.tokenizer.all_special_ids)
    model = load_reward_model(aligned.file("reward")).to(ctx.device).eval()
    ctx.to_read(*model.language_models)
    tokens = [generations.tokens[row] for row in rows]
    origin = [generations.origin[row] for row in rows]
    values = ctx.per_token(model, generations.sources, tokens, origin)
    open_to = [[t for t, token in enumerate(ids) if token not in special] for ids in tokens]
    wanted = {generations.source_ids[i] for i in origin}
    parts = ctx.task.to_sample(len(ctx.task.segments()) - 1).values()
    examples = {e.id: e for part in parts for e in part if e.id in wanted}
    own = [examples[generations.source_ids[i]] for i in origin]

    def scores(kept: Sequence[TokenIds], of: Sequence[int]) -> list[float]:
        texts = [codec.decode(ids) for ids in kept]
        return judge(kept, texts, [own[i] for i in of], codec).result()["score"]

    places = list(range(len(rows)))
    before = [generations.scores[row] for row in rows]
    curve = []
    for k in range(1, MOST_DELETED + 1):
        usable = [i for i in places if len(open_to[i]) > k]
        if not usable:
            break
        top = [_without(tokens[i], _highest(values[i], open_to[i], k)) for i in usable]
        chance = [_without(tokens[i], _random(ctx, i, open_to[i], k)) for i in usable]
        after = {"highest": scores(top, usable), "random": scores(chance, usable)}
        known = [n for n, pair in enumerate(zip(*after.values(), strict=True)) if finite(pair)]
        if not known:
            continue
        base = float(np.mean([before[usable[n]] for n in known]))
        curve.append(
            {"deleted": k, "texts": len(known)}
            | {name: float(np.mean([row[n] for n in known])) - base for name, row in after.items()}
        )
    return {
        "curve": curve,
        "means": _means(curve, _left_out(tokens, values, open_to, before, scores)),
    }


def finite(scores: Sequence[float]) -> bool:
    """Whether all of them were judged."""
    return not any(map(math.isnan, scores))


def _left_out(tokens, values, open_to, before, scores) -> list[float]:
    """Per text, Spearman correlation of a token's reward with what leaving it out costs."""
    found = []
    for i, ids in enumerate(tokens):
        if len(open_to[i]) < 3:
            continue
        after = scores([_without(ids, [t]) for t in open_to[i]], [i] * len(open_to[i]))
        cost = [before[i] - score for score in after]
        if not finite(cost):
            continue
        rho = spearman([float(values[i][t]) for t in open_to[i]], cost)
        if not np.isnan(rho):
            found.append(rho)
    return found


def _means(curve: Sequence[dict[str, float]], correlations: Sequence[float]) -> dict[str, float]:
    found = {
        f"{kind}_{row['deleted']:.0f}_deleted": row[kind]
        for row in curve
        for kind in ("highest", "random")
    }
    if correlations:
        found["leave_one_out_spearman"] = float(np.mean(correlations))
    return found | {"texts": float(len(correlations))}


def _without(ids: TokenIds, places: Sequence[int]) -> TokenIds:
    return [token for t, token in enumerate(ids) if t not in set(places)]


def _highest(values: np.ndarray, places: Sequence[int], k: int) -> list[int]:
    return sorted(places, key=lambda t: (-values[t], t))[:k]


def _random(ctx: Context, row: int, places: Sequence[int], k: int) -> list[int]:
    rng = np.random.default_rng(derive_seed(ctx.cfg.seed, "diagnose", row, k))
    return [places[i] for i in rng.permutation(len(places))[:k]]
