"""The embedded default's policy: a tiny T5 from scratch, warm-started by plain MLE."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgtg.config import MethodConfig
from pgtg.config.inputs import NEUTRAL
from pgtg.data.worlds.newswire import vocabulary
from pgtg.methods.objective import Improvement, SupervisedBatch
from pgtg.methods.options import WeightedMLE
from pgtg.models.batch import per_token, token_batch
from pgtg.models.codec import Codec
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.models.loading import save_language_model
from pgtg.models.tiny.t5 import build, copy_pairs
from pgtg.ops.objectives import uniform_weights
from pgtg.ops.sampling import derive_seed
from pgtg.pipeline.context import Context, quiet
from pgtg.runs.folder import Artifact
from pgtg.runs.log import RunLog
from pgtg.training.loop import fit
from pgtg.training.state import load_weights
from pgtg.training.update import Where
from pgtg.types import Example, TokenIds

PLAIN = WeightedMLE.of(MethodConfig("mle"))
ABOUT = {
    "copy": "teaching the tiny T5 to copy",
    "warm_start": "teaching the tiny T5 to summarise",
}
Pairs = Sequence[tuple[str, str]]


def depends_on(ctx: Context) -> dict[str, Any]:
    """All that the warm start's result depends on apart from its code."""
    policy = {k: v for k, v in asdict(ctx.cfg.policy).items() if f"policy.{k}" not in NEUTRAL}
    return {
        "world": {key: value for key, value in asdict(ctx.cfg.data).items() if key != "path"},
        "policy": policy,
        "seed": ctx.cfg.seed,
        "heldout": ctx.cfg.sample.heldout_sources,  # they choose the weights that are kept
    }


def make(ctx: Context, made: Artifact, key: str) -> None:
    """Copy pretraining to its end, then plain MLE on the training split's targets.

    The held-out loss on news chooses weights of the plain MLE only. While copying it is lowest
    after a fifth of the updates, long before copying is learned.
    """
    tiny, world = ctx.cfg.policy.tiny_t5, ctx.cfg.data.newswire
    assert tiny is not None and world is not None  # config check
    words, seed = vocabulary(world), ctx.cfg.seed
    model, tokenizer = build(words, tiny, derive_seed(seed, "tiny_t5"))
    lm = LanguageModel(model).to(ctx.device)
    codec = ctx.task.codec(tokenizer, lm.is_encoder_decoder)
    folder = made.working(key)
    size = tiny.warm_start.micro_batch * tiny.warm_start.accumulate
    copies = copy_pairs(words, tiny.copy_updates * size, derive_seed(seed, "copy"))
    _fit(ctx, lm, codec, copies, None, "copy", tiny.copy_updates, folder, key)
    pairs = [(example.source, example.target) for example in _training(ctx)]
    held = [(e.source, e.target) for e in ctx.task.heldout()]
    updates = tiny.warm_start.updates
    metrics = _fit(ctx, lm, codec, pairs, held, "warm_start", updates, folder, key)
    save_language_model(lm, tokenizer, folder / "policy")
    made.commit(inputs=key, metrics=metrics)


def _training(ctx: Context) -> Sequence[Example]:
    assert ctx.task.targets is not None  # the newswire's task has them
    return ctx.task.targets.examples("train")


def _encoded(codec: Codec, pairs: Pairs) -> list[tuple[TokenIds, TokenIds]]:
    sources = codec.encode_sources([source for source, _ in pairs])
    targets = codec.encode_targets([target for _, target in pairs])
    return [(s, t) for (s, _), (t, _) in zip(sources, targets, strict=True)]


def _fit(
    ctx: Context,
    lm: LanguageModel,
    codec: Codec,
    pairs: Pairs,
    held: Pairs | None,
    stage: str,
    updates: int,
    folder: Path,
    key: str,
) -> dict[str, float]:
    """One plain-MLE training; leaves the kept weights in `lm`.

    Args:
        held: Pairs on whose loss weights are chosen, and metrics come from; None: the last weights.
    """
    tiny = ctx.cfg.policy.tiny_t5
    assert tiny is not None
    cfg = replace(tiny.warm_start, updates=updates)
    if updates < 1:
        return {}
    encoded, checked = _encoded(codec, pairs), _encoded(codec, held or [])
    size = cfg.micro_batch * cfg.accumulate

    def windows(step: int) -> list[Callable[[], SupervisedBatch]]:
        epoch, place = divmod(step * size, max(len(encoded) - size + 1, 1))
        rng = np.random.default_rng(derive_seed(ctx.cfg.seed, stage, epoch))
        rows = rng.permutation(len(encoded))[place : place + size]
        rows = sorted(rows, key=lambda i: len(encoded[i][0]))
        parts = [rows[i : i + cfg.micro_batch] for i in range(0, len(rows), cfg.micro_batch)]
        return [partial(uniform_batch, [encoded[i] for i in part], ctx.device) for part in parts]

    def validate() -> dict[str, float]:
        return {f"{stage}/heldout_token_nll": token_nll(lm, checked, ctx.device)}

    lm.train()
    result = fit(
        lm,
        windows,
        Improvement(lm, PLAIN, Decoding(True, 1)),
        cfg,
        where=Where(ctx.cfg.seed, stage, 0, about=ABOUT[stage]),
        folder=folder / stage,
        inputs=key,
        log=RunLog(None, quiet=quiet()),
        validate=validate if held else None,
        select=f"{stage}/heldout_token_nll",
    )
    if cfg.keep == "best" and result.best is not None:
        load_weights(lm, result.best)
    Artifact(folder / stage / "state").remove()
    lm.eval()
    return validate() if held else {}


def uniform_batch(
    rows: Sequence[tuple[list[int], list[int]]], device: torch.device
) -> SupervisedBatch:
    """Pairs of source and target, each target's tokens of equal weight."""
    batch = token_batch(
        [source for source, _ in rows], [target for _, target in rows], range(len(rows)), device
    )
    return SupervisedBatch(batch, uniform_weights(batch.mask))


def token_nll(
    lm: LanguageModel, rows: Sequence[tuple[list[int], list[int]]], device: torch.device
) -> float:
    """Mean over all target tokens of -log pi [nats], teacher forced."""
    values = per_token(
        lambda batch: -lm.log_probabilities(batch),
        [source for source, _ in rows],
        [target for _, target in rows],
        range(len(rows)),
        batch_tokens=16384,
        device=device,
    )
    return float(np.concatenate(values).mean(dtype=np.float64))
