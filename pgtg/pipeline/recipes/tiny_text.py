"""A tiny causal LM of the preferences' own words, taught all completions: it prefers none."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from pgtg.config.inputs import NEUTRAL
from pgtg.data.pairs import Chosen
from pgtg.methods.objective import Improvement, SupervisedBatch
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.models.loading import save_language_model
from pgtg.models.tiny.lm import SPECIAL, build_causal
from pgtg.ops.sampling import derive_seed
from pgtg.pipeline.context import Context, quiet
from pgtg.pipeline.recipes.tiny_t5 import PLAIN, uniform_batch
from pgtg.runs.folder import Artifact
from pgtg.runs.log import RunLog
from pgtg.training.loop import fit
from pgtg.training.state import load_weights
from pgtg.training.update import Where


def depends_on(ctx: Context) -> dict[str, Any]:
    """All that the result depends on, apart from its code."""
    policy = {k: v for k, v in asdict(ctx.cfg.policy).items() if f"policy.{k}" not in NEUTRAL}
    return {
        "data": ctx.task.contents("train"),
        "policy": policy,
        "seed": ctx.cfg.seed,
    }


def make(ctx: Context, made: Artifact, key: str) -> None:
    """Plain MLE on every completion of the training split, good or bad; on targets where there are
    no completions."""
    tiny = ctx.cfg.policy.tiny_lm
    assert tiny is not None and ctx.task.targets is not None  # config check
    examples = ctx.task.targets.examples("train")
    whole = getattr(examples, "base", None)
    if isinstance(whole, Chosen):
        texts = [(one.prompt, text) for one in whole.rankings for text in one.completions]
    else:
        texts = [(example.source, example.target) for example in examples]
    words = {word for prompt, text in texts for word in f"{prompt} {text}".split()}
    words -= {*SPECIAL}  # which stand in what a tiny policy writes
    seed = ctx.cfg.seed
    model, tokenizer = build_causal(sorted(words), tiny, derive_seed(seed, "tiny_text"))
    lm = LanguageModel(model).to(ctx.device)
    codec, folder = ctx.task.codec(tokenizer, lm.is_encoder_decoder), made.working(key)
    sources = [ids for ids, _ in codec.encode_sources([prompt for prompt, _ in texts])]
    targets = [ids for ids, _ in codec.encode_targets([text for _, text in texts])]
    size, parts = tiny.fit.micro_batch, tiny.fit.accumulate

    def window(step: int) -> list[Callable[[], SupervisedBatch]]:
        rng = np.random.default_rng(derive_seed(seed, "tiny_text", step))
        drawn = rng.integers(len(texts), size=(parts, size)).tolist()
        rows = [[(sources[i], targets[i]) for i in part] for part in drawn]
        return [partial(uniform_batch, part, ctx.device) for part in rows]

    result = fit(
        lm.train(),
        window,
        Improvement(lm, PLAIN, Decoding(True, 1)),
        tiny.fit,
        where=Where(seed, "tiny_text", 0, about="teaching the tiny policy to write"),
        folder=folder / "training",
        inputs=key,
        log=RunLog(None, quiet=quiet()),
    )
    if result.best is not None:
        load_weights(lm, result.best)
    Artifact(folder / "training" / "state").remove()
    save_language_model(lm.eval(), tokenizer, folder / "policy")
    made.commit(inputs=key, metrics={})
