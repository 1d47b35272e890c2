"""Stage results that several runs share: taken from the cache, or made and put there.

What rests on no token reward is the same in all jobs of a sweep over aggregators: the samples of
the start policy with the judge's scores, the controls without a reward model, and how these are
evaluated. The key of an entry is the hash of all that its bits depend on: contents of parents, data
and models, the config's parts, the machine's arithmetic, and pgtg's own code. With the files, an
entry holds the lines that making it wrote to metrics.jsonl, so a run ends with the same bits
whether it was taken or made. While one run makes an entry the others wait for it, then take it.
A run of several processes shares nothing: how work was divided shows in the last bits.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pgtg.config import plugins
from pgtg.config.inputs import portable
from pgtg.errors import ArtifactError, PgtgError
from pgtg.methods import method_of
from pgtg.pipeline.context import Context
from pgtg.runs.cache import CachedArtifact
from pgtg.runs.entries import prune, size_limit
from pgtg.runs.files import content_hash, read_jsonl, sha256
from pgtg.runs.folder import Artifact, cached, link_or_copy, write_jsonl
from pgtg.runtime import distributed
from pgtg.runtime.device import device_name
from pgtg.runtime.precision import read_dtype

LINES, FILES = "lines.jsonl", "files"
# what decides the bits of a stage's result; the outer parts (command line, report, plan) do not
CODE = ("ops", "models", "judges", "metrics", "data", "tasks", "methods", "training", "runtime")
CODE += ("pipeline/stages", "pipeline/evaluation", "pipeline/evaluate.py", "pipeline/reuse.py")
CODE += ("runs/files.py", "runs/log.py", "config/inputs.py", "types.py")
WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt")  # of a Transformers folder


def rewardless(ctx: Context, control: str) -> bool:
    """Whether nothing in a line of the run (the method's or a control's) asks a reward model."""
    method = method_of(ctx.cfg, control)
    asks = method.needs_reward or method.random_reward or method.untrained_reward
    return not (asks or "align" in method.stages)


def share(
    ctx: Context,
    artifact: Artifact,
    *,
    inputs: str,
    stage: str,
    round: int,
    depends: Callable[[], Mapping[str, Any] | None],
    make: Callable[[], Any],
) -> None:
    """Take a stage's result from the cache into the run, or make it and put it there.

    Args:
        artifact: Its place in the run; `Context.made` has said that it is to be made.
        inputs: The hash that it is committed with in the run.
        stage: As in its lines of metrics.jsonl, e.g. "improve.uniform".
        round: The same.
        depends: All that its bits depend on apart from machine and code; None: it is not shared.
        make: Makes and commits it. Half-done work of this run is always finished, not replaced.
    """
    given = None if ctx.cfg.cache == "off" or distributed.count() > 1 else depends()
    if given is None:
        make()
        return
    about = {"stage": stage, "round": round, "seed": ctx.cfg.seed, "task": ctx.cfg.task}
    key = content_hash({**about, "given": given, "where": _machine(ctx), "code": _code()})
    entry = cached(Path(ctx.cfg.cache), stage.split(".")[0], key)
    begun = any(artifact.working(inputs).iterdir())
    with use(ctx, entry, alone=False) as usable:
        if usable and not begun and _take(ctx, entry, artifact, inputs):
            return
    with use(ctx, entry, alone=True) as usable:  # another may have made it since
        if usable and not begun and _take(ctx, entry, artifact, inputs):
            return
        make()
        if usable and whole(ctx, entry) is None:
            label = f"{ctx.cfg.task} {ctx.cfg.name} seed {ctx.cfg.seed}: {stage} round {round}"
            _put(ctx, entry, artifact, key, about, label)


@contextlib.contextmanager
def use(ctx: Context, entry: CachedArtifact, *, alone: bool) -> Iterator[bool]:
    """Holds an entry of the cache; yields False, and warns, where the cache cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(entry.held(ctx.log.say, alone=alone))
            usable = True
        except PgtgError as error:
            ctx.log.warn(f"the cache is not used: {error}")
            usable = False
        yield usable


def whole(ctx: Context, entry: Artifact) -> dict[str, Any] | None:
    """The entry's manifest, after its bytes were checked; None if it is to be made."""
    if not entry.exists():
        return None
    try:
        return entry.verify()
    except ArtifactError as error:
        ctx.log.note(f"cache: to be made again: {error}")
        return None


def taken_seconds(when_made: float | None) -> dict[str, Any]:
    """A manifest's seconds where a result came from the cache: none here, so many in its maker."""
    return {"seconds": 0.0, "cached_seconds": when_made}


def parent_files(artifacts: Iterable[Artifact]) -> list[Any]:
    """What artifacts hold, whatever they were made from."""
    return [artifact.manifest()["files"] for artifact in artifacts]


def shared_settings(ctx: Context, stage: str) -> dict[str, Any]:
    """`Context.settings` for the cache: the precision is what `auto` stands for here."""
    precision = str(read_dtype(ctx.cfg.sample.precision, ctx.device))
    return portable(ctx.settings(stage)) | {"sample.precision": precision}


def start_models(ctx: Context) -> Any:
    """What tells the start policy from another; None if that cannot be told from here."""
    start = ctx.parents(0)
    if start:
        return parent_files(start)
    assert ctx.cfg.policy.path is not None  # config check
    return pretrained(ctx.cfg.policy.path, ctx.cfg.policy.revision)


def _take(ctx: Context, entry: CachedArtifact, artifact: Artifact, inputs: str) -> bool:
    """Put an entry's files and log lines into the run; False if it is not there, or damaged."""
    manifest = whole(ctx, entry)
    if manifest is None:
        return False
    working = artifact.working(inputs, fresh=True)
    for name in manifest["files"]:
        if name.startswith(f"{FILES}/"):
            target = working / name.removeprefix(f"{FILES}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(entry.file(name), target)
    for row in read_jsonl(entry.file(LINES)):
        ctx.log.metrics(row.pop("stage"), row.pop("round"), row.pop("step"), row)
    result: dict[str, Any] = manifest["extra"]["result"]
    result |= taken_seconds(result.get("seconds"))
    position = ctx.committed()
    metrics = manifest["metrics"]
    artifact.commit(inputs=inputs, position=position, metrics=metrics, **result)
    entry.used()
    ctx.log.say(f"{manifest['extra']['stage']}: taken from the cache ({entry.path.name[:8]})")
    return True


def _put(
    ctx: Context,
    entry: CachedArtifact,
    artifact: Artifact,
    key: str,
    about: Mapping[str, Any],
    label: str,
) -> None:
    """Publish what was made; a cache that refuses it (a full disk) does not end the run."""
    manifest = artifact.manifest()
    try:
        working = entry.working(key)
        for name in manifest["files"]:
            target = working / FILES / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(artifact.file(name), target)
        write_jsonl(working / LINES, _lines(ctx, about["stage"], about["round"]))
        entry.commit(
            inputs=key,
            metrics=manifest["metrics"],
            result=manifest["extra"],
            label=label,
            stage=f"{about['stage']} round {about['round']}",
        )
        limit = size_limit()
        if limit is not None:
            prune(entry.path.parent.parent, limit, keep=entry.path)
    except (PgtgError, OSError) as error:
        entry.abandon()
        ctx.log.warn(f"not kept in the cache: {error}")


def _lines(ctx: Context, stage: str, round: int) -> list[dict[str, Any]]:
    """A stage's lines in metrics.jsonl, each once: a forced second making writes them again."""
    rows = read_jsonl(ctx.folder.path / "metrics.jsonl")
    own = [row for row in rows if (row["stage"], row["round"]) == (stage, round)]
    return list({json.dumps(row): row for row in own}.values())


def _machine(ctx: Context) -> dict[str, Any]:
    """What the last bits of a number depend on apart from the code."""
    names = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    where: dict[str, Any] = {name: version(name) for name in names}
    where |= {"machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    if ctx.device.type != "cpu":
        where |= {"tf32": ctx.cfg.tf32, "deterministic": ctx.cfg.deterministic}
    if ctx.kept_states is not None:
        where["frozen_cache"] = True
    where |= {"device": device_name(ctx.device), "threads": torch.get_num_threads()}
    return where


@cache
def _code() -> str:
    """Hash of the sources that results come from: another version takes nothing of this one's."""
    here, digest = Path(__file__).parents[1], hashlib.sha256()
    for name in CODE:
        path = here / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(f"{file.relative_to(here)} {sha256(file)}\n".encode())
    digest.update(json.dumps(plugins.described()).encode())
    return digest.hexdigest()


def pretrained(path: str, revision: str | None) -> Any:
    """Contents of a local Transformers folder, or the commit of a hub model in its local cache."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
        return _hashes(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in found))
    from huggingface_hub import try_to_load_from_cache

    known = try_to_load_from_cache(path, "config.json", revision=revision)
    return [path, Path(known).parent.name] if isinstance(known, str) else None


@lru_cache(maxsize=8)
def _hashes(files: Sequence[tuple[str, int, int]]) -> list[list[str]]:
    return [[Path(name).name, sha256(Path(name))] for name, _, _ in files]
