"""Soft Q-learning: the released losses with their gradients, and the optimum by enumeration."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from pgtg.methods.prompt_options import LOSSES
from pgtg.ops.gap import gap_scores
from pgtg.ops.sampling import restrict
from pgtg.ops.soft_q import follow, shaped, soft_q_loss
from tests.data.copy_goldens import RIVALS
from tests.ops.test_goldens import cases, tensor
from tests.support.cases import some
from tests.support.tiny_roberta import close


@pytest.mark.parametrize("case", cases("soft_q_loss", RIVALS))
def test_the_released_losses_and_gradients(case: dict[str, Any]):
    values = tensor(case["logits"]).requires_grad_(True)
    target = tensor(case["target_logits"]).requires_grad_(True)
    lengths = torch.tensor(case["lengths"])
    loss = soft_q_loss(
        values,
        target,
        torch.tensor(case["actions"]),
        tensor(case["rewards"]),
        torch.arange(values.shape[1]) < lengths[:, None],
        variant=case["implementation"],
        coefficient=case["coefficient"],
    )
    assert loss.item() == pytest.approx(case["loss"], rel=2e-5)
    gradients = torch.autograd.grad(loss, (values, target))
    for found, name in zip(gradients, ("grad_logits", "grad_target_logits"), strict=True):
        assert close(found, case[name])


@pytest.mark.parametrize("case", cases("rlprompt_reward", RIVALS))
def test_the_released_reward(case: dict[str, Any]):
    logits, labels = tensor(case["label_word_logits"]), torch.tensor(case["labels"])
    found = gap_scores(logits, labels, case["correct"], case["wrong"], ties=True).mean(-1)
    assert close(found, case["gap_reward"])
    ours = gap_scores(logits, labels, case["correct"], case["wrong"]).mean(-1)
    assert close(ours, case["gap_reward"]) == (not case["has_ties"])
    assert close(shaped(found, (0, 1, 0, 1), standardize=True), case["z_scored"])
    assert close(shaped(found, (0, 1, 0, 5), standardize=True), case["shaped"])


@pytest.mark.parametrize("case", cases("reward_shaping", RIVALS))
def test_the_released_shaping(case: dict[str, Any]):
    shaping = [case[name] for name in ("old_min", "old_max", "new_min", "new_max")]
    assert close(shaped(tensor(case["reward"]), shaping, standardize=False), case["shaped"])


def test_the_target_network_follows():
    """The released one, by a share after each step; its copies every few steps are share 1."""
    (case, *_) = [c for c in cases("target_network", RIVALS) if c["method"] == "polyak"]
    target, online = nn.Linear(2, 1, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        target.weight.copy_(tensor(case["target_start"]))
        for before, after in zip(
            case["online_before_step"], case["target_after_sync"], strict=True
        ):
            online.weight.copy_(tensor(before))
            follow(target, online, case["rate"])
            assert close(target.weight[0], after)


@pytest.mark.parametrize("case", cases("top_k_ties", RIVALS))
def test_tokens_that_tie_at_the_border_of_top_k_stay(case: dict[str, Any]):
    logits = tensor(case["logits"])
    for row, kept in zip(logits, case["kept"], strict=True):
        assert restrict(row, top_k=case["k"]).isfinite().int().tolist() == kept


def optimum(rewards: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """[V + 1, V] soft-optimal Q of two tokens: of the first, and of the second after each first.

    Args:
        rewards: [V, V] of each sequence.
        start: [V + 1, V] log-probabilities of a start policy; None: a uniform weight of 1.
    """
    second = rewards + (0.0 if start is None else start[1:])
    first = second.logsumexp(-1) + (0.0 if start is None else start[0])
    return torch.cat([first[None], second])


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("variant", LOSSES)
def test_at_the_optimum_all_losses_are_zero(variant: str, with_prior: bool):
    generator, words = torch.Generator().manual_seed(0), 20
    rewards = 3 * torch.randn(words, words, generator=generator, dtype=torch.float64)
    start = torch.randn(words + 1, words, generator=generator, dtype=torch.float64).log_softmax(-1)
    table = optimum(rewards, start if with_prior else None)
    actions = torch.tensor([*itertools.product(range(words), repeat=2)])
    values = torch.stack([table[0].expand(len(actions), -1), table[1 + actions[:, 0]]], 1)
    own = torch.stack([start[0][actions[:, 0]], start[1 + actions[:, 0], actions[:, 1]]], 1)
    mask, prior = torch.ones_like(actions).bool(), own if with_prior else None
    given = actions, rewards.flatten(), mask
    loss = soft_q_loss(values, values, *given, variant=variant, coefficient=0.5, prior=prior)
    assert loss.item() == pytest.approx(0.0, abs=1e-18)
    policy = values.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1).sum(-1)
    expected = rewards.flatten() + (own.sum(-1) if with_prior else 0.0)
    torch.testing.assert_close(policy, expected - expected.logsumexp(0))  # pi ~ start * e^r
    worse = values.clone()
    worse[3, 1, actions[3, 1]] += 1.0
    assert soft_q_loss(worse, values, *given, variant=variant, coefficient=0.5, prior=prior) > 1e-9


@pytest.mark.parametrize(
    ("variant", "coefficient"),
    [("v1", None), *some([("v2_v2r_v3_v3r", c) for c in (None, 0.5)], ("v2_v2r_v3_v3r", 0.5))],
)
def test_minimised_it_ends_with_the_best_sequence_greedily(variant: str, coefficient: float | None):
    """A table of Q for 20 words, two tokens, a planted reward; the target follows.

    Without exchanged losses nothing teaches v2 and v3 the level of Q, so only the order is right.
    """
    generator, words = torch.Generator().manual_seed(1), 20
    rewards = torch.randn(words, words, generator=generator)
    rewards[7, 3] = 6.0
    online, target = (nn.Embedding(words + 1, words) for _ in range(2))
    for module in (online, target):
        nn.init.zeros_(module.weight)
    actions = torch.tensor([*itertools.product(range(words), repeat=2)])
    states = torch.stack([torch.zeros(len(actions), dtype=torch.long), 1 + actions[:, 0]], 1)
    optimizer = torch.optim.Adam(online.parameters(), lr=0.1)
    for _ in range(400):
        follow(target, online, 0.1)
        loss = soft_q_loss(
            online(states),
            target(states).detach(),
            actions,
            rewards.flatten(),
            torch.ones_like(actions).bool(),
            variant=variant,
            coefficient=coefficient,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first = int(online.weight[0].argmax())
    assert (first, int(online.weight[1 + first].argmax())) == (7, 3)
    if variant != "v1":
        return
    expected = optimum(rewards.double(), None)
    policy = online.weight.detach().double().log_softmax(-1)
    torch.testing.assert_close(policy, expected.log_softmax(-1), atol=0.05, rtol=0)
