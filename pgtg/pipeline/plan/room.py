"""The disk and the memory that a run takes, added up stage by stage before it begins.

What is written follows the stages' own order (`stages/`, `states`, `train`): in a round the judged
samples, reward models, policies with their optimiser state, and while a training runs the state
that it could be resumed from. While a new such state is written the former one is still there, so
the most that lies on the disk is more than what is left at the end.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pgtg.config import BATCH_TOKENS, DEPTHS, FitConfig, RunConfig
from pgtg.config.registry import TASKS
from pgtg.config.sizes import show_size
from pgtg.errors import MissingResourceError
from pgtg.pipeline.plan.models import FLOAT32, ModelSize, ModelSizes
from pgtg.pipeline.plan.work import heads_of, lines_of
from pgtg.training.schedule import segments, updates_per_epoch

TOKEN = 3.0  # bytes on the disk of a token id, its share of the text, and its reward
ID = 2.0  # bytes of a kept token id; vocabularies of 65,536 and more take 4
SCORE = 8.0  # bytes of a number in a table
SPARE = 64e6  # bytes of logs, results and manifests, and of room that a file system wants
KERNELS = 6e7  # bytes of buffers that matrix products and file formats keep
WRITING = 2  # states on the disk while one is replaced: the former and the new one


@dataclass
class Ledger:
    """Bytes on the disk over the course of a run."""

    now: float = 0.0
    most: float = 0.0

    def keep(self, size: float) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def pass_by(self, size: float) -> None:
        """Something that is gone again before the next thing is kept."""
        self.most = max(self.most, self.now + size)

    def drop(self, size: float) -> None:
        self.now -= size


@dataclass(frozen=True)
class Room:
    """Bytes that a run takes.

    Args:
        disk: Most on the disk at any moment.
        disk_end: What is left on it at the end; at most, where best weights may be the last ones.
        device: Most on the device: weights, gradients, moments, best weights, activations.
        activations: The part of it that depends on the lengths of texts, at full lengths.
        host: Most in the machine's own memory; on a CPU what would be on a device lies there.
    """

    disk: float
    disk_end: float
    device: float
    activations: float
    host: float


def room_for(
    cfg: RunConfig, sizes: ModelSizes, rounds: int, *, on_cpu: bool, train: int = 0
) -> Room:
    """What a run with so many rounds takes.

    Args:
        train: Training examples, whose tokens and token rewards are kept; 0 if that is not known.
    """
    ledger = _disk(cfg, sizes, rounds, train)
    stages = list(_memory(cfg, sizes))
    device = max(weights + activations for weights, activations, _ in stages)
    activations = max(activations for _, activations, _ in stages)
    # files are read by mapping them, and written from a copy
    moved = [written + (read if rounds > 1 else 0.0) for _, _, (written, read) in stages]
    if on_cpu:
        host = max(w + a + m for (w, a, _), m in zip(stages, moved, strict=True))
        host += _kept_states(cfg, sizes.policy)
    else:
        host = max(moved) + 2 * max(sizes.policy_trained, _reward_trained(cfg, sizes))
    return Room(ledger.most, ledger.now, device, activations, _program() + host)


@cache
def _program() -> float:
    """Bytes of the program itself: this process has loaded the libraries that a run loads."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return float(found[1]) * 1024 + KERNELS
    return 5e8 + KERNELS


# --- disk


def _disk(cfg: RunConfig, sizes: ModelSizes, rounds: int, train: int) -> Ledger:
    ledger = Ledger()
    ledger.keep(_token_bytes(cfg, train))
    if cfg.policy.tiny_t5 is not None or cfg.policy.tiny_lm is not None:
        ledger.keep(sizes.policy.saved * (2 if cfg.policy.tiny_lm is not None else 1))
    before = _Newest()
    for round in range(rounds):
        newest = _Newest()
        for _ in lines_of(cfg, "sample"):
            ledger.keep(_sample_bytes(cfg, round))
        for head in heads_of(cfg, round):
            _fitted(ledger, cfg.reward.fit, _reward_trained(cfg, sizes), heldout=_checked(cfg))
            ledger.keep(sizes.reward_saved)
            newest.aligned += 0.0 if head else sizes.reward_saved
        for _ in lines_of(cfg, "improve"):
            _improved(ledger, cfg, sizes, newest)
        if cfg.keep_rounds == "last" and round > 0:
            _tidy(ledger, cfg, before, round)
        before = newest
    return ledger


@dataclass
class _Newest:
    """What the newest round keeps and `keep_rounds=last` may drop after the next one [bytes]."""

    aligned: float = 0.0
    weights: float = 0.0
    moments: float = 0.0


def _tidy(ledger: Ledger, cfg: RunConfig, before: _Newest, round: int) -> None:
    """Drop what the round before kept. The best policy of an earlier round stays."""
    ledger.drop(before.aligned + before.moments)
    if not (cfg.improve.keep == "best" and round == 1):
        ledger.drop(before.weights)


def _improved(ledger: Ledger, cfg: RunConfig, sizes: ModelSizes, newest: _Newest) -> None:
    """A round's policy of one line: its weights, the best ones next to them, the moments."""
    trained = sizes.policy_trained * (1 + cfg.method.trains_critic)
    _fitted(ledger, cfg.improve, trained, heldout=_validates(cfg))
    best = sizes.policy_saved if cfg.improve.keep == "best" and _validates(cfg) else 0.0
    weights = sizes.policy_saved + best
    moments = 2 * trained + sizes.policy_trained * cfg.method.trains_critic  # with the critic
    ledger.keep(weights + moments)
    newest.weights += weights
    newest.moments += moments


def _fitted(ledger: Ledger, fit: FitConfig, trained: float, *, heldout: bool) -> None:
    """A training's states for a resume, which go when it is done."""
    if not fit.checkpoint_every:
        return
    state = trained * (4 if heldout and fit.keep == "best" else 3)  # weights, two moments, best
    ledger.pass_by(state * WRITING)


def _reward_trained(cfg: RunConfig, sizes: ModelSizes) -> float:
    backbone = sizes.reward.weights if cfg.reward.trained == "all" else 0.0
    return backbone + FLOAT32 * sizes.head


def _checked(cfg: RunConfig) -> bool:
    """Whether held-out comparisons choose the best reward model."""
    return cfg.sample.heldout_sources > 0


def _validates(cfg: RunConfig) -> bool:
    """Whether held-out scores choose the best policy."""
    return cfg.prompt is None or cfg.prompt.validation_prompts > 0


def _token_bytes(cfg: RunConfig, train: int) -> float:
    """Token ids of the training split, and the token rewards of the targets that rounds use."""
    if not TASKS[cfg.task].sources or train < 1:
        return 0.0
    from pgtg.data.tokens import KEPT_FROM  # here: it loads torch

    fit, target = cfg.improve, cfg.policy.max_target_tokens
    ids = ID * train * (cfg.policy.max_source_tokens + target) if train >= KEPT_FROM else 0.0
    if not lines_of(cfg, "align"):
        return ids
    epoch = updates_per_epoch(train, fit.micro_batch, fit.accumulate)
    parts = segments(cfg.schedule, epoch)
    used = sum(min(train, part * fit.micro_batch * fit.accumulate) for part in parts)
    return ids + FLOAT32 * target * used


def _sample_bytes(cfg: RunConfig, round: int) -> float:
    """Tables of a round's generations, and of their token rewards."""
    s = cfg.sample
    if cfg.prompt is not None:
        number = cfg.prompt.first if round == 0 else s.sources
        return (number + s.heldout_sources) * (s.max_new_tokens * TOKEN + 64 * SCORE)
    source = cfg.policy.max_source_tokens * TOKEN
    return (s.sources + s.heldout_sources) * (source + s.k * s.max_new_tokens * 2 * TOKEN)


# --- memory


def _memory(
    cfg: RunConfig, sizes: ModelSizes
) -> Iterator[tuple[float, float, tuple[float, float]]]:
    """Bytes of each stage: of what has to do with weights; of activations; and of what is copied to
    be written, and read from the round before."""
    policy, reward = sizes.policy, sizes.reward
    judge = sizes.judge.weights if sizes.judge is not None else 0.0
    yield policy.weights + judge, _passes(cfg, policy), (0.0, 0.0)
    if lines_of(cfg, "align"):
        trained = _reward_trained(cfg, sizes)
        best = trained if _checked(cfg) and cfg.reward.fit.keep == "best" else 0.0
        frozen = (sizes.copies - 1) * reward.weights
        frozen += reward.weights if cfg.reward.trained == "head" else 0.0
        kept = policy.weights + judge + frozen + 4 * trained + best  # weights, gradients, moments
        backward = _activations(cfg, cfg.reward.fit, reward, cfg.compared, logits=False)
        yield kept, max(backward, _passes(cfg, reward)), (0.0, trained)
    if lines_of(cfg, "improve"):
        models = 1 + cfg.method.trains_critic
        own = models * sizes.policy_trained
        frozen = models * (policy.weights - (0.0 if sizes.adaptor else policy.changed))
        start = policy.weights if cfg.method.keeps_start else 0.0
        guide = 0.0
        if lines_of(cfg, "align"):
            guide = FLOAT32 * (sizes.copies * reward.parameters + sizes.head)
        best = own if cfg.improve.keep == "best" and _validates(cfg) else 0.0
        kept = 4 * own + best + frozen + start + judge + guide
        backward = models * _activations(cfg, cfg.improve, policy, 1, logits=True)
        # the moments, and in a state for a resume the weights, are written from copies
        written = (3.0 if cfg.improve.checkpoint_every else 2.0) * own
        yield kept, max(backward, _passes(cfg, policy)), (written, 2 * own)


def _kept_states(cfg: RunConfig, model: ModelSize) -> float:
    """The most that what frozen layers make of texts may take."""
    causal = model.config is not None and not model.config.is_encoder_decoder
    kept = causal and cfg.policy.trainable_layers is not None and not cfg.policy.dropout
    return (cfg.policy.frozen_cache or 0.0) * 2**30 if kept else 0.0


def _activations(
    cfg: RunConfig, fit: FitConfig, model: ModelSize, copies: int, *, logits: bool
) -> float:
    """Bytes that a micro-batch keeps for its backward pass, at full lengths.

    A layer keeps about 16 values a token and unit of width besides its attention weights (after
    Korthikanti et al. 2022, arXiv:2205.05198, Sec. 4); gradient checkpointing keeps its input.
    """
    if model.config is None or not TASKS[cfg.task].sources:
        return 0.0
    width, _, depth, vocabulary = _shape(model.config)
    item = 2.0 if fit.precision != "no" else float(model.item)
    source, new = cfg.policy.max_source_tokens, cfg.sample.max_new_tokens * copies
    values = (1.0 if fit.gradient_checkpointing else 16.0) * width * depth * (source + new)
    if logits:
        values += 3.0 * vocabulary * new
    return item * values * fit.micro_batch


def _passes(cfg: RunConfig, model: ModelSize) -> float:
    """Bytes of one pass without gradients over a full batch: one layer's values at a time."""
    if model.config is None or not TASKS[cfg.task].sources:
        return 0.0
    width, inner, _, _ = _shape(model.config)
    row = cfg.policy.max_source_tokens + cfg.sample.max_new_tokens
    most = row * max(cfg.sample.sources, cfg.sample.heldout_sources)
    asked = cfg.sample.batch_tokens
    tokens = min(BATCH_TOKENS if asked == "auto" else int(asked), most)
    return float(model.item * tokens * (6 * width + 2 * inner))


def _shape(config: Any) -> tuple[float, float, float, float]:
    """Width, width of the feed-forward layers, layers of a stack, and vocabulary."""
    text = config.get_text_config()
    width = float(getattr(text, "hidden_size", None) or text.d_model)
    inners = ("d_ff", "intermediate_size", "encoder_ffn_dim", "ffn_dim", "n_inner")
    inner = next((n for name in inners if (n := getattr(text, name, None))), 4 * width)
    depth = next((n for name in DEPTHS if (n := getattr(text, name, None))), 1)
    return width, float(inner), float(depth), float(text.vocab_size)


# --- enough?


def require_room(runs: Sequence[RunConfig], folder: Path, needed: float) -> None:
    """Refuse runs that will not fit on the disk.

    Args:
        runs: The jobs of one call.
        folder: Where they go; what of it is there already counts as written.
        needed: Bytes of all runs together.

    Raises:
        MissingResourceError: There is less room than that; says what would help.
    """
    here = nearest_folder(folder)
    free, written = shutil.disk_usage(here).free, bytes_below(folder)
    missing = needed + SPARE - written - free
    if missing <= 0:
        return
    what = f"{len(runs)} runs need" if len(runs) > 1 else "the run needs"
    keep = "" if runs[0].keep_rounds == "last" else "keep_rounds=last, "
    raise MissingResourceError(
        f"{folder}: {what} up to {show_size(needed + SPARE)} of disk, and {show_size(free)} are "
        f"free: {keep}fewer method.controls, run_dir=<another disk>, or `pgtg cache prune --all`; "
        "--dry-run shows the parts"
    )


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.expanduser().absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))


def bytes_below(folder: Path) -> int:
    """Bytes of the files below a folder, a file with several names counted once."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.expanduser().rglob("*"):
        found: Any = path.lstat()
        seen[(found.st_dev, found.st_ino)] = 0 if path.is_dir() else found.st_size
    return sum(seen.values())
