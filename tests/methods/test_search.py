"""A search in the runner: budget, results, resume to the bit, another device; each method's."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import RunConfig
from pgtg.judges.candidate import read_found
from pgtg.methods import method_of
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.run import run_stage, session, train
from pgtg.pipeline.stages import search as stage
from pgtg.pipeline.stages.search import ASKED
from pgtg.runs.folder import RunFolder, read_jsonl
from pgtg.tasks import open_task
from pgtg.tasks.prompt import PromptTask
from tests.support.cases import some
from tests.support.finished import finished_run
from tests.support.sim_device import NAME
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import contents
from tests.support.tiny_prompt import tiny_prompt

RESULTS = (
    "rounds",
    "controls",
    "found",
    "eval/test",
    "eval/results_test.json",
    "metrics.jsonl",
    "start",
)
FEW = ["prompt.baselines=[manual,instructions]"]
CHECKS = "method.check_every=5"
OPTIONS = {
    "grips": ["method.score=gap", "method.phrases=words", "method.patience=4"],
    "autoprompt": ["method.iterations=4", "method.candidates=3", "method.tokens=2"],
    "bbt": ["method.tokens=3", "method.dim=4", "method.popsize=5", "method.budget=20", CHECKS],
}


if find_spec("cma") is None:
    del OPTIONS["bbt"]


def config(name: str, *overrides: str) -> RunConfig:
    return tiny_prompt(f"method={name}", *OPTIONS[name], *FEW, *overrides)


@pytest.fixture(scope="module", params=some(OPTIONS, "grips"))
def finished(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, finished_run(config(request.param), tmp_path_factory)


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "eval" / "results_test.json").read_text())


def test_what_was_asked_is_counted_and_what_was_found_is_evaluated(finished: tuple[str, Path]):
    name, run = finished
    found = results(run)
    assert [*found] == [name, "manual", "instructions", "optimum"]
    own = found[name]
    artifact = RunFolder(run).artifact("rounds", "00", "improve")
    asked = read_jsonl(artifact.file(ASKED))
    counts = {split: sum(row["split"] == split for row in asked) for split in ("train", "dev")}
    metrics = artifact.manifest()["metrics"]
    assert counts == {s: metrics[f"improve/{s}_judged_prompts"] for s in counts}
    most = config(name).method.asked()
    assert most is not None and counts["train"] <= most[0] and counts["dev"] <= most[1]
    search = own["search"]
    assert search["judged_by_split"] == counts
    assert search["judged_sequences"] == 6 * sum(counts.values())  # 6 texts each
    train_scores = [row["score"] for row in asked if row["split"] == "train"]
    assert search["best_train_score"] == max(train_scores) == search["curve"][-1]["best"]
    assert search["curve"][-1]["prompts"] == len(train_scores)
    rows = read_jsonl(run / "eval/test" / name / "samples_candidates.jsonl")
    ranked, tested = len(rows) * (6 + 6), sum("test_score" in row for row in rows) * 10
    assert own["judged_sequences_in_all"] == search["judged_sequences"] + ranked + tested
    chosen = [row for row in rows if row["policy"]]
    kept = read_found(artifact.path)
    assert [row["text"] for row in chosen] == [one.prompt.text for one in kept]
    assert own["decodings"]["policy"]["mean"]["accuracy"] == chosen[0]["test_accuracy"]
    with open_task(config(name), run) as task:  # the figures are the classifier's
        assert isinstance(task, PromptTask)
        (values,) = task.gap_of(_tensor(task.answers(kept[:1], "test")), "test")
        assert chosen[0]["test_score"] == pytest.approx(values.double().mean().item(), abs=1e-6)


def _tensor(values: Any) -> Any:
    import torch

    return torch.from_numpy(values)


@pytest.mark.parametrize("finished", some(OPTIONS, "grips"), indirect=True)
def test_a_search_that_is_killed_after_any_turn_ends_with_the_same_bits(
    finished: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed as the answers to a question came, before anything of it was written; then after
    its lines were appended, before the state was saved; over and over until it is done."""
    name, run = finished
    judged, save = stage._judged, stage._save
    left = {"judged": 2, "saved": 3}

    def stopping(key: str, work: Any) -> Any:
        def call(*args: Any) -> Any:
            left[key] -= 1
            if not left[key]:
                raise KeyboardInterrupt
            return work(*args)

        return call

    monkeypatch.setattr(stage, "_judged", stopping("judged", judged))
    monkeypatch.setattr(stage, "_save", stopping("saved", save))
    kills = 0
    while True:
        try:
            train(config(name), tmp_path / "run")
            break
        except KeyboardInterrupt:
            kills += 1
            left.update(judged=3, saved=4)
    assert kills >= 2
    assert contents(tmp_path / "run", *RESULTS) == contents(run, *RESULTS)


@pytest.mark.parametrize("finished", some(OPTIONS, "autoprompt"), indirect=True)
def test_the_stage_alone_and_eval_of_the_run(finished: tuple[str, Path], tmp_path: Path):
    name, run = finished
    run_stage(config(name), tmp_path / "run", "improve")
    improved = "rounds", "00", "improve"
    alone, whole = (RunFolder(path).artifact(*improved) for path in (tmp_path / "run", run))
    assert alone.manifest()["files"] == whole.manifest()["files"]
    found = evaluate_saved(run, split="test", metrics=None, overrides=[], cfg=None)
    assert found["decodings"] == results(run)[name]["decodings"]
    assert found["search"] == results(run)[name]["search"]


def test_a_plan_counts_what_a_search_may_ask(finished: tuple[str, Path]):
    from pgtg.pipeline.plan import prompt

    name, _ = finished
    cfg = config(name)
    counted = prompt.count(cfg, {"train": 6, "dev": 6, "test": 10})
    asked = cfg.method.asked()
    assert asked is not None
    assert (counted.rounds, counted.judged_prompts) == (1, asked[0])
    assert (counted.policy_updates, counted.reward_updates) == (0, 0)


@pytest.mark.parametrize("finished", some(OPTIONS, "autoprompt"), indirect=True)
def test_a_run_has_the_cpus_numbers(finished: tuple[str, Path], tmp_path: Path):
    name, run = finished
    train(config(name, f"device={NAME}"), tmp_path / "run")
    asked = [
        read_jsonl(RunFolder(path).artifact("rounds", "00", "improve").file(ASKED))
        for path in (run, tmp_path / "run")
    ]
    assert [row["text"] for row in asked[1]] == [row["text"] for row in asked[0]]
    scores = [[row["score"] for row in rows] for rows in asked]
    assert scores[1] == pytest.approx(scores[0], abs=1e-2)


@pytest.mark.slow
def test_controls_run_alongside_with_as_many_prompts(tmp_path: Path):
    cfg = config("grips", "method.controls=[random]", "prompt.first=4", "prompt.baselines=[]")
    train(cfg, tmp_path / "run")
    found = results(tmp_path / "run")
    assert found["random"]["search"]["judged_prompts"] == found["grips"]["search"]["judged_prompts"]


def test_grips_begins_with_the_instructions_baseline(tmp_path: Path):
    cfg = config("grips")
    with session(cfg, tmp_path / "run", False) as ctx:
        from pgtg.pipeline.stages.start import start

        start(ctx)
        make = method_of(cfg).search
        assert make is not None and ctx.task.search is not None
        question = make(ctx).ask()
        assert question is not None
        task = ctx.task.search
        answers = task.answers(question.candidates, "train")
        from pgtg.judges.template import Prompt

        plain = task.log_probs([Prompt("")], "train", "instructions")
        assert answers.tolist() == plain.tolist()
