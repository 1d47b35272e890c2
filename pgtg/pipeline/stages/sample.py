"""(A) Sample: K generations of each source from the policy, with the judge's scores; or the texts
that somebody has ranked already.

Sampling goes in chunks of sources. Each chunk is a file of its own, so a killed run samples on
where it stopped; the judge scores chunks in its processes while the next ones are generated. Where
the run has several processes, each samples and judges a share of every chunk.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from pgtg.data.comparisons import Comparisons
from pgtg.data.examples import Examples
from pgtg.data.generations import read_part
from pgtg.judges.judge import judged
from pgtg.methods import method_of
from pgtg.models.codec import Codec
from pgtg.models.language import LanguageModel
from pgtg.pipeline.context import Context
from pgtg.pipeline.reuse import (
    parent_files,
    rewardless,
    share,
    shared_settings,
    start_models,
)
from pgtg.runs.folder import Artifact, hash_of, write_table
from pgtg.runtime import distributed
from pgtg.tasks.task import Sampled, Stored, described, examples_hash
from pgtg.types import Example, Generations, TokenIds

PARTS = ("train", "heldout")
PENDING = 4  # chunks that may wait for the judge; a killed run loses them


def sample(ctx: Context, round: int, *, control: str = "") -> Artifact:
    """Draw and judge the generations of a round.

    Args:
        round: The policy at its start is sampled.
        control: Sample this control's policy instead of the method's.
    """
    artifact = ctx.artifact(round, "sample", control=control)
    if not isinstance(ctx.task.preferences, Sampled):
        return _stored(ctx, artifact, ctx.task.preferences, round)
    # a control that trains no policy samples its start policy in every round
    trained = control if "improve" in method_of(ctx.cfg, control).stages else None
    parents = ctx.parents(0) if trained is None else ctx.parents(round, control)
    part = ctx.settings("sample") | {"round": round}
    inputs = hash_of(parents, part | ({"control": control} if control else {}))
    if not ctx.made(artifact, inputs):
        share(
            ctx,
            artifact,
            inputs=inputs,
            stage=f"sample.{control}" if control else "sample",
            round=round,
            depends=lambda: _depends(ctx, round, control, parents),
            make=lambda: _make(ctx, artifact, inputs, round, control, trained is not None),
        )
    return artifact


def _depends(
    ctx: Context, round: int, control: str, parents: Sequence[Artifact]
) -> dict[str, Any] | None:
    """What the samples depend on; None if a reward model had a hand in their policy."""
    models = start_models(ctx)
    if models is None or (round > 0 and not rewardless(ctx, control)):
        return None
    return {
        "models": models,
        "parents": parent_files(parents),
        "line": control,
        "config": shared_settings(ctx, "sample"),
        "data": [ctx.task.contents("train"), examples_hash(ctx.task.heldout())],
        "judge": described(ctx.task),
    }


def _make(
    ctx: Context, artifact: Artifact, inputs: str, round: int, control: str, trained: bool
) -> None:
    working = artifact.working(inputs)
    lm, codec = ctx.load_policy(round, control) if trained else ctx.load_start()
    ctx.to_decode(lm)
    metrics: dict[str, float] = {}
    for part, examples in ctx.task.to_sample(round).items():
        cut = _sample_part(ctx, lm, codec, examples, part, round, working, control)
        assert ctx.task.judge is not None  # it is open where generations are judged
        ctx.task.judge.tell()
        generations = read_part(working, part)
        found = summary(generations, ctx.task.all_comparisons(generations))
        metrics |= {f"sample/{part}_{name}": value for name, value in found.items()}
        if cut:
            ctx.log.warn(
                f"sample: {cut} of {len(examples)} {part} sources were cut to "
                f"policy.max_source_tokens={ctx.cfg.policy.max_source_tokens}"
            )
        metrics[f"sample/{part}_sources_cut"] = cut
    ctx.log.metrics(f"sample.{control}" if control else "sample", round, 0, metrics)
    artifact.commit(
        inputs=inputs,
        metrics=metrics,
        position=ctx.committed(),
        round=round,
        judge=described(ctx.task),
        control=control,
    )


def _stored(ctx: Context, artifact: Artifact, ranked: Stored, round: int) -> Artifact:
    """Write the ranked texts of a round's sources: no policy has a hand in them."""
    contents = [ctx.task.contents("train"), examples_hash(ctx.task.heldout())]
    inputs = hash_of([], ctx.settings("sample") | {"round": round, "data": contents})
    if ctx.made(artifact, inputs):
        return artifact
    working, metrics = artifact.working(inputs), dict[str, float]()
    _, codec = ctx.load_start()
    for part, examples in ctx.task.to_sample(round).items():
        assert isinstance(examples, Examples)  # stored texts lie with their split
        shortened: list[str] = []
        for start in range(0, len(examples), ctx.cfg.sample.chunk):
            chunk = examples[start : start + ctx.cfg.sample.chunk]
            path = working / part / f"{start // ctx.cfg.sample.chunk:05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            columns, cut = ranked.columns(chunk, codec)
            write_table(path, columns)
            shortened += cut
        generations = read_part(working, part)
        found = summary(generations, ctx.task.all_comparisons(generations))
        _say_cut(ctx, part, ctx.task.sources(examples, codec).cut, shortened, len(examples))
        found["texts_cut"] = len(shortened)
        metrics |= {f"sample/{part}_{name}": value for name, value in found.items()}
    ctx.log.metrics("sample", round, 0, metrics)
    return artifact.commit(
        inputs=inputs,
        metrics=metrics,
        position=ctx.committed(),
        round=round,
        judge=described(ctx.task),
    )


def _say_cut(ctx: Context, part: str, prompts: int, texts: list[str], rows: int) -> None:
    """Rows that are too long, counted and named."""
    policy = ctx.cfg.policy
    if prompts:
        ctx.log.warn(
            f"sample: {prompts} of {rows} {part} prompts lost their beginning to "
            f"policy.max_source_tokens={policy.max_source_tokens}"
        )
    if texts:
        named = ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")
        ctx.log.warn(
            f"sample: {len(texts)} of {rows} {part} rows have a completion that was cut to "
            f"policy.max_target_tokens={policy.max_target_tokens}: {named}"
        )


def _sample_part(
    ctx: Context,
    lm: LanguageModel,
    codec: Codec,
    examples: Sequence[Example],
    part: str,
    round: int,
    working: Path,
    control: str,
) -> int:
    """Generate and judge one part, chunk by chunk; returns how many sources were cut."""
    encoded, size = ctx.task.sources(examples, codec), ctx.cfg.sample.chunk
    pending: deque[tuple[Path, dict, Future]] = deque()

    def finish(waiting: int) -> None:
        """Write what is judged, and wait until no more than so many chunks are not. Several
        processes write together, so none of them looks at how far its own judge is."""
        alone = distributed.count() == 1
        while pending and (len(pending) > waiting or (alone and pending[0][2].done())):
            path, columns, scores = pending.popleft()
            write_table(path, _gathered(columns, scores))

    title = f"sample.{control}" if control else "sample"
    with ctx.log.progress(f"{title} {part} round {round}", len(examples)) as bar:
        for start in range(0, len(examples), size):
            chunk = examples[start : start + size]
            path = working / part / f"{start // size:05d}.parquet"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                sources = distributed.share(encoded.ids[start : start + size])
                mine = distributed.share(chunk)
                columns = _generate(ctx, lm, codec, mine, sources, part, round)
                by_id = {example.id: example for example in mine}
                own = [by_id[i] for i in columns["source_id"]]
                assert ctx.task.judge is not None
                scores = ctx.task.judge(columns["tokens"], columns["text"], own, codec)
                pending.append((path, columns, scores))
                finish(PENDING)
            bar.advance(len(chunk))
        finish(0)
    return encoded.cut


def _gathered(columns: Mapping[str, list], scores: Future) -> dict[str, list]:
    """The columns of a chunk, judged, with those of all processes below each other."""
    parts = distributed.everyone(lambda: {**columns, **scores.result()})
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _generate(
    ctx: Context,
    lm: LanguageModel,
    codec: Codec,
    examples: Sequence[Example],
    sources: Sequence[TokenIds],
    part: str,
    round: int,
) -> dict[str, list]:
    """Columns of one chunk, K rows a source, in the order of the sources."""
    names, key = [example.id for example in examples], (ctx.cfg.seed, "sample", part, round)
    assert isinstance(ctx.task.preferences, Sampled)
    k = ctx.task.preferences.copies
    found = dict(ctx.sampler(lm, codec)(sources, names, k=k, seed_key=key))
    rows = [(i, tokens) for i in range(len(examples)) for tokens in found[i]]
    return {
        "source_id": [examples[i].id for i, _ in rows],
        "source": [list(sources[i]) for i, _ in rows],
        "tokens": [tokens for _, tokens in rows],
        "text": [codec.decode(tokens) for _, tokens in rows],
    }


def summary(generations: Generations, comparisons: Comparisons) -> dict[str, float]:
    """Counts and means of a part: what the judge thinks of the policy's samples."""
    scores = torch.tensor(judged(generations.scores, "generations"), dtype=torch.float64)
    lengths = [len(tokens) for tokens in generations.tokens]
    unjudged = len(generations.scores) - len(scores)
    found: dict[str, float] = {"unjudged": unjudged} if unjudged else {}
    return found | {
        "generations": len(generations.scores),
        "mean_score": scores.mean().item(),
        "best_score": scores.max().item(),
        "mean_tokens": sum(lengths) / len(lengths),
        "groups": len(comparisons) + comparisons.tied,
        "informative_groups": len(comparisons),
    }
