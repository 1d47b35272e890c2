"""Every kind of model on a second device: read, sampled from and trained, the CPU's numbers."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from pgtg.config import AggregatorConfig
from pgtg.config.registry import HEADS
from pgtg.methods.objective import Improvement, Sampled, SupervisedBatch, sampled_log_probs
from pgtg.models import generate as generating
from pgtg.models.adaptor import adapt
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel
from pgtg.models.loading import train_only_top_layers
from pgtg.models.reward import HeadSpec, build_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.sampling import log_probability
from pgtg.pipeline.recipes.tiny_t5 import PLAIN
from pgtg.pipeline.stages.align import GroupBatch, PlackettLuce
from pgtg.training.update import Objective, Training, Where, update
from tests.models.backends.test_checkpointing import without_dropout
from tests.support.sim_device import NAME
from tests.support.tiny_models import EOS, SOURCES, batch, build
from tests.training.test_loop import CFG

FAMILIES = ("t5", "bart", "gpt2", "llama")
DRAWN = Decoding(False, 6, 1.0, 10, 0.9)
FIT = replace(CFG, lr=0.001)
CLOSE: dict[str, Any] = {"rel": 2e-4, "abs": 2e-5}  # float32, and Adam's steps on it
NARROW: dict[str, Any] = {"rel": 0.05, "abs": 0.05}  # bf16: 8 bits, and the CPU casts other places


def drawn(lm: LanguageModel, decoding: Decoding, batch_tokens: int = 60) -> list[Any]:
    """All generations of the sources, in several batches."""
    names = [f"source{i}" for i in range(len(SOURCES))]
    k = 1 if decoding.greedy else 3
    options: dict[str, Any] = {"eos_ids": [EOS], "decoding": decoding, "batch_tokens": batch_tokens}
    return sorted(generate(lm, SOURCES, names, k=k, seed_key=(1, "device"), **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sampled_and_decoded_is_the_cpus(family: str):
    lm = build(family)
    expected = [drawn(lm, DRAWN), drawn(lm, Decoding(True, 6))]
    lm.to(NAME)
    assert [drawn(lm, DRAWN), drawn(lm, Decoding(True, 6))] == expected


def test_batches_that_do_not_fit_are_halved_on_the_device(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU whose memory holds one source: the same texts, one warning, memory given back."""
    monkeypatch.setattr(generating, "_share", 1.0)
    module = torch.get_device_module(NAME)
    freed: list[int] = []
    monkeypatch.setattr(type(module), "empty_cache", lambda self: freed.append(1))
    lm = build("t5").to(NAME)
    expected, prefill = drawn(lm, DRAWN, 1000), lm.prefill

    def small(source: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(source) > 1:
            raise torch.OutOfMemoryError(f"{NAME} out of memory")
        return prefill(source, *args, **kwargs)

    monkeypatch.setattr(lm, "prefill", small)
    assert drawn(lm, DRAWN, 1000) == expected
    assert len(freed) >= 1


def trained(
    model: torch.nn.Module,
    windows: Sequence[Any],
    objective: Objective,
    precision: str = "no",
    checkpointing: bool = False,
) -> list[float]:
    """What two updates log."""
    cfg = replace(FIT, precision=precision, gradient_checkpointing=checkpointing)
    training = Training.begun(model.train(), cfg, Where(7, "device", 0))
    makers: list[Callable[[], Any]] = [lambda part=part: part for part in windows]
    return [
        value for _ in range(2) for value in update(training, lambda _: makers, objective).values()
    ]


def policy(family: str, part: str) -> LanguageModel:
    lm = build(family)
    without_dropout(lm)  # a device draws its masks elsewhere
    if part == "adaptor":
        return adapt(lm, 8, seed=1)
    if part == "top":
        train_only_top_layers(lm, 1)
    return lm


def improved(family: str, part: str, device: str, **how: Any) -> list[float]:
    """Weighted MLE with entropy and the policy gradient's term with its KL, in two parts."""
    lm = policy(family, part).to(device)
    options = replace(PLAIN, reinforce=0.5, kl=0.1, entropy=0.01, entropy_target=None)
    whole = batch().to(device)
    weights = whole.mask / whole.mask.sum(-1, keepdim=True)
    with torch.no_grad():
        start = sampled_log_probs(lm, whole, DRAWN) - 0.1
    advantage = torch.linspace(-1, 1, whole.mask.numel(), device=device).view(whole.mask.shape)
    sampled = Sampled(whole, advantage, start)
    parts = [SupervisedBatch(whole, weights, sampled), SupervisedBatch(whole, 2 * weights, sampled)]
    return trained(lm, parts, Improvement(lm, options, DRAWN), **how)


def mostly_slow(quick: set[tuple[Any, ...]], *choices: Iterable[Any]) -> list[Any]:
    """All combinations, those that are not named marked slow."""
    return [
        pytest.param(*each, marks=() if each in quick else pytest.mark.slow)
        for each in itertools.product(*choices)
    ]


UPDATES = {("t5", "full"), ("bart", "top"), ("gpt2", "adaptor"), ("llama", "full")}


@pytest.mark.parametrize(
    ("family", "part"),
    [
        *mostly_slow(UPDATES, FAMILIES, ("full", "top")),
        *mostly_slow(UPDATES, ("gpt2", "llama"), ("adaptor",)),
    ],
)
def test_updates_of_a_policy_are_the_cpus(family: str, part: str):
    expected = improved(family, part, "cpu")
    assert improved(family, part, NAME) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(
    ("family", "precision", "checkpointing"),
    mostly_slow(
        {("t5", "bf16", False), ("llama", "bf16", True)},
        ("t5", "llama"),
        ("no", "bf16"),
        (False, True),
    ),
)
def test_precision_and_checkpointing_work_on_the_device(
    family: str, precision: str, checkpointing: bool
):
    how: dict[str, Any] = {"precision": precision, "checkpointing": checkpointing}
    close = NARROW if precision == "bf16" else CLOSE
    expected = improved(family, "full", "cpu", **how)
    assert improved(family, "full", NAME, **how) == pytest.approx(expected, **close)


@pytest.mark.parametrize(
    ("family", "head"),
    mostly_slow(
        {("t5", "paper"), ("bart", "logprob"), ("gpt2", "state_action"), ("llama", "paper")},
        FAMILIES,
        HEADS,
    ),
)
def test_updates_of_a_reward_model_are_the_cpus(family: str, head: str):
    found = {}
    for device in ("cpu", NAME):
        model = build_reward_model(build(family).to(device), HeadSpec(head, "softplus", 8), seed=1)
        without_dropout(model.backbone)
        groups = torch.tensor([[0, 1, 3], [2, 4, 3]], device=device)
        preference = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], device=device)
        part = GroupBatch(batch().to(device), groups, preference)
        objective = PlackettLuce(model, Aggregator.of(AggregatorConfig("max", 2.0, False)))
        found[device] = trained(model, [part, part], objective)
    assert found[NAME] == pytest.approx(found["cpu"], **CLOSE)


@torch.no_grad()
def test_a_bfloat16_policy_reads_on_the_device():
    lm, inputs = build("gpt2").to(torch.bfloat16), batch()
    expected = log_probability(lm.logits(inputs).float(), inputs.tokens)[inputs.mask]
    lm.to(NAME)
    found = log_probability(lm.logits(inputs.to(NAME)).float(), inputs.tokens.to(NAME)).cpu()
    assert found[inputs.mask].tolist() == pytest.approx(expected.tolist(), rel=0.05, abs=0.1)
