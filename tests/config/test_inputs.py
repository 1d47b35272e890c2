"""Every key of the schema moves the hash of a stage that reads it, or is neutral by name."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pgtg.config import FlawsConfig, LoraConfig, RunConfig, known_keys
from pgtg.config.compose import run_config
from pgtg.config.inputs import LOCAL, NEUTRAL, STAGES, portable, settings
from pgtg.config.registry import TASKS
from pgtg.pipeline import reuse
from pgtg.pipeline.context import Context
from pgtg.pipeline.evaluation import evaluation_of
from pgtg.pipeline.evaluation.system import Evaluation
from pgtg.pipeline.recipes import recipe_for
from pgtg.pipeline.stages import match as matching
from pgtg.pipeline.stages.aggregate import aggregate
from pgtg.pipeline.stages.align import align
from pgtg.pipeline.stages.diagnose import diagnose
from pgtg.pipeline.stages.improve import improve
from pgtg.pipeline.stages.sample import sample
from pgtg.pipeline.stages.score import score
from pgtg.runs.folder import RunFolder, content_hash
from pgtg.runs.log import RunLog
from pgtg.tasks.preferences import PreferencesTask
from pgtg.tasks.prompt import PromptTask
from pgtg.tasks.texts import TextTask
from tests.support.tiny import TINY, tiny
from tests.support.tiny_preferences import tiny_preferences
from tests.support.tiny_prompt import tiny_prompt

SEARCHES = [
    "grips",
    "autoprompt",
    "rlprompt",
    "soft_prompt",
    "finetune",
    *(["bbt"] if find_spec("cma") else []),
]
SECTIONS = {key.rpartition(".")[0] for key in known_keys()}
OF_METHODS = ("task", "method.name", "method.controls")  # which stages there are at all


@cache
def configs() -> dict[str, RunConfig]:
    """One of each task."""
    preferences = tiny_preferences()
    preferences.policy.lora = LoraConfig(2, 4.0)
    preferences.reward.lora = LoraConfig(2, 4.0)
    summarize = tiny("method.controls=[uniform]")
    summarize.data.flaws = FlawsConfig(0.9, 0.3, "read more", 0)
    return {
        "summarize": summarize,
        "prompt": tiny_prompt("method.controls=[sparse]", "prompt.baselines=[manual]"),
        "preferences": preferences,
    }


@cache
def judged() -> dict[str, RunConfig]:
    """Judges with options of their own, of which only those are looked at."""
    few = [word for word in TINY if not word.startswith("judge")]
    server = ["judge=llm", "judge.base_url=http://localhost:1/v1", "judge.model=m"]
    return {
        "reward_model": run_config("summarize", [*few, "judge=reward_model", "judge.path=a/b"]),
        "llm": run_config("summarize", [*few, *server]),
    }


def methods() -> dict[str, RunConfig]:
    """Methods with options of their own, of which only those are looked at."""
    rivals = ("dpo", "simpo", "tdpo", "grpo", "self_distill", "ppo", "nlpo")
    few = [
        "experiment=none",
        "method.controls=[uniform]",
    ]  # composed once, without a second time for the defaults
    found = {name: tiny(f"method={name}", *few) for name in rivals}
    found["rto"] = tiny("method=rto", "method.dpo=a/b", *few)
    few = ["experiment=none", "method.controls=[sparse]"]
    prompts = {name: tiny_prompt(f"method={name}", *few) for name in SEARCHES}
    return found | prompts


class Asked(Exception):
    """The inputs that a stage would have been made from."""


@pytest.fixture
def only_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages stop where they have hashed their inputs; what they need is always there."""

    def made(self: Context, artifact: object, inputs: str) -> bool:
        raise Asked(inputs)

    there = SimpleNamespace(manifest=lambda: {"kind": "", "inputs": "", "files": {}, "metrics": {}})
    monkeypatch.setattr(Context, "made", made)
    monkeypatch.setattr(Context, "need", lambda *_: there)
    monkeypatch.setattr(Context, "parents", lambda *_: [])
    for module in ("aggregate", "align", "diagnose", "improve", "match", "sample", "score"):
        monkeypatch.setattr(
            f"pgtg.pipeline.stages.{module}.hash_of", lambda _, part: content_hash(part)
        )
    for task in (PromptTask, TextTask):
        monkeypatch.setattr(task, "segments", lambda _: [2, 2])
    monkeypatch.setattr(PreferencesTask, "contents", lambda *_: "theirs")
    monkeypatch.setattr(PreferencesTask, "heldout", lambda _: [])
    for task in configs():  # a module that is imported below would keep what is patched
        evaluation(task)
    spent = {"": {"train": 9}, "sparse": {"train": 1}}
    monkeypatch.setattr(matching, "judged_prompts", lambda c, i, control, *_: spent[control])


@cache
def evaluation(task: str) -> Evaluation:
    return evaluation_of(configs()[task])


def hashes(cfg: RunConfig, folder: Path) -> dict[str, str]:
    """Hash of the inputs of each stage under a config."""
    task = TASKS[cfg.task].load()(cfg, folder)
    log = RunLog(None, mute=True)
    ctx = Context(cfg, log, task, torch.device("cpu"), RunFolder(folder), [0])
    control = "sparse" if cfg.task == "prompt" else "uniform"
    asks = {
        "sample": lambda: sample(ctx, 0),
        "align": lambda: align(ctx, 0),
        "score": lambda: score(ctx, 0),
        "aggregate": lambda: aggregate(ctx, 0),
        "guided": lambda: improve(ctx, 0),
        "improve": lambda: improve(ctx, 0, control=control),
        "diagnose": lambda: diagnose(ctx),
        **({"match": lambda: matching.match(ctx, 0, control)} if cfg.task == "prompt" else {}),
    }
    found = {}
    for stage, ask in asks.items():
        with pytest.raises(Asked) as asked:
            ask()
        found[stage] = str(asked.value)
    found["evaluate"] = content_hash(dict(evaluation(cfg.task).depends_on(ctx)))
    recipe = recipe_for(cfg)
    assert recipe is not None
    return found | {"start": content_hash(dict(recipe.depends_on(ctx)))}


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted name, owner and field of each key that is not a section."""
    for entry in fields(section):
        value = getattr(section, entry.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{entry.name}.")
        elif value is not None or prefix + entry.name not in SECTIONS:
            yield prefix + entry.name, section, entry.name


def changed(value: Any) -> Any:
    """Another value, of its own type where it has one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, "more"]
    if isinstance(value, dict):
        return {**value, "more": None}
    if isinstance(value, int | float):
        return value + 1
    return "other" if value is None else f"{value} other"


def moved(config: RunConfig, folder: Path, only: str = "") -> dict[str, set[str]]:
    """By key, the stages whose hash its change moves; of all keys or those that begin so."""
    before = hashes(config, folder)
    found = {}
    cfg = deepcopy(config)
    for key, owner, name in leaves(cfg):
        if key in OF_METHODS or not key.startswith(only):
            continue
        value = getattr(owner, name)
        setattr(owner, name, changed(value))
        after = hashes(cfg, folder)
        setattr(owner, name, value)
        found[key] = {stage for stage in before if after[stage] != before[stage]}
    return found


def neutral(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NEUTRAL)


def test_every_key_moves_a_hash_or_is_neutral(only_asked: None, tmp_path: Path):
    both = {task: moved(config, tmp_path) for task, config in configs().items()}
    both |= {name: moved(config, tmp_path, "judge.") for name, config in judged().items()}
    hold(both)
    seen = set().union(*both.values())
    whole = tuple(f"data.fewshot.{kind}." for kind in ("masked", "causal"))  # mappings of sections
    unseen = set(known_keys()) - SECTIONS - seen - {*OF_METHODS}
    assert {key for key in unseen if not key.startswith(("method.", *whole))} == set()


@pytest.mark.slow
def test_every_option_of_a_method_moves_a_hash_or_is_neutral(only_asked: None, tmp_path: Path):
    both = {task: moved(config, tmp_path, "method.") for task, config in configs().items()}
    both |= {name: moved(config, tmp_path, "method.") for name, config in methods().items()}
    hold(both)
    known = {key for key in known_keys() if key.startswith("method.")}
    assert known - SECTIONS - set().union(*both.values()) - {*OF_METHODS} == set()


def hold(both: dict[str, dict[str, set[str]]]) -> None:
    """Every key moves the hash of a stage, or stands on the list of those that need not."""
    for task, found in both.items():
        for key, stages in found.items():
            assert bool(stages) != neutral(key), (task, key, stages)


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("data_seed", {"sample", "align", "improve", "guided", "match", "evaluate"}),
        ("prompt.first", {"sample", "align", "match", "evaluate"}),
        ("prompt.validation_prompts", {"improve", "guided"}),
        ("prompt.fresh", {"align", "improve", "guided"}),
        ("metrics.sentence_splitter", {"sample", "align", "improve", "guided", "evaluate"}),
        ("metrics.tokenizer", {"sample", "align", "improve", "guided", "evaluate"}),
        ("judge.reference", {"sample", "align", "improve", "guided"}),
        ("evaluate.reference", {"evaluate"}),
        ("evaluate.diagnose", {"diagnose"}),
        ("sample.precision", {"sample", "align", "improve", "guided", "evaluate"}),
        ("improve.bucket", {"improve", "guided"}),
        ("reward.fit.bucket", {"align", "guided"}),
        ("aggregator.temperature", {"align", "aggregate", "guided", "diagnose"}),
    ],
)
def test_what_a_key_moves(key: str, stages: set[str], only_asked: None, tmp_path: Path):
    """Keys that once moved nothing, or too little: each stage that reads them is made again."""
    task = "summarize" if key == "judge.reference" else "prompt"  # of text judges only
    found = moved(configs()[task], tmp_path, key)[key]
    assert stages <= found
    declared = {stage for stage in STAGES if key in settings(configs()[task], stage)}
    alone = {"targets"} | ({"match"} if task == "summarize" else set())  # prompts only
    assert found == declared - alone


def test_the_cache_leaves_out_places_and_what_rewards_touch(tmp_path: Path):
    cfg = judged()["llm"]
    part = settings(cfg, "improve")
    assert set(part) - set(portable(part)) == set(LOCAL)
    assert not [key for key in part if key.startswith(("reward.", "aggregator."))]
    assert "config/inputs.py" in reuse.CODE
