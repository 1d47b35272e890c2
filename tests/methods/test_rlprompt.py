"""RLPrompt in the runner: budget, target network, resume to the bit, and a planted prompt found."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgtg.config import RunConfig
from pgtg.methods import method_of, rlprompt
from pgtg.methods.method import Improving
from pgtg.methods.rlprompt import Networks, RLPromptTrainer
from pgtg.models.adaptor import AdaptedLanguageModel
from pgtg.ops.gap import gap_scores
from pgtg.ops.soft_q import shaped, soft_q_loss
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.run import session, train
from pgtg.pipeline.stages.start import start
from pgtg.runs.folder import RunFolder, read_jsonl
from tests.support.finished import finished_run
from tests.support.interrupting import kills_until_the_end
from tests.support.sim_device import NAME
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import contents
from tests.support.tiny_prompt import tiny_prompt

RESULTS = ("rounds", "policy", "eval/test", "eval/results_test.json", "metrics.jsonl", "start")
OWN = ["method=rlprompt", "method.updates=5", "method.prompts=4", "prompt.baselines=[manual]"]
OWN += ["improve.checkpoint_every=2"]


def config(*overrides: str) -> RunConfig:
    return tiny_prompt(*OWN, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(config(), tmp_path_factory)


def opened(folder: Path, *overrides: str) -> Any:
    return session(config(*overrides), folder, False)


def trainer(ctx: Any, working: Path) -> RLPromptTrainer:
    lm, codec = ctx.load_policy(0)
    given = Improving(ctx, lm, codec, None, [], working, 0, 5)
    return RLPromptTrainer(method_of(ctx.cfg), given)


@pytest.mark.slow
def test_its_budget_is_counted_and_its_prompts_are_evaluated(finished: Path):
    found = json.loads((finished / "eval" / "results_test.json").read_text())
    assert [*found] == ["rlprompt", "manual", "optimum"]
    search = found["rlprompt"]["search"]
    assert search["judged_by_split"] == {"train": 5 * 4, "dev": 3}  # after 2, 4 and 5 updates
    assert search["judged_prompts"] == 23 and search["judged_sequences"] == 23 * 6
    assert [row["prompts"] for row in search["curve"]] == [4, 8, 12, 16, 20]
    rows = read_jsonl(finished / "eval/test/rlprompt/samples_candidates.jsonl")
    assert {"judged", "sampled"} <= {row["from"] for row in rows}
    assert not (finished / "rounds/00/sample").exists()
    again = evaluate_saved(finished, split="test", metrics=None, overrides=[], cfg=None)
    assert again["decodings"]["policy"] == found["rlprompt"]["decodings"]["policy"]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.slow
def test_killed_at_any_update_it_ends_with_the_same_bits(
    every: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With states after each update, and after every second one, the target network's too."""
    cfg = config(f"improve.checkpoint_every={every}")
    if every == 2:
        whole = finished
    else:
        train(cfg, whole := tmp_path / "whole")
    run = partial(train, cfg, tmp_path / "killed")
    assert kills_until_the_end(monkeypatch, rlprompt, "judge", run, every=4) >= 2
    assert contents(tmp_path / "killed", *RESULTS) == contents(whole, *RESULTS)


def test_the_target_starts_as_a_copy_follows_and_shares_what_is_frozen(tmp_path: Path):
    with opened(tmp_path / "run") as ctx:
        start(ctx)
        lm, _ = ctx.load_policy(0)
        assert isinstance(lm, AdaptedLanguageModel)
        networks = Networks(lm)
        target = networks.target
        assert isinstance(target, AdaptedLanguageModel) and target.model is lm.model
        frozen = [p.clone() for p in lm.model.parameters()]
        before = [p.clone() for p in target.adaptor.parameters()]
        for old, own in zip(before, lm.adaptor.parameters(), strict=True):
            assert torch.equal(old, own)
            with torch.no_grad():
                own.add_(1.0)
        networks.follow(0.25)
        for old, now in zip(before, target.adaptor.parameters(), strict=True):
            torch.testing.assert_close(now, old + 0.25)
        assert all(torch.equal(a, b) for a, b in zip(frozen, lm.model.parameters(), strict=True))
        trained = {name for name, p in networks.named_parameters() if p.requires_grad}
        assert {name.split(".")[0] for name in trained} == {"policy", "target"}


@pytest.mark.parametrize("prior", [False, True])
def test_an_updates_loss_by_hand(tmp_path: Path, prior: bool):
    """Values are the logits of all words; with a prior the start policy's level and share of each
    token are taken from them; no gradient reaches the target."""
    with opened(tmp_path / "run", f"method.prior={prior}".lower()) as ctx:
        start(ctx)
        made = trainer(ctx, tmp_path / "working")
        (tmp_path / "working").mkdir()
        (batch,) = [make() for make in made.window(0)]
        assert batch.batch.tokens.shape == (4, 5)
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for network in (made.networks.policy, made.networks.target):
                assert isinstance(network, AdaptedLanguageModel)
                for p in network.adaptor.parameters():
                    p.add_(torch.from_numpy(rng.normal(0, 0.1, p.shape)).float())
        loss = made.objective(batch, made.objective.count(batch))
        values = made.networks.policy.logits(batch.batch)
        target = made.networks.target.logits(batch.batch)
        own = None
        if prior:
            first = ctx.load_start()[0].logits(batch.batch).detach()
            own = first.log_softmax(-1).gather(-1, batch.batch.tokens[..., None]).squeeze(-1)
            level = first.logsumexp(-1, keepdim=True)
            values, target = values - level, target - level
        expected = soft_q_loss(
            values,
            target,
            batch.batch.tokens,
            batch.rewards,
            batch.batch.mask,
            variant="v2_v2r_v3_v3r",
            prior=own,
        )
        torch.testing.assert_close(loss.value, expected, rtol=1e-4, atol=1e-4)
        loss.value.backward()
        assert all(p.grad is None for p in made.networks.target.parameters())
        assert any(p.grad is not None for p in made.networks.policy.parameters())


def test_rewards_are_the_judges_standardised_and_scaled(tmp_path: Path):
    for released in ("false", "true"):
        with opened(tmp_path / released, f"method.released={released}") as ctx:
            start(ctx)
            made = trainer(ctx, tmp_path / "working")
            (tmp_path / "working").mkdir(exist_ok=True)
            (batch,) = [make() for make in made.window(3)]
            task = ctx.task.search
            texts = [made.given.codec.decode(row) for row in batch.batch.tokens.tolist()]
            values = task.log_probs(task.prompts(batch.batch.tokens.tolist(), texts), "train")
            labels = torch.tensor([example.label for example in task.labelled("train")])
            gaps = gap_scores(torch.from_numpy(values), labels, ties=released == "true")
            expected = shaped(gaps.double().mean(-1), (0, 1, 0, 5), standardize=True)
            torch.testing.assert_close(batch.rewards.double(), expected, rtol=1e-4, atol=1e-3)
            recorded = made.record
            assert recorded.path.stat().st_size == 4 * 4 * (5 * 4 + 8)  # draws 0 to 3 have places


@pytest.mark.slow
def test_it_reaches_a_planted_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of 16 x 16 prompts, greedily; the judge's score is the worth of each word in its place.

    With the default loss and scale the policy settles on the second or third best: rewards of 5
    standard deviations are worth e^5, and what is drawn first decides. `tests/ops/test_soft_q.py`
    has all losses on all sequences at once.
    """
    worth = np.random.default_rng(4).normal(0, 1, (2, 200))

    def planted(ctx: Any, codec: Any, prompts: Any, split: str) -> np.ndarray:
        return np.array([[worth[0, ids[0]] + worth[1, ids[1]]] * 6 for ids in prompts])

    monkeypatch.setattr(rlprompt, "judge", planted)
    own = ["method.updates=150", "method.prompts=16", "method.lr=5e-3", "method.loss=v3"]
    own += ["method.scale=1", "method.target_rate=0.1", "method.check_every=10"]
    own += ["improve.keep=best", "prompt.validation_prompts=1", "policy.adaptor.width=64"]
    cfg = config("sample.max_new_tokens=2", *own)
    train(cfg, tmp_path / "run")
    made = RunFolder(tmp_path / "run").artifact("rounds", "00", "improve").manifest()["metrics"]
    with session(cfg, tmp_path / "run", False) as ctx:
        allowed = list(ctx.task.allowed(ctx.load_start()[1].tokenizer) or ())
    best = worth[0, allowed].max() + worth[1, allowed].max()
    assert made["improve/best_heldout_score"] == pytest.approx(best)


@pytest.mark.slow
def test_a_run_has_the_cpus_numbers(finished: Path, tmp_path: Path):
    train(config(f"device={NAME}"), tmp_path / "run")
    logged = []
    for path in (finished, tmp_path / "run"):
        rows = read_jsonl(path / "metrics.jsonl")
        logged.append([row["improve/soft_q_loss"] for row in rows if "improve/soft_q_loss" in row])
    assert len(logged[0]) == 5 and logged[1] == pytest.approx(logged[0], rel=1e-2)
