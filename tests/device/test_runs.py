"""Whole runs of all tasks on a second device: the CPU's numbers, and resumed to the bit."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import RunConfig
from pgtg.explain.gather import Options, gather
from pgtg.judges.classifier import Classifier
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.run import run_stage, train
from pgtg.runs.folder import Artifact
from pgtg.runs.log import RunLog
from pgtg.tasks import open_task
from pgtg.tasks.prompt import PromptTask
from tests.support.cases import some
from tests.support.finished import finished_run
from tests.support.sim_device import NAME
from tests.support.tiny import _quiet, results, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_preferences import tiny_preferences
from tests.support.tiny_prompt import tiny_prompt

SMALL = [
    "data.newswire.train=16",
    "data.newswire.validation=6",
    "data.newswire.test=3",
    "policy.tiny_t5.copy_updates=0",
    "policy.tiny_t5.warm_start.updates=2",
    "sample.sources=4",
    "sample.heldout_sources=3",
    "sample.chunk=2",
    "sample.max_new_tokens=6",
    "reward.fit.updates=2",
    "reward.fit.validate_every=1",
    "method.controls=[]",
    "method.reinforce=0.1",
    "method.kl=0.1",
    "evaluate.start_policy=false",
    "evaluate.diagnose=1",
]
ONE_ROUND = [
    "data.limit={train: 12, validation: 4}",
    "policy.tiny_lm.fit.updates=2",
    "schedule.total=2",
    "schedule.retrain_until=0",
    "method.controls=[]",
    "evaluate.start_policy=false",
]
FEW_PROMPTS = ["schedule.total=2", "schedule.retrain_until=0", "prompt.baselines=[manual]"]
EVERY = ["data.targets=all", "method.weights=sign"]
UNITS = [
    "reward.head=log_ratio",
    "reward.bound=none",
    "reward.granularity=segment",
    "reward.segments=entropy",
    "reward.segment_entropy=3.5",
    "reward.normalize=place",
    "sample.heldout_sources=8",
]
MADE = {
    "summarize": lambda device: tiny(*SMALL, "seed=1", device),
    "prompt": lambda device: tiny_prompt("method.controls=[]", *FEW_PROMPTS, device),
    "preferences": lambda device: tiny_preferences(*ONE_ROUND, *EVERY, device),
}
TASKS = tuple(MADE)
MADE["units"] = lambda device: tiny_preferences(*ONE_ROUND, *EVERY, *UNITS, device)
CLOSE: dict[str, Any] = {"rel": 2e-3, "abs": 2e-3}  # float32, carried through two rounds


def config(task: str, device: str) -> RunConfig:
    return MADE[task](f"device={device}")


Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The finished run of a task, by default on the second device; to be read only."""
    return cache(lambda task, device=NAME: finished_run(config(task, device), tmp_path_factory))


@pytest.fixture
def copied(run_of: Runs, tmp_path: Path) -> Runs:
    def copy(task: str, device: str = NAME) -> Path:
        return Path(shutil.copytree(run_of(task, device), tmp_path / f"{task}-{device}"))

    return copy


def logged(run: Path) -> Iterator[tuple[str, float]]:
    """All numbers of a run's log, each with its place."""
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        place = f"{line['stage']} {line['round']} {line['step']}"
        yield from ((f"{place} {k}", v) for k, v in line.items() if isinstance(v, int | float))


@pytest.mark.parametrize("task", some([*TASKS, "units"], "summarize", "prompt"))
def test_a_whole_run_has_the_cpus_numbers(task: str, run_of: Runs):
    """Metrics of all stages to rounding, and the same generated texts."""
    expected, found = (dict(logged(run_of(task, device))) for device in ("cpu", NAME))
    assert len(expected) > 50 and all(map(math.isfinite, found.values()))
    assert found == pytest.approx(expected, **CLOSE)


class Killed(BaseException):
    """Stands for a kill."""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ("summarize", {"state"}),
        pytest.param("preferences", {"state"}, marks=SLOW),
        *(pytest.param(task, None, marks=SLOW) for task in TASKS),
    ],
)
def test_a_run_killed_in_every_stage_ends_with_the_same_bits(
    task: str,
    parts: set[str] | None,
    run_of: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Killed after the first state that each training saves, or also before each stage's commit."""
    whole = results(run_of(task))  # before commits are broken
    commit, killed = Artifact.commit, set()

    def once(self: Artifact, **how: Any) -> Artifact:
        first = self.path not in killed and (parts is None or self.path.name in parts)
        if not first:
            return commit(self, **how)
        killed.add(self.path)
        if self.path.name == "state":
            commit(self, **how)
        raise Killed

    monkeypatch.setattr(Artifact, "commit", once)
    run, times = tmp_path / "run", 0
    while True:
        try:
            train(config(task, NAME), run)
            break
        except Killed:
            times += 1
    assert times == len(killed) and times >= 3
    assert results(run) == whole


@pytest.mark.parametrize("task", some(TASKS, "summarize"))
def test_eval_and_explain_read_a_run_on_the_device(task: str, copied: Runs):
    found = {}
    for device in ("cpu", NAME):
        run = copied(task, device)
        split = "validation" if task == "preferences" else "test"
        options = {"split": split, "metrics": None, "overrides": [], "cfg": None}
        values = evaluate_saved(run, **options)["decodings"]
        means = {(name, key): v for name, d in values.items() for key, v in d["mean"].items()}
        credit = gather(run, Options(), RunLog(None, quiet=True))
        views = [view for group in credit.groups for e in group.entries for view in e.views]
        found[device] = means, [value for view in views for value in view.rewards]
    for here, there in zip(found[NAME], found["cpu"], strict=True):
        assert len(here) > 0 and here == pytest.approx(there, **CLOSE)


def test_the_prompt_tasks_judge_is_on_the_device(run_of: Runs):
    with open_task(config("prompt", NAME), run_of("prompt")) as task:
        assert isinstance(task, PromptTask)
        classifier = task.scorer(task.classifier.template).classifier
        assert isinstance(classifier, Classifier)
        assert {p.device.type for p in classifier._model.parameters()} == {NAME}


@pytest.mark.slow
def test_each_stage_alone_runs_on_the_device(tmp_path: Path):
    """Rewards of all tokens equal the CPU's; every stage by its own command."""
    found = {}
    for device in ("cpu", NAME):
        run, cfg = tmp_path / device, config("summarize", device)
        for stage in ("sample", "align", "score", "aggregate", "improve"):
            run_stage(cfg, run, stage, round=0)
        credit = gather(run, Options(), RunLog(None, quiet=True))
        views = [view for group in credit.groups for e in group.entries for view in e.views]
        found[device] = [value for view in views for value in view.rewards]
    assert found[NAME] == pytest.approx(found["cpu"], **CLOSE)
