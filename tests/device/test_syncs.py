"""How often an update makes the CPU wait for the device: counted on the pretend one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pgtg.config import AggregatorConfig, FitConfig
from pgtg.data.comparisons import of_sources
from pgtg.errors import DivergedError
from pgtg.methods.objective import Improvement, PolicyGradient, Sampled, SupervisedBatch
from pgtg.models.adaptor import adapt, draw_prompts
from pgtg.models.batch import continuing, moved, token_batch
from pgtg.models.generate import Decoding, streams
from pgtg.models.reward import HeadSpec, RewardModel
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.objectives import advantages, standardized
from pgtg.pipeline.stages.align import PlackettLuce, group_batch
from pgtg.training import update as training_module
from pgtg.training.update import Training, Where, update
from pgtg.types import Generations
from tests.ops.test_objectives import OPTIONS
from tests.support.cases import crossed
from tests.support.sim_device import NAME, counted_syncs
from tests.support.tiny_models import ORIGIN, SOURCES, TOKENS, build
from tests.training.test_loop import CFG

ALLOWED = 2  # waits of an update, all of its micro-batches together
PARTS = 3  # micro-batches of an update
SAMPLING = Decoding(False, 4, top_k=6)
FIT = replace(CFG, updates=1, lr=0.01)

Makes = Sequence[Callable[[str], Any]]  # of each micro-batch, on a device


def generations(seed: int) -> Generations:
    """Three generations for each of three sources, with the judge's scores."""
    scores = torch.rand(9, generator=torch.Generator().manual_seed(seed)).tolist()
    return Generations(
        source_ids=["a", "b", "c"],
        sources=SOURCES,
        origin=[i // 3 for i in range(9)],
        tokens=[TOKENS[(i + seed) % len(TOKENS)] for i in range(9)],
        texts=[""] * 9,
        scores=scores,
        groups=torch.arange(9).view(3, 3),
    )


def aligning(family: str) -> tuple[nn.Module, Any, Makes]:
    model = RewardModel(build(family), HeadSpec("paper", "softplus", 8))
    pools = [generations(seed) for seed in range(PARTS)]
    makes = [
        lambda device, pool=pool: group_batch(pool, of_sources(pool), torch.device(device))
        for pool in pools
    ]
    return model, PlackettLuce(model, Aggregator.of(AggregatorConfig("avg", 2.0, False))), makes


def improving(family: str, **options: Any) -> tuple[nn.Module, Any, Makes]:
    policy = build(family)
    found = replace(OPTIONS, **options)

    def batch(device: str, part: int) -> SupervisedBatch:
        rows = [(part + i) % len(TOKENS) for i in range(4)]
        targets = [TOKENS[row] for row in rows]
        made = token_batch(SOURCES, targets, [ORIGIN[row] for row in rows], device)
        weights = made.mask / made.mask.sum(-1, keepdim=True)
        sampled = Sampled(made, 0.5 * weights, -2 * weights) if found.reinforce else None
        return SupervisedBatch(made, weights, sampled)

    makes = [lambda device, part=part: batch(device, part) for part in range(PARTS)]
    return policy, Improvement(policy, found, SAMPLING), makes


def prompting(family: str, start: bool = False) -> tuple[nn.Module, Any, Makes]:
    policy = adapt(build(family), 8, 0)
    reward = RewardModel(build(family, seed=1), HeadSpec("paper", "softplus", 8)).eval()
    reward.requires_grad_(False)

    @torch.no_grad()
    def batch(device: str, part: int) -> Sampled:
        noise = moved(streams(4, 5, ("x", part), ["prompt"]), device)
        drawn = draw_prompts(policy, [3, 4], noise, SAMPLING)
        made = continuing([3, 4], drawn.tokens)
        rewards = reward.to(device)(made)
        value = advantages(rewards, rewards.sum(-1), made.mask, made.origin, baseline="group")
        return Sampled(made, standardized(value, made.mask), None, drawn)

    makes = [lambda device, part=part: batch(device, part) for part in range(PARTS)]
    return policy, PolicyGradient(policy, 0.0, 0.1, SAMPLING), makes


CASES: dict[str, Callable[[], tuple[nn.Module, Any, Makes]]] = {
    "align": lambda: aligning("t5"),
    "align, causal": lambda: aligning("gpt2"),
    "improve": lambda: improving("t5"),
    "improve, causal": lambda: improving("llama"),
    "improve, entropy": lambda: improving("t5", entropy=0.3, entropy_target=1.0),
    "improve, policy gradient": lambda: improving("t5", entropy=0.3, reinforce=0.5, kl=0.2),
    "prompt": lambda: prompting("gpt2"),
}


def to(model: nn.Module, device: str) -> nn.Module:
    """On a device, its tied weights still one."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return model.to(device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def updated(
    case: str, device: str, cfg: FitConfig = FIT, dropout: bool = True
) -> tuple[dict[str, float], Training, Any]:
    """One update, and the waits in it; batches of given tokens are made before."""
    model, objective, makes = CASES[case]()
    to(model, device).train(dropout)
    training = Training.begun(model, cfg, Where(0, "align", 0))
    made = [] if case == "prompt" else [make(device) for make in makes]
    parts = [lambda batch=batch: batch for batch in made] or [
        lambda make=make: make(device) for make in makes
    ]
    with counted_syncs() as syncs:
        values = update(training, lambda step: parts, objective)
    return values, training, syncs


@pytest.mark.parametrize(("case", "precision"), crossed([*CASES], ["no", "fp16"]))
def test_an_update_waits_for_the_device_at_most_twice(case: str, precision: str):
    cfg = replace(FIT, precision=precision)
    _, _, syncs = updated(case, NAME, cfg)
    assert 1 <= syncs.total() <= ALLOWED, syncs


@pytest.mark.parametrize("case", CASES)
def test_the_device_changes_nothing(case: str):
    """Numbers and weights are the CPU's, to rounding."""
    values, training, _ = updated(case, NAME, dropout=False)
    expected, twin, _ = updated(case, "cpu", dropout=False)
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, parameter in training.trained.items():
        assert_close(parameter.detach().cpu(), twin.trained[name].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_is_known_before_the_weights_change(bad: str):
    """Although it is fetched only once, at the end: weights and optimiser are as they were."""
    model, objective, makes = CASES["improve"]()
    to(model, NAME).train()
    training = Training.begun(model, FIT, Where(0, "improve", 2))
    before = {name: p.detach().cpu().clone() for name, p in training.trained.items()}
    corrupted = [makes[0](NAME), makes[1](NAME)]
    if bad == "loss":
        nan = torch.full_like(corrupted[1].weights, torch.nan)
        corrupted[1] = replace(corrupted[1], weights=nan)
        found = r"improve round 2 update 0: the loss is nan \({'weighted_nll': nan, 'token_nll': \d"
    else:
        next(model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
        found = r"improve round 2 update 0: the gradient's norm is (nan|inf)"
    parts = [lambda batch=batch: batch for batch in corrupted]
    with counted_syncs() as syncs, pytest.raises(DivergedError, match=found):
        update(training, lambda step: parts, objective)
    assert syncs.total() <= ALLOWED, syncs
    assert not training.optimizer.state and training.progress.step == 0
    for name, parameter in training.trained.items():
        assert torch.equal(parameter.detach().cpu(), before[name])


def test_a_policy_that_cannot_draw_is_a_loss_that_is_not_finite():
    """Drawing looks at no logits, so the update finds it."""
    model, objective, makes = CASES["prompt"]()
    with torch.no_grad():
        next(iter(model.get_submodule("adaptor").parameters())).fill_(torch.nan)
    to(model, NAME).train()
    training = Training.begun(model, FIT, Where(0, "improve", 0))
    with pytest.raises(DivergedError, match="the loss is nan"):
        update(training, lambda step: [lambda: makes[0](NAME)], objective)


@pytest.mark.parametrize("device", [NAME, "cpu"])
def test_the_next_update_is_made_before_the_device_is_waited_for(
    device: str, monkeypatch: pytest.MonkeyPatch
):
    """Each batch once, on an accelerator one update early, and the same numbers to the bit."""
    fetched = training_module._fetched

    def run(ahead: bool) -> tuple[list[str], list[dict[str, float]]]:
        model, objective, makes = CASES["improve"]()
        to(model, device).train()
        cfg, said = replace(FIT, updates=3), []
        training = Training.begun(model, cfg, Where(0, "improve", 0))
        training.ahead = ahead

        def windows(step: int) -> list[Callable[[], Any]]:
            def make() -> Any:
                said.append(f"make {step}")
                return makes[step](device)

            return [make]

        def fetch(*args: Any) -> Any:
            said.append("fetch")
            return fetched(*args)

        monkeypatch.setattr(training_module, "_fetched", fetch)
        values = [update(training, windows, objective) for _ in range(3)]
        assert training.prepared is None
        return said, values

    plain, early = run(False), run(True)
    assert plain[0] == ["make 0", "fetch", "make 1", "fetch", "make 2", "fetch"]
    expected = ["make 0", "make 1", "fetch", "make 2", "fetch", "fetch"]
    assert early[0] == (expected if device == NAME else plain[0])
    assert early[1] == plain[1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_stops_an_early_batch_leaves_nothing_behind(error: type[BaseException]):
    """An error is the next update's own; an interrupt comes before the weights change."""
    model, objective, makes = CASES["improve"]()
    to(model, NAME).train()
    training = Training.begun(model, replace(FIT, updates=2), Where(0, "improve", 0))
    training.ahead, tried = True, []

    def windows(step: int) -> list[Callable[[], Any]]:
        def make() -> Any:
            tried.append(step)
            if step == 1:
                raise error("no such batch")
            return makes[0](NAME)

        return [make]

    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            update(training, windows, objective)
        assert not training.optimizer.state and training.progress.step == 0
    else:
        update(training, windows, objective)
        assert training.progress.step == 1 and training.prepared is None
        with pytest.raises(ValueError, match="no such batch"):
            update(training, windows, objective)
        assert tried == [0, 1, 1]
    assert training.prepared is None
