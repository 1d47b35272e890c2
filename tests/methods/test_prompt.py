"""The prompt task end to end, on a small generated world with barely trained models."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgtg.config.compose import run_config
from pgtg.data.generations import read_generations
from pgtg.errors import ConfigError
from pgtg.judges.template import Prompt
from pgtg.methods import method_of
from pgtg.methods.method import Improving
from pgtg.methods.objective import Sampled
from pgtg.models.batch import token_batch
from pgtg.models.codec import PromptCodec
from pgtg.models.reward import load_reward_model
from pgtg.ops.gap import gap_scores
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.run import run_stage, session, train
from pgtg.runs.folder import RunFolder, read_jsonl
from pgtg.tasks import open_task
from pgtg.tasks.prompt import PromptTask
from tests.support.finished import finished_run
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import contents
from tests.support.tiny_prompt import TINY_PROMPT, tiny_prompt

LINES = ("pgtg", "random", "sparse", "shuffled")
RESULTS = ("rounds", "controls", "policy", "reward", "eval", "metrics.jsonl", "start")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny_prompt("keep_rounds=all"), tmp_path_factory)


def results(run: Path) -> dict:
    return json.loads((run / "eval" / "results_test.json").read_text())


def candidates(run: Path, system: str) -> list[dict]:
    return read_jsonl(run / "eval" / "test" / system / "samples_candidates.jsonl")


def test_every_line_spends_the_same_and_is_reported(finished: Path):
    found = results(finished)
    assert [*found] == [*LINES, "manual", "instructions", "icl", "null", "optimum"]
    for name in LINES:
        search = found[name]["search"]
        assert search["judged_prompts"] == 8 + 6  # the first round's and the second's
        rows = candidates(finished, name)
        assert search["judged_sequences"] == 14 * 6 and search["dev_prompts"] == len(rows)
        ranked, tested = len(rows) * (6 + 6), sum("test_score" in row for row in rows) * 10
        assert found[name]["judged_sequences_in_all"] == 14 * 6 + ranked + tested
        assert len(search["curve"]) == 2 and found[name]["examples"] == 10


def test_lines_share_their_first_prompts_and_make_only_what_they_need(finished: Path):
    first = [finished / "rounds/00/sample/train/00000.parquet"]
    first += [finished / f"controls/{name}/00/sample/train/00000.parquet" for name in LINES[1:]]
    assert len({path.read_bytes() for path in first}) == 1
    made = {
        name: {p.name for p in (finished / f"controls/{name}/01").iterdir()} for name in LINES[1:]
    }
    assert made == {
        "random": {"sample"},
        "sparse": {"sample", "improve"},
        "shuffled": {"sample", "align", "improve"},
    }


def test_prompts_are_candidate_words_of_the_given_length(finished: Path):
    from pgtg.data.worlds import reviews

    cfg = tiny_prompt()
    assert cfg.data.reviews is not None
    words = set(reviews.candidates(cfg.data.reviews))
    generations = read_generations(RunFolder(finished).artifact("rounds", "01", "sample"), "train")
    assert all(len(tokens) == 5 for tokens in generations.tokens)
    assert all(set(text.split()) <= words for text in generations.texts)


def test_scores_and_accuracies_are_the_judges(finished: Path):
    """Every candidate's figures, recomputed from the classifier itself."""
    with open_task(tiny_prompt(), finished) as task:
        assert isinstance(task, PromptTask)
        rows = candidates(finished, "pgtg")
        for split in ("train", "dev", "test"):
            examples = task.labelled(split) or []
            labels = torch.tensor([e.label for e in examples])
            classifier = task.scorer("prompt").classifier
            for row in rows if split != "test" else rows[:4]:
                values = torch.from_numpy(classifier.log_probs(Prompt(row["text"]), examples))
                gaps = gap_scores(values, labels, correct=200.0, wrong=180.0)
                assert row[f"{split}_score"] == pytest.approx(gaps.double().mean().item(), abs=1e-4)
                right = (values.argmax(-1) == labels).double().mean().item()
                assert row[f"{split}_accuracy"] == pytest.approx(100 * right)
        assert [row["dev_score"] for row in rows] == sorted(
            (row["dev_score"] for row in rows), reverse=True
        )
        mean = results(finished)["pgtg"]["decodings"]["top"]["mean"]["accuracy"]
        assert mean == pytest.approx(np.mean([row["test_accuracy"] for row in rows[:2]]))
        best = read_jsonl(finished / "eval/test/pgtg/samples_best.jsonl")
        assert np.mean([row["scores"]["accuracy"] for row in best]) == rows[0]["test_accuracy"]


def test_the_optimum_is_above_every_prompt_that_was_judged(finished: Path):
    """Coordinate ascent with restarts, checked against all that the run itself tried."""
    (best,) = candidates(finished, "optimum")
    tried = [row["train_score"] for name in LINES for row in candidates(finished, name)]
    assert best["train_score"] > max(tried)


def test_candidates_are_the_judged_the_sampled_and_the_greedy(finished: Path):
    origins = [row["from"].split(",")[0] for row in candidates(finished, "pgtg")]
    assert origins.count("judged") == 3 and origins.count("sampled") <= 3
    assert {row["from"] for row in candidates(finished, "random")} == {"judged"}
    assert len(candidates(finished, "random")) == 6  # as many as the others may rank


@pytest.mark.slow
def test_single_stages_are_the_whole_run(finished: Path, tmp_path: Path):
    cfg = tiny_prompt("keep_rounds=all")
    for number in (0, 1):
        for stage in ("sample", "align", "score", "aggregate", "improve"):
            run_stage(cfg, tmp_path / "run", stage, round=number)
    train(cfg, tmp_path / "run")
    assert contents(tmp_path / "run", *RESULTS) == contents(finished, *RESULTS)


@pytest.mark.slow
def test_the_memo_changes_no_bit(finished: Path, tmp_path: Path):
    for attempt in ("miss", "hit"):
        train(tiny_prompt("keep_rounds=all", f"cache={tmp_path / 'cache'}"), tmp_path / attempt)
        assert contents(tmp_path / attempt, *RESULTS) == contents(finished, *RESULTS)


def test_training_never_reads_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, read = PromptTask.labelled, set()

    def noting(self: PromptTask, split: str):
        read.add(split)
        return original(self, split)

    monkeypatch.setattr(PromptTask, "labelled", noting)
    cfg = tiny_prompt("prompt.validation_prompts=2", "improve.keep=best")
    for stage in ("sample", "align", "score", "aggregate", "improve"):
        run_stage(cfg, tmp_path, stage)
    assert read == {"train", "dev"}


@pytest.mark.slow
def test_without_a_test_file_there_is_no_test_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    original = PromptTask.labelled
    monkeypatch.setattr(
        PromptTask,
        "labelled",
        lambda self, split: None if split == "test" else original(self, split),
    )
    train(
        tiny_prompt(
            "method.controls=[]",
            "schedule.total=2",
            "schedule.retrain_until=0",
            "prompt.baselines=[]",
        ),
        tmp_path,
    )
    found = results(tmp_path)["pgtg"]
    assert found["decodings"] == {} and "no such file" in found["absent"]["accuracy"]
    assert "n/a" in capsys.readouterr().out


def test_the_sparse_control_weighs_by_the_judges_centred_score(finished: Path):
    cfg = tiny_prompt("keep_rounds=all", "method.standardize=false")
    with session(cfg, finished, True) as ctx:
        samples = ctx.artifact(0, "sample", control="sparse")
        lm, codec = ctx.load_policy(0, "sparse")
        method = method_of(cfg, "sparse")
        assert method.trainer is not None
        guide = method.trainer(method, Improving(ctx, lm, codec, None, [samples], finished, 0, 1))
        (make,) = guide.window(0)
        batch = make()
        assert isinstance(batch, Sampled)
        scores = torch.tensor(read_generations(samples, "train").scores)
        expected = (scores - scores.mean())[:, None].expand(-1, 5)
        torch.testing.assert_close(batch.advantage, expected)


def test_rewards_are_weighed_in_units_of_their_spread_over_all_judged_prompts(finished: Path):
    cfg = tiny_prompt("keep_rounds=all")
    with session(cfg, finished, True) as ctx:
        samples = [ctx.artifact(i, "sample") for i in range(2)]
        lm, codec = ctx.load_policy(1)
        model = load_reward_model(ctx.artifact(1, "align").file("reward"))
        method = method_of(cfg, "")
        assert method.trainer is not None
        guide = method.trainer(method, Improving(ctx, lm, codec, model, samples, finished, 0, 1))
        (make,) = guide.window(0)
        batch = make()
        judged = {tuple(ids) for made in samples for ids in read_generations(made, "train").tokens}
        source, _ = codec.encode_source("")

        def rewards(prompts: list[list[int]]) -> torch.Tensor:
            with torch.no_grad():
                return model(token_batch([source], prompts, [0] * len(prompts), "cpu"))

        spread = rewards([list(ids) for ids in judged]).std(unbiased=False)
        own = rewards(batch.batch.tokens.tolist())
        expected = (own - own.mean()) / spread
        torch.testing.assert_close(batch.advantage, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(batch.advantage.std(unbiased=False), torch.tensor(1.0))


@pytest.mark.parametrize("method", ["sparse", "random"])
@pytest.mark.slow
def test_the_other_methods_run_alone(tmp_path: Path, method: str):
    train(
        tiny_prompt(
            f"method={method}",
            "schedule.total=2",
            "schedule.retrain_until=0",
            "prompt.baselines=[]",
        ),
        tmp_path,
    )
    assert next(iter(results(tmp_path))) == method
    assert not (tmp_path / "rounds/00/align").exists()


@pytest.mark.slow
def test_full_fine_tuning_of_a_small_lm_is_an_option(tmp_path: Path):
    cfg = tiny_prompt("policy.adaptor=null", "method.controls=[]", "evaluate.splits=[]")
    train(cfg, tmp_path)
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").num_parameters() > 0


@pytest.mark.slow
def test_a_plain_language_model_is_evaluated_as_a_writer(finished: Path):
    """Candidates are its own samples and the judge is that of the config."""
    models = finished / "start"
    kept = [o for o in TINY_PROMPT if not re.match(r"policy\.(tiny|adaptor)|judge\.", o)]
    own = ["policy=pretrained", f"policy.path={models / 'policy'}"]
    own += ["judge=classifier", f"judge.classifier.path={models / 'judge'}"]
    own += ["judge.classifier.max_tokens=64"]
    cfg = run_config("prompt", [*kept, *own])
    found = evaluate_saved(models / "policy", split="dev", metrics=None, overrides=[], cfg=cfg)
    assert found["decodings"]["best"]["mean"] and "search" not in found


@pytest.mark.slow
def test_cut_texts_are_counted_and_said(finished: Path, capsys: pytest.CaptureFixture[str]):
    found = evaluate_saved(
        finished, split="dev", metrics=None, overrides=["judge.classifier.max_tokens=13"], cfg=None
    )
    assert found["texts_cut"]["dev"] > 0
    assert "texts are cut to judge.classifier.max_tokens=13" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_with_fewer_demonstrations_are_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = ["judge.classifier.max_tokens=24", "prompt.baselines=[icl]", "evaluate.splits=[test]"]
    train(tiny_prompt("method=random", "method.controls=[]", *own), tmp_path)
    found = json.loads((tmp_path / "eval" / "results_test.json").read_text())["icl"]
    number = found["texts_with_fewer_demonstrations"]["test"]
    assert number > 0 and f"icl: {number} of 10 test texts are shown" in capsys.readouterr().err


def test_a_finished_run_is_evaluated_again(finished: Path):
    found = evaluate_saved(finished, split="dev", metrics=None, overrides=[], cfg=None)
    assert (
        found["decodings"]["best"]["mean"]["accuracy"]
        == candidates(finished, "pgtg")[0]["dev_accuracy"]
    )


@pytest.mark.slow
def test_a_task_has_its_own_methods_and_judges():
    for override, text in (
        ("policy=distilgpt2 policy.tiny_lm.layers=2", "policy.tiny_lm is null here"),
        ("method=mle", "'mle' needs targets, which the task prompt lacks"),
        ("judge=meteor_stem", "judged by judge=classifier"),
        ("method.controls=[uniform]", "'uniform' needs targets"),
        ("improve.keep=best", "prompt.validation_prompts=0"),
        ("schedule.unit=epochs", "counts updates"),
        ("experiment=quickstart", "belongs to the task 'summarize'"),
        ("dataset=nonsense", "no dataset 'nonsense'"),
    ):
        with pytest.raises(ConfigError, match=text):
            run_config("prompt", override.split())


def test_prompts_keep_their_exact_spacing():
    class Words:
        eos_token_id = 0

        def decode(self, ids, **options):
            assert options == {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            return "".join((" a", "b ", " .")[i] for i in ids)

        def __call__(self, text, **options):
            assert options == {"add_special_tokens": False, "verbose": False}
            return {"input_ids": [7] if text == "start" else []}

    def made(start: str | None) -> PromptCodec:
        words: Any = Words()
        return PromptCodec(words, False, "", "", "", 5, 5, start_text=start)

    codec = made("start")
    assert codec.decode([0, 1, 2]) == " ab  ." and codec.encode_source("") == ([7], False)
    assert codec.eos_ids == []
    assert made(None).encode_source("")[0] == [0]
    with pytest.raises(ConfigError, match="no token"):
        made("").encode_source("")
