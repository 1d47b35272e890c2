"""Cross-checks of a composed config: all problems at once, with key, value, and what fixes it.

Types and unknown keys are the business of `config/schema.py`. What needs a model or the data
(a tokeniser that does not fit, a missing column) is checked where it is loaded.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgtg.config import ALIASES, DataConfig, RunConfig, expected_type
from pgtg.config.registry import (
    AGGREGATORS,
    HEADS,
    JUDGES,
    METRICS,
    TASKS,
    Registry,
    controls_of,
    methods_of,
    nearest,
    refusal,
    resolve,
)

REFERENCES = {
    "as_given": "the references as the data has them",
    "as_trained": "as the policy's targets hold them: cut to fit and decoded",
}
JUDGE_DTYPES = {
    "auto": "bfloat16 on GPUs that have it, else float32",
    "float32": "32-bit floats",
    "bfloat16": "16-bit floats; slow on most CPUs",
}
# Names that a key may hold where nothing plugs in; tests hold them equal to the tables of code.
CHOICES: dict[str, dict[str, str]] = {
    "data.name": {
        "newswire": "generated bulletins with planted truth",
        "files": "jsonl, json, csv, parquet or a save_to_disk folder",
        "hub": "a data set of the Hugging Face hub",
        "reviews": "generated reviews with planted helpful prompt words",
    },
    "data.quoting": {
        "auto": "each format's own: standard in csv, none in tsv (as GLUE and LM-BFF write it)",
        "standard": 'a cell may stand in "quotes", a quote in it is doubled',
        "backslash": 'a cell may stand in "quotes", a quote in it has a backslash before it',
        "none": "quotes are text; a cell holds no line break and no delimiter",
    },
    "reward.trained": {
        "all": "backbone and head, or with reward.lora its adapters and the head",
        "head": "the head alone, on the backbone as it is",
    },
    "reward.granularity": {
        "token": "each token has a reward of its own",
        "segment": "the tokens of a segment share one",
        "sequence": "all tokens of a text share one",
    },
    "reward.segments": {
        "sentence": "up to a full stop, another closing sign or a line break",
        "tokens": "reward.segment_tokens tokens each",
        "entropy": "up to where the start policy's entropy exceeds reward.segment_entropy",
    },
    "reward.normalize": {
        "none": "rewards as they are",
        "place": "(r - m) / s where a policy learns from them; m, s by the place in the text",
    },
    "reward.spread": {
        "copy": "each token has its unit's reward",
        "even": "the unit's reward over its number of tokens",
        "end": "the unit's last token has its reward, the others 0",
    },
    "reward.bound": {
        "softplus": "the paper's, range (1e-8, 1.3133)",
        "sigmoid": "range (0, 1)",
        "none": "r = z, of either sign",
    },
    "method.weights": {
        "share": "of a target's rewards; they add up to 1 (the paper)",
        "threshold": "the same for all tokens from method.threshold on, 0 below",
        "sign": "the same, and below it a token is made less likely",
    },
    "data.targets": {
        "chosen": "the preferred completion of each row",
        "all": "every completion of each row",
    },
    "method.transform": {"none": "weights from r", "exp": "weights from exp(r)"},
    "method.baseline": {
        "none": "rewards as they are",
        "batch": "minus the batch's mean",
        "group": "minus the mean of the source's other generations",
        "loo_at_t": "the same, at each place by itself; what has ended counts as 0",
    },
    "reward.score": {
        "heldout": "the generations of held-out sources",
        "train": "the generations that the reward model learned from",
        "targets": "the held-out sources' targets",
    },
    "metrics.tokenizer": {
        "default": "each metric's own: ROUGE reads a-z and 0-9 only, METEOR words between spaces",
        "char": "every letter, digit or sign is a word: for Chinese, Japanese, Thai, ...",
        "word_boundaries": "Unicode's word boundaries (UAX 29): any script with spaces or signs",
    },
    "metrics.sentence_splitter": {
        "regex": "our rules; needs no download",
        "punkt": "NLTK's English model punkt_tab",
    },
    "evaluate.reference": REFERENCES,
    "evaluate.protocol": {
        "pgtg": "texts as they are asked for; ROUGE cuts texts and references into sentences",
        "rl4lms": "sampled at T = 0.7, 49 to 100 tokens; ROUGE cuts references alone",
    },
    "judge.reference": REFERENCES,
    "evaluate.decodings": {"greedy": "the likeliest token", "sample": "drawn as in `sample`"},
    "schedule.unit": {"epochs": "passes over the training split", "updates": "optimiser steps"},
    "logger.name": {"none": "metrics.jsonl only", "wandb": "Weights & Biases too"},
    "logger.mode": {"online": "send while running", "offline": "keep in the run folder"},
    "keep_rounds": {"all": "artifacts of every round", "last": "of the last round only"},
    "sample.precision": {
        "auto": "bf16 on GPUs that have it, else the type of the weights",
        "no": "the type of the weights",
        "bf16": "weights in bf16; slow on many CPUs",
    },
    "judge.classifier.dtype": JUDGE_DTYPES,
    "judge.dtype": JUDGE_DTYPES,
    "judge.mode": {
        "rank": "all texts of a source in one question: their order",
        "score": "each text in a question of its own: a number",
    },
    "judge.reads": {
        "auto": "conversations by the chat template, texts as text",
        "text": "before + prompt + between + completion + after; turns parted by empty lines",
        "chat": "by the chat template; a plain prompt is a user's turn",
        "pair": "prompt and completion as the tokenizer's pair of texts",
    },
    "policy.dtype": {"float32": "32-bit floats", "bfloat16": "16-bit floats; slow on most CPUs"},
}
NAMED: Mapping[str, Registry] = {r.key: r for r in (JUDGES, METRICS, AGGREGATORS, HEADS)}


def choices() -> dict[str, dict[str, str]]:
    """Config key -> the names that it may hold, with what they mean."""
    return CHOICES | {key: registry.about() for key, registry in NAMED.items()}


FIT_CHOICES = {
    "optimizer": ("adam", "adamw"),
    "schedule": ("constant", "plateau"),
    "keep": ("best", "last"),
    "precision": ("no", "bf16", "fp16"),
}
SPLITS = ("validation", "test", "train")
ROWS = ("drop", "keep")  # values of data.repeats and data.empty, by split
FITS = (
    "policy.tiny_t5.warm_start",
    "policy.tiny_lm.fit",
    "judge.classifier.tiny.fit",
    "reward.fit",
    "improve",
)

Rule = tuple[str, Callable[[Any], bool], str]
POSITIVE = (lambda v: v > 0, "above 0")
COUNT = (lambda v: v >= 1, "at least 1")
NOT_NEGATIVE = (lambda v: v >= 0, "0 or more")
SHARE = (lambda v: 0 <= v <= 1, "in [0, 1]")

RULES: tuple[Rule, ...] = (
    ("sample.k", *COUNT),
    ("sample.sources", *COUNT),
    ("sample.heldout_sources", *NOT_NEGATIVE),
    ("sample.temperature", *POSITIVE),
    ("sample.top_k", lambda v: v >= 0, "0 (all tokens) or more"),
    ("sample.top_p", lambda v: 0 < v <= 1, "in (0, 1]"),
    ("sample.max_new_tokens", *COUNT),
    (
        "sample.batch_tokens",
        lambda v: v == "auto" or (type(v) is int and v >= 1),
        "auto, or a whole number of at least 1",
    ),
    ("sample.chunk", *COUNT),
    ("policy.max_source_tokens", *COUNT),
    ("policy.max_target_tokens", *COUNT),
    ("policy.trainable_layers", *COUNT),
    ("policy.frozen_cache", *NOT_NEGATIVE),
    ("policy.tiny_t5.dropout", lambda v: 0 <= v < 1, "in [0, 1)"),
    ("policy.tiny_t5.copy_updates", *NOT_NEGATIVE),
    *((f"policy.tiny_t5.{key}", *COUNT) for key in ("d_model", "d_ff", "d_kv", "heads")),
    *((f"policy.tiny_t5.{key}_layers", *COUNT) for key in ("encoder", "decoder")),
    *((f"data.newswire.{split}", *COUNT) for split in ("train", "validation", "test")),
    *((f"data.newswire.{key}", *NOT_NEGATIVE) for key in ("distractors", "fillers")),
    ("data.newswire.details", *SHARE),
    ("data.newswire.noise", *SHARE),
    ("data.newswire.wrong_fact_share", *SHARE),
    ("data.newswire.tails", *COUNT),
    *((f"data.flaws.{key}", *SHARE) for key in ("share", "wrong_share")),
    ("data.flaws.ending", lambda v: v.strip() != "", "a text"),
    ("reward.layers", *COUNT),
    ("reward.replay", *NOT_NEGATIVE),
    ("policy.adaptor.width", *COUNT),
    *(
        rule
        for section in ("policy", "reward")
        for rule in (
            (f"{section}.lora.rank", *COUNT),
            (f"{section}.lora.alpha", *POSITIVE),
            (f"{section}.lora.dropout", lambda v: 0 <= v < 1, "in [0, 1)"),
        )
    ),
    ("judge.classifier.share", lambda v: 0 < v <= 1, "in (0, 1]"),
    ("judge.classifier.correct", *POSITIVE),
    ("judge.classifier.wrong", *POSITIVE),
    ("judge.classifier.max_tokens", *COUNT),
    ("data.fewshot.shots", *COUNT),
    ("data_seed", *NOT_NEGATIVE),
    ("method.sparse_updates", *COUNT),
    ("method.sparse_lr", *POSITIVE),
    ("prompt.group", *COUNT),
    ("prompt.first", lambda v: v >= 2, "at least 2 (the reward model learns from comparisons)"),
    ("prompt.pool", lambda v: v >= 2, "at least 2"),
    ("prompt.validation_prompts", *NOT_NEGATIVE),
    ("prompt.fresh_checks", *NOT_NEGATIVE),
    *((f"prompt.{key}", *COUNT) for key in ("candidates", "tested", "top")),
    ("reward.mlp_width", *COUNT),
    ("reward.beta", *POSITIVE),
    ("reward.segment_tokens", *COUNT),
    ("reward.segment_entropy", *NOT_NEGATIVE),
    ("aggregator.temperature", *POSITIVE),
    ("judge.workers", *NOT_NEGATIVE),
    ("judge.max_tokens", *COUNT),
    ("judge.batch_tokens", *COUNT),
    ("judge.concurrency", *COUNT),
    ("judge.timeout", *POSITIVE),
    ("judge.retries", *NOT_NEGATIVE),
    ("judge.price_input", *NOT_NEGATIVE),
    ("judge.price_output", *NOT_NEGATIVE),
    ("method.entropy", *NOT_NEGATIVE),
    ("method.entropy_target", *POSITIVE),
    ("method.mle", *NOT_NEGATIVE),
    ("method.negative", *NOT_NEGATIVE),
    ("method.reinforce", *NOT_NEGATIVE),
    ("method.token_share", *SHARE),
    ("method.kl", *NOT_NEGATIVE),
    ("method.samples", *COUNT),
    ("method.filter_share", lambda v: 0 < v <= 1, "in (0, 1]"),
    ("schedule.total", *POSITIVE),
    ("schedule.retrain_every", *POSITIVE),
    ("schedule.retrain_until", *NOT_NEGATIVE),
    ("evaluate.examples", *COUNT),
    ("evaluate.diagnose", *NOT_NEGATIVE),
    ("metrics.bertscore_layers", *COUNT),
    ("seed", *NOT_NEGATIVE),
    ("threads", *COUNT),
)
FIT_RULES: tuple[Rule, ...] = (
    ("micro_batch", *COUNT),
    ("accumulate", *COUNT),
    ("bucket", lambda v: v >= 0, "0 (a purely random order) or more"),
    ("lr", *POSITIVE),
    ("weight_decay", *NOT_NEGATIVE),
    ("clip", lambda v: v >= 0, "0 (no clipping) or more"),
    ("plateau_factor", lambda v: 0 < v < 1, "in (0, 1)"),
    ("plateau_patience", *NOT_NEGATIVE),
    ("validate_every", lambda v: v >= 0, "0 (only at the end) or more"),
    ("patience", lambda v: v >= 0, "0 (never stop early) or more"),
    ("checkpoint_every", lambda v: v >= 0, "0 (none) or more"),
)


MANY_ROUNDS = 10_000  # reward trainings of one run
MAX_NAME = 200  # bytes of a folder's name
GENERATED = ("newswire", "reviews")  # data that no file holds


def planted(data: DataConfig) -> bool:
    """Whether the targets have a known truth, token by token."""
    return data.name == "newswire" or data.flaws is not None


def check(cfg: RunConfig) -> list[str]:
    """All that is wrong with a composed config, one line each; empty if it can be run."""
    if mistyped := [*_mistyped(cfg)]:
        return mistyped  # the other checks rest on types
    problems = [*_names(cfg), *_numbers(cfg), *_fits(cfg), *_data(cfg), *_policy(cfg)]
    problems += [*_reward(cfg), *_method(cfg), *_schedule(cfg), *_evaluation(cfg)]
    problems += [f"judge.{problem}" for problem in cfg.judge.problems()]
    return [*problems, *_of_other_tasks(cfg), *resolve(TASKS[cfg.task].check)(cfg)]


def value_at(cfg: Any, key: str) -> Any:
    """The value at a dotted key; None where a section on the way is None, or has no such key."""
    for name in key.split("."):
        cfg = getattr(cfg, name, None)
    return cfg


def _mistyped(cfg: RunConfig) -> Iterator[str]:
    """What OmegaConf lets pass: lists and mappings in a list or as values of a mapping."""
    for key, value in _leaves(asdict(cfg)):
        if isinstance(value, list) and (odd := [one for one in value if not isinstance(one, str)]):
            yield f"{key}: found {odd[0]!r} in the list, expected texts [a,b]"
    texts = ("data.splits", "data.repeats", "data.empty")
    for key, kind in (("data.limit", int), *((text, str) for text in texts)):
        found = value_at(cfg, key)
        if not isinstance(found, dict):  # a text that begins an interpolation and does not end it
            yield f"{key}: expected a mapping {{key: value}}, found {found!r}"
            continue
        for name, value in found.items():
            if not isinstance(value, kind | None):
                yield f"{key}.{name}: found {value}, expected {expected_type(f'{key}.{name}')}"


def _names(cfg: RunConfig) -> Iterator[str]:
    for key, known in choices().items():
        value = value_at(cfg, key)
        for name in value if isinstance(value, list) else [value]:
            if name is not None and name not in known:
                yield f"{key}: there is no '{name}'{nearest(str(name), known)}"
    for name in cfg.reward.compare_heads:
        if name not in HEADS:
            yield f"reward.compare_heads: no '{name}'{nearest(name, HEADS)}"
    if re.search(r"[/\\\x00-\x1f]", cfg.name) or cfg.name in ("", ".", ".."):
        yield f"name: found {cfg.name!r}, expected a folder's name (it is part of outputs/...)"
    elif len(cfg.name.encode(errors="replace")) > MAX_NAME:
        yield f"name: found {len(cfg.name.encode())} bytes, expected at most {MAX_NAME}"
    if cfg.cache != "off" and cfg.cache.lower() in ("off", "none", "no", "false", ""):
        yield f"cache: found {cfg.cache!r}; a folder, or cache=off for none"
    if not re.fullmatch(r"[a-z][a-z0-9_]*(:[0-9]+)?", cfg.device):
        yield f"device: found '{cfg.device}', expected auto, or what torch calls one: cpu, cuda:1"


def _numbers(cfg: RunConfig) -> Iterator[str]:
    for key, value in _leaves(asdict(cfg)):
        if not _finite(value):
            yield f"{key}: found {value}, expected a finite number"
    for key, holds, expected in RULES:
        value = value_at(cfg, key)
        if value is not None and _finite(value) and not holds(value):
            yield f"{key}: found {value}, expected {expected}"
    for split, limit in cfg.data.limit.items():
        if limit is not None and limit < 1:
            yield f"data.limit.{split}: found {limit}, expected at least 1, or null for all"


def _leaves(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a config and their values."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _fits(cfg: RunConfig) -> Iterator[str]:
    for fit in FITS:
        part = value_at(cfg, fit)
        if part is None:
            continue
        for name, known in FIT_CHOICES.items():
            if getattr(part, name) not in known:
                found = getattr(part, name)
                yield f"{fit}.{name}: there is no '{found}'{nearest(found, known)}"
        for name, holds, expected in FIT_RULES:
            value = getattr(part, name)
            if _finite(value) and not holds(value):
                yield f"{fit}.{name}: found {getattr(part, name)}, expected {expected}"
        if fit != "improve" and part.updates < 1:
            yield f"{fit}.updates: found {part.updates}, expected at least 1"
        watched = part.patience or part.schedule == "plateau"
        if watched and not part.validate_every:
            yield f"{fit}.validate_every: found 0, but patience and plateau need validations"
        if part.precision == "fp16" and cfg.policy.dtype != "float32":
            fix = f"but policy.dtype={cfg.policy.dtype}; it needs weights in float32"
            yield f"{fit}.precision: found fp16, {fix}"
    if cfg.policy.adaptor is not None:
        said = "policy.adaptor trains an MLP in float32 on states that are read without gradients"
        if cfg.improve.precision != "no":
            yield f"improve.precision: found {cfg.improve.precision}, but {said}; expected no"
        if cfg.improve.gradient_checkpointing:
            yield f"improve.gradient_checkpointing: found true, but {said}; expected false"
    if cfg.improve.updates:
        found = cfg.improve.updates
        yield f"improve.updates: found {found}; leave it 0 and set schedule.total instead"


def _odd_rows(cfg: RunConfig) -> Iterator[str]:
    read = "targets" in TASKS[cfg.task].gives and cfg.data.name in ("files", "hub")
    if cfg.data.flaws is not None and (not read or cfg.data.format is not None):
        yield "data.flaws: only summaries from files or the hub have it; leave it out"
    for key in ("repeats", "empty"):
        named = getattr(cfg.data, key)
        if named and not read:
            yield f"data.{key}: only summaries from files or the hub have it; leave it out"
        for split, value in named.items():
            if split not in SPLITS:
                yield f"data.{key}.{split}: there is no such split{nearest(split, SPLITS)}"
            if value not in ROWS:
                yield f"data.{key}.{split}: there is no '{value}'{nearest(str(value), ROWS)}"


def _splits(cfg: RunConfig) -> Iterator[str]:
    """Names of splits in mappings that take any key."""
    known = TASKS[cfg.task].splits
    also = ("validation",) if "dev" in known else ()  # another name of it
    for section in ("limit", "splits"):
        for split in value_at(cfg, f"data.{section}"):
            if split not in (*known, *also):
                yield f"data.{section}.{split}: no such split{_nearest_split(split, known)}"


def _nearest_split(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown split, which may be another name of a known one."""
    same = [split for split in known if name.lower() in ALIASES.get(split, ())]
    listed = f" (known: {', '.join(known)})"
    return f"; did you mean '{same[0]}'?{listed}" if same else nearest(name, known)


def _data(cfg: RunConfig) -> Iterator[str]:
    yield from _odd_rows(cfg)
    data = cfg.data
    yield from _splits(cfg)
    if data.name in GENERATED and data.path is not None:
        group = "data=files" if data.fewshot is None else "a dataset of files"
        yield f"data.path: found '{data.path}', but data.name={data.name} reads none: take {group}"
    if data.name == "newswire":
        if data.newswire is None:
            yield "data.newswire: no values; choose data=newswire"
        return
    if data.name == "reviews":
        if data.reviews is None or data.fewshot is None:
            yield "data.reviews: no values; choose dataset=reviews"
        return
    if data.path is None:
        yield f"data.path: no value; data.name={data.name} needs data.path=<folder or hub id>"
    if data.splits.get("train", "") is None:
        yield "data.splits.train: found null; name the file or split to train on"
    if data.name == "files" and data.path:
        yield from _files(Path(data.path).expanduser(), data.splits)


def _files(path: Path, splits: dict[str, str | None]) -> Iterator[str]:
    if not path.exists():
        found = f"there is no file or folder '{path}' (looked in {Path.cwd()})"
        yield f"data.path: {found}; give data.path=..."
        return
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return  # written by save_to_disk: the splits are not files
    folder = path if path.is_dir() else path.parent
    for split, name in splits.items():
        if name and "*" not in name and not (folder / name).exists():
            here = [p.name for p in sorted(folder.iterdir())]
            yield f"data.splits.{split}: there is no file '{folder / name}'{nearest(name, here)}"


def _policy(cfg: RunConfig) -> Iterator[str]:
    yield from local_model("policy.path", cfg.policy.path)
    tiny = cfg.policy.tiny_t5 is not None or cfg.policy.tiny_lm is not None
    if cfg.policy.tiny_t5 is not None and cfg.data.name != "newswire":
        fix = "choose policy=t5_small, or policy=pretrained policy.path=<folder or hub id>"
        yield f"policy: tiny_t5 knows only the newswire's words; data.name={cfg.data.name}: {fix}"
    if tiny and cfg.policy.path:
        found = f"found '{cfg.policy.path}'"
        yield f"policy.path: {found} and a tiny model of the set-up; choose policy=pretrained"
    for other in ("adaptor", "trainable_layers"):
        if cfg.policy.lora is not None and getattr(cfg.policy, other) is not None:
            yield f"policy.{other}: with policy.lora nothing else is trained; leave one out"
    if not tiny and cfg.policy.path is None:
        yield "policy.path: no value; give a folder or hub id of a Transformers model"


def _reward(cfg: RunConfig) -> Iterator[str]:
    yield from local_model("reward.path", cfg.reward.path)
    if cfg.policy.tiny_t5 is not None and cfg.reward.path:
        found = f"found '{cfg.reward.path}'"
        yield f"reward.path: {found}, but the tiny T5 has its own words; choose reward=same"
    if cfg.reward.trained == "head" and cfg.reward.lora is not None:
        yield "reward.trained: head leaves nothing to reward.lora; leave one out"
    named = [name for name in (cfg.reward.head, *cfg.reward.compare_heads) if name in HEADS]
    alone = [name for name in named if HEADS[name].reference]
    if alone and cfg.reward.trained == "head":
        yield f"reward.trained: head leaves {alone[0]} nothing to train; expected all"
    shares = value_at(cfg, "method.weights") == "share" and value_at(cfg, "method.mle")
    if shares and value_at(cfg, "method.transform") == "none":
        other = "method.transform=exp, method.weights=sign"
        if cfg.reward.bound == "none":
            yield (
                "reward.bound: none gives rewards of either sign, which are no shares: choose "
                f"{other}, or another bound"
            )
        if cfg.reward.normalize != "none":
            yield (
                f"reward.normalize: {cfg.reward.normalize} gives rewards of either sign, which are "
                f"no shares: choose {other}"
            )
    if cfg.reward.normalize != "none" and not cfg.sample.heldout_sources:
        yield (
            f"reward.normalize: {cfg.reward.normalize} is fitted on held-out samples, and "
            "sample.heldout_sources=0"
        )
    by_entropy = cfg.reward.granularity == "segment" and cfg.reward.segments == "entropy"
    if by_entropy and cfg.policy.adaptor is not None:
        yield "reward.segments: entropy is a language model's, and policy.adaptor is not null"


def local_model(key: str, path: str | None) -> Iterator[str]:
    """A path that can only be meant as a local one must exist; `owner/name` may be a hub id."""
    if not path:
        return
    folder = Path(path).expanduser()
    local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if local and not folder.is_dir():
        yield f"{key}: there is no folder '{path}' (looked in {Path.cwd()})"
    elif folder.is_dir() and not (folder / "config.json").is_file():
        yield f"{key}: '{path}' holds no config.json, so it is no Transformers folder"


def _method(cfg: RunConfig) -> Iterator[str]:
    method = cfg.method
    if refused := refusal(cfg.task, method.name, options=method):
        yield refused
    for control in method.controls or []:
        if refused := refusal(cfg.task, control, control=True, options=method):
            yield refused
        elif controls_of(cfg.task)[control].planted and not planted(cfg.data):
            found = f"data.name={cfg.data.name} has none without data.flaws"
            yield f"method.controls: '{control}' reads planted truth, and {found}; leave it out"
        if control == method.name:
            yield f"method.controls: '{control}' is the method itself"
    spec = methods_of(cfg.task).get(method.name)
    if method.controls and spec is not None and not spec.controlled:
        found = f"found {method.controls}"
        yield f"method.controls: {found}, but {spec.name} is itself the control; expected []"
    yield from (f"method.{problem}" for problem in method.problems())


def _schedule(cfg: RunConfig) -> Iterator[str]:
    plan = cfg.schedule
    if plan.unit == "updates":
        for key in ("total", "retrain_every", "retrain_until"):
            value = getattr(plan, key)
            if _finite(value) and value != int(value):
                expected = "expected a whole number of updates, as schedule.unit=updates counts it"
                yield f"schedule.{key}: found {value}, {expected}"
    if plan.retrain_every > 0 and plan.retrain_until / plan.retrain_every > MANY_ROUNDS:
        found = f"found {plan.retrain_every}, which is more than {MANY_ROUNDS} reward trainings"
        yield f"schedule.retrain_every: {found} until {plan.retrain_until}"
    if plan.retrain_until > plan.total:
        found = f"found {plan.retrain_until}"
        yield f"schedule.retrain_until: {found}, expected at most schedule.total={plan.total}"


def _evaluation(cfg: RunConfig) -> Iterator[str]:
    for split in cfg.evaluate.splits:
        if split not in SPLITS:
            yield f"evaluate.splits: there is no '{split}'{nearest(split, SPLITS)}"
        elif split != "test" and cfg.data.splits.get(split, "") is None:
            yield f"evaluate.splits: '{split}' has no file; set data.splits.{split} or leave it out"
    if cfg.evaluate.protocol == "rl4lms" and cfg.evaluate.decodings != ["sample"]:
        found = f"found {cfg.evaluate.decodings}"
        yield f"evaluate.decodings: {found}, but protocol=rl4lms samples; expected [sample]"
    if not cfg.evaluate.decodings:
        yield "evaluate.decodings: empty; expected greedy, sample or both"
    yield from local_model("metrics.bertscore_model", cfg.metrics.bertscore_model)
    own = cfg.metrics.bertscore_model is not None and "bertscore" in cfg.metrics.names
    if own and cfg.metrics.bertscore_layers is None:
        yield "metrics.bertscore_layers: no value; a BERTScore model of your own needs the layer"


def _of_other_tasks(cfg: RunConfig) -> Iterator[str]:
    """Sections that the config has although another task reads them."""
    for spec in TASKS.specs:
        own = spec.section and spec.name != cfg.task
        if own and value_at(cfg, spec.section) is not None:
            yield f"{spec.section}: only the {spec.name} task has it; leave it out"
