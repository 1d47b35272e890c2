"""Evaluation of texts: decode a split, score each text, report means over examples.

Every text and every score is kept (`samples_*.jsonl`), so that any mean can be recomputed. A metric
whose resource is missing is reported as absent, with the reason.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from pgtg.config import RunConfig
from pgtg.data.examples import Examples
from pgtg.data.splits import has_split
from pgtg.judges.reference import scored_against
from pgtg.methods import method_of
from pgtg.metrics import build_metrics, compute, unread, unread_line
from pgtg.metrics.sentences import build_splitter
from pgtg.models.codec import Codec
from pgtg.models.generate import Decoding, Sampler
from pgtg.models.language import LanguageModel
from pgtg.ops.statistics import REFERENCES
from pgtg.pipeline.context import Context
from pgtg.pipeline.evaluation import compared
from pgtg.pipeline.evaluation.likelihood import likelihoods
from pgtg.pipeline.evaluation.system import Results, Rows, System
from pgtg.pipeline.findings import show, verdicts
from pgtg.pipeline.stages.improve import kept_policy
from pgtg.pipeline.stages.lines import lines
from pgtg.runs.folder import content_hash
from pgtg.runtime.device import pick_device
from pgtg.types import Example, TokenIds

RL4LMS = Decoding(False, 100, temperature=0.7, min_new_tokens=49)  # 50 with the start token
LATER = ("min_new_tokens",)  # of a decoding: left out where it is 0, as in older results
NOTED = 0.02  # share of the references' letters that a metric may miss without a word


class TextEvaluation:
    """Greedy and sampled texts of each policy against the references.

    Args:
        cfg: Its `metrics` section names the metrics.
    """

    reads_references = True  # whether likelihoods of references are measured as well

    def __init__(self, cfg: RunConfig):
        present, self.absent = build_metrics(cfg.metrics, str(pick_device(cfg.device)))
        protocol = cfg.evaluate.protocol
        if protocol != "pgtg":
            under = [getattr(metric, "under", None) for metric in present]
            pairs = zip(present, under, strict=True)
            present = [metric if how is None else how(protocol) for metric, how in pairs]
        self.present = present

    def systems(self, ctx: Context) -> list[System]:
        """The start policy, the method's and those of its controls."""
        found = []
        if ctx.cfg.evaluate.start_policy:
            found.append(System("start", None, ctx.parents(0)))
        for control in ("", *ctx.cfg.method.alongside):
            if (write := method_of(ctx.cfg, control).write) is not None:
                name = control or ctx.cfg.method.name
                found.append(System(name, control=control, write=write))
        for control in lines(ctx, "improve"):
            _, folder, artifact = kept_policy(ctx, len(ctx.task.segments()), control)
            found.append(System(control or ctx.cfg.method.name, folder, [artifact], control))
        return found

    def unavailable(self, ctx: Context, split: str) -> str | None:
        there = has_split(ctx.cfg.data, split)
        return None if there else f"data.splits.{split} is null, so the data has none"

    def depends_on(self, ctx: Context) -> Mapping[str, Any]:
        metrics = [dict(metric.describe()) for metric in self.present]
        return ctx.settings("evaluate") | {"metrics": metrics}

    def results(self, ctx: Context, system: System, split: str) -> tuple[Results, dict[str, Rows]]:
        """Results and per-example rows by decoding ("greedy", "sample")."""
        task = ctx.task.targets
        assert task is not None  # the methods of this task need them
        examples = task.to_evaluate(split)
        lm, codec = ctx.load_start() if system.policy is None else ctx.load(system.policy)
        ctx.to_decode(lm)
        encoded = ctx.task.sources(examples, codec)
        how = ctx.cfg.evaluate.reference
        references = [scored_against(example, codec, how) for example in examples]
        results: dict[str, Any] = {
            "system": system.name,
            "split": split,
            "examples": len(examples),
            "sources_cut": encoded.cut,
            "reference": how,
            "references_cut": _cut(codec, examples) if how == "as_trained" else 0,
            "data": content_hash([[e.id, e.source, list(e.references)] for e in examples]),
            "metrics": [dict(metric.describe()) for metric in self.present],
            "absent": dict(self.absent),
            "unread": unread(self.present, references),
            "decodings": {},
        }
        samples = {}
        for name in ctx.cfg.evaluate.decodings:
            sampler = ctx.sampler(lm, codec, greedy=name == "greedy")
            if ctx.cfg.evaluate.protocol == "rl4lms":
                sampler = replace(sampler, decoding=RL4LMS)
            if system.write is None:
                title = f"evaluate {system.name} on {split}, {name}"
                key = ctx.cfg.seed, "evaluate", split
                tokens = _sampled(ctx, sampler, encoded.ids, [e.id for e in examples], key, title)
                texts = [codec.decode(ids) for ids in tokens]
            else:
                split_of = build_splitter(ctx.cfg.metrics.sentence_splitter)
                texts = [system.write(e.source, split_of) for e in examples]
                tokens = [ids for ids, _ in codec.encode_targets(texts)]
            columns = compute(self.present, texts, references) | task.check_texts(texts, examples)
            columns |= self.more(ctx, lm, codec, examples, tokens, name)
            columns["tokens"] = [float(len(ids)) for ids in tokens]
            columns["ended"] = [100.0 * any(i in codec.eos_ids for i in ids[-1:]) for ids in tokens]
            drawn = {k: v for k, v in asdict(sampler.decoding).items() if v or k not in LATER}
            results["decodings"][name] = {
                "decoding": drawn,
                "mean": _means(columns),
            }
            samples[name] = [
                {"id": e.id, "text": text, "references": list(references[i]), "tokens": tokens[i]}
                | _row(columns, i)
                for i, (e, text) in enumerate(zip(examples, texts, strict=True))
            ]
        if self.reads_references and system.write is None:
            columns = likelihoods(ctx, lm, codec, examples)
            results["decodings"][REFERENCES] = {
                "decoding": {"teacher_forced": True},
                "mean": _means(columns),
            }
            samples[REFERENCES] = [{"id": e.id} | _row(columns, i) for i, e in enumerate(examples)]
        return results, samples

    def more(
        self,
        ctx: Context,
        lm: LanguageModel,
        codec: Codec,
        examples: Examples,
        tokens: Sequence[TokenIds],
        decoding: str,
    ) -> dict[str, list[float]]:
        """Further columns of what a policy wrote, a value for each example."""
        return {}

    def show(self, ctx: Context, title: str, split: str, results: Mapping[str, Results]) -> None:
        if REFERENCES in next(iter(results.values()))["decodings"] and len(results) > 1:
            compared.table(ctx, title, results)
            for name, reason in self.absent.items():
                ctx.log.warn(f"metric {name} is absent: {reason}")
        else:
            show(ctx.log, title, results, self.absent)
        for name, share in next(iter(results.values())).get("unread", {}).items():
            if share >= NOTED:
                ctx.log.warn(unread_line(name, share))

    def verdicts(self, ctx: Context, splits: Sequence[str]) -> None:
        if not self.reads_references:
            verdicts(ctx, splits)
            return
        compared.answers(ctx, splits)
        for split in splits[-1:]:
            compared.texts(ctx, split)


def _sampled(
    ctx: Context,
    sampler: Sampler,
    sources: Sequence[TokenIds],
    names: Sequence[str],
    key: Sequence[int | str],
    title: str,
) -> list[TokenIds]:
    """One text of each source, in tokens, with a bar."""
    found: dict[int, TokenIds] = {}
    with ctx.log.progress(title, len(sources)) as bar:
        for i, (ids,) in sampler(sources, names, seed_key=key):
            found[i] = ids
            bar.advance()
    return [found[i] for i in range(len(sources))]


def _means(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each column, without texts that have no score in it: nobody judged them."""
    return {
        column: fmean(score for score in row if not math.isnan(score))
        for column, row in columns.items()
    }


def _row(columns: Mapping[str, Sequence[float]], i: int) -> dict[str, dict[str, float | None]]:
    """The scores of one text, as they are kept."""
    scores = {column: row[i] for column, row in columns.items()}
    return {"scores": {c: None if math.isnan(score) else score for c, score in scores.items()}}


def _cut(codec: Codec, examples: Sequence[Example]) -> int:
    """Examples with a reference that is cut to policy.max_target_tokens."""
    return sum(any(codec.encode_target(r)[1] for r in e.references) for e in examples)
