"""Soft prompt tuning: the released updates, batches, and the runner around it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgtg.config import RunConfig
from pgtg.judges.candidate import Candidate, read_found
from pgtg.judges.classifier import Classifier
from pgtg.judges.readers import VocabularyReader
from pgtg.judges.template import Prompt, Template
from pgtg.methods import soft_prompt
from pgtg.methods.few_shot import batch_rows
from pgtg.methods.soft_prompt import LabelLoss, SoftTokens
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.run import train
from pgtg.runs.folder import read_jsonl
from pgtg.runs.log import RunLog
from pgtg.training.loop import fit
from pgtg.training.update import Where
from pgtg.types import Labelled
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases, tensor
from tests.support.classifiers import MAX_TOKENS, labelled, model, tokenizer, words
from tests.support.finished import finished_run
from tests.support.interrupting import kills_until_the_end
from tests.support.sim_device import NAME
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import FIT, contents
from tests.support.tiny_prompt import tiny_prompt
from tests.support.tiny_roberta import close, rows, tiny_roberta

RESULTS = ("rounds", "found", "eval/test", "eval/results_test.json", "metrics.jsonl", "start")
OWN = ["method=soft_prompt", "method.updates=6", "method.tokens=3", "method.batch=4"]
OWN += ["method.check_every=2", "prompt.baselines=[manual]"]
OWN += ["improve.keep=best", "prompt.validation_prompts=1", "improve.checkpoint_every=1"]


def config(*overrides: str) -> RunConfig:
    return tiny_prompt(*OWN, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(config(), tmp_path_factory)


@pytest.mark.parametrize("case", cases("soft_prompt", RIVALS))
def test_the_released_updates(case: dict[str, Any], tmp_path: Path):
    """Losses, rates and prompts of AdamW with clipping, the rate falling over 100 updates."""
    judge, prompt = tiny_roberta(), tensor(case["prompt"])
    words, length = judge.config.vocab_size, len(prompt)
    ids = [[i if i < words else i - words + 10 for i in own] for own in case["input_ids"]]
    marks = [[int(i >= words) for i in own] for own in case["input_ids"]]
    given = rows(case | {"input_ids": ids, "prompt": marks}, "prompt", "mask_positions")
    table: Any = judge.get_input_embeddings()
    module = SoftTokens(table.weight[10 : 10 + length].detach())
    with torch.no_grad():
        module.prompt.copy_(prompt)
    reader = VocabularyReader(judge)
    examples = [Labelled(str(i), "", label) for i, label in enumerate(case["labels"])]
    objective = LabelLoss(
        lambda batch: reader.read(given, module.on_top), case["label_word_ids"], False
    )
    seen: list[Tensor] = []

    def window(step: int) -> Any:
        seen.append(module.prompt.detach().clone())
        return [lambda: examples]

    own = {"validate_every": 0, "keep": "last", "weight_decay": 0.0, "schedule": "linear"}
    cfg = replace(FIT, updates=100, micro_batch=4, lr=1e-2, **own)
    log = RunLog(tmp_path, quiet=True)
    (tmp_path / "work").mkdir()
    given_to: dict[str, Any] = {"where": Where(0, "improve", 0), "folder": tmp_path / "work"}
    fit(module, window, objective, cfg, inputs="", log=log, **given_to)
    logged = read_jsonl(tmp_path / "metrics.jsonl")
    losses = [row["improve/loss"] for row in logged[:3]]
    assert losses == pytest.approx(case["loss_before_update"], rel=2e-5)
    for found, expected in zip(seen[1:], case["prompt_after_update"], strict=False):
        assert close(found, expected)
    assert [row["improve/lr"] for row in logged[:3]] == pytest.approx(case["learning_rate"])


def test_batches_in_the_order_of_the_file_and_shuffled():
    order = [batch_rows(10, 4, step, None) for step in range(6)]
    assert order[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and order[3:] == order[:3]
    shuffled = [batch_rows(10, 4, step, 7) for step in range(6)]
    for epoch in (shuffled[:3], shuffled[3:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(10))
    assert shuffled[:3] != shuffled[3:] and shuffled[0] == batch_rows(10, 4, 0, 7)


@pytest.mark.parametrize("label_words_only", [False, True])
def test_one_vector_does_at_least_as_well_as_the_best_token(label_words_only: bool):
    """Against all tokens of the vocabulary; what is trained is the vector alone."""
    known = tokenizer("gpt2")
    judge = model("gpt2", len(known))
    template = Template.parse("{sentence}{prompt}").tight
    own: dict[str, Any] = {"rendering": "piecewise", "max_tokens": MAX_TOKENS}
    classifier = Classifier(judge, known, template, words("gpt2"), **own)
    texts = labelled("the film is", "a b c", "it was great")
    texts = [Labelled(one.id, one.text, i % 2) for i, one in enumerate(texts)]
    given = Candidate(Prompt("", (20,)), tokens=True)
    module = SoftTokens(classifier.word_embeddings[[20]])

    def loss(vectors: Tensor) -> Tensor:
        objective = LabelLoss(
            lambda batch: classifier.word_logits(given, batch, vectors),
            classifier.label_ids,
            label_words_only,
        )
        return objective(texts, objective.count(texts)).value

    with torch.no_grad():
        table = classifier.word_embeddings
        best = min(loss(table[[i]] - table[[20]]).item() for i in range(0, len(table), 5))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        value = loss(module.on_top)
        value.backward()
        optimizer.step()
    assert value.item() < best
    assert all(p.grad is None for p in judge.parameters())


def test_what_it_found_is_evaluated_and_counted(finished: Path):
    found = json.loads((finished / "eval" / "results_test.json").read_text())
    assert [*found] == ["soft_prompt", "manual", "optimum"]
    search = found["soft_prompt"]["search"]
    assert search["judged_by_split"] == {"train": 0, "dev": 3}
    assert search["gradient_sequences"] == 3 * (4 + 2)  # 6 texts in batches of 4 and 2
    (row,) = read_jsonl(finished / "eval/test/soft_prompt/samples_candidates.jsonl")
    assert row["policy"] and row["vectors"] == [3, 16]
    (kept,) = read_found(finished / "found")
    assert kept.prompt.ids is not None and kept.tokens and kept.offset is not None
    again = evaluate_saved(finished, split="test", metrics=None, overrides=[], cfg=None)
    assert again["decodings"] == found["soft_prompt"]["decodings"]


@pytest.mark.slow
def test_killed_at_any_update_it_ends_with_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = lambda: train(config(), tmp_path / "killed")  # noqa: E731
    trainer = soft_prompt.SoftPromptTrainer
    kills = kills_until_the_end(monkeypatch, trainer, "window", run, every=3)
    assert kills >= 2
    assert contents(tmp_path / "killed", *RESULTS) == contents(finished, *RESULTS)


def test_a_run_has_the_cpus_numbers(finished: Path, tmp_path: Path):
    train(config(f"device={NAME}"), tmp_path / "run")
    losses = [
        [row["improve/loss"] for row in read_jsonl(path / "metrics.jsonl") if "improve/loss" in row]
        for path in (finished, tmp_path / "run")
    ]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-3)
