"""Evaluation on preferences that exist already: what a policy makes of texts that nobody judges.

- `win_rate` [%]: its text against the preferred completion, by the *held-out reward model*: one
  that is trained on the validation split's preferences alone, which neither the policy nor the
  reward model that guides it has seen. It is a model's opinion, and is named as such.
- `chosen_log_prob` [nats a token] of the preferred completion, and `prefers_chosen` [%]: whether
  that is above the log-probability of the least preferred one.
- `rest_over_errors` [nats a token], where errors are marked in ranked texts: over all marked texts
  of a prompt, the mean log-probability of tokens under no error, `rest_log_prob`, less that of the
  tokens under one, `errors_log_prob`. A text's end token is in neither.
- `kl_to_start` [nats a text], of sampled text: log pi - log pi_start, an estimate of the KL
  divergence from the policy that training began with.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from pgtg.data.examples import Examples
from pgtg.data.generations import read_generations
from pgtg.data.pairs import Chosen, Ranking
from pgtg.judges.judge import judged
from pgtg.models.codec import Codec
from pgtg.models.language import LanguageModel
from pgtg.models.pieces import of_text, shown, under
from pgtg.models.reward import RewardModel, load_reward_model, save_reward_model
from pgtg.ops.aggregate import Aggregator, padded
from pgtg.ops.sampling import derive_seed
from pgtg.pipeline.context import Context
from pgtg.pipeline.evaluation.text import TextEvaluation
from pgtg.pipeline.stages.align import PlackettLuce, fresh_reward_model, passes
from pgtg.runs.folder import Artifact, hash_of
from pgtg.training.loop import fit
from pgtg.training.update import Where
from pgtg.types import TokenIds

NAME = "heldout_reward"
Marked = Bool[np.ndarray, " T"]  # which tokens of a text


class PreferencesEvaluation(TextEvaluation):
    """Greedy and sampled texts of each policy, and how it orders the ranked ones."""

    reads_references = False  # chosen_log_prob says it

    def depends_on(self, ctx: Context) -> Mapping[str, Any]:
        return dict(super().depends_on(ctx)) | {"held out": ctx.settings("align")}

    def unavailable(self, ctx: Context, split: str) -> str | None:
        there = split in ctx.task.counts  # it was read
        return None if there else f"the data have no {split} split"

    def more(
        self,
        ctx: Context,
        lm: LanguageModel,
        codec: Codec,
        examples: Examples,
        tokens: Sequence[TokenIds],
        decoding: str,
    ) -> dict[str, list[float]]:
        sources = list(ctx.task.sources(examples, codec).ids)
        best, worst = _ends(ctx, examples, codec)
        chosen = _log_probs(ctx, lm, sources, best)
        other = [float(row.mean()) for row in _log_probs(ctx, lm, sources, worst)]
        means = [float(row.mean()) for row in chosen]
        found = {
            "chosen_log_prob": means,
            "prefers_chosen": [100.0 * (a > b) for a, b in zip(means, other, strict=True)],
        }
        found |= _at_errors(ctx, lm, sources, examples, codec)
        if (model := heldout_reward(ctx)) is not None:
            found["win_rate"] = _wins(ctx, model, sources, tokens, best)
        if decoding == "sample":
            start, _ = ctx.load_start()
            ctx.to_read(start)
            ours, theirs = (_log_probs(ctx, each, sources, tokens) for each in (lm, start))
            found["kl_to_start"] = [
                float(a.sum() - b.sum()) for a, b in zip(ours, theirs, strict=True)
            ]
        if ctx.task.judge is not None:
            texts = [codec.decode(ids) for ids in tokens]
            scores = ctx.task.judge(tokens, texts, examples, codec).result()["score"]
            ctx.task.judge.tell()
            judged(scores, f"texts of {examples.split}")
            found["judge"] = scores
        return found


def _ends(ctx: Context, examples: Examples, codec: Codec) -> tuple[list[TokenIds], list[TokenIds]]:
    """Token ids of the most and of the least preferred completion of each row."""
    ranked = _ranked(ctx, examples)
    worst = [one.completions[one.scores.index(min(one.scores))] for one in ranked]
    best = [one.completions[one.best] for one in ranked]
    chosen, other = ([ids for ids, _ in codec.encode_targets(each)] for each in (best, worst))
    return chosen, other


def _ranked(ctx: Context, examples: Examples) -> list[Ranking]:
    """What the examples were made of."""
    assert ctx.task.targets is not None
    whole = ctx.task.targets.examples(examples.split).base
    assert isinstance(whole, Chosen)
    return [whole.rankings[row] for row in examples.rows.tolist()]


def _at_errors(
    ctx: Context,
    lm: LanguageModel,
    sources: Sequence[TokenIds],
    examples: Examples,
    codec: Codec,
) -> dict[str, list[float]]:
    """Mean log-probabilities under marked errors and next to them; NaN where a prompt's texts lack
    one of them, nothing where no prompt has both."""
    rows, tokens, errors, rest = list[int](), list[TokenIds](), list[Marked](), list[Marked]()
    cut = 0
    for row, one in enumerate(_ranked(ctx, examples)):
        for completion, spans in zip(one.completions, one.marks or (), strict=False):
            if spans:
                text, parts, was_cut = of_text(codec, completion)
                cut += was_cut
                wrong = under(text, parts, spans)
                rows.append(row)
                tokens.append([part.id for part in parts])
                errors.append(wrong)
                rest.append(shown(text, parts) & ~wrong)
    if not tokens:
        return {}
    if cut:
        ctx.log.warn(
            f"{cut} of {len(tokens)} texts with marked errors were cut to policy.max_target_tokens="
            f"{ctx.cfg.policy.max_target_tokens}: errors behind that are not read"
        )
    log_probs, found = _log_probs(ctx, lm, [sources[row] for row in rows], tokens), {}
    for name, which in (("errors_log_prob", errors), ("rest_log_prob", rest)):
        own: list[list[float]] = [[] for _ in sources]
        for row, values, mask in zip(rows, log_probs, which, strict=True):
            own[row] += values[mask].tolist()
        found[name] = [fmean(values) if values else math.nan for values in own]
    pairs = zip(found["rest_log_prob"], found["errors_log_prob"], strict=True)
    found["rest_over_errors"] = [right - wrong for right, wrong in pairs]
    return {} if all(map(math.isnan, found["rest_over_errors"])) else found


def _log_probs(
    ctx: Context, lm: LanguageModel, sources: Sequence[TokenIds], tokens: Sequence[TokenIds]
) -> list[np.ndarray]:
    """log pi of each token [nats]."""
    rows = range(len(tokens))
    return ctx.per_token(lm.log_probabilities, sources, tokens, rows, recurring=True)


def _wins(
    ctx: Context,
    model: RewardModel,
    sources: Sequence[TokenIds],
    tokens: Sequence[TokenIds],
    best: Sequence[TokenIds],
) -> list[float]:
    """100 where a text is evaluated above the preferred completion, 50 where they tie."""
    count = len(tokens)
    rewards = ctx.per_token(model, sources, [*tokens, *best], [*range(count)] * 2)
    values, mask = padded([row.tolist() for row in rewards])
    groups = torch.arange(count)[:, None] + torch.tensor([[0, count]])
    ours, theirs = Aggregator.of(ctx.cfg.aggregator).groups(values, mask, groups).T
    return (50.0 * (1 + (ours - theirs).sign())).tolist()


def heldout_reward(ctx: Context) -> RewardModel | None:
    """The reward model of the validation split's preferences; None where none are held out.

    It starts as the one that guides did and is trained as long, to its last update.
    """
    samples = ctx.artifact(0, "sample")
    if not samples.exists() or not len(ctx.task.heldout()):
        return None
    artifact = ctx.folder.artifact("eval", NAME)
    inputs = hash_of([samples, *ctx.parents(0)], ctx.settings("align") | {"held out": True})
    if not ctx.made(artifact, inputs):
        _train(ctx, samples, artifact, inputs)
    model = load_reward_model(artifact.file("reward")).to(ctx.device).eval()
    ctx.to_read(*model.language_models)
    return model


def _train(ctx: Context, samples: Artifact, artifact: Artifact, inputs: str) -> None:
    pool, cfg = read_generations(samples, "heldout"), ctx.cfg.reward.fit
    model, tokenizer = fresh_reward_model(ctx)
    compared, seed = ctx.task.all_comparisons(pool), derive_seed(ctx.cfg.seed, NAME)
    working = artifact.working(inputs)
    windows = passes(pool, compared, cfg, seed, ctx.device)
    model.train()
    result = fit(
        model,
        windows,
        PlackettLuce(model, Aggregator.of(ctx.cfg.aggregator)),
        cfg,
        where=Where(ctx.cfg.seed, NAME, 0, about="reward model of random layers (comparison)"),
        folder=working,
        inputs=inputs,
        log=ctx.log,
        ahead=True,
    )
    Artifact(working / "state").remove()
    model.eval()
    save_reward_model(model, working / "reward", windows(0)[0]().batch, tokenizer)
    ctx.log.note(f"held-out reward model: {result.steps} updates on {len(compared)} groups")
    artifact.commit(inputs=inputs, metrics={}, position=ctx.committed())
