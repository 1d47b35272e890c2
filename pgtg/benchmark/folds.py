"""A reward model for each fold: it learns from the rankings of all other questions.

What it never saw, the questions of its fold, gets its token rewards. Marks are never learned from.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import torch

from pgtg.benchmark.texts import Texts, compared
from pgtg.config import RunConfig
from pgtg.data.comparisons import of_sources
from pgtg.errors import DataError
from pgtg.models.batch import per_token
from pgtg.models.budget import token_budget
from pgtg.models.kept import KeptModel, KeptTexts, head_on, read_texts
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model
from pgtg.models.lora import add_lora
from pgtg.models.reward import HeadSpec, RewardModel, build_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.sampling import derive_seed
from pgtg.pipeline.stages.align import PlackettLuce, group_batch, heldout_metrics, passes
from pgtg.runs.folder import Artifact, RunFolder, content_hash, load_tensors, save_tensors
from pgtg.runs.log import RunLog
from pgtg.training.loop import fit
from pgtg.training.state import load_weights
from pgtg.training.update import Where

PART = 16  # questions that are read, and kept, at a time
FILE = "texts.safetensors"


@dataclass(frozen=True)
class Work:
    """What all folds and rows share.

    Args:
        folds: Questions of each.
    """

    folder: RunFolder
    log: RunLog
    device: torch.device
    texts: Texts
    folds: list[list[int]]


def in_folds(questions: int, folds: int, seed: int) -> list[list[int]]:
    """Questions dealt out at random into folds of nearly one size.

    Raises:
        DataError: Fewer than two questions a fold.
    """
    if questions < 2 * folds:
        raise DataError(f"{questions} questions are too few for {folds} folds of two or more")
    order = np.random.default_rng(derive_seed(seed, "folds")).permutation(questions)
    return [sorted(order[fold::folds].tolist()) for fold in range(folds)]


def read_once(work: Work, cfg: RunConfig, lm: LanguageModel) -> KeptTexts:
    """What the policy makes of all texts; parts that are there already are not read again.

    On a CPU each thread reads a part of its own: two threads at one part wait for each other.
    """
    texts, parts = work.texts, list[KeptTexts]()
    with work.log.progress("policy reads", len(texts.sources)) as bar, _readers(work, lm) as submit:
        waiting = list[tuple[Artifact, str, int, Future[KeptTexts] | None]]()
        for start in range(0, len(texts.sources), PART):
            sources = texts.sources[start : start + PART]
            origin = [text.question - start for text in texts.texts]
            rows = [row for row, place in enumerate(origin) if 0 <= place < len(sources)]
            tokens, origin = [texts.tokens[row] for row in rows], [origin[row] for row in rows]
            inputs = content_hash(
                [sources, tokens, origin, _policy(cfg), cfg.tf32, cfg.deterministic]
            )
            artifact, reading = work.folder.artifact("texts", f"{start // PART:04d}"), None
            if not artifact.made_from(inputs):
                reading = submit(sources, tokens, origin)
            waiting.append((artifact, inputs, len(sources), reading))
        for artifact, inputs, questions, reading in waiting:
            if reading is not None:
                folder = artifact.working(inputs, fresh=True)
                save_tensors(folder / FILE, vars(reading.result()))
                artifact.commit(inputs=inputs, position=work.log.position(), kind="texts")
            parts.append(KeptTexts(**load_tensors(artifact.file(FILE))))
            bar.advance(questions)
    return KeptTexts.joined(parts)


@contextmanager
def _readers(work: Work, lm: LanguageModel) -> Iterator[Callable[..., Future[KeptTexts]]]:
    """What has texts read (sources, tokens, origin), on a CPU in as many threads as torch has, each
    of which computes alone. At the end, however it comes, they stop after the pass they make."""
    count, cpu = torch.get_num_threads(), work.device.type == "cpu"
    pool, models, over = ThreadPoolExecutor(count if cpu else 1), SimpleQueue[Any](), Event()
    for _ in range(count if cpu else 1):  # a model of its own for each, with the same weights: one
        weights = {id(one): one for one in (*lm.parameters(), *lm.buffers())}
        models.put(copy.deepcopy(lm, weights))  # changes its modules while it computes logits

    def read(*texts: Any) -> KeptTexts:
        own = models.get()
        try:
            return read_texts(own, *texts, device=work.device, over=over)
        finally:
            models.put(own)

    if cpu:
        torch.set_num_threads(1)
    try:
        yield partial(pool.submit, read)
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)


def _policy(cfg: RunConfig) -> list[Any]:
    return [cfg.policy.path, cfg.policy.revision, cfg.policy.dtype, cfg.sample.precision]


def rewards(
    work: Work, cfg: RunConfig, name: str, kept: KeptTexts, embedding: torch.nn.Module
) -> list[np.ndarray]:
    """Token rewards of all texts, each by a reward model that never saw its question.

    Args:
        name: Of the row, also of its folder.
        kept: What the policy makes of the texts.
        embedding: The policy's input table.
    """
    texts = work.texts
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(texts.texts)
    for fold, questions in enumerate(work.folds):
        held = set(questions)
        rows = [row for row, text in enumerate(texts.texts) if text.question in held]
        part = {"reward": asdict(cfg.reward), "aggregator": asdict(cfg.aggregator)}
        part |= {"seed": cfg.seed, "share": cfg.data.validation_share, "policy": _policy(cfg)}
        inputs = content_hash(part | {"fold": fold, "folds": work.folds, "texts": texts.contents()})
        artifact = work.folder.artifact("rows", name, f"fold{fold}")
        if not artifact.made_from(inputs):
            working = artifact.working(inputs)
            model = _model(work, cfg, kept, embedding)
            metrics = _learn(work, cfg, model, held, Where(cfg.seed, "align", fold, name), working)
            values = _scored(work, model, rows, kept=cfg.reward.trained == "head")
            save_tensors(working / FILE, {"rewards": torch.from_numpy(np.concatenate(values))})
            position = work.log.position()
            artifact.commit(inputs=inputs, metrics=metrics, position=position, kind="rewards")
        values = load_tensors(artifact.file(FILE))["rewards"].numpy()
        ends = np.cumsum([len(texts.tokens[row]) for row in rows])[:-1]
        for row, own in zip(rows, np.split(values, ends), strict=True):
            found[row] = own
    return found


def _model(work: Work, cfg: RunConfig, kept: KeptTexts, embedding: torch.nn.Module) -> RewardModel:
    """A fresh reward model; where the head alone is trained, on what is kept."""
    reward = cfg.reward
    spec = HeadSpec.of(reward)
    seed = derive_seed(cfg.seed, "head", reward.head)
    if reward.trained == "head":
        return head_on(KeptModel(kept, embedding, work.device), spec, seed)
    lm, tokenizer = load_language_model(
        reward.path or str(cfg.policy.path),
        revision=reward.revision if reward.path else cfg.policy.revision,
        dtype=cfg.policy.dtype,
        layers=reward.layers,
    )
    model = build_reward_model(lm.to(work.device), spec, seed, tokenizer)
    if reward.lora is not None:
        add_lora(lm, reward.lora, derive_seed(cfg.seed, "lora", 0), "reward.lora")
    return model


def _learn(
    work: Work, cfg: RunConfig, model: RewardModel, held: set[int], where: Where, working: Path
) -> dict[str, float]:
    """Train on the rankings of all questions that are not held out; a share of them validates."""
    frozen, options = cfg.reward.trained == "head", cfg.reward.fit
    others = [question for question in range(len(work.texts.sources)) if question not in held]
    order = np.random.default_rng(where.seed_at(0, "validation")).permutation(others).tolist()
    validating = set(order[: round((cfg.data.validation_share or 0.0) * len(order))])
    pool = compared(work.texts, set(order) - validating, kept=frozen)
    comparisons = of_sources(pool)
    if not len(comparisons):
        raise DataError("nothing is preferred among the texts: there is nothing to learn from")
    checking = compared(work.texts, validating, kept=frozen)
    # nothing is read: all at once, and so each text once, though several comparisons hold it
    size = len(checking.tokens) ** 2 if frozen else options.micro_batch
    parts = of_sources(checking).split(size) if checking.tokens else []
    checks = [group_batch(checking, part, work.device) for part in parts]
    objective = PlackettLuce(model, Aggregator.of(cfg.aggregator))
    seed = where.seed_at(0, "passes")
    model.train()
    result = fit(
        model,
        passes(pool, comparisons, options, seed, work.device),
        objective,
        options,
        where=where,
        folder=working,
        inputs=where.prefix,
        log=work.log,
        validate=(lambda: heldout_metrics(objective, checks)) if checks else None,
        select="align/heldout_nll",
        ahead=True,
    )
    if options.keep == "best" and result.best is not None:
        load_weights(model, result.best)
    Artifact(working / "state").remove()
    model.eval()
    kept = result.best_step if options.keep == "best" and checks else result.steps
    return {"updates": result.steps, "kept_update": kept, "tied_groups": comparisons.tied}


def _scored(work: Work, model: RewardModel, rows: Sequence[int], *, kept: bool) -> list[np.ndarray]:
    """The model's token rewards of some texts."""
    texts = work.texts
    tokens = [texts.tokens[row] for row in rows]
    sources = [[row] for row in rows] if kept else texts.sources
    origin = list(range(len(rows))) if kept else [texts.texts[row].question for row in rows]
    budget = token_budget("auto")
    return per_token(model, sources, tokens, origin, batch_tokens=budget, device=work.device)
