"""Reward models opened to read texts: of a run, finished or half-finished, or of an export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgtg.config import RunConfig
from pgtg.config.registry import TASKS
from pgtg.data.pairs import canonical
from pgtg.errors import ArtifactError, ConfigError, DataError
from pgtg.explain.credit import Group, Passage, View, views
from pgtg.methods import method_of
from pgtg.methods.options import WeightedMLE
from pgtg.models import pieces
from pgtg.models.batch import per_token
from pgtg.models.budget import token_budget
from pgtg.models.chat import ChatCodec
from pgtg.models.codec import Codec, PromptCodec
from pgtg.models.loading import load_tokenizer
from pgtg.models.pieces import Piece
from pgtg.models.reward import load_reward_model
from pgtg.models.special_tokens import end_tokens
from pgtg.models.token_classifier import (
    About,
    is_exported,
    load_reading,
    load_token_classifier,
)
from pgtg.ops.aggregate import Aggregator
from pgtg.pipeline.findings import PARTS
from pgtg.runs.folder import Artifact, RunFolder
from pgtg.runs.saved import config_of
from pgtg.runtime.device import pick_device
from pgtg.runtime.precision import as_read, read_dtype
from pgtg.tasks import task_of
from pgtg.tasks.task import Task
from pgtg.types import TokenBatch, TokenIds

Cut = tuple[str, Sequence[Piece], bool]  # a text, its tokens, whether its end was cut off


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reward model, and how it reads texts.

    Args:
        path: What was opened: a run folder, or an exported one.
        about: The run that learned it.
        codec: How texts become token ids.
        sourceless: Whether its texts continue nothing.
        model: Loads it onto a device.
        device: Name of the one to read on.
        batch_tokens: Tokens that are read at once, as in the config.
        label: What tells it from the others that read the same texts, e.g. "avg".
        worth: How well it orders texts, in words; "" where that was not measured.
    """

    path: Path
    about: About
    codec: Codec
    sourceless: bool
    model: Callable[[torch.device], Callable[[TokenBatch], Tensor]]
    device: str = "auto"
    batch_tokens: int | str = "auto"
    label: str = ""
    worth: str = ""

    @property
    def aggregator(self) -> Aggregator:
        return Aggregator.of(self.about.aggregator)


@dataclass(frozen=True, kw_only=True)
class Run(Reader):
    """A run's newest reward model, and what else there is of the run.

    Args:
        folder: The run folder.
        cfg: Its config.
        task: Its task, without the judge.
        reward: Where the reward model lies.
    """

    folder: RunFolder
    cfg: RunConfig
    task: Task
    reward: Artifact


@dataclass(frozen=True)
class Read:
    """What a run makes of all groups, and what it had to leave unread."""

    views: list[list[View]]  # by group, one a text
    cut_sources: int
    cut_texts: int


def open_reader(path: Path) -> Reader:
    """A run folder, or an exported reward model.

    Raises:
        ArtifactError: It is neither, or damaged.
        ConfigError: A run whose method trains no reward model.
    """
    if not is_exported(path):
        return open_run(path)
    about, codec = load_reading(path)

    def model(device: torch.device) -> Callable[[TokenBatch], Tensor]:
        return load_token_classifier(path).to(device)

    return Reader(
        path=path,
        about=about,
        codec=codec,
        sourceless=isinstance(codec, PromptCodec),
        model=model,
    )


def open_run(path: Path) -> Run:
    """A run folder, read only.

    Raises:
        ArtifactError: There is no run, or it has trained no reward model yet.
        ConfigError: Its method trains none.
    """
    folder = RunFolder(path).open()
    cfg = config_of(folder)
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

    def model(device: torch.device) -> Callable[[TokenBatch], Tensor]:
        found = load_reward_model(reward.path).to(device).eval()
        for lm in found.language_models:
            as_read(lm, read_dtype(cfg.sample.precision, device))
        return found

    return Run(
        path=folder.path,
        about=_about(cfg, folder),
        codec=task.codec(tokenizer, bool(config.is_encoder_decoder), ends),
        sourceless=not TASKS[cfg.task].sources,
        model=model,
        device=cfg.device,
        batch_tokens=cfg.sample.batch_tokens,
        worth=_worth(folder),
        folder=folder,
        cfg=cfg,
        task=task,
        reward=reward,
    )


def _worth(folder: RunFolder) -> str:
    """Pairs that the newest reward model orders right, next to the baseline that costs nothing."""
    rounds = sorted((folder.path / "rounds").glob("[0-9]*"), reverse=True)
    made = [folder.artifact("rounds", one.name, "aggregate") for one in rounds]
    for found in (one.manifest()["metrics"] for one in made if one.exists()):
        for part, where in PARTS.items():
            pairs = found.get(f"aggregate/{part}_pair_accuracy")
            if pairs is None:
                continue
            others = {"chance": 0.5}
            if (free := found.get(f"aggregate/{part}_log_prob_wins")) is not None:
                others = {"start policy's log-probability": free, **others}
            baselines = ", ".join(f"{name} {100 * value:.1f} %" for name, value in others.items())
            return (
                f"{100 * pairs:.1f} % of pairs ordered as they are preferred, {where} ({baselines})"
            )
    return ""


def _about(cfg: RunConfig, folder: RunFolder) -> About:
    weights = WeightedMLE.of(cfg.method)
    threshold, newest = weights.threshold, -1
    for (
        made
    ) in folder.artifacts():  # the mean of the round's targets stands in the trained policy's
        found = made.manifest()
        own = "improve/threshold" in found["metrics"] and not found["extra"].get("control")
        if own and found["position"] > newest:
            threshold, newest = found["metrics"]["improve/threshold"], found["position"]
    return About(
        cfg.task,
        cfg.name,
        cfg.seed,
        cfg.reward.head,
        cfg.reward.bound,
        cfg.aggregator,
        weights.transform,
        weights.reward_to_go,
        weights.weights,
        threshold,
        weights.below,
    )


def labelled(readers: Sequence[Reader]) -> list[Reader]:
    """The readers with short labels that tell them apart: aggregator, and what else differs.

    Raises:
        ConfigError: They were learned for different tasks.
    """
    tasks = {reader.about.task for reader in readers}
    if len(tasks) > 1:
        raise ConfigError(f"--with: the runs are of different tasks ({', '.join(sorted(tasks))})")
    columns = {
        "": [reader.about.aggregator.name for reader in readers],
        "head ": [reader.about.head for reader in readers],
        "seed ": [reader.about.seed for reader in readers],
    }
    used = {key: values for key, values in columns.items() if len(set(values)) > 1 or not key}
    labels = [
        ", ".join(f"{key}{values[n]}" for key, values in used.items()) for n in range(len(readers))
    ]
    if len(set(labels)) < len(readers):
        labels = [
            f"{label} ({reader.path.name})" for label, reader in zip(labels, readers, strict=True)
        ]
    if len(set(labels)) < len(readers):
        labels = [f"{n}: {label}" for n, label in enumerate(labels, 1)]
    return [replace(reader, label=label) for reader, label in zip(readers, labels, strict=True)]


def alike(a: Codec, b: Codec) -> bool:
    """Whether two runs cut and frame texts the same way, so that token ids mean the same."""
    if replace(a, tokenizer=None) != replace(b, tokenizer=None):  # pyright: ignore
        return False
    ours, theirs = (getattr(codec.tokenizer, "backend_tokenizer", None) for codec in (a, b))
    if ours is None or theirs is None:
        return a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
    return ours.to_str() == theirs.to_str()


@dataclass(frozen=True)
class InTokens:
    """All texts of some groups in one reader's tokens: sources by group, then texts."""

    sources: list[tuple[TokenIds, bool]]
    texts: list[list[Cut]]


def in_tokens(reader: Reader, groups: Sequence[Group], sampled_by: Codec) -> InTokens:
    """The groups' sources and texts as a reader cuts them.

    Tokens that were sampled are taken as they are, never decoded and cut again, as long as the
    reader cuts texts like the one that sampled them; else it has the same text in its own tokens.

    Raises:
        DataError: A text that has no token.
    """
    same = alike(reader.codec, sampled_by)
    sources = [_source(reader.codec, group, same) for group in groups]
    texts = [[_text(reader.codec, p, same) for p in group.passages] for group in groups]
    for group, found in zip(groups, texts, strict=True):
        for passage, (_, tokens, _) in zip(group.passages, found, strict=True):
            if not tokens:
                raise DataError(f"{group.id}: no token in the text {passage.text!r:.60}")
    return InTokens(sources, texts)


def rewards_in(
    reader: Reader, groups: Sequence[Group], cut: InTokens, sampled_by: Codec
) -> list[list[Sequence[float]]]:
    """Rewards by group and text: those that the run has stored, else by its reward model."""
    stored = _stored(groups) if reader.codec is sampled_by else None
    return stored or _rewards(reader, [ids for ids, _ in cut.sources], cut.texts)


def read(reader: Reader, groups: Sequence[Group], sampled_by: Codec) -> Read:
    """Have a reward model read the texts of all groups.

    Raises:
        DataError: A text that has no token.
    """
    cut = in_tokens(reader, groups, sampled_by)
    made = [
        views([text[:2] for text in found], values, reader.aggregator)
        for found, values in zip(
            cut.texts, rewards_in(reader, groups, cut, sampled_by), strict=True
        )
    ]
    cut_texts = sum(was for found in cut.texts for _, _, was in found)
    return Read(made, sum(was for _, was in cut.sources), cut_texts)


def as_source(codec: Codec, prompt: Any, tools: Any = None) -> Any:
    """A prompt as the codec takes it: for a chat model, a conversation as canonical JSON.

    Args:
        prompt: A text, which is a user's turn; or a list of messages. Anything else comes back.
        tools: Of the conversation.

    Raises:
        DataError: A message without role, or without text.
    """
    if not isinstance(codec, ChatCodec):
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else prompt
    if not isinstance(turns, list) or not turns:
        return prompt
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise DataError("a message that is no {role, content}")
        if not isinstance(turn.get("content"), str):
            raise DataError("a message without text")
    return canonical(turns, tools)


def rewards_of(
    reader: Reader, sources: Sequence[str | list[dict[str, Any]]], texts: Sequence[str]
) -> list[tuple[str, Sequence[Piece], Sequence[float], bool]]:
    """Each text as it is read, its pieces, their rewards, and whether it or its source was cut.

    Args:
        sources: Texts; of a chat model also conversations, as lists of messages.

    Raises:
        DataError: A text that has no token, or a message without text.
    """
    starts = [reader.codec.encode_source(as_source(reader.codec, source)) for source in sources]
    found = [pieces.of_text(reader.codec, text) for text in texts]
    for text, (_, tokens, _) in zip(texts, found, strict=True):
        if not tokens:
            raise DataError(f"no token in the text {text!r:.60}")
    values = _rewards(reader, [ids for ids, _ in starts], [[text] for text in found])
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
    if passage.tokens is None or not same:
        return pieces.of_text(codec, passage.text)
    text, found = pieces.of_tokens(codec, passage.tokens)
    if text != passage.text:  # white space of a text that was given, not sampled
        given, own, _ = pieces.of_text(codec, passage.text)
        if [piece.id for piece in own] == list(passage.tokens):
            return given, own, False
    return text, found, False


def _stored(groups: Sequence[Group]) -> list[list[Sequence[float]]] | None:
    """Rewards that the run has already; None if any is missing."""
    found = [[passage.rewards for passage in group.passages] for group in groups]
    if any(row is None for rows in found for row in rows):
        return None
    return [[row for row in rows if row is not None] for rows in found]


def _rewards(
    reader: Reader, sources: Sequence[TokenIds], texts: Sequence[Sequence[Cut]]
) -> list[list[Sequence[float]]]:
    """Rewards of all tokens by the reward model, by group and text."""
    device = pick_device(reader.device)
    rows = [(number, found) for number, group in enumerate(texts) for _, found, _ in group]
    values = per_token(
        reader.model(device),
        sources,
        [[piece.id for piece in found] for _, found in rows],
        [number for number, _ in rows],
        batch_tokens=token_budget(reader.batch_tokens),
        device=device,
    )
    left = iter(values)
    return [[next(left).tolist() for _ in group] for group in texts]
