"""The start policy. A pretrained one is loaded where it lies; the embedded default's tiny T5 is
built here and warm-started by plain MLE, once per content: the cache is shared by runs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from pgtg.config import MethodConfig, TinyT5Config
from pgtg.log import RunLog
from pgtg.loop import Where, fit, load_weights
from pgtg.methods.objective import Improvement, SupervisedBatch
from pgtg.models.batch import per_token, token_batch
from pgtg.models.codec import Codec
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.models.loading import save_language_model
from pgtg.models.tiny_t5 import build, copy_pairs
from pgtg.ops.objectives import uniform_weights
from pgtg.ops.sampling import derive_seed, log_probability
from pgtg.stages.context import Context, quiet
from pgtg.store import Artifact, cached, content_hash
from pgtg.tasks.summarize import codec_for

RECIPE = 1  # part of the cache's key: raise it when the warm start's result would change
PLAIN = MethodConfig("mle", "none", False, 0.0, 0.0, "none", 1.0, 0.0, 1, [])
Pairs = Sequence[tuple[str, str]]


def start(ctx: Context) -> None:
    """Make sure that the run has its start policy."""
    tiny = ctx.cfg.policy.tiny_t5
    here = ctx.start_artifact()
    if tiny is None:
        return
    world = {key: value for key, value in asdict(ctx.cfg.data).items() if key != "path"}
    key = content_hash(
        {
            "recipe": RECIPE,
            "world": world,
            "policy": asdict(ctx.cfg.policy),
            "seed": ctx.cfg.seed,
            "heldout": ctx.cfg.sample.heldout_sources,  # they choose the weights that are kept
            "threads": torch.get_num_threads(),  # sums depend on it in the last bits
            "torch": torch.__version__,
        }
    )
    if ctx.made(here, key):
        return
    if ctx.cfg.cache == "off":
        made = ctx.folder.artifact("warm_start")
    else:
        made = cached(Path(ctx.cfg.cache).expanduser(), "warm_start", key)
    if made.exists():
        ctx.log.say(f"start policy: warm start taken from {made.path}")
    else:
        ctx.log.say("start policy: warm start of a tiny T5 (about a minute; cached for later runs)")
        warm_start(ctx, tiny, made, key)
    made.verify()
    working = here.working(key)
    (working / "policy").mkdir(exist_ok=True)
    for file in sorted(made.file("policy").iterdir()):
        (working / "policy" / file.name).write_bytes(file.read_bytes())
    metrics = made.manifest()["metrics"]
    ctx.log.metrics("start", 0, 0, metrics)
    here.commit(inputs=key, metrics=metrics, position=ctx.committed())


def warm_start(ctx: Context, tiny: TinyT5Config, made: Artifact, key: str) -> None:
    """Copy pretraining, then plain MLE on the training split's targets."""
    words, seed = ctx.task.vocabulary, ctx.cfg.seed
    model, tokenizer = build(words, tiny, derive_seed(seed, "tiny_t5"))
    lm = LanguageModel(model).to(ctx.device)
    codec = codec_for(ctx.cfg, tokenizer, lm.is_encoder_decoder)
    folder = made.working(key)
    size = tiny.warm_start.micro_batch * tiny.warm_start.accumulate
    copies = copy_pairs(words, tiny.copy_updates * size, derive_seed(seed, "copy"))
    pairs = [(example.source, example.target) for example in ctx.task.examples("train")]
    held = [(e.source, e.target) for e in ctx.task.heldout()]
    for stage, data, updates in (
        ("copy", copies, tiny.copy_updates),
        ("warm_start", pairs, tiny.warm_start.updates),
    ):
        metrics = _fit(ctx, lm, codec, data, held, stage, updates, folder, key)
    save_language_model(lm, tokenizer, folder / "policy")
    made.commit(inputs=key, metrics=metrics)


def _fit(
    ctx: Context,
    lm: LanguageModel,
    codec: Codec,
    pairs: Pairs,
    held: Pairs,
    stage: str,
    updates: int,
    folder: Path,
    key: str,
) -> dict[str, float]:
    """One plain-MLE training; leaves the kept weights in `lm`."""
    tiny = ctx.cfg.policy.tiny_t5
    assert tiny is not None
    cfg = replace(tiny.warm_start, updates=updates)
    if updates < 1:
        return {}
    encoded = [(codec.encode_source(s)[0], codec.encode_target(t)[0]) for s, t in pairs]
    checked = [(codec.encode_source(s)[0], codec.encode_target(t)[0]) for s, t in held]
    size = cfg.micro_batch * cfg.accumulate

    def windows(step: int) -> list[SupervisedBatch]:
        epoch, place = divmod(step * size, max(len(encoded) - size + 1, 1))
        rng = np.random.default_rng(derive_seed(ctx.cfg.seed, stage, epoch))
        rows = rng.permutation(len(encoded))[place : place + size]
        rows = sorted(rows, key=lambda i: len(encoded[i][0]))
        parts = [rows[i : i + cfg.micro_batch] for i in range(0, len(rows), cfg.micro_batch)]
        return [_uniform([encoded[i] for i in part], ctx.device) for part in parts]

    def validate() -> dict[str, float]:
        return {f"{stage}/heldout_token_nll": token_nll(lm, checked, ctx.device)}

    lm.train()
    result = fit(
        lm,
        windows,
        Improvement(lm, PLAIN, Decoding(True, 1)),
        cfg,
        where=Where(ctx.cfg.seed, stage, 0),
        folder=folder / stage,
        inputs=key,
        log=RunLog(None, quiet=quiet()),
        validate=validate,
        select=f"{stage}/heldout_token_nll",
    )
    if cfg.keep == "best" and result.best is not None:
        load_weights(lm, result.best)
    Artifact(folder / stage / "state").remove()
    lm.eval()
    return validate()


def _uniform(rows: Sequence[tuple[list[int], list[int]]], device: torch.device) -> SupervisedBatch:
    batch = token_batch(
        [source for source, _ in rows], [target for _, target in rows], range(len(rows)), device
    )
    return SupervisedBatch(batch, uniform_weights(batch.mask))


def token_nll(
    lm: LanguageModel, rows: Sequence[tuple[list[int], list[int]]], device: torch.device
) -> float:
    """Mean over all target tokens of -log pi [nats], teacher forced."""
    values = per_token(
        lambda batch: -log_probability(lm.logits(batch).float(), batch.tokens),
        [source for source, _ in rows],
        [target for _, target in rows],
        range(len(rows)),
        batch_tokens=16384,
        device=device,
    )
    return float(np.concatenate(values).mean(dtype=np.float64))
