"""Evaluation: decode a split, score each text, report means over examples.

Every text and every score is kept (`samples_*.jsonl`), so that any mean can be recomputed. A metric
whose resource is missing is reported as absent, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pgtg.compose import run_config
from pgtg.config import RunConfig
from pgtg.errors import ArtifactError
from pgtg.findings import show
from pgtg.log import RunLog
from pgtg.metrics import TextMetric, build_metrics, compute
from pgtg.models.codec import Codec
from pgtg.models.generate import generate
from pgtg.models.language import LanguageModel
from pgtg.stages.context import Context, opened, quiet
from pgtg.store import Artifact, RunFolder, content_hash, hash_of, write_json, write_jsonl

Absent = Mapping[str, str]


def evaluate(
    ctx: Context,
    system: str,
    split: str,
    policy: Path | None,
    parents: Sequence[Artifact],
    metrics: tuple[list[TextMetric], Absent],
) -> dict[str, Any]:
    """Results of one policy on one split, computed once and kept in the run folder.

    Args:
        system: Name of the policy in tables: "start", the method, a control.
        policy: Its Transformers folder; None for the policy that the run starts from.
        parents: Artifacts that hold the policy.
        metrics: What `build_metrics` gave.
    """
    artifact = ctx.folder.artifact("eval", split, system)
    described = [dict(metric.describe()) for metric in metrics[0]]
    part = ctx.config_part("data", "policy", "sample", "evaluate")
    inputs = hash_of(parents, part | {"split": split, "metrics": described, "system": system})
    if ctx.made(artifact, inputs):
        return artifact.manifest()["extra"]["results"]
    working = artifact.working(inputs)
    lm, codec = ctx.load_start() if policy is None else ctx.load(policy)
    results, samples = evaluate_policy(ctx, lm, codec, system, split, metrics)
    for decoding, rows in samples.items():
        write_jsonl(working / f"samples_{decoding}.jsonl", rows)
    write_json(working / "results.json", results)
    flat = {
        f"eval/{decoding}_{name}": value
        for decoding, found in results["decodings"].items()
        for name, value in found["mean"].items()
    }
    ctx.log.metrics(f"eval.{system}.{split}", 0, 0, flat)
    artifact.commit(inputs=inputs, metrics=flat, position=ctx.committed(), results=results)
    return results


def evaluate_policy(
    ctx: Context,
    lm: LanguageModel,
    codec: Codec,
    system: str,
    split: str,
    metrics: tuple[list[TextMetric], Absent],
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Results and per-example rows by decoding ("greedy", "sample")."""
    present, absent = metrics
    examples = ctx.task.to_evaluate(split)
    encoded = [codec.encode_source(example.source) for example in examples]
    references = [example.references for example in examples]
    results: dict[str, Any] = {
        "system": system,
        "split": split,
        "examples": len(examples),
        "sources_cut": sum(was_cut for _, was_cut in encoded),
        "data": content_hash([[e.id, e.source, list(e.references)] for e in examples]),
        "metrics": [dict(metric.describe()) for metric in present],
        "absent": dict(absent),
        "decodings": {},
    }
    samples = {}
    for name in ctx.cfg.evaluate.decodings:
        decoding = ctx.greedy() if name == "greedy" else ctx.sampling()
        found: dict[int, list[int]] = {}
        with ctx.log.progress(f"evaluate {system} on {split}, {name}", len(examples)) as bar:
            for i, tokens in generate(
                lm,
                [ids for ids, _ in encoded],
                [example.id for example in examples],
                k=1,
                eos_ids=codec.eos_ids,
                decoding=decoding,
                batch_tokens=ctx.cfg.sample.batch_tokens,
                seed_key=(ctx.cfg.seed, "evaluate", split),
            ):
                found[i] = tokens[0]
                bar.advance()
        texts = [codec.decode(found[i]) for i in range(len(examples))]
        columns = compute(present, texts, references) | ctx.task.check_texts(texts, examples)
        columns["tokens"] = [float(len(found[i])) for i in range(len(examples))]
        results["decodings"][name] = {
            "decoding": asdict(decoding),
            "mean": {column: sum(row) / len(row) for column, row in columns.items()},
        }
        samples[name] = [
            {"id": e.id, "text": text, "references": list(e.references), "tokens": found[i]}
            | {"scores": {column: row[i] for column, row in columns.items()}}
            for i, (e, text) in enumerate(zip(examples, texts, strict=True))
        ]
    return results, samples


def evaluate_saved(
    path: Path,
    *,
    split: str,
    metrics: list[str] | None,
    overrides: list[str],
    cfg: RunConfig | None,
) -> dict[str, Any]:
    """`pgtg eval`: the policy of a run folder, or a plain Transformers folder (then with `cfg`).

    Raises:
        ArtifactError: The run has no trained policy yet.
    """
    run = RunFolder(path)
    if cfg is None:
        run.open()
        saved = run.config()
        cfg = run_config(str(saved["task"]), overrides, saved=saved)
        artifact = run.artifact("policy")
        if not artifact.exists():
            raise ArtifactError(f"{path} holds no trained policy yet: `pgtg train` finishes it")
        artifact.verify()
        policy, out = artifact.path, run.path / "eval"
    else:
        policy, out = path, None
    if metrics:
        cfg = replace(cfg, metrics=replace(cfg.metrics, names=metrics))
    present, absent = build_metrics(cfg.metrics)
    log = RunLog(None, quiet=quiet())
    ctx = opened(cfg, run, log)
    lm, codec = ctx.load(policy)
    results, samples = evaluate_policy(ctx, lm, codec, "policy", split, (present, absent))
    if out is not None:
        with run.lock():
            out.mkdir(exist_ok=True)
            write_json(out / f"policy_{split}.json", results)
            for decoding, rows in samples.items():
                write_jsonl(out / f"policy_{split}_{decoding}.jsonl", rows)
        log.say(f"written to {out}")
    show(log, f"{path} on {split}", {"policy": results}, absent)
    return results
