"""(B) Score: a reward for each token of a round's generations and held-out targets.

The start policy's log-probability of the same tokens is written too: the baseline that a learned
reward has to beat.
"""

from collections.abc import Sequence

import numpy as np

from pgtg.data.generations import read_generations
from pgtg.errors import DivergedError
from pgtg.models.codec import Codec
from pgtg.models.language import LanguageModel
from pgtg.models.reward import RewardModel, load_reward_model
from pgtg.pipeline.context import Context
from pgtg.runs.folder import Artifact, hash_of, write_table
from pgtg.types import TokenIds


def score(ctx: Context, round: int, *, head: str = "") -> Artifact:
    """Write token rewards of the parts in reward.score by the round's reward model."""
    samples = ctx.need(ctx.artifact(round, "sample"), "sample")
    aligned = ctx.need(ctx.artifact(round, "align", head=head), "align")
    artifact = ctx.artifact(round, "score", head=head)
    parts = ctx.cfg.reward.score
    inputs = hash_of([*ctx.parents(0), samples, aligned], ctx.settings("score"))
    if ctx.made(artifact, inputs):
        return artifact
    working = artifact.working(inputs)
    model = load_reward_model(aligned.file("reward")).to(ctx.device).eval()
    start, codec = ctx.load_start()
    ctx.to_read(start, *model.language_models)
    for part in parts:
        if part == "targets":
            examples = ctx.task.heldout()
            ids = [example.id for example in examples]
            sources = ctx.task.sources(examples, codec).ids
            targets = codec.encode_targets([example.target for example in examples])
            tokens = [ids for ids, _ in targets]
            origin, labels = (
                list(range(len(ids))),
                [ctx.task.target_labels(e, t) for e, t in zip(examples, tokens, strict=True)],
            )
        else:
            generations = read_generations(samples, part)
            sources, tokens = generations.sources, generations.tokens
            origin, labels = generations.origin, [None]
            ids = [generations.source_ids[o] for o in origin]
        columns = {"source_id": ids, "tokens": tokens}
        columns |= _values(ctx, model, start, sources, tokens, origin)
        if all(row is not None for row in labels):
            columns["label"] = labels
            columns |= _at_flaws(ctx, model, start, codec, tokens)
        write_table(working / f"{part}.parquet", columns)
    return artifact.commit(inputs=inputs, position=ctx.committed(), round=round, head=head)


def _at_flaws(
    ctx: Context,
    model: RewardModel,
    start: LanguageModel,
    codec: Codec,
    tokens: Sequence[TokenIds],
) -> dict[str, list[float] | list[int]]:
    """Of each held-out target: where its first planted flaw stands (-1: nowhere), and what the
    right token there, that of the clean reference, would get at the same state."""
    examples = ctx.task.heldout()
    flaws = [ctx.task.target_flaws(e, t) or [] for e, t in zip(examples, tokens, strict=True)]
    first = [row.index(True) if True in row else -1 for row in flaws]
    clean = [ids for ids, _ in codec.encode_targets([e.references[0] for e in examples])]
    up_to = [ids[: at + 1] if at >= 0 else ids[:1] for ids, at in zip(clean, first, strict=True)]
    sources = ctx.task.sources(examples, codec).ids
    found = _values(ctx, model, start, sources, up_to, range(len(up_to)))
    last = {f"right_{name}": [row[-1] for row in rows] for name, rows in found.items()}
    return {"flaw_at": first, **last}


def _values(
    ctx: Context,
    model: RewardModel,
    start: LanguageModel,
    sources: Sequence[TokenIds],
    tokens: Sequence[TokenIds],
    origin: Sequence[int],
) -> dict[str, list[list[float]]]:
    """Token rewards, and log-probabilities [nats] under the start policy."""
    found = {}
    for name, value in {"reward": model, "start_log_prob": start.log_probabilities}.items():
        rows = ctx.per_token(value, sources, tokens, origin)
        if not all(np.isfinite(row).all() for row in rows):
            raise DivergedError(f"score: a token's {name} is not finite; what is saved stays")
        found[name] = [row.tolist() for row in rows]
    return found
