"""The end of a run whose policies write texts: one table, an answer to each control's question, and
what a learned reward says of two texts. All else is in the report.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pgtg.config.registry import MethodSpec, controls_of
from pgtg.methods import method_of
from pgtg.models.reward import load_reward_model
from pgtg.ops.statistics import (
    ALPHA,
    REFERENCES,
    SEEDS,
    Comparison,
    answer,
    compare,
    corrected,
    word_of,
)
from pgtg.pipeline.context import Context
from pgtg.pipeline.evaluation.system import Results
from pgtg.pipeline.findings import scores_of
from pgtg.runs.folder import read_jsonl

FIRST = ("NLL", "gain %", "greedy", "sample")  # columns that a narrow terminal shows as well
SHOWN = 2  # texts
LEAST = 1e-6  # smaller p are not told apart


def table(ctx: Context, title: str, results: Mapping[str, Results]) -> None:
    """A row a policy: likelihoods of what it did not write, the judge of what it did, and what its
    token weights are like; "gain": its NLL's way from the baseline's to that of planted truth."""
    gains = recovered(ctx, {name: _mean(found, REFERENCES) for name, found in results.items()})
    rows: list[dict[str, Any]] = []
    for name, found in results.items():
        read = _mean(found, REFERENCES)
        row: dict[str, Any] = {"policy": name, "NLL": read.get("nll"), "gain %": gains.get(name)}
        for column, key in (("facts", "nll_facts"), ("end", "nll_end"), ("flaws", "nll_flaws")):
            row[column] = read.get(key)
        for decoding in ctx.cfg.evaluate.decodings:
            row[decoding] = _judged(ctx, _mean(found, decoding))
        row |= _weights(ctx, name)
        rows.append(row)
    columns = [c for c in rows[0] if any(row.get(c) is not None for row in rows)]
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    said = [f"NLL of clean references [nats a text]; {', '.join(ctx.cfg.evaluate.decodings)}: "]
    said += [f"{_metric(ctx, next(iter(results.values())))} of own texts"]
    if "gain %" in columns:
        said += ["; gain: the share of planted truth's gain in NLL that is recovered"]
    if "on flaws" in columns:
        said += ["; on flaws: token weight on planted flaws [%]"]
    if "share" in columns:
        said += ["; share: effective share of the tokens"]
    count = next(iter(results.values()))["examples"]
    ctx.log.table(f"{title}, {count} texts. {''.join(said)}", columns, cells, first=FIRST)


def recovered(ctx: Context, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of each policy: (NLL of the baseline - its own) / (NLL of the baseline - planted truth's) in
    percent; nothing where a run lacks one of the two."""
    specs = {name: spec for name, spec in _controls(ctx).items() if name in means}
    base = [name for name, spec in specs.items() if spec.baseline]
    best = [name for name, spec in specs.items() if spec.planted]
    if not base or not best or any("nll" not in row for row in means.values()):
        return {}
    start, whole = means[base[0]]["nll"], means[base[0]]["nll"] - means[best[0]]["nll"]
    return {name: 100 * (start - row["nll"]) / whole for name, row in means.items() if whole > 0}


def answers(ctx: Context, splits: Sequence[str]) -> None:
    """A sentence a control: its question, the answer on these texts, and the evidence.

    The evidence is the NLL of references and the judge's score of own texts, with Holm's correction
    over all that is said.
    """
    method = ctx.cfg.method.name
    found: dict[tuple[str, str, str], tuple[Comparison, float, float]] = {}
    for split in splits:
        for control in ctx.cfg.method.alongside:
            decodings = [*ctx.cfg.evaluate.decodings[-1:]]
            if not any(method_of(ctx.cfg, one).write for one in ("", control)):
                decodings.insert(0, REFERENCES)  # what only writes has no likelihood of a reference
            for decoding in decodings:
                ours, other = (scores_of(ctx, split, name, decoding) for name in (method, control))
                column = "nll" if decoding == REFERENCES else _metric_of(ctx, ours)
                pair = [np.array(scores[column], float) for scores in (ours, other)]
                if (one := compare({"": pair[0]}, {"": pair[1]})) is not None:
                    ours_mean, theirs_mean = (float(np.nanmean(side)) for side in pair)
                    found[split, control, column] = one, ours_mean, theirs_mean
    if not found:
        return
    family = corrected([one for one, *_ in found.values()])
    shown = dict(zip(found, family, strict=True))
    for split in splits:
        for control, spec in _controls(ctx).items():
            evidence = {
                column: one for (s, c, column), one in shown.items() if (s, c) == (split, control)
            }
            if not evidence:
                continue
            words = [word_of(one, column) for column, one in evidence.items()]
            parts = []
            for (column, one), word in zip(evidence.items(), words, strict=True):
                _, ours, theirs = found[split, control, column]
                p = f"p {one.p_holm:.0e}" if one.p_holm >= LEAST else f"p < {LEAST:.0e}"
                p = p if one.p_holm < ALPHA else word
                parts.append(f"{column} {ours:.2f} against {theirs:.2f} ({p})")
            where = f", {split}" if len(splits) > 1 else ""
            line = (
                f"{spec.question or f'Better than {control}?'} {answer(words)}: {control}{where}, "
            )
            ctx.log.say(line + "; ".join(parts))
    ctx.log.say(
        f"On these texts, corrected for {len(shown)} comparisons. One seed decides nothing: "
        f"`-m seed=0,1,2,3,4` makes more than the {SEEDS} that `pgtg report` needs."
    )


def texts(ctx: Context, split: str) -> None:
    """The first texts that training changed, before and after, each token with its reward."""
    decoding = ctx.cfg.evaluate.decodings[0]
    pair = [_samples(ctx, split, name, decoding) for name in ("start", ctx.cfg.method.name)]
    aligned = ctx.artifact(len(ctx.task.segments()) - 1, "align")
    if not all(pair) or not aligned.exists():
        return
    changed = [i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a["text"] != b["text"]]
    assert ctx.task.targets is not None  # the methods of this task need them
    examples = ctx.task.targets.to_evaluate(split)
    model = load_reward_model(aligned.file("reward")).to(ctx.device).eval()
    _, codec = ctx.load_start()
    for i in changed[:SHOWN]:
        source = list(ctx.task.sources(examples[i : i + 1], codec).ids)
        for name, rows in zip(("before", "after"), pair, strict=True):
            tokens = rows[i]["tokens"]
            (rewards,) = ctx.per_token(model, source, [tokens], [0])
            words = codec.tokenizer.convert_ids_to_tokens(tokens)
            told = " ".join(f"{w} {r:.2f}" for w, r in zip(words, rewards, strict=True))
            head = f"{examples[i].id} {name}, each token with its reward: "
            ctx.log.say(head + told)


def _controls(ctx: Context) -> dict[str, MethodSpec]:
    known = controls_of(ctx.cfg.task)
    return {name: known[name] for name in ctx.cfg.method.alongside}


def _mean(found: Results, decoding: str) -> dict[str, float]:
    return found["decodings"].get(decoding, {}).get("mean", {})


def _metric_of(ctx: Context, columns: Mapping[str, Any]) -> str:
    """The judge's own metric where it is one, else the first."""
    return ctx.cfg.judge.name if ctx.cfg.judge.name in columns else next(iter(columns))


def _metric(ctx: Context, found: Results) -> str:
    return _metric_of(ctx, _mean(found, ctx.cfg.evaluate.decodings[0]))


def _judged(ctx: Context, mean: Mapping[str, float]) -> float | None:
    return mean[_metric_of(ctx, mean)] if mean else None


def _weights(ctx: Context, name: str) -> dict[str, float | None]:
    """Part of the token weights on flaws [%], and the effective share of the tokens, in the line's
    last round; nothing for the start."""
    control = "" if name == ctx.cfg.method.name else name
    made = ctx.artifact(len(ctx.task.segments()) - 1, "improve", control=control)
    if not made.exists():
        return {"on flaws": None, "share": None}
    metrics = made.manifest()["metrics"]
    on_flaws = metrics.get("improve/weight_on_flaws")
    share = metrics.get("improve/effective_share")
    return {"on flaws": None if on_flaws is None else 100 * on_flaws, "share": share}


def _samples(ctx: Context, split: str, system: str, decoding: str) -> list[dict[str, Any]]:
    path = ctx.folder.artifact("eval", split, system).file(f"samples_{decoding}.jsonl")
    return read_jsonl(path) if path.is_file() else []


def _cell(column: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value) if column == "gain %" else round(value, 2)
