"""(A) Sample: K generations of each source from the policy, with the judge's scores.

Sampling goes in chunks of sources. Each chunk is a file of its own, so a killed run samples on
where it stopped; the judge scores one chunk in its processes while the next is generated.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import torch

from pgtg.errors import DataError
from pgtg.models.codec import Codec
from pgtg.models.generate import generate
from pgtg.models.language import LanguageModel
from pgtg.ops.ranking import informative
from pgtg.stages.context import Context
from pgtg.store import Artifact, hash_of, read_table, write_table
from pgtg.types import Example, Generations, TokenIds

PARTS = ("train", "heldout")


def sample(ctx: Context, round: int) -> Artifact:
    """Draw and judge the generations of a round.

    Raises:
        DataError: The judge gave equal scores to all generations of every source.
    """
    artifact = ctx.artifact(round, "sample")
    inputs = hash_of(
        ctx.parents(round), ctx.config_part("data", "policy", "sample", "judge") | {"round": round}
    )
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    lm, codec = ctx.load_policy(round)
    metrics: dict[str, float] = {}
    for part, examples in ctx.task.to_sample(round).items():
        cut = _sample_part(ctx, lm, codec, examples, part, round, working)
        generations = _read(working, part)
        metrics |= {f"sample/{part}_{k}": v for k, v in summary(generations).items()}
        if cut:
            ctx.log.warn(
                f"sample: {cut} of {len(examples)} {part} sources were cut to "
                f"policy.max_source_tokens={ctx.cfg.policy.max_source_tokens}"
            )
        metrics[f"sample/{part}_sources_cut"] = cut
    if metrics["sample/train_informative_groups"] == 0:
        raise DataError(
            f"judge {ctx.cfg.judge.name} gave equal scores to all generations of each of the "
            f"{ctx.cfg.sample.sources} sources: there is no preference to learn from; try a higher "
            "sample.temperature or another judge"
        )
    ctx.log.metrics("sample", round, 0, metrics)
    judge = dict(ctx.judge.describe())
    return artifact.commit(
        inputs=inputs, metrics=metrics, position=ctx.committed(), round=round, judge=judge
    )


def _sample_part(
    ctx: Context,
    lm: LanguageModel,
    codec: Codec,
    examples: Sequence[Example],
    part: str,
    round: int,
    working: Path,
) -> int:
    """Generate and judge one part, chunk by chunk; returns how many sources were cut."""
    encoded = [codec.encode_source(example.source) for example in examples]
    size = ctx.cfg.sample.chunk
    pending: deque[tuple[Path, dict, Future]] = deque()

    def finish(waiting: int) -> None:
        while len(pending) > waiting:
            path, columns, scores = pending.popleft()
            write_table(path, columns | {"score": scores.result()})

    with ctx.log.progress(f"sample {part} round {round}", len(examples)) as bar:
        for start in range(0, len(examples), size):
            chunk = examples[start : start + size]
            path = working / part / f"{start // size:05d}.parquet"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                sources = [ids for ids, _ in encoded[start : start + size]]
                columns = _generate(ctx, lm, codec, chunk, sources, part, round)
                by_id = {example.id: example.references for example in chunk}
                references = [by_id[i] for i in columns["source_id"]]
                scores = ctx.judge.submit(columns["text"], references)
                pending.append((path, columns, scores))
                finish(1)
            bar.advance(len(chunk))
        finish(0)
    return sum(was_cut for _, was_cut in encoded)


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
    cfg = ctx.cfg.sample
    found = dict(
        generate(
            lm,
            sources,
            [example.id for example in examples],
            k=cfg.k,
            eos_ids=codec.eos_ids,
            decoding=ctx.sampling(),
            batch_tokens=cfg.batch_tokens,
            seed_key=(ctx.cfg.seed, "sample", part, round),
        )
    )
    rows = [(i, tokens) for i in range(len(examples)) for tokens in found[i]]
    return {
        "source_id": [examples[i].id for i, _ in rows],
        "source": [list(sources[i]) for i, _ in rows],
        "tokens": [tokens for _, tokens in rows],
        "text": [codec.decode(tokens) for _, tokens in rows],
    }


def read_generations(artifact: Artifact, part: str) -> Generations:
    """The generations of a part, with the groups in which they are compared."""
    return _read(artifact.path, part)


def _read(folder: Path, part: str) -> Generations:
    tables = [read_table(path) for path in sorted((folder / part).glob("*.parquet"))]
    columns = {name: [v for table in tables for v in table[name]] for name in tables[0]}
    rows_of: dict[str, list[int]] = {}
    for row, source_id in enumerate(columns["source_id"]):
        rows_of.setdefault(source_id, []).append(row)
    place = {source_id: i for i, source_id in enumerate(rows_of)}
    return Generations(
        source_ids=list(rows_of),
        sources=[columns["source"][rows[0]] for rows in rows_of.values()],
        origin=[place[source_id] for source_id in columns["source_id"]],
        tokens=columns["tokens"],
        texts=columns["text"],
        scores=columns["score"],
        groups=torch.tensor(list(rows_of.values())),
    )


def summary(generations: Generations) -> dict[str, float]:
    """Counts and means of a part: what the judge thinks of the policy's samples."""
    scores = torch.tensor(generations.scores, dtype=torch.float64)
    keep = informative(scores[generations.groups])
    lengths = [len(tokens) for tokens in generations.tokens]
    return {
        "generations": len(scores),
        "mean_score": scores.mean().item(),
        "mean_tokens": sum(lengths) / len(lengths),
        "groups": len(keep),
        "informative_groups": int(keep.sum()),
    }
