"""Kept states of frozen layers: the same values, whatever is kept; else the usual passes."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pgtg.models import frozen, language
from pgtg.models.batch import per_token, token_batch
from pgtg.models.dropout import silence_dropout
from pgtg.models.frozen import FrozenLayers, KeptStates, layer_list, placed
from pgtg.models.language import LanguageModel, training_passes
from pgtg.models.loading import train_only_top_layers
from pgtg.types import TokenBatch
from tests.support.tiny_models import ORIGIN, SOURCES, TOKENS, batch, build

CAUSAL = ["llama", "gpt2", "opt", "bloom"]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
LAYERS, TOP = 3, 1
TEXTS = 5  # different ones of `inputs`
SHARING = ["llama", "gpt2", "opt"]  # whose rows can share a source above kept states


def inputs(**how: Any) -> TokenBatch:
    """Five texts, each with its source to itself."""
    one = together(**how)
    own = {"source": one.source[one.origin], "source_mask": one.source_mask[one.origin]}
    return replace(one, **own, origin=torch.arange(len(one.tokens)))


def together(**how: Any) -> TokenBatch:
    """The same on their three sources."""
    return replace(batch(**how), recurring=True)


def keeping(family: str = "llama", *, size: int = 2**20) -> LanguageModel:
    lm = build(family, LAYERS)
    assert lm.keep_frozen(TOP, KeptStates(size))
    return lm


def layers_of(lm: LanguageModel) -> Any:
    """A Llama's, which can be changed."""
    decoder: Any = lm.model.get_decoder()
    return decoder.layers


def kept_by(lm: LanguageModel) -> KeptStates:
    assert lm.frozen is not None
    return lm.frozen.kept


def same_logits(one: LanguageModel, other: LanguageModel, **close: Any) -> None:
    """Those of tokens; the other's as ever."""
    real = batch().mask[..., None]
    found, expected = one.logits(inputs()), other.logits(batch())
    assert_close(found.where(real, 0.0), expected.where(real, 0.0), **close or CLOSE)


TOP_LAYER = LAYERS - TOP


@contextmanager
def passes(lm: LanguageModel, number: int = 0) -> Iterator[list[int]]:
    """Rows of each pass through the lowest layer, or another one, inside."""
    found: list[int] = []
    layer = layer_list(lm.model)[number]
    forward = layer.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        found.append(len(args[0] if args else kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    layer.forward = noting
    try:
        yield found
    finally:
        del layer.forward


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "made", "held"),
    [
        *((family, inputs, TEXTS) for family in CAUSAL),
        *((family, together, TEXTS + len(SOURCES)) for family in SHARING),
    ],
)
def test_they_are_the_models_own_values(
    family: str, made: Callable[..., TokenBatch], held: int, side: str
):
    """Whether a text's states were kept or are computed for it: to the last bit."""
    lm, plain = keeping(family), build(family, LAYERS)
    given = made(sources_to=side, fill=(7, 1))
    values: list[Callable[[LanguageModel], Tensor]] = [
        lambda one: one.states(given)[:, 1:],
        lambda one: one.log_probabilities(given),
        lambda one: one.logits(given),
        lambda one: one.entropies(given),
        lambda one: one.read(given)[1],
    ]
    with torch.no_grad():
        for value in values:
            expected, found, again = value(plain), value(lm), value(lm)
            mask = given.mask if found.dim() == 2 else given.mask[..., None]
            assert_close(found.where(mask, 0.0), expected.where(mask, 0.0), **CLOSE)
            assert torch.equal(found, again)
        assert_close(lm.states(given)[:, 0], plain.states(given)[:, 0], **CLOSE)
    assert len(kept_by(lm)) == held


def test_rows_of_a_source_read_it_once_and_each_text_once():
    """Below, and each time above; which other texts a source has changes no bit."""
    lm, other = keeping(), keeping()
    with torch.no_grad():
        with passes(lm) as below, passes(lm, TOP_LAYER) as above:
            lm.logits(together())
            assert below == [1] * (len(SOURCES) + TEXTS) and above == [len(SOURCES), TEXTS]
            lm.states(together(rows=[4, 1, 2, 0, 3]))
        assert len(below) == len(SOURCES) + TEXTS and len(above) == 4
        for rows in ([4, 3, 3, 4], [2, 2, 1, 1], [0, 0, 0, 0]):
            other.logits(together(rows=rows))
    assert kept_by(lm)._states.keys() == kept_by(other)._states.keys()
    for name, states in kept_by(lm)._states.items():
        assert torch.equal(states, kept_by(other)._states[name])


def test_a_source_is_not_taken_for_a_text_that_begins_with_its_length():
    """What is kept of groups has names of its own."""
    lm, plain = keeping(), build("llama", LAYERS)
    alone = token_batch([[2, 5, 6]], [[3, 9]], [0], recurring=True)
    group = token_batch([[5, 6], [7]], [[3, 9], [4, 1], [8, 1]], [0, 0, 1], recurring=True)
    with torch.no_grad():
        for one in (alone, group):
            assert_close(lm.states(one), plain.states(replace(one, recurring=False)), **CLOSE)


def test_each_text_goes_through_the_frozen_layers_once_and_alone():
    lm = keeping()
    with torch.no_grad(), passes(lm) as found:
        lm.logits(inputs())
        assert found == [1] * TEXTS
        for value in (lm.logits, lm.states, lm.log_probabilities):
            value(inputs(rows=[3, 0, 2]))
    assert len(found) == TEXTS


def test_they_are_read_in_eval_mode_and_weights_are_hashed_once(monkeypatch: pytest.MonkeyPatch):
    lm, modes, hashed = keeping().train(), list[bool](), list[bytes]()
    train_only_top_layers(lm, TOP)
    sha256 = frozen.hashlib.sha256
    monkeypatch.setattr(frozen.hashlib, "sha256", lambda text: hashed.append(text) or sha256(text))
    layer_list(lm.model)[0].register_forward_pre_hook(lambda own, _: modes.append(own.training))
    lm.logits(inputs())
    assert modes == [False] * TEXTS + [True]  # the last is the pass above
    lm.logits(inputs())
    assert lm.model.training and len(hashed) == 1


def test_what_a_text_gives_does_not_depend_on_what_it_is_computed_with():
    """States to the last bit: alone, among others, after others had taken its room."""
    one, other = keeping(), keeping()
    with torch.no_grad():
        one.logits(inputs())
        for row in reversed(range(TEXTS)):
            other.logits(inputs(rows=[row], sources_to="left"))
    assert kept_by(one)._states.keys() == kept_by(other)._states.keys()
    for name, states in kept_by(one)._states.items():
        assert torch.equal(states, kept_by(other)._states[name])


@pytest.mark.parametrize("made", [inputs, together])
@pytest.mark.parametrize("texts", [0, 1, 3])
def test_no_size_changes_a_result(texts: int, made: Callable[..., TokenBatch]):
    lm, whole = keeping(size=texts * 16 * 4 * 9), keeping()
    with torch.no_grad():
        for rows in ([0, 1, 2, 1], [3, 4, 4, 4], [0, 1, 2, 3, 4], [4, 2, 3, 3]):
            assert torch.equal(lm.logits(made(rows=rows)), whole.logits(made(rows=rows)))
            assert kept_by(lm).held <= kept_by(lm).size
    assert len(kept_by(lm)) < len(kept_by(whole))


@pytest.mark.parametrize(
    ("family", "made"),
    [*((family, inputs) for family in CAUSAL), *((family, together) for family in SHARING)],
)
def test_gradients_of_the_top_layers_are_the_same(family: str, made: Callable[..., TokenBatch]):
    lm, plain = keeping(family).train(), build(family, LAYERS).train()
    given = made()
    for one in (lm, plain):
        silence_dropout(one.model)
        for _ in range(2):  # the second time with kept states
            one.zero_grad()
            train_only_top_layers(one, TOP)
            log_probs = one.log_probabilities(given)
            (log_probs.where(given.mask, 0.0) * torch.arange(1.0, 7)).sum().backward()
    assert len(kept_by(lm)) == TEXTS + (len(SOURCES) if made is together else 0)
    pairs = list(zip(lm.named_parameters(), plain.named_parameters(), strict=True))
    assert any(own.grad is not None for (_, own), _ in pairs)
    for (name, own), (_, other) in pairs:
        assert own.requires_grad == other.requires_grad
        if other.grad is None:
            assert own.grad is None, name
        else:
            assert_close(
                own.grad,
                other.grad,
                rtol=1e-4,
                atol=1e-4,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_weights_that_are_trained_below_get_their_gradients():
    lm = keeping().train()
    lm.logits(inputs()).sum().backward()
    assert all(p.grad is not None for p in lm.parameters())
    assert len(kept_by(lm)) == 0


def test_other_weights_have_other_states():
    """In another model, and in one whose weights change; equal weights share."""
    kept = KeptStates(2**20)
    first, same, other = (build("llama", LAYERS, seed) for seed in (0, 0, 1))
    for lm in (first, same, other):
        assert lm.keep_frozen(TOP, kept)
    with torch.no_grad():
        layers_of(same)[-1].mlp.up_proj.weight += 1.0  # a trained one
        first.logits(inputs())
        with passes(same) as found:
            same.logits(inputs())
        assert found == [] and len(kept) == TEXTS
        same_logits(other, build("llama", LAYERS, 1))
        assert len(kept) == 2 * TEXTS
        layers_of(first)[0].mlp.up_proj.weight += 0.1
        same_logits(first, first)
        assert len(kept) == 3 * TEXTS
        first.get_parameter("model.model.embed_tokens.weight").data = torch.randn(23, 16)
        same_logits(first, first)


def test_narrow_weights_have_states_of_their_own():
    lm = keeping()
    with torch.no_grad():
        lm.logits(inputs())
        for weight in lm.parameters():
            weight.data = weight.data.bfloat16()
        same_logits(lm, lm, rtol=5e-2, atol=5e-1)
    assert {states.dtype for states in kept_by(lm)._states.values()} == {
        torch.float32,
        torch.bfloat16,
    }


def test_products_of_another_type_have_states_of_their_own():
    lm, plain = keeping().train(), build("llama", LAYERS).train()
    for model in (lm, plain):
        train_only_top_layers(model, TOP)
    for number in (1, 2):
        for precision in ("no", "bf16"):
            with (
                training_passes(lm, precision=precision),
                training_passes(plain, precision=precision),
            ):
                near = {"rtol": 5e-2, "atol": 5e-1} if precision == "bf16" else {}
                with passes(lm) as below:
                    same_logits(lm, plain, **near)
                assert (below == []) == (number == 2)
    assert len(kept_by(lm)) == 2 * TEXTS


def test_passes_that_are_read_as_ever():
    """Not recurring, computed again, with many rows of a source."""
    lm, plain = keeping().train(), build("llama", LAYERS).train()
    train_only_top_layers(lm, TOP)
    train_only_top_layers(plain, TOP)
    many = token_batch([[5, 6]], [[3, 4]] * (language.MOST_APART + 1), [0] * 3, recurring=True)

    def same(one: TokenBatch) -> None:
        assert torch.equal(lm.logits(one), plain.logits(one))

    same(batch())
    assert lm.frozen is not None
    lm.frozen.shared = False
    same(many)
    lm.frozen.shared = True
    same(token_batch([[]], [[3, 4]], [0]))
    with training_passes(lm, checkpointing=True), training_passes(plain, checkpointing=True):
        same(inputs())
    assert len(kept_by(lm)) == 0


def test_models_without_frozen_layers_keep_nothing():
    kept = KeptStates(2**20)
    for family, top in (("t5", 1), ("bart", 1), ("llama", LAYERS), ("llama", LAYERS + 1)):
        lm = build(family, LAYERS)
        assert not lm.keep_frozen(top, kept) and lm.frozen is None
        with torch.no_grad():
            assert torch.equal(lm.logits(together()), lm.logits(batch()))
    assert len(kept) == 0


class SideWay(nn.Module):
    """A layer that reads more than its input: what the lowest layer made."""

    def __init__(self, layer: nn.Module, lowest: nn.Module):
        super().__init__()
        self.layer, self.given = layer, list[Tensor]()
        lowest.register_forward_hook(lambda _, given, made: self.given.append(made * 0.1))

    def forward(self, states: Tensor, **given: Any) -> Tensor:
        return self.layer(states + self.given.pop(), **given)


class Below(nn.Module):
    """A layer that calls a part which is trained."""

    def __init__(self, layer: nn.Module, trained: nn.Module):
        super().__init__()
        self.layer, self.trained = layer, [trained]

    def forward(self, states: Tensor, **given: Any) -> Tensor:
        return self.layer(self.trained[0](states), **given)


@pytest.mark.parametrize("odd", ["side way", "norm below"])
def test_a_model_that_is_built_otherwise_does_without(odd: str, monkeypatch: pytest.MonkeyPatch):
    """The probe says so, and what it reads is what it was."""
    monkeypatch.setattr(language, "_proved_frozen", {})
    lm, kept = build("llama", LAYERS), KeptStates(2**20)
    layers = layers_of(lm)
    if odd == "side way":
        layers[2] = SideWay(layers[2], layers[0])
    else:
        layers[0] = Below(layers[0], next(m for n, m in lm.named_modules() if n.endswith(".norm")))
    with torch.no_grad():
        expected = lm.logits(batch())
        assert not lm.keep_frozen(TOP, kept)
        assert lm.frozen is None and torch.equal(lm.logits(together()), expected)
    assert all("forward" not in vars(part) for part in lm.modules())


def test_weights_that_a_frozen_layer_shares_with_a_trained_one():
    """They are trained, so nothing is kept while they are, and after it under another name."""
    lm = build("llama", LAYERS)
    layers = layers_of(lm)
    layers[0].mlp = layers[2].mlp
    assert lm.keep_frozen(TOP, KeptStates(2**20))
    with torch.no_grad():
        lm.logits(inputs())
    train_only_top_layers(lm, TOP)
    lm.train().logits(inputs()).sum().backward()
    assert len(kept_by(lm)) == TEXTS
    with torch.no_grad():
        layers[2].mlp.up_proj.weight += 0.1
        same_logits(lm, lm)
    assert len(kept_by(lm)) == 2 * TEXTS


def test_per_token_says_that_texts_recur():
    lm = keeping()
    how: dict[str, Any] = {"batch_tokens": 20}
    plain = per_token(lm.log_probabilities, SOURCES, TOKENS, ORIGIN, **how)
    assert len(kept_by(lm)) == 0
    found = per_token(lm.log_probabilities, SOURCES, TOKENS, ORIGIN, recurring=True, **how)
    assert len(kept_by(lm)) >= TEXTS
    for one, other in zip(plain, found, strict=True):
        assert_close(torch.from_numpy(one), torch.from_numpy(other), **CLOSE)


def test_room_is_made_for_what_comes():
    kept = KeptStates(10 * 4)
    for number in range(50):
        kept.put(bytes([number]), torch.full((3,), float(number)))
        assert kept.held == 12 * len(kept) <= 40
        assert kept.get(bytes([number])) is not None
    assert len(kept) == 3
    kept.put(b"large", torch.zeros(11))
    assert len(kept) == 3 and kept.get(b"large") is None
    assert copy.deepcopy(kept) is kept


def test_a_cycle_that_does_not_fit_is_found_in_part():
    """Where the longest unused went first, nothing of it would ever be found."""
    kept, found = KeptStates(8), 0
    for number in [*range(12)] * 50:
        name = bytes([number])
        if kept.get(name) is None:
            kept.put(name, torch.zeros(1, dtype=torch.uint8))
        else:
            found += 1
    assert found > 0.25 * 12 * 50


def test_a_copy_of_a_model_keeps_in_the_same_place():
    lm = keeping()
    twin = copy.deepcopy(lm)
    assert isinstance(twin.frozen, FrozenLayers) and twin.frozen.kept is kept_by(lm)
    assert twin.frozen.below[0] is layer_list(twin.model)[0]
    with torch.no_grad():
        lm.logits(inputs())
        assert torch.equal(lm.logits(inputs()), twin.logits(inputs()))
    assert len(kept_by(lm)) == TEXTS


def test_states_are_placed_from_their_columns_on():
    one, other = torch.ones(3, 1), torch.full((2, 1), 2.0)
    found = placed([one, other], [0, 2], 3)[..., 0]
    assert found.tolist() == [[1, 1, 1], [0, 0, 2]]
