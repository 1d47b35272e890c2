"""Is the credit right? `pgtg benchmark credit`: rankings are learned, marked errors are the truth.

Nothing but preferences is learned from. Questions are dealt out into folds; the reward model of a
fold learns from the rankings of all others, and the tokens of its own questions get its rewards.
Each row of the table is a reward head with an aggregator, or a baseline; a figure says how well its
token values tell tokens under a marked error from the others.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgtg.benchmark.figures import as_rows, baselines, figures, learned, table
from pgtg.benchmark.folds import Work, in_folds, read_once, rewards
from pgtg.benchmark.texts import Texts, as_read
from pgtg.config import RunConfig
from pgtg.data.spans import read_spanned
from pgtg.data.splits import counts_line
from pgtg.errors import ConfigError, DataError
from pgtg.models.chat import ChatCodec
from pgtg.models.codec import Codec
from pgtg.models.loading import load_language_model
from pgtg.ops.aggregate import Aggregator
from pgtg.pipeline.context import quiet, usable_device
from pgtg.runs.files import write_json
from pgtg.runs.folder import RunFolder, flat, provenance
from pgtg.runs.log import RunLog
from pgtg.runtime import distributed
from pgtg.runtime.device import set_arithmetic
from pgtg.runtime.precision import as_read as narrowed
from pgtg.runtime.precision import read_dtype

ROWS = ("reward", "aggregator")  # sections in which rows may differ


@dataclass(frozen=True)
class Asked:
    """One call.

    Args:
        dataset: Key of `data.spans.SPANNED`, or "own".
        folds: Number of them.
        rows: A checked config for each reward model.
    """

    dataset: str
    folds: int
    rows: Sequence[RunConfig]

    def names(self) -> list[str]:
        """Head and aggregator of each row, and what else differs between rows."""
        named = ("reward.head", "aggregator.name")
        rows = [flat({key: asdict(row)[key] for key in ROWS}) for row in self.rows]
        keys = dict.fromkeys(key for row in rows for key in row if key not in named)
        differ = [key for key in keys if len({repr(row.get(key)) for row in rows}) > 1]
        return [
            " ".join(
                [
                    *(str(row[key]) for key in named),
                    *(f"{key.rpartition('.')[2]}={row.get(key)}" for key in differ),
                ]
            )
            for row in rows
        ]

    def require(self) -> None:
        """Raises a ConfigError with all that this benchmark cannot do of what is asked."""
        problems = list[str]()
        if distributed.count() > 1:
            problems.append("the benchmark runs in one process")
        policy = self.rows[0].policy
        if policy.tiny_lm is not None or policy.tiny_t5 is not None:
            problems.append("policy: a tiny model of the set-up is not made here; give policy.path")
        every = [flat(asdict(row)) for row in self.rows]
        shared = {key for row in every for key in row if key.partition(".")[0] not in ROWS}
        for key in sorted(shared):
            if len({repr(row.get(key)) for row in every}) > 1:
                problems.append(f"{key}: rows may differ in reward.* and aggregator.* only")
        for row in self.rows:
            if row.reward.trained == "head" and (row.reward.path or row.reward.layers is not None):
                problems.append(
                    "reward.path, reward.layers: with reward.trained=head the head reads the "
                    "states of policy.path; leave them out, or give reward.trained=all"
                )
        if problems:
            raise ConfigError(*dict.fromkeys(problems))


def credit(asked: Asked, run_dir: Path) -> list[dict[str, Any]]:
    """Run, or resume, the benchmark; print its table, and write credit.json.

    Returns:
        The figures, as credit.json has them.

    Raises:
        ConfigError: What is asked cannot be done, or the folder holds something else.
        DataError: The data are not there, or hold too little.
    """
    asked.require()
    cfg, began, busy = asked.rows[0], time.monotonic(), time.process_time()
    device = usable_device(cfg)
    set_arithmetic(device, tf32=cfg.tf32, deterministic=cfg.deterministic)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    spanned, counts = read_spanned(asked.dataset, cfg.data)
    lm, tokenizer = load_language_model(
        str(cfg.policy.path), revision=cfg.policy.revision, dtype=cfg.policy.dtype
    )
    kind = ChatCodec if cfg.data.as_chat else Codec  # as the preferences task has it
    reads = (cfg.policy, tokenizer, lm.is_encoder_decoder, lm.end_ids)
    texts = as_read(spanned, kind.of(*reads, cut_start=True))
    if not any(texts.texts[row].spans for row in texts.annotated):
        raise DataError(f"{asked.dataset}: no completion has a marked error")
    folds = in_folds(len(texts.sources), asked.folds, cfg.seed)
    lm = lm.to(device).eval()
    narrowed(lm, read_dtype(cfg.sample.precision, device))
    embedding = lm.model.get_input_embeddings()
    assert isinstance(embedding, nn.Module)
    with _opened(run_dir, asked) as (folder, log):
        for one in counts:
            log.say(counts_line(one))
        about = _counted(texts)
        log.say(about)
        work, rows = Work(folder, log, device, texts, folds), []
        kept = read_once(work, cfg, lm)
        for own, name in zip(asked.rows, asked.names(), strict=True):
            values = rewards(work, own, name.replace(" ", "_"), kept, embedding)
            rows.append(learned(name, values, Aggregator.of(own.aggregator)))
        found = figures(texts, [*rows, *baselines(kept)], seed=cfg.seed)
        log.table(
            f"{asked.dataset}: tokens under marked errors, told by their value", *table(found)
        )
        made, seconds = as_rows(found), time.monotonic() - began
        cost = {"seconds": seconds, "cpu_seconds": time.process_time() - busy}
        write_json(run_dir / "credit.json", {"about": about, **cost, "figures": made})
        took = f"{seconds / 60:.1f} min this time, {cost['cpu_seconds'] / 60:.1f} min of CPU"
        log.say(f"written to {run_dir / 'credit.json'}; {took}")
    return made


def _counted(texts: Texts) -> str:
    marked = [texts.texts[row] for row in texts.annotated]
    said = [
        f"{len(texts.sources)} questions, {len(texts.texts)} completions",
        f"{len(marked)} of them annotated ({sum(len(t.spans or ()) for t in marked)} spans)",
    ]
    prompts, completions = texts.cut
    if prompts:
        said.append(f"{prompts} prompts lost their beginning (policy.max_source_tokens)")
    if completions:
        said.append(
            f"{completions} completions lost their end, which is not scored "
            "(policy.max_target_tokens)"
        )
    return "; ".join(said)


@contextmanager
def _opened(run_dir: Path, asked: Asked) -> Iterator[tuple[RunFolder, RunLog]]:
    """The folder, locked, with its log. It keeps what earlier calls read and learned: what this
    call asks for in the same way is not made again."""
    folder = RunFolder(run_dir)
    rows = dict(zip(asked.names(), map(asdict, asked.rows), strict=True))
    config = {
        "benchmark": "credit",
        "dataset": asked.dataset,
        "folds": asked.folds,
        "rows": rows,
    }
    with folder.lock():
        if not folder.exists():
            folder.create(config, provenance(sys.argv, asked.rows[0].seed))
        elif folder.config().get("benchmark") != "credit":
            raise ConfigError(f"{run_dir} holds a run of something else; give another run_dir")
        folder.open().reset_config(config)
        log = RunLog(run_dir, quiet=quiet())
        try:
            log.rewind(folder.last_position())
            yield folder, log
        finally:
            log.close(0)
