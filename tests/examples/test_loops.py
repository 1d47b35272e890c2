"""The examples that train with exported token rewards: both run on a tiny Llama."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForTokenClassification

from pgtg.export.policy import export_policy
from pgtg.export.reward import export_reward
from pgtg.models.batch import token_batch
from pgtg.runs.log import RunLog
from tests.support.finished import finished_run
from tests.support.tiny import _quiet  # noqa: F401 (a fixture)
from tests.support.tiny_exports import llama, tiny_causal

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = ["the plot was neat but", "the ending was slow and"]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An exported reward model and policy of one run."""
    run = finished_run(tiny_causal(llama(tmp_path_factory)), tmp_path_factory)
    base, log = tmp_path_factory.mktemp("exported"), RunLog(None, quiet=True)
    export_reward(run, base / "reward", distil=False, force=False, log=log)
    export_policy(run, base / "policy", force=False, log=log)
    return str(base / "reward"), str(base / "policy")


def test_the_own_loop_moves_the_policy_by_its_token_rewards(folders: tuple[str, str]):
    """Its means are those of the reward model on what it sampled; the loss reaches the weights."""
    loop: Any = example("own_loop")
    kept: list[Any] = []
    sampled, load = loop.sampled, loop.pgtg.load_reward_model

    def remembered(model: Any, source: list[int], end: int) -> list[list[int]]:
        weight = model.lm_head.weight.detach().clone()
        kept.append((source, sampled(model, source, end), weight))
        return kept[-1][1]

    loop.sampled = remembered
    means = loop.main(*folders, PROMPTS)
    r_phi = load(folders[0])
    for mean, (source, texts, _) in zip(means, kept, strict=True):
        batch = token_batch([source], texts, [0] * len(texts))
        with torch.no_grad():
            assert mean == pytest.approx(r_phi(batch)[batch.mask].mean().item(), rel=1e-5)
        assert all(2 not in text[:-1] for text in texts)
    weights = [weight for _, _, weight in kept]
    assert len(means) == 4 and not torch.equal(weights[0], weights[1])


def alone(z: nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return z(input_ids=torch.tensor([ids])).logits[0, :, 0]


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_trl_trains_two_steps_on_token_advantages(folders: tuple[str, str], tmp_path: Path):
    """Advantages [B, T] are the sequence's own plus the centred logits of the plain class."""
    pytest.importorskip("trl")
    from datasets import Dataset

    grpo: Any = example("trl_grpo")
    rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4])
    trainer = grpo.trainer(
        *folders,
        rows,
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
    )
    made: list[Any] = []
    original = trainer._generate_and_score_completions

    def watched(inputs: Any) -> Any:
        made.append(original(inputs))
        return made[-1]

    trainer._generate_and_score_completions = watched
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    plain = AutoModelForTokenClassification.from_pretrained(folders[0]).eval()
    for out in made:
        assert out["advantages"].shape == out["completion_ids"].shape
        for row in range(len(out["prompt_ids"])):
            prompt = out["prompt_ids"][row][out["prompt_mask"][row].bool()].tolist()
            real = out["completion_mask"][row].bool()
            z = alone(plain, prompt + out["completion_ids"][row][real].tolist())[len(prompt) :]
            token = out["advantages"][row][real] - (z - z.mean())
            torch.testing.assert_close(token, token.mean().expand_as(token), rtol=1e-3, atol=1e-4)
    assert len(made) >= 1
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert moved and all("loss" in row or "train_loss" in row for row in trainer.state.log_history)
