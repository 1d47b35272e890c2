"""Which texts are explained: those of the last round, new ones of the policy, or the user's own."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.config.inputs import settings
from pgtg.config.registry import TASKS, nearest
from pgtg.data.comparisons import distinct
from pgtg.data.examples import Examples
from pgtg.data.generations import of_tables, read_generations
from pgtg.data.splits import counts_line, text_problem
from pgtg.errors import ArtifactError, ConfigError, DataError, MissingResourceError
from pgtg.explain.credit import Group, Passage
from pgtg.explain.runs import Reader, Run, as_source
from pgtg.methods.published import trained_policy
from pgtg.pipeline.context import Context, opened
from pgtg.runs.folder import Artifact, hash_of, read_table
from pgtg.runs.log import RunLog
from pgtg.tasks import open_task
from pgtg.tasks.task import Sampled
from pgtg.types import Example, Generations

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Texts:
    """Groups of texts, and in words where they are from."""

    groups: list[Group]
    origin: str


def of_run(
    run: Run, split: str | None, n: int | None, log: RunLog, *, round: int | None = None
) -> Texts:
    """The last round's judged texts where they suffice, else new ones of the run's policy.

    Args:
        run: The run.
        split: Of the sources; None for those that the last round held out. Prompts have no source.
        n: Number of sources; None for all that the last round sampled.
        log: For what the user should know.
        round: Whose texts; None for the last that has a reward model.

    Raises:
        ConfigError: An unknown split, or any for prompts; a round without such texts.
        ArtifactError: There is no judged text yet.
    """
    if not TASKS[run.cfg.task].sources:
        if split is not None:
            raise ConfigError(
                "--split: a prompt run judges its prompts on the few training examples, so there "
                "is no split to choose; leave it out"
            )
        return _prompts(run, round)
    if split is not None and split not in SPLITS:
        raise ConfigError(f"--split: there is no split '{split}'{nearest(split, SPLITS)}")
    newest, samples = last_samples(run)
    if round is not None:
        samples = _samples_of(run, round)
    part = {None: "heldout", "validation": "heldout", "train": "train"}.get(split)
    if part is not None and (samples.path / part).is_dir():
        generations = read_generations(samples, part)
        held = len(generations.sources)
        if split is None or n is None or n <= held:
            number = newest if round is None else round
            name = {"heldout": "held-out"}.get(part, part)
            origin = f"{name} generations of round {number}"
            rewards = _scored(run, number, samples, part) if number == newest else None
            of = "train" if part == "train" else "validation"
            examples = _examples(run, of, generations.source_ids, log)
            return Texts(_by_source(run, generations, rewards, examples)[:n], origin)
    if split is None:
        raise ArtifactError(f"{samples.path} holds no held-out generations: choose --split")
    if round is not None:
        raise ConfigError(f"--round: no round has stored texts of {split}: leave it out")
    return _drawn(run, split, n, log)


def last_samples(run: Run) -> tuple[int, Artifact]:
    """The newest round that has a reward model, and its judged generations."""
    for round in range(len(list((run.folder.path / "rounds").glob("[0-9]*"))) - 1, -1, -1):
        found = run.folder.artifact("rounds", f"{round:02d}", "sample")
        if run.folder.artifact("rounds", f"{round:02d}", "align").exists() and found.exists():
            found.verify()
            return round, found
    raise ArtifactError(
        f"{run.folder.path} holds no judged generations any more: choose --split test or --text"
    )


def _samples_of(run: Run, round: int) -> Artifact:
    """The generations of a round that was asked for.

    Raises:
        ConfigError: There are none.
    """
    found = run.folder.artifact("rounds", f"{round:02d}", "sample")
    if not found.exists():
        raise ConfigError(f"--round {round}: {run.path} holds no texts of such a round")
    found.verify()
    return found


def _scored(run: Run, round: int, samples: Artifact, part: str) -> list[list[float]] | None:
    """Rewards that the score stage wrote for these samples by this reward model; else None."""
    here = ("rounds", f"{round:02d}")
    scored, aligned = (run.folder.artifact(*here, name) for name in ("score", "align"))
    start = run.folder.artifact("start")
    parents = [*([start] if start.exists() else []), samples, aligned]
    inputs = hash_of(parents, settings(run.cfg, "score"))
    if not scored.exists() or scored.manifest()["inputs"] != inputs:
        return None
    if f"{part}.parquet" not in scored.verify()["files"]:
        return None
    return read_table(scored.file(f"{part}.parquet"), ["reward"])["reward"]


def _examples(run: Run, split: str, ids: Sequence[str], log: RunLog) -> dict[str, Example]:
    """Examples of the split by id; none, with a warning, where the data is gone."""
    try:
        return run.task.examples(split).named(ids)  # pyright: ignore
    except (DataError, MissingResourceError) as error:
        log.warn(f"sources are decoded and references left out, since the data is gone: {error}")
        return {}


def _passage(generations: Generations, rewards: Any, row: int) -> Passage:
    return Passage(
        generations.texts[row],
        generations.tokens[row],
        None if math.isnan(generations.scores[row]) else generations.scores[row],
        None if rewards is None else rewards[row],
    )


def _by_source(
    run: Run, generations: Generations, rewards: Any, examples: dict[str, Example]
) -> list[Group]:
    """One group a source, in the order in which they were sampled."""
    rows: list[list[int]] = [[] for _ in generations.sources]
    for row, origin in enumerate(generations.origin):
        rows[origin].append(row)
    groups = []
    for number, (name, source) in enumerate(
        zip(generations.source_ids, generations.sources, strict=True)
    ):
        example = examples.get(name)
        text = example.source if example else run.codec.decode(source)
        references = example.references if example else ()
        passages = tuple(_passage(generations, rewards, row) for row in rows[number])
        groups.append(Group(name, text, references, passages, source))
    return groups


def _prompts(run: Run, asked: int | None) -> Texts:
    """The distinct prompts of a round as one group: all of them compete."""
    newest, samples = last_samples(run)
    round = newest if asked is None else asked
    samples = samples if asked is None else _samples_of(run, asked)
    generations = read_generations(samples, "train")
    rewards = _scored(run, round, samples, "train") if round == newest else None
    passages = tuple(_passage(generations, rewards, row) for row in distinct(generations))
    group = Group(f"prompts of round {round}", "", (), passages, generations.sources[0])
    return Texts([group], f"judged prompts of round {round}")


def _drawn(run: Run, split: str, n: int | None, log: RunLog) -> Texts:
    """New generations of the run's policy, judged now."""
    policy = trained_policy(run.cfg, run.folder)
    with open_task(run.cfg, run.folder.path) as task:
        ctx = opened(run.cfg, run.folder, log, task)
        examples: Examples = task.examples(split)[:n]  # pyright: ignore
        for counts in task.counts.values():
            log.say(counts_line(counts))
        kind, ranked = f"new generations of the trained policy on {split}", task.preferences
        if isinstance(ranked, Sampled):
            log.say(f"drawing and judging {len(examples)} x {ranked.copies} generations of {split}")
            generations = _generations(ctx, policy.path, examples, split, ranked.copies)
        else:
            generations = of_tables([ranked.columns(examples, run.codec)[0]])
            kind = f"ranked texts of {split}"
    found = _by_source(run, generations, None, {example.id: example for example in examples})
    return Texts(found, kind)


def _generations(
    ctx: Context, policy: Path, examples: Sequence[Example], split: str, copies: int
) -> Generations:
    """K judged generations of each example."""
    import torch

    lm, codec = ctx.load(policy)
    sources = [codec.encode_source(example.source)[0] for example in examples]
    names, key = [example.id for example in examples], (ctx.cfg.seed, "explain", split)
    drawn = dict(ctx.sampler(lm, codec)(sources, names, k=copies, seed_key=key))
    rows = [(i, tokens) for i in range(len(examples)) for tokens in drawn[i]]
    tokens = [tokens for _, tokens in rows]
    texts = [codec.decode(ids) for ids in tokens]
    own = [examples[i] for i, _ in rows]
    assert ctx.task.judge is not None  # it is open where generations are judged
    scores = ctx.task.judge(tokens, texts, own, codec).result()["score"]
    groups = torch.arange(len(rows)).reshape(len(examples), -1)
    ids = [example.id for example in examples]
    return Generations(ids, sources, [i for i, _ in rows], tokens, texts, scores, groups)


def of_user(reader: Reader, path: Path, n: int | None, log: RunLog) -> Texts:
    """Texts of a jsonl file with `prompt`, `completion`, and perhaps `reference`, on each line.

    Completions of one prompt compete with each other. A prompt run reads no source, so `prompt`
    may be left out there. A chat model's may be a list of messages; a text is a user's turn.

    Raises:
        DataError: No such file, or no usable line in it.
    """
    rows: dict[str, list[str]] = {}
    references: dict[str, dict[str, None]] = {}
    lost: Counter[str] = Counter()
    lines: dict[str, list[int]] = {}
    total = 0
    for line, raw in enumerate(_bytes(path).split(b"\n"), 1):
        if not raw.strip():
            continue
        total += 1
        try:
            prompt, completion, reference = _row(raw, reader)
        except DataError as error:
            lost[str(error)] += 1
            lines.setdefault(str(error), []).append(line)
            continue
        rows.setdefault(prompt, []).append(completion)
        references.setdefault(prompt, {}).update(dict.fromkeys(reference))
    said = "; ".join(f"{number} {why} ({_lines(lines[why])})" for why, number in lost.items())
    if not rows:
        raise DataError(f"{path}: no usable row" + (f": {said}" if said else ": it is empty"))
    if lost:
        log.warn(f"{path}: {lost.total()} of {total} rows left out: {said}")
    groups = [
        Group(f"text {number}", prompt, tuple(references[prompt]), tuple(map(Passage, texts)))
        for number, (prompt, texts) in enumerate(rows.items(), 1)
    ]
    return Texts(groups[:n], f"{total - lost.total()} texts of {path.name}")


def _lines(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    plural = "s" if len(numbers) > 1 else ""
    return f"line{plural} {', '.join(map(str, numbers[:5]))}{more}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"--text {path}: {error.strerror or error}") from error


def _row(raw: bytes, reader: Reader) -> tuple[str, str, list[str]]:
    """Prompt, completion and references of one line.

    Raises:
        DataError: With the reason alone, e.g. "missing completion".
    """
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise DataError("broken JSON") from error
    if not isinstance(row, dict):
        raise DataError("not a JSON object")
    sourceless = reader.sourceless
    prompt: Any = row.get("prompt", "" if sourceless else None)
    given: Any = row.get("reference")
    prompt = as_source(reader.codec, prompt, row.get("tools"))
    for problem in (
        None if sourceless and prompt == "" else text_problem(prompt, "prompt"),
        text_problem(row.get("completion"), "completion"),
        None if given is None else text_problem(given, "reference"),
    ):
        if problem:
            raise DataError(problem)
    if not reader.codec.encode_target(row["completion"])[0]:
        raise DataError("completion without a token")
    return prompt, row["completion"], [] if given is None else [given]
