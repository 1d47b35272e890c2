"""The paper's prompt experiments: their values, the published test splits, a scaled run of each."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import RunConfig
from pgtg.config.checks import value_at
from pgtg.config.compose import run_config
from pgtg.data.comparisons import examples_in
from pgtg.data.fewshot import load_fewshot
from pgtg.pipeline.run import train
from tests.support.classifiers import MAX_TOKENS, model, tokenizer

REAL = Path(__file__).parents[3] / "shared" / "data" / "fewshot"
TESTS = {"sst2": 1821, "agnews": 7600}  # rows of the published test splits
FOLDERS = {"sst2": "sst-2", "yelp2": "yelp-2", "agnews": "agnews"}
WORDS = ["the", "film", "is", "great", "and", "it", "was", "terrible"]
LINES = ("pgtg", "random", "sparse", "shuffled")

# the released code's fsc_config.yaml with the defaults of its dataclasses
PAPER: dict[str, Any] = {
    "policy.path": "distilbert/distilgpt2",  # policy_lm
    "policy.adaptor.width": 2048,  # hidden_size
    "policy.adaptor.residual": False,  # the MLP's output replaces the state
    "sample.max_new_tokens": 5,  # prompt_length
    "sample.top_k": 256,
    "sample.temperature": 1.0,
    "prompt.group": 5,  # reward_learning_samples
    "prompt.pool": 16,  # prompt_train_batch_size
    "prompt.fresh": True,  # prompts of its own for each update
    "prompt.fresh_checks": 25,  # steps_per_epoch // 4
    "reward.path": None,  # the policy's model
    "reward.head": "paper",
    "reward.bound": "softplus",  # use_softplus
    "reward.mlp_width": 2048,
    "reward.replay": 0,
    "reward.fit.updates": 10000,  # rew_max_train_steps
    "reward.fit.validate_every": 100,  # rew_max_train_steps // rew_num_train_epochs
    "reward.fit.micro_batch": 64,  # reward_learning_batch_size
    "reward.fit.accumulate": 1,  # rew_gradient_accumulation_steps
    "reward.fit.optimizer": "adam",
    "reward.fit.lr": 5e-5,  # rew_learning_rate
    "reward.fit.clip": 5.0,  # gradient_clip_norm
    "reward.fit.schedule": "plateau",
    "reward.fit.plateau_factor": 0.8,  # lr_decay
    "reward.fit.plateau_patience": 2,  # weight_decay_count
    "reward.fit.patience": 7,  # early_stop_count
    "reward.fit.keep": "best",
    "improve.micro_batch": 64,  # num_samples
    "improve.optimizer": "adam",
    "improve.lr": 5e-5,  # learning_rate
    "improve.clip": 5.0,
    "improve.schedule": "plateau",
    "improve.plateau_factor": 0.8,
    "improve.plateau_patience": 2,
    "improve.patience": 7,
    "improve.validate_every": 500,  # early_stop_eval_period
    "improve.keep": "best",
    "prompt.validation_prompts": 240,  # num_validation_prompts x prompt_train_batch_size
    "schedule.total": 12000,  # max_train_steps
    "schedule.retrain_every": 1000,  # reward_retrain_period
    "schedule.retrain_until": 6000,  # max_train_steps // 2
    "method.entropy": 0.125,  # max_entropy_coeff
    "method.reward_to_go": False,  # use_q_for_weight
    "method.baseline": "none",
    "method.standardize": False,
    "aggregator.temperature": 2.0,  # soft_maxmin_temp
    "judge.classifier.path": "FacebookAI/roberta-large",  # task_lm
    "judge.classifier.correct": 200.0,  # correct_coeff
    "judge.classifier.wrong": 180.0,  # incorrect_coeff
    "judge.classifier.share": 0.8,
    "data.fewshot.shots": 16,  # num_shots
    "prompt.candidates": 16,  # df.head(16)
    "prompt.top": 3,
    # what the paper has not: its default controls, and what stays on the disk
    "method.controls": ["random", "sparse", "shuffled"],
    "keep_rounds": "last",
}
REVIEWS = ("{sentence} {prompt} {mask} .", [" terrible", " great"])
OF_DATA: dict[str, tuple[str, list[str]]] = {
    "sst2": REVIEWS,
    "yelp2": REVIEWS,
    "agnews": ("{mask} {prompt} {sentence}", ["World", "Sports", "Business", "Tech"]),
}


@pytest.mark.parametrize("data", OF_DATA)
def test_the_prompt_experiments_carry_the_papers_values(data: str):
    cfg = run_config("prompt", [f"experiment={data}_paper", "data.path=/tmp"])
    assert {key: value_at(cfg, key) for key in PAPER} == PAPER
    assert cfg.data.fewshot is not None
    template = cfg.data.fewshot.masked["prompt"]
    assert (template.template, template.words) == OF_DATA[data]
    assert template.rendering == "string"
    assert cfg.data.fewshot.folders == ["16-100", "16-13", "16-21", "16-42", "16-87"]
    texts = 16 * len(template.words)
    assert examples_in(0.8, texts) == {32: 26, 64: 52}[texts]  # ceil, of train and of dev


def test_the_prompt_experiments_differ_in_their_data_only():
    made = [run_config("prompt", [f"experiment={d}_paper", "data.path=/tmp"]) for d in OF_DATA]
    for cfg in made:
        cfg.data, cfg.name, cfg.experiment = made[0].data, "", ""
    assert made[0] == made[1] == made[2]


@pytest.mark.real
@pytest.mark.parametrize("data", TESTS)
def test_every_row_of_the_published_test_is_read(data: str):
    cfg = run_config("prompt", [f"experiment={data}_paper", f"data.path={REAL / FOLDERS[data]}"])
    found = load_fewshot(cfg.data, "test", 0)
    assert found is not None
    assert (len(found[0]), found[1].rows, found[1].dropped) == (TESTS[data], TESTS[data], {})


def few_shots(folder: Path, words: int, rows: dict[str, int]) -> None:
    """Files as the published ones, of a few short texts; one of the test is empty, one repeats."""
    rng = random.Random(0)
    for split, number in rows.items():
        lines = ["text\tlabel"]
        for i in range(number):
            text = " ".join(rng.choices(WORDS, k=6))
            lines.append(f"{text}\t{i % words}")
        if split == "test":
            lines[3] = "\t0"
        place = folder if split == "test" else folder / "16-100"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def scaled(data: str, folder: Path) -> RunConfig:
    """The experiment with tiny random models and a hundredth of its updates."""
    from transformers import PreTrainedTokenizerBase

    def saved(family: str, seed: int) -> str:
        made: PreTrainedTokenizerBase = tokenizer(family)
        made.add_tokens(["World", "Sports", "Business", "Tech"])
        model(family, len(made), seed).save_pretrained(folder / family)
        made.save_pretrained(folder / family)
        return str(folder / family)

    few_shots(folder / "data", len(OF_DATA[data][1]), {"train": 8, "dev": 8, "test": TESTS[data]})
    return run_config(
        "prompt",
        [
            f"experiment={data}_paper",
            f"data.path={folder / 'data'}",
            f"policy.path={saved('gpt2', 0)}",
            f"judge.classifier.path={saved('roberta', 1)}",
            f"judge.classifier.max_tokens={MAX_TOKENS}",
            "reward.fit.updates=20",
            "reward.fit.validate_every=5",
            "reward.fit.checkpoint_every=10",
            "improve.validate_every=5",
            "improve.checkpoint_every=10",
            "schedule.total=30",
            "schedule.retrain_every=10",
            "schedule.retrain_until=20",
            "prompt.fresh_checks=2",
            "prompt.validation_prompts=16",
            "prompt.tested=2",
            "prompt.baselines=[manual]",
            "evaluate.diagnose=2",
            "threads=1",
            "cache=off",
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("data", TESTS)
def test_a_scaled_run_goes_through_the_whole_protocol(data: str, tmp_path: Path):
    train(scaled(data, tmp_path), tmp_path / "run")
    found = json.loads((tmp_path / "run/eval/results_test.json").read_text())
    spent = {name: found[name]["search"]["judged_prompts"] for name in LINES}
    assert spent["pgtg"] > 3 * 20 * 16 and spent["random"] == spent["sparse"] == spent["pgtg"]
    assert spent["shuffled"] == spent["pgtg"]  # none stopped early
    for name in LINES:
        assert found[name]["examples"] == TESTS[data]
        kinds = {"best", "top"} | ({"policy", "policy_top"} if name != "random" else set())
        assert set(found[name]["decodings"]) == kinds
    assert not list((tmp_path / "run/rounds/00/align").rglob("*.safetensors"))  # keep_rounds: last
    assert (tmp_path / "run/rounds/00/align/judged.parquet").is_file()
