"""The doctor's checks of what a config needs: models, data, judge, metrics, tracker, room."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pgtg.config import RunConfig, judge_model_of
from pgtg.config.registry import JUDGES, TASKS
from pgtg.config.sizes import show_size
from pgtg.doctor.finding import Finding, Surroundings, good, problem, warning
from pgtg.doctor.machine import memory_bytes
from pgtg.errors import ConfigError, MissingResourceError, PgtgError
from pgtg.pipeline.plan.room import Room, nearest_folder

READ_AT_MOST = 200 * 10**6  # bytes of data files that are read to check them
# rows that the config itself leaves out
ASKED_FOR = ("beyond limit", "not drawn", "on the other side of data.validation_share")
ASK_S = 5.0  # how long the hub may take to answer


def models(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """Each model is on this machine, or can be fetched."""
    if cfg is None:
        return
    asked = {"policy.path": (cfg.policy.path, cfg.policy.revision)}
    asked["reward.path"] = (cfg.reward.path, cfg.reward.revision)
    judge = judge_model_of(cfg)
    if judge is not None:
        asked[f"{judge[0]}.path"] = (judge[1].path, judge[1].revision)
    found = False
    whole = True
    for key, (path, revision) in asked.items():
        if path:
            found = True
            one = _model(key, path, revision, around)
            whole = whole and one.state == "ok"
            yield one
    if not found:
        yield good("models", "made in the run's set-up; nothing is fetched")
    elif whole:
        yield from _fitting(cfg)


def _fitting(cfg: RunConfig) -> Iterator[Finding]:
    """Each model against its tokenizer, and against what the run asks of it."""
    from pgtg.models.compatibility import misfits, uses

    for use in uses(cfg):
        found = misfits(use)
        for one in found:
            yield (problem if one.fatal else warning)("models", one.text, one.fix)
        if not found:
            yield good("models", f"{use.key}: model, tokenizer and config fit")


def _model(key: str, path: str, revision: str | None, around: Surroundings) -> Finding:
    folder = Path(path).expanduser()
    if folder.is_dir():
        if any(folder.glob("*.safetensors")):
            return good("models", f"{key}: folder {path}")
        fix = f"save it again with save_pretrained('{path}', safe_serialization=True)"
        return problem("models", f"{key}: {path} holds no *.safetensors", fix)
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", "model.safetensors", "model.safetensors.index.json")
    here = [try_to_load_from_cache(path, name, revision=revision) for name in names]
    config, *weights = [isinstance(file, str) for file in here]
    if config and any(weights):
        return good("models", f"{key}: {path} is in the hub's local cache")
    at = f" --revision {revision}" if revision else ""
    return _fetched("models", f"{key}: {path}", f"hf download {path}{at}", "model", path, around)


def _fetched(
    about: str, what: str, fix: str, kind: str, path: str, around: Surroundings
) -> Finding:
    """What is said of something on the hub that is not on this machine."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        text = f"{what} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it"
        return problem(about, text, f"HF_HUB_OFFLINE=0 {fix}")
    if not around.online:
        text = f"{what} is not on this machine; the run would fetch it (--online asks for it now)"
        return warning(about, text, fix)
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(path, repo_type=kind, timeout=ASK_S)
    except Exception as error:  # of many kinds: no network, no such repository, no right to it
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        text = f"{what} is not on this machine, and the hub does not have it for us: {first}"
        return problem(about, text, f"check its name; when the network is there: {fix}")
    return good(about, f"{what} is on the hub; the run will fetch it")


def data(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """The data can be read, as far as they are on this machine."""
    if cfg is None:
        return
    if cfg.data.name == "hub":
        yield _hub_data(cfg, around)
        return
    size = _bytes_of(Path(cfg.data.path).expanduser()) if cfg.data.path else 0
    if size > READ_AT_MOST:
        text = f"{cfg.data.path}: {show_size(size)}, too much to read here"
        yield warning("data", text, f"pgtg train {cfg.task} --dry-run ... reads and counts all")
        return
    try:
        sizes, said = _split_sizes(cfg, around)
    except PgtgError as error:
        yield problem("data", str(error), "")
        return
    counts = ", ".join(f"{split} {n or 'no file'}" for split, n in sizes.items())
    yield good("data", f"{cfg.data.name}: {counts} examples")
    for line in said:
        yield warning("data", re.sub(r"^data:? ", "", line), "")


def _split_sizes(cfg: RunConfig, around: Surroundings) -> tuple[dict[str, int | None], list[str]]:
    """Examples of each split that the run reads, and what is to be said of rows that are lost, cut
    or in several splits; of files all rows are read."""
    if cfg.data.name != "files":
        from pgtg.pipeline.plan import split_sizes

        return split_sizes(cfg), []
    from pgtg.data.splits import counts_line, repeated_between, unread_line
    from pgtg.tasks import task_of

    task, spec = task_of(cfg, around.outputs), TASKS[cfg.task]
    task.read()
    sizes: dict[str, int | None] = dict.fromkeys(() if spec.sources else spec.splits, 0)
    sizes |= {split: counts.kept for split, counts in task.counts.items()}
    lost = [c for c in task.counts.values() if {*c.dropped, *c.truncated} - {*ASKED_FOR}]
    unread = unread_line(task.counts.values())
    said = [*map(counts_line, lost), *([unread] if unread else [])]
    return sizes, [*said, *repeated_between(task.seen)]


def _hub_data(cfg: RunConfig, around: Surroundings) -> Finding:
    path = str(cfg.data.path)
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    root = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    folder = root.expanduser() / path.replace("/", "___").lower()
    if folder.is_dir() and any(folder.rglob("*.arrow")):
        return good("data", f"{path} is in the local cache of datasets")
    subset = f", '{cfg.data.subset}'" if cfg.data.subset else ""
    fix = f"python -c \"import datasets; datasets.load_dataset('{path}'{subset})\""
    return _fetched("data", path, fix, "dataset", path, around)


def judge(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """The judge has what it needs, e.g. WordNet."""
    if cfg is None:
        return
    spec, model = JUDGES[cfg.judge.name], judge_model_of(cfg)
    if spec.prompts and model is not None:
        path = model[1].path
        yield good("judge", f"{spec.name} {path}" if path else "a tiny classifier of the set-up")
        return
    if spec.absent:
        yield good("judge", "none: the preferences exist already")
        return
    from pgtg.judges.judge import check_judge

    try:
        for line in check_judge(cfg):
            yield warning("judge", line, "")
    except PgtgError as error:
        fix = "" if spec.main else "the command above; judge=meteor_stem needs no download"
        yield problem("judge", str(error), fix)
        return
    more = "" if spec.main else f", splitter {cfg.metrics.sentence_splitter}"
    yield good("judge", spec.name + more)


def metrics(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """Each metric has what it needs: WordNet, BERTScore's model and layer."""
    if cfg is None:
        return
    from pgtg.metrics import build_metrics

    try:
        present, absent = build_metrics(cfg.metrics)
    except ConfigError as error:
        yield problem("metrics", str(error), "")
        return
    for name, reason in absent.items():
        left = [other for other in cfg.metrics.names if other not in absent]
        fix = f"the command above, or metrics.names=[{','.join(left)}]"
        yield problem("metrics", f"{name} would be reported as absent: {reason}", fix)
    if present or not absent:
        yield good("metrics", ", ".join(metric.name for metric in present) or "none asked for")


def tracker(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """W&B's mode, and whether it can be had."""
    if cfg is None:
        return
    if cfg.logger.name != "wandb":
        yield good("tracker", "none; metrics.jsonl has everything")
        return
    from pgtg.runs.tracker import has_key, online_mode

    mode = online_mode(cfg.logger.mode)
    if mode == "online" and not has_key():
        text = "W&B is asked to be online, but nobody is logged in: the run would continue offline"
        yield problem("tracker", text, "wandb login, or logger.mode=offline")
    elif mode == "online":
        yield good("tracker", "W&B online")
    else:
        yield good("tracker", f"W&B {mode}; `wandb sync` sends it later")


def memory(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """What weights, gradients and moments take, against what is free."""
    total, free = memory_bytes()
    where = "memory"
    if cfg is not None and (place := _gpu(cfg)) is not None:
        free, total, where = *place, "GPU memory"
    asked = _needs(cfg)
    has = f"{show_size(free or 0)} of {show_size(total or 0)} {where} free"
    if asked is None:
        yield good("memory", has)
        return
    needed = asked.host if where == "memory" else asked.device
    if free is not None and needed > free:
        fix = "a smaller policy.path, policy.trainable_layers=1, or reward.layers=n"
        yield problem("memory", f"about {show_size(needed)} needed, {has}", fix)
    else:
        yield good("memory", f"about {show_size(needed)} needed, {has}")


def disk(cfg: RunConfig | None, around: Surroundings) -> Iterator[Finding]:
    """Room for the models that a run keeps, and for the cache."""
    asked = _needs(cfg)
    for about, folder in (("outputs", around.outputs), ("cache", around.cache)):
        if folder is None:
            continue
        free = shutil.disk_usage(nearest_folder(folder)).free
        need = asked.disk if asked is not None and about == "outputs" else 0.0
        if need > free:
            text = f"{folder}: about {show_size(need)} needed, {show_size(free)} free"
            fix = "run_dir=<another disk>, keep_rounds=last, or `pgtg cache prune --all`"
            yield problem("disk", text, fix)
        elif free < 10**9:
            text = f"{folder}: only {show_size(free)} free"
            yield warning("disk", text, "`pgtg cache prune --all`, or another disk")
        else:
            wanted = f"about {show_size(need)} needed, " if need else ""
            yield good("disk", f"{folder}: {wanted}{show_size(free)} free")


def _needs(cfg: RunConfig | None) -> Room | None:
    """Estimated bytes of memory and disk; None without a config, or without the models."""
    if cfg is None:
        return None
    from pgtg.pipeline.plan import needs

    try:
        return needs(cfg)
    except (PgtgError, OSError, ValueError):
        return None  # the checks of data and models say why


def _gpu(cfg: RunConfig) -> tuple[int, int] | None:
    """Free and total bytes of the accelerator that the run would take; None on a CPU, and where
    the device does not tell."""
    from pgtg.runtime.device import memory_of, pick_device

    try:
        return memory_of(pick_device(cfg.device))
    except MissingResourceError:
        return None  # the check of the device says so


def _bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.glob("*") if p.is_file())
