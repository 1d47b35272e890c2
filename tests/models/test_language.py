"""One way to read any model: equal to plain Transformers, however the input is batched."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from pgtg.errors import ConfigError
from pgtg.models import generate as generating
from pgtg.models import language, masks
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel
from pgtg.models.sharing import Layout
from pgtg.ops.sampling import draw, restrict, uniforms
from pgtg.types import TokenIds
from tests.support.cases import some
from tests.support.tiny_models import (
    EOS,
    FAMILIES,
    ORIGIN,
    SOURCES,
    TOKENS,
    VOCAB,
    alone,
    batch,
    build,
)

# float32 and another order of additions; states and logits here are of size 1 to 10
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
SAMPLING = Decoding(False, 9, temperature=0.8, top_k=12, top_p=0.95)
GREEDY = Decoding(True, 9)
ENDS = [EOS, 4, 7, 11, 19]  # many, so that generations end at different lengths


@contextmanager
def rows_read(module: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """(rows, columns) of the ids of each forward call of a module."""
    seen: list[tuple[int, int]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        seen.append(tuple(ids.shape))

    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    hook.remove()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_logits_equal_plain_forwards_of_each_sequence_alone(family: str, side: str):
    lm, inputs = build(family), batch(sources_to=side)
    with torch.no_grad():
        states, logits = lm.states(inputs), lm.logits(inputs)
    for row, (tokens, origin) in enumerate(zip(TOKENS, ORIGIN, strict=True)):
        expected_states, expected_logits = alone(lm, SOURCES[origin], tokens)
        assert_close(states[row, : len(tokens) + 1], expected_states, **CLOSE)
        assert_close(logits[row, : len(tokens)], expected_logits, **CLOSE)
    assert lm.width == states.shape[-1]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
    st.permutations(range(len(TOKENS))),
    st.integers(1, len(TOKENS)),
)
def test_padding_and_batch_do_not_matter(
    family: str, fill: list[int], side: str, rows: list[int], size: int
):
    """Any ids in the padding, either side of the sources, any other sequences, in any order."""
    lm, rows = build(family), rows[:size]
    inputs = batch(sources_to=side, fill=fill, rows=rows)
    with torch.no_grad():
        expected, found = lm.logits(batch()), lm.logits(inputs)
    for place, row in enumerate(rows):
        n = len(TOKENS[row])
        assert_close(found[place, :n], expected[row, :n], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_source_is_read_once_for_its_sequences(family: str):
    lm, inputs = build(family), batch()
    reader = lm.model.get_encoder() if lm.is_encoder_decoder else lm.model.get_decoder()
    longest = max(map(len, SOURCES))
    for value, columns in ((lm.states, 6), (lm.logits, 5)):
        with rows_read(reader) as seen, torch.no_grad():
            value(inputs)
        continued = [] if lm.is_encoder_decoder else [(len(TOKENS), columns)]
        assert seen == [(len(SOURCES), longest), *continued]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_all_parameters_and_equal_those_of_plain_forwards(family: str):
    lm, inputs = build(family), batch(sources_to="left")
    log_probs = lm.logits(inputs).log_softmax(-1)
    found_loss = log_probs[inputs.mask][range(int(inputs.mask.sum())), inputs.tokens[inputs.mask]]
    found = torch.autograd.grad(found_loss.sum(), list(lm.parameters()), allow_unused=True)
    total = torch.zeros(())
    for tokens, origin in zip(TOKENS, ORIGIN, strict=True):
        source = torch.tensor([SOURCES[origin]])
        if lm.is_encoder_decoder:
            begun = torch.tensor([[lm.start_id, *tokens[:-1]]])
            logits = lm.model(input_ids=source, decoder_input_ids=begun).logits[0]
        else:
            ids = torch.tensor([SOURCES[origin] + tokens])
            logits = lm.model(input_ids=ids).logits[0, source.shape[1] - 1 : -1]
        total = total + logits.log_softmax(-1)[range(len(tokens)), tokens].sum()
    expected = torch.autograd.grad(total, list(lm.parameters()), allow_unused=True)
    for (name, _), one, other in zip(lm.named_parameters(), found, expected, strict=True):
        assert one is not None and other is not None, name
        # key biases have a gradient of 0 but for rounding, hence the fixed part
        scale = other.abs().max().item() + 0.1
        assert_close(one, other, rtol=1e-3, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}")


def sample(lm: LanguageModel, budget: int, k: int = 3, **more) -> dict[int, list[TokenIds]]:
    options = {"decoding": SAMPLING, "eos_ids": ENDS, "seed_key": (1, 0, "train")} | more
    keys = [f"id{i}" for i in range(len(SOURCES))]
    return dict(generate(lm, SOURCES, keys, k=k, batch_tokens=budget, **options))


def step_by_step(lm: LanguageModel, source: int, j: int, decoding: Decoding) -> TokenIds:
    """One generation, each token from a plain forward over everything so far, without a cache."""
    noise, tokens = uniforms(decoding.max_new_tokens, 1, 0, "train", f"id{source}", j), []
    for u in noise:
        logits = alone(lm, SOURCES[source], [*tokens, 0])[1][-1:]
        kept = restrict(logits, temperature=0.8, top_k=12, top_p=0.95)
        tokens.append(draw(kept, torch.tensor([u])).item())
        if tokens[-1] in ENDS:
            break
    return tokens


@pytest.mark.parametrize("family", some(FAMILIES, "t5", "gpt2", "llama"))
def test_sampling_equals_token_by_token_and_does_not_depend_on_batches(family: str):
    lm = build(family)
    found = sample(lm, 10_000)
    for budget in (1, 60):
        assert sample(lm, budget) == found
    for source, generations in found.items():
        assert [step_by_step(lm, source, j, SAMPLING) for j in range(3)] == generations
    lengths = {len(tokens) for rows in found.values() for tokens in rows}
    assert len(lengths) > 1  # some ended early, so that dropping rows was at work
    assert sample(lm, 60, seed_key=(2, 0, "train")) != found


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_generate(family: str):
    lm = build(family)
    found = sample(lm, 10_000, k=1, decoding=GREEDY, eos_ids=[EOS])
    for i, source in enumerate(SOURCES):
        ids = torch.tensor([source])
        out = lm.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )[0].tolist()
        assert found[i] == [out[1:] if lm.is_encoder_decoder else out[len(source) :]]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_sampling_reads_sources_once_and_drops_finished_rows(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    lm = build(family)
    decoder, count = lm.model.get_decoder(), len(SOURCES) * 8
    ends = list(range(0, VOCAB, 3))  # a third of all tokens end a generation
    reader = lm.model.get_encoder() if lm.is_encoder_decoder else decoder
    with rows_read(reader) as seen, rows_read(decoder) as decoded:
        dropped = sample(lm, 10_000, k=8, eos_ids=ends)
    assert seen[0] == (len(SOURCES), max(map(len, SOURCES)))
    assert not lm.is_encoder_decoder or len(seen) == 1
    rows = [n for n, columns in decoded[1:] if columns == 1]
    needed = sum(len(tokens) - 1 for rows in dropped.values() for tokens in rows)
    assert rows == sorted(rows, reverse=True) and rows[-1] < rows[0]
    assert sum(rows) < needed / (1 - generating.COMPACT_AT) + count
    monkeypatch.setattr(generating, "COMPACT_AT", 2.0)  # never drop
    with rows_read(decoder) as kept:
        assert sample(lm, 10_000, k=8, eos_ids=ends) == dropped
    assert {n for n, _ in kept[1:]} == {count}


def test_no_start_token_is_an_error():
    lm = build("gpt2")
    with pytest.raises(ConfigError, match="GPT2LMHeadModel without decoder_start_token_id"):
        _ = lm.start_id


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_logits_from_one_pass(family: str):
    """Those of two passes, with their gradients; the layers are called no more than for one."""
    lm, inputs = build(family), batch()
    reader = lm.model.get_input_embeddings()
    with rows_read(reader) as once:
        states = lm.states(inputs)
    with rows_read(reader) as seen:
        both = lm.read(inputs)
    assert seen == once
    logits = lm.logits(inputs)
    assert_close(both[0], states, **CLOSE)
    assert_close(both[1][inputs.mask], logits[inputs.mask], **CLOSE)
    weights = [p for p in lm.parameters() if p.requires_grad]
    expected = torch.autograd.grad(
        states.square().sum() + logits[inputs.mask].square().sum(), weights, allow_unused=True
    )
    found = torch.autograd.grad(
        both[0].square().sum() + both[1][inputs.mask].square().sum(), weights, allow_unused=True
    )
    for own, other in zip(found, expected, strict=True):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            assert_close(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fault", ["mask", "rows", "error"])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_short_cuts_that_do_not_fit_a_model_are_not_taken(
    family: str, fault: str, monkeypatch: pytest.MonkeyPatch
):
    """Were Transformers to take its masks otherwise, or its attentions to name things otherwise."""
    monkeypatch.setattr(language, "_proved", {})
    expected = build(family).states(batch())
    monkeypatch.setattr(language, "_proved", {})
    if fault == "mask":
        monkeypatch.setattr(masks, "bidirectional", lambda mask: mask[:, None, None] & False)
        monkeypatch.setattr(masks, "causal", lambda mask, tokens: None)
    elif family == "gpt2":
        return  # it has no cross-attention
    elif fault == "rows":
        monkeypatch.setattr(Layout, "apart", lambda self, states: -self.together(states))
    else:
        monkeypatch.setattr(Layout, "together", lambda self, rows: rows[:, :, :-1])
    lm = build(family)
    assert lm._sharing is None and lm._masks == masks.NONE_READY
    assert_close(lm.states(batch()), expected, **CLOSE)
    monkeypatch.undo()
    monkeypatch.setattr(language, "_proved", {})
    found = build(family)
    assert (found._sharing is not None) == (family == "t5") and found._masks != masks.NONE_READY
