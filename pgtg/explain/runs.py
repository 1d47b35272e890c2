"""A finished (or half-finished) run, opened to have texts read by its reward model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pgtg.config import RunConfig
from pgtg.config.compose import completed, run_config
from pgtg.errors import ArtifactError, ConfigError, DataError
from pgtg.explain import pieces
from pgtg.explain.credit import Group, Passage, View, views
from pgtg.explain.pieces import Piece
from pgtg.methods import method_of
from pgtg.models.batch import per_token
from pgtg.models.budget import token_budget
from pgtg.models.codec import Codec
from pgtg.models.loading import load_tokenizer
from pgtg.models.reward import load_reward_model
from pgtg.models.special_tokens import end_tokens
from pgtg.ops.aggregate import Aggregator
from pgtg.runs.folder import Artifact, RunFolder
from pgtg.runtime.device import pick_device
from pgtg.runtime.precision import as_read, read_dtype
from pgtg.tasks import task_of
from pgtg.tasks.task import Task
from pgtg.types import TokenIds

Cut = tuple[str, Sequence[Piece], bool]  # a text, its tokens, whether its end was cut off


@dataclass(frozen=True)
class Run:
    """A run with a reward model.

    Args:
        folder: Where it is.
        cfg: Its config.
        task: Its task, without the judge.
        reward: Its newest reward model.
        codec: How its models read texts.
        label: What tells it from the other runs, e.g. "avg".
    """

    folder: RunFolder
    cfg: RunConfig
    task: Task
    reward: Artifact
    codec: Codec
    label: str = ""


@dataclass(frozen=True)
class Read:
    """What a run makes of all groups, and what it had to leave unread."""

    views: list[list[View]]  # by group, one a text
    cut_sources: int
    cut_texts: int


def open_run(path: Path) -> Run:
    """A run folder, read only.

    Raises:
        ArtifactError: There is no run, or it has trained no reward model yet.
        ConfigError: Its method trains none.
    """
    folder = RunFolder(path).open()
    cfg = _config(folder.runnable_config())
    if "align" not in method_of(cfg).stages:
        raise ConfigError(
            f"{path}: a run with method={cfg.method.name} has no reward model, so there is no "
            "token reward to explain; give a run with method=pgtg"
        )
    reward = folder.artifact("reward")
    if not reward.exists():
        raise ArtifactError(
            f"{path} has no reward model yet: `pgtg train {cfg.task} run_dir={path}` resumes it"
        )
    reward.verify()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    task = task_of(cfg, folder.path)
    tokenizer, config, generation = load_tokenizer(str(reward.path))
    ends = end_tokens(generation, config)
    codec = task.codec(tokenizer, bool(config.is_encoder_decoder), ends)
    return Run(folder, cfg, task, reward, codec)


def _config(saved: dict[str, Any]) -> RunConfig:
    """The run's config; nothing that is read here depends on keys that it may lack."""
    task = str(saved.get("task"))
    return run_config(task, saved=completed(task, saved)[0])


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with short labels that tell them apart: aggregator, and what else differs.

    Raises:
        ConfigError: Runs of different tasks.
    """
    tasks = {run.cfg.task for run in runs}
    if len(tasks) > 1:
        raise ConfigError(f"--with: the runs are of different tasks ({', '.join(sorted(tasks))})")
    columns = {
        "": [run.cfg.aggregator.name for run in runs],
        "head ": [run.cfg.reward.head for run in runs],
        "seed ": [run.cfg.seed for run in runs],
    }
    used = {key: values for key, values in columns.items() if len(set(values)) > 1 or not key}
    labels = [
        ", ".join(f"{key}{values[n]}" for key, values in used.items()) for n in range(len(runs))
    ]
    if len(set(labels)) < len(runs):
        labels = [
            f"{label} ({run.folder.path.name})" for label, run in zip(labels, runs, strict=True)
        ]
    if len(set(labels)) < len(runs):
        labels = [f"{n}: {label}" for n, label in enumerate(labels, 1)]
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def alike(a: Codec, b: Codec) -> bool:
    """Whether two runs cut and frame texts the same way, so that token ids mean the same."""
    if replace(a, tokenizer=None) != replace(b, tokenizer=None):  # pyright: ignore
        return False
    ours, theirs = (getattr(codec.tokenizer, "backend_tokenizer", None) for codec in (a, b))
    if ours is None or theirs is None:
        return a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
    return ours.to_str() == theirs.to_str()


def read(run: Run, groups: Sequence[Group], sampled_by: Codec) -> Read:
    """Have the run's reward model read the texts of all groups.

    Tokens that were sampled are read as they are, never decoded and cut again, as long as the run
    cuts texts like the one that sampled them; else it reads the same text in its own tokens.

    Raises:
        DataError: A text that has no token.
    """
    same = alike(run.codec, sampled_by)
    sources = [_source(run.codec, group, same) for group in groups]
    texts = [[_text(run.codec, p, same) for p in group.passages] for group in groups]
    for group, found in zip(groups, texts, strict=True):
        for passage, (_, tokens, _) in zip(group.passages, found, strict=True):
            if not tokens:
                raise DataError(f"{group.id}: no token in the text {passage.text!r:.60}")
    rewards = _stored(groups) if run.codec is sampled_by else None
    if rewards is None:
        rewards = _rewards(run, [ids for ids, _ in sources], texts)
    made = [
        views([text[:2] for text in found], values, Aggregator.of(run.cfg.aggregator))
        for found, values in zip(texts, rewards, strict=True)
    ]
    cut_texts = sum(cut for found in texts for _, _, cut in found)
    return Read(made, sum(cut for _, cut in sources), cut_texts)


def rewards_of(
    run: Run, sources: Sequence[str], texts: Sequence[str]
) -> list[tuple[str, Sequence[Piece], Sequence[float], bool]]:
    """Each text as it is read, its pieces, their rewards, and whether it or its source was cut.

    Raises:
        DataError: A text that has no token.
    """
    starts = [run.codec.encode_source(source) for source in sources]
    found = [pieces.of_text(run.codec, text) for text in texts]
    for text, (_, tokens, _) in zip(texts, found, strict=True):
        if not tokens:
            raise DataError(f"no token in the text {text!r:.60}")
    values = _rewards(run, [ids for ids, _ in starts], [[text] for text in found])
    return [
        (text, tokens, rewards, cut or source_cut)
        for (text, tokens, cut), (_, source_cut), (rewards,) in zip(
            found, starts, values, strict=True
        )
    ]


def _source(codec: Codec, group: Group, same: bool) -> tuple[TokenIds, bool]:
    """Source ids, and whether its end was cut off now."""
    if group.source_tokens is not None and same:
        return group.source_tokens, False
    return codec.encode_source(group.source)


def _text(codec: Codec, passage: Passage, same: bool) -> Cut:
    if passage.tokens is not None and same:
        return *pieces.of_tokens(codec, passage.tokens), False
    return pieces.of_text(codec, passage.text)


def _stored(groups: Sequence[Group]) -> list[list[Sequence[float]]] | None:
    """Rewards that the run has already; None if any is missing."""
    found = [[passage.rewards for passage in group.passages] for group in groups]
    if any(row is None for rows in found for row in rows):
        return None
    return [[row for row in rows if row is not None] for rows in found]


def _rewards(
    run: Run, sources: Sequence[TokenIds], texts: Sequence[Sequence[Cut]]
) -> list[list[Sequence[float]]]:
    """Rewards of all tokens by the run's reward model, by group and text."""
    device = pick_device(run.cfg.device)
    model = load_reward_model(run.reward.path).to(device).eval()
    as_read(model.backbone, read_dtype(run.cfg.sample.precision, device))
    rows = [(number, found) for number, group in enumerate(texts) for _, found, _ in group]
    values = per_token(
        model,
        sources,
        [[piece.id for piece in found] for _, found in rows],
        [number for number, _ in rows],
        batch_tokens=token_budget(run.cfg.sample.batch_tokens),
        device=device,
    )
    left = iter(values)
    return [[next(left).tolist() for _ in group] for group in texts]
