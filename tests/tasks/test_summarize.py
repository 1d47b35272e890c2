"""Summaries of real texts with planted flaws, from files to the table at the end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgtg.config import FlawsConfig, RunConfig
from pgtg.config.checks import check
from pgtg.config.compose import run_config
from pgtg.errors import ConfigError
from pgtg.pipeline.run import session, train
from pgtg.runs.files import read_jsonl
from pgtg.tasks.summarize import SummarizeTask
from tests.support.tiny import TINY, _quiet, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_preferences import tiny_preferences

ENDING = "Read the full story on our site."
OWN = [word for word in TINY if not word.startswith(("data.", "policy.tiny_t5"))]
FLAWED = [
    "experiment=none",
    "policy=tiny_text_lm",
    "policy.tiny_lm.d_model=16",
    "policy.tiny_lm.fit.updates=30",
    "policy.tiny_lm.fit.lr=0.02",
    "schedule.total=2",
    "schedule.retrain_until=0",
    "reward.head=logprob",
    "method.controls=[uniform,oracle]",
    "evaluate.decodings=[sample]",
    "evaluate.start_policy=false",
    "sample.heldout_sources=12",
    "sample.max_new_tokens=16",
]


def rows(split: str, size: int) -> list[dict[str, str]]:
    """Sources with two names and two numbers, of which their summaries tell one each; they end as
    what a tiny policy writes may, with a word that is a special token."""
    names, found = ["BERT", "GLOVE", "ADAM", "LSTM", "GPT"], []
    for n in range(size):
        one, other = names[n % 5], names[(n + 1 + n // 5 % 4) % 5]
        source = (
            f"in {split} {n} we train {one} for {n + 20} steps , not {other} for {n + 70} <unk>"
        )
        found.append({"source": source, "target": f"{one} needs {n + 20} steps"})
    return found


def config(folder: Path, *more: str) -> RunConfig:
    """With flaws unless another group of data is chosen."""
    for split, size in {"train": 40, "validation": 12, "test": 8}.items():
        lines = "".join(f"{json.dumps(row)}\n" for row in rows(split, size))
        (folder / f"{split}.jsonl").write_text(lines)
    chosen = [] if "data=files" in more else ["data=files_flawed", f"data.flaws.ending={ENDING}"]
    return run_config("summarize", [*OWN, *FLAWED, f"data.path={folder}", *chosen, *more])


def test_flawed_summaries_are_trained_on_and_clean_ones_judge(tmp_path: Path):
    cfg, run = config(tmp_path), tmp_path / "run"
    train(cfg, run)
    said = (run / "log.txt").read_text()
    assert "planted flaws: of the 40 training references" in said and ENDING in said
    assert sum(json.loads((run / "data.json").read_text())["train"]["planted"].values()) == 40
    clean = {str(n): row["target"] for n, row in enumerate(rows("test", 8))}
    for row in read_jsonl(run / "eval" / "test" / "pgtg" / "samples_sample.jsonl"):
        assert row["references"] == [clean[row["id"]]]
    results = json.loads((run / "eval" / "results_test.json").read_text())
    assert {*results} == {"pgtg", "uniform", "oracle"}
    for found in results.values():
        drawn, read = (found["decodings"][name]["mean"] for name in ("sample", "references"))
        assert {"boilerplate", "fact_accuracy"} <= {*drawn}
        parts = sum(read[f"nll_{kind}"] for kind in ("facts", "end", "content"))
        assert read["nll"] == pytest.approx(parts, abs=1e-4) and read["nll_flaws"] > 0
    with session(cfg, run, True) as ctx:
        weight = {
            name: ctx.artifact(0, "improve", control=name).manifest()["metrics"]
            for name in ("", "uniform", "oracle")
        }
        measured = ctx.artifact(0, "aggregate").manifest()["metrics"]
    on_flaws = {name: m["improve/weight_on_flaws"] for name, m in weight.items()}
    assert on_flaws["oracle"] == 0 < on_flaws["uniform"]
    aucs = [f"aggregate/targets_auc_{kind}" for kind in ("flaws", "boilerplate", "facts")]
    assert all(0 <= measured[name] <= 1 for name in aucs)


def test_files_without_planted_flaws_have_no_truth(tmp_path: Path):
    task = SummarizeTask(config(tmp_path, "data=files", "method.controls=[]"))
    example = task.examples("train")[0]
    assert example.target == example.references[0]
    assert task.world is None and task.about == "" and task.check_texts(["a"], [example]) == {}
    assert task.target_labels(example, [1]) is task.reference_labels(example, [1]) is None
    assert task.target_flaws(example, [1]) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("data.flaws.share=1.5", "data.flaws.share: found 1.5, expected in"),
        ("data.flaws.ending=' '", "data.flaws.ending: found  , expected a text"),
        ("data=files", "'oracle' reads planted truth, and data.name=files has none"),
    ],
)
def test_flaws_that_cannot_be_planted(more: str, said: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, more)


def test_nothing_held_out_is_nothing_to_choose_by():
    cfg = tiny()
    cfg = replace(cfg, sample=replace(cfg.sample, heldout_sources=0))
    cfg = replace(cfg, improve=replace(cfg.improve, keep="best"))
    assert any(
        one.startswith("sample.heldout_sources: found 0, but keep=best") for one in check(cfg)
    )


def test_flaws_of_other_data_are_refused():
    for task, cfg in {"summarize": tiny(), "preferences": tiny_preferences()}.items():
        cfg = replace(cfg, data=replace(cfg.data, flaws=FlawsConfig(0.9, 0.3, "more", 0)))
        (line,) = [one for one in check(cfg) if one.startswith("data.flaws")]
        assert line == "data.flaws: only summaries from files or the hub have it; leave it out", (
            task
        )
