"""What the two tiny language models of the generated reviews are taught, in the run's set-up.

- The masked LM learns the world's ground truth (`data.worlds.reviews`) from triples of review,
  prompt and answer, in the form "<review> <prompt> <mask> .". Each pair of review and prompt stands
  with both answers, weighted by their probabilities: what infinitely many sampled triples would
  teach.
- The causal LM reads reviews without prompts, and remarks of uniformly drawn candidate words
  without reviews: it knows the words, and nothing of the ground truth.

Uniform prompts alone teach the masked LM little more than its lean, since few of them hold many
active words. So most examples mix active words in, a share drawn for each prompt, from a small
pool, so that words come repeatedly too; some hold a pair; and some are the strongest of several,
since those are the prompts that a search will ask about.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgtg.config import ReviewsConfig, TinyLMConfig
from pgtg.data.worlds import reviews
from pgtg.data.worlds.reviews import ANSWERS, GroundTruth, Words
from pgtg.models.batch import moved
from pgtg.models.loading import save_folder
from pgtg.models.tiny.lm import END, MASK, build_causal, build_masked
from pgtg.ops.sampling import derive_seed
from pgtg.runs.folder import Artifact
from pgtg.runs.log import RunLog
from pgtg.training.loop import Validate, fit
from pgtg.training.state import load_weights
from pgtg.training.update import Where
from pgtg.types import Loss, Window

UNIFORM = 0.3  # share of examples with uniform words only
PAIR, STRONGEST = 0.3, 0.4  # shares of the others: with a pair put in; the strongest of 8
POOLS = (3, 6, 99)  # sizes of the pool of active words; the last one stands for all
CPU = torch.device("cpu")
HELD = 256  # held-out texts of each kind


@dataclass(frozen=True)
class Examples:
    """N texts, and P words to predict from the state at a place of a text, with their weights."""

    ids: Int[Tensor, "N S"]
    mask: Bool[Tensor, "N S"]
    rows: Int[Tensor, " P"]
    columns: Int[Tensor, " P"]
    words: Int[Tensor, " P"]
    weights: Float[Tensor, " P"]
    whole: int  # sum of the weights

    def on(self, device: torch.device) -> "Examples":
        """The same examples on a device."""
        tensors = {name: value for name, value in vars(self).items() if name != "whole"}
        return replace(self, **{name: moved(value, device) for name, value in tensors.items()})


class Predict:
    """Objective of `fit`: weighted mean of -log P(word | state at its place) [nats]."""

    def __init__(self, model: Any):
        self.model = model

    def count(self, batch: Examples) -> Window:
        return Window(len(batch.ids), batch.whole)

    def __call__(self, batch: Examples, window: Window) -> Loss:
        return Loss(-(batch.weights * log_probs(self.model, batch)).sum() / window.tokens)


def log_probs(model: Any, examples: Examples) -> Float[Tensor, " P"]:
    """log P(word | state at its place) over the whole vocabulary [nats]."""
    states = model.base_model(examples.ids, attention_mask=examples.mask.long()).last_hidden_state
    logits = model.lm_head(states[examples.rows, examples.columns]).float()
    return logits.log_softmax(-1).gather(-1, examples.words[:, None])[:, 0]


# --- the ground truth


def example_prompt(
    rng: random.Random, truth: GroundTruth, words: Sequence[str], length: int
) -> Words:
    """A prompt to learn from; see the module's description."""
    if rng.random() < UNIFORM:
        return tuple(rng.choices(words, k=length))
    drawn = [_mixed(rng, truth, words, length) for _ in range(8 if rng.random() < STRONGEST else 1)]
    return max(drawn, key=truth.strength)


def _mixed(rng: random.Random, truth: GroundTruth, words: Sequence[str], length: int) -> Words:
    """A random share of active or helpful words from a small pool, and perhaps a pair."""
    useful, share = rng.choice((truth.active, truth.helpful)), rng.random()
    pool = rng.sample(useful, min(rng.choice(POOLS), len(useful)))
    prompt = [rng.choice(pool if rng.random() < share else words) for _ in range(length)]
    if truth.pairs and length > 1 and rng.random() < PAIR:
        first, second = rng.sample(range(length), 2)
        prompt[first], prompt[second] = rng.choice(list(truth.pairs))
    return tuple(prompt)


def masked_examples(
    pairs: Sequence[tuple[str, Words]], truth: GroundTruth, tokenizer: PreTrainedTokenizerBase
) -> Examples:
    """A text per pair of review and prompt, with the ground truth's probabilities of both answers.

    The first half of the P = 2 N words to predict are "bad", the second half "good".
    """
    texts = [f"{text} {' '.join(prompt)} {MASK} ." for text, prompt in pairs]
    coded = tokenizer(texts, padding=True, return_tensors="pt")
    mask = coded["attention_mask"].bool()
    good = torch.tensor([truth.probability(prompt, text) for text, prompt in pairs])
    answers = torch.tensor(tokenizer.convert_tokens_to_ids(list(ANSWERS)))
    return Examples(
        coded["input_ids"],
        mask,
        torch.arange(len(pairs)).repeat(2),
        (mask.sum(1) - 3).repeat(2),  # the mask stands before "." and the end token
        answers.repeat_interleave(len(pairs)),
        torch.cat([1 - good, good]),
        len(pairs),
    )


def log_odds_error(model: Any, examples: Examples) -> float:
    """Mean absolute error of log P(good) - log P(bad) against the ground truth's [nats]."""
    with torch.no_grad():
        bad, good = log_probs(model, examples).view(2, -1)
    wanted = examples.weights.view(2, -1).log()
    return ((good - bad) - (wanted[1] - wanted[0])).abs().mean().item()


def teach_truth(
    world: ReviewsConfig,
    cfg: TinyLMConfig,
    seed: int,
    folder: Path,
    *,
    inputs: str,
    log: RunLog,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Train the masked LM on the world's ground truth; saved with its tokenizer as folder/judge.

    Args:
        world: The reviews' config; its seed decides the ground truth.
        cfg: Sizes and training.
        seed: Of initial weights and examples.
        folder: Working folder; a stopped training resumes from the state that it keeps there.
        inputs: Hash of all that this training depends on.
        log: Where the training's metrics go.
        device: Where it is trained.

    Returns:
        Mean absolute error of the answers' log-odds [nats], on uniform and on training prompts.
    """
    truth, words = reviews.make_truth(world), reviews.candidates(world)
    model, tokenizer = build_masked(reviews.vocabulary(world), cfg, derive_seed(seed, "judge"))
    model.to(device)  # type: ignore[arg-type]

    def examples(prompt: Callable[[random.Random], Words], n: int, *key: int | str) -> Examples:
        rng = random.Random(derive_seed(seed, "judge", *key))
        pairs = [(reviews.review(rng, i % 2), prompt(rng)) for i in range(n)]
        return masked_examples(pairs, truth, tokenizer).on(device)

    def uniform(rng: random.Random) -> Words:
        return tuple(rng.choices(words, k=world.length))

    def mixed(rng: random.Random) -> Words:
        return example_prompt(rng, truth, words, world.length)

    held = {"uniform": examples(uniform, HELD, "uniform"), "mixed": examples(mixed, HELD, "mixed")}

    def validate() -> dict[str, float]:
        return {f"judge/{k}_log_odds_error": log_odds_error(model, v) for k, v in held.items()}

    where = Where(seed, "judge", 0, about="teaching the tiny judge to classify")
    _fit(
        model,
        partial(examples, mixed),
        cfg,
        where,
        folder,
        inputs,
        log,
        validate,
        "mixed_log_odds_error",
    )
    save_folder(model, tokenizer, folder / "judge")
    return validate()


# --- the words


def causal_examples(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Each token of the texts is predicted from those before it, the end token too."""
    coded = tokenizer([f"{END} {text} {END}" for text in texts], padding=True, return_tensors="pt")
    ids, mask = coded["input_ids"], coded["attention_mask"].bool()
    rows, columns = mask[:, 1:].nonzero(as_tuple=True)
    words, weights = ids[rows, columns + 1], torch.ones(len(rows))
    return Examples(ids, mask, rows, columns, words, weights, len(rows))


def teach_words(
    world: ReviewsConfig,
    cfg: TinyLMConfig,
    seed: int,
    folder: Path,
    *,
    inputs: str,
    log: RunLog,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Train the causal LM on the world's text; saved with its tokenizer as folder/policy.

    Arguments as for `teach_truth`.

    Returns:
        Mean -log P(token) on held-out texts [nats].
    """
    model, tokenizer = build_causal(reviews.vocabulary(world), cfg, derive_seed(seed, "words"))
    model.to(device)  # type: ignore[arg-type]

    def examples(n: int, *key: int | str) -> Examples:
        rng = random.Random(derive_seed(seed, "words", *key))
        texts = [reviews.any_text(world, rng) for _ in range(n)]
        return causal_examples(texts, tokenizer).on(device)

    held = examples(HELD, "held")

    def validate() -> dict[str, float]:
        with torch.no_grad():
            return {"words/token_nll": -log_probs(model, held).mean().item()}

    where = Where(seed, "words", 0, about="teaching the tiny policy its words")
    _fit(model, examples, cfg, where, folder, inputs, log, validate, "token_nll")
    save_folder(model, tokenizer, folder / "policy")
    return validate()


def _fit(
    model: Any,
    examples: Callable[..., Examples],
    cfg: TinyLMConfig,
    where: Where,
    folder: Path,
    inputs: str,
    log: RunLog,
    validate: Validate,
    select: str,
) -> None:
    """Train in place; the model ends with the weights that the config keeps, in eval mode.

    Args:
        examples: Makes a micro-batch of a size, from its step and its number there.
    """

    def window(step: int) -> list[Callable[[], Examples]]:
        size, parts = cfg.fit.micro_batch, cfg.fit.accumulate
        return [partial(examples, size, step, part) for part in range(parts)]

    name = where.stage
    states, select = folder / f"{name}_training", f"{name}/{select}"
    result = fit(
        model.train(),
        window,
        Predict(model),
        cfg.fit,
        where=where,
        folder=states,
        inputs=inputs,
        log=log,
        validate=validate,
        select=select,
    )
    if cfg.fit.keep == "best" and result.best is not None:
        load_weights(model, result.best)
    Artifact(states / "state").remove()
    model.eval()
