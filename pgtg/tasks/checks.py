"""What each task has against a composed config, on top of what `config.checks` says of all."""

from collections.abc import Iterator

from pgtg.config import PromptConfig, RunConfig, classifier_of, judge_model_of
from pgtg.config.checks import local_model
from pgtg.config.registry import JUDGES, nearest
from pgtg.data.adapters import ADAPTERS


def _judge(cfg: RunConfig, *, needed: bool) -> Iterator[str]:
    """What is wrong with a judge of texts."""
    if cfg.judge.name not in JUDGES:
        return  # `config.checks` says so
    judge = JUDGES[cfg.judge.name]
    if judge.prompts:
        yield f"judge: {judge.name} judges prompts; choose a text judge, e.g. judge=meteor_stem"
    if judge.absent and needed:
        yield f"judge: {judge.name} judges nothing; choose a text judge, e.g. judge=meteor_stem"
    if not judge.prompts and (found := judge_model_of(cfg)) is not None:
        yield from local_model(f"{found[0]}.path", found[1].path)


def _compared(key: str, found: int) -> Iterator[str]:
    """What the reward model learns from: at least two texts, told apart."""
    if found == 1:  # below 1: `config.checks` says so
        yield f"{key}: found 1, expected at least 2 (the reward model learns from comparisons)"


def _held_out(cfg: RunConfig) -> Iterator[str]:
    """Texts to choose the best weights by, where that is asked for."""
    fits = (cfg.reward.fit, cfg.improve)
    watched = any(f.keep == "best" or f.patience or f.schedule == "plateau" for f in fits)
    if not cfg.sample.heldout_sources and watched:
        yield "sample.heldout_sources: found 0, but keep=best, patience and plateau need some"


def summarize(cfg: RunConfig) -> Iterator[str]:
    """What the summarize task needs."""
    yield from _compared("sample.k", cfg.sample.k)
    yield from _held_out(cfg)
    yield from _judge(cfg, needed=True)
    if cfg.data.format is not None:
        yield "data.format: preferences are for `pgtg train preferences`; choose data=files"
    if cfg.data.targets != "chosen":
        yield f"data.targets: found {cfg.data.targets}; a text here has one target, leave it out"
    if cfg.data.fewshot is not None:
        yield "data.fewshot: only the prompt task has it; leave it out"
    if cfg.data.name in ("files", "hub") and not cfg.data.columns.references:
        yield "data.columns.references: empty; name at least one column, e.g. [summary]"


def _one_protocol(cfg: RunConfig) -> Iterator[str]:
    if cfg.evaluate.protocol != "pgtg":
        yield f"evaluate.protocol: found {cfg.evaluate.protocol}; only summaries have it"


def preferences(cfg: RunConfig) -> Iterator[str]:
    """What the preferences task needs."""
    yield from _one_protocol(cfg)
    yield from _compared("sample.k", cfg.sample.k)
    yield from _judge(cfg, needed=False)
    data = cfg.data
    if data.format is None:
        yield f"data: {data.name} holds no preferences; choose data=pairs, or write a yaml like it"
    elif data.format not in ADAPTERS:
        yield f"data.format: there is no '{data.format}'{nearest(data.format, ADAPTERS)}"
    if data.validation_share is not None and not 0 < data.validation_share < 1:
        yield f"data.validation_share: found {data.validation_share}, expected in (0, 1) or null"
    elif data.validation_fold < 0:
        yield f"data.validation_fold: found {data.validation_fold}, expected >= 0"
    elif (data.validation_fold + 1) * (data.validation_share or 0) > 1 + 1e-9:
        last = int(1 / (data.validation_share or 1) + 1e-9) - 1
        yield (
            f"data.validation_fold: found {data.validation_fold}, expected 0 to {last} with "
            f"data.validation_share={data.validation_share}"
        )
    yield from _held_out(cfg)


def prompt(cfg: RunConfig) -> Iterator[str]:
    """What the prompt task needs."""
    if cfg.sample.compile:
        yield "sample.compile: prompts of a few tokens are drawn without; leave it out"
    yield from _one_protocol(cfg)
    judged = cfg.judge.name in JUDGES and JUDGES[cfg.judge.name].prompts
    judge = classifier_of(cfg)
    if not judged or judge is None:
        yield f"judge: found '{cfg.judge.name}'; prompts are judged by judge=classifier"
    elif judge.path is None and judge.tiny is None:
        yield "judge.classifier.path: no value; give a folder or hub id of a masked or causal LM"
    else:
        yield from local_model("judge.classifier.path", judge.path)
        if judge.readout not in ("raw", "calibrated"):
            found = judge.readout
            yield f"judge.classifier.readout: found '{found}', expected raw or calibrated"
    if cfg.data.fewshot is None:
        yield "data.fewshot: no values; choose dataset=..., or write a yaml like conf/dataset/sst2"
    elif judge is not None:  # which of the two is asked for, the loaded model says
        known = {**cfg.data.fewshot.masked, **cfg.data.fewshot.causal}
        if judge.template not in known:
            yield (
                f"judge.classifier.template: the data set has no '{judge.template}'"
                f"{nearest(judge.template, known)}"
            )
    if cfg.prompt is None:
        yield "prompt: no values; see conf/prompt.yaml"
        return
    yield from _compared("prompt.group", cfg.prompt.group)
    if cfg.sample.k != 1:
        yield f"sample.k: found {cfg.sample.k}; prompts are compared in groups of prompt.group"
    if cfg.improve.keep == "best" and not cfg.prompt.validation_prompts:
        yield "improve.keep: found best, but prompt.validation_prompts=0 leaves nothing to judge by"
    held = cfg.sample.heldout_sources
    fit = cfg.reward.fit
    watched = fit.keep == "best" or fit.patience or fit.schedule == "plateau"
    key, checks = "sample.heldout_sources", held
    if cfg.prompt.fresh:
        key, checks = "prompt.fresh_checks", cfg.prompt.fresh_checks
        yield from _fresh(cfg, cfg.prompt)
    elif cfg.prompt.fresh_checks:
        yield "prompt.fresh_checks: only with prompt.fresh=true; sample.heldout_sources checks here"
    if not checks and watched:
        yield f"{key}: found 0, but reward.fit.keep=best, patience and plateau need some"
    if cfg.schedule.unit != "updates":
        yield f"schedule.unit: found '{cfg.schedule.unit}'; the prompt task counts updates"


def _fresh(cfg: RunConfig, options: PromptConfig) -> Iterator[str]:
    """What excludes prompts that are judged for each update of the reward model."""
    if cfg.reward.replay:
        yield f"reward.replay: found {cfg.reward.replay}, but prompt.fresh=true uses none again"
    if options.group > options.pool:
        yield f"prompt.pool: found {options.pool}; prompt.group={options.group} needs as many"
    if cfg.reward.compare_heads:
        yield "reward.compare_heads: prompt.fresh=true trains one head; leave it empty"
