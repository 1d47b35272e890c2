"""Rows that share a source's keys and values: the numbers of rows that each have a copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    BlenderbotSmallConfig,
    BlenderbotSmallForConditionalGeneration,
    LEDConfig,
    LEDForConditionalGeneration,
    LongT5Config,
    LongT5ForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    MvpConfig,
    MvpForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PLBartConfig,
    PLBartForConditionalGeneration,
    PreTrainedModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from pgtg.models.language import LanguageModel
from pgtg.models.reading import Reading
from pgtg.models.sharing import Layout
from pgtg.ops.masking import pad
from pgtg.types import TokenBatch
from tests.support.cases import some
from tests.support.tiny_models import EOS, FAMILIES, VOCAB

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "decoder_start_token_id": 0,
}
T5_SIZES: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2}
BART_SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "init_std": 0.3,
    "forced_eos_token_id": None,
}
MAKES: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": lambda: FAMILIES["t5"](2),
    "bart": lambda: FAMILIES["bart"](2),
    "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**T5_SIZES, **COMMON)),
    "longt5": lambda: LongT5ForConditionalGeneration(LongT5Config(**T5_SIZES, **COMMON)),
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(**BART_SIZES, **COMMON)),
    "pegasus": lambda: PegasusForConditionalGeneration(PegasusConfig(**BART_SIZES, **COMMON)),
    "marian": lambda: MarianMTModel(MarianConfig(**BART_SIZES, **COMMON)),
    "m2m100": lambda: M2M100ForConditionalGeneration(M2M100Config(**BART_SIZES, **COMMON)),
    "mvp": lambda: MvpForConditionalGeneration(MvpConfig(**BART_SIZES, **COMMON)),
    "plbart": lambda: PLBartForConditionalGeneration(PLBartConfig(**BART_SIZES, **COMMON)),
    "blenderbot": lambda: BlenderbotSmallForConditionalGeneration(
        BlenderbotSmallConfig(**BART_SIZES, **COMMON)
    ),
    "led": lambda: LEDForConditionalGeneration(
        LEDConfig(
            **{k: v for k, v in BART_SIZES.items() if k != "max_position_embeddings"},
            attention_window=4,
            max_encoder_position_embeddings=40,
            max_decoder_position_embeddings=40,
            **COMMON,
        )
    ),
}
SOURCES = [[5, 6, 7, 8], [9, 3], [4, 4, 12, 13, 14]]
EVEN = [0, 0, 1, 1, 2, 2]
UNEVEN = [2, 0, 2, 1, 2]  # out of order, and not equally many


def model_of(make: Callable[[], PreTrainedModel]) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(make().eval())


def rows_of(origin: list[int]) -> TokenBatch:
    source, source_mask = pad(SOURCES)
    tokens, mask = pad([[3 + i, 20 - i, 5 + 2 * i][: 3 - i % 2] for i in range(len(origin))])
    return TokenBatch(source, source_mask, tokens, mask, torch.tensor(origin))


def without_sharing(lm: LanguageModel) -> LanguageModel:
    lm._sharing = None
    return lm


def kept(reading: Reading) -> tuple[int, int]:
    """Rows of the cache: of the sources, and of what was read of the continuations."""
    cache = reading.cache
    parts = [cache.cross_attention_cache, cache.self_attention_cache]
    return tuple(len(part.layers[0].keys) for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize("origin", some([EVEN, UNEVEN], UNEVEN), ids=["even", "uneven"])
@pytest.mark.parametrize("make", MAKES)
def test_states_logits_and_gradients_are_those_of_copies(make: str, origin: list[int]):
    shared, copied = model_of(MAKES[make]), without_sharing(model_of(MAKES[make]))
    assert shared._sharing is not None
    batch, found = rows_of(origin), []
    for lm in (shared, copied):
        logits = lm.logits(batch)
        logits[batch.mask].logsumexp(-1).sum().backward()
        grads = [p.grad for p in lm.parameters() if p.grad is not None]
        found.append((lm.states(batch)[:, :-1][batch.mask], logits[batch.mask], grads))
    (states, logits, grads), (want_states, want_logits, want_grads) = found
    assert_close(states, want_states, **CLOSE)
    assert_close(logits, want_logits, **CLOSE)
    assert_close(grads, want_grads, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", ["t5", "bart"])
def test_rows_of_a_source_attend_to_one_copy_of_it_as_long_as_they_live(make: str):
    lm = model_of(MAKES[make])
    source, mask = pad(SOURCES)
    with torch.no_grad():
        reading = lm.prefill(source, mask, logits=True).select(torch.tensor(EVEN))
        assert kept(reading) == (3, 6)
        step = torch.arange(6)[:, None] + 3
        first = lm.extend(reading, step, torch.ones_like(step).bool(), logits=True)
        assert first.shape == (6, 1, VOCAB)
        reading = reading.select(torch.tensor([5, 1, 0]))  # no row of source 1 is left
        assert kept(reading) == (2, 3)
        found = lm.extend(reading, step[:3], torch.ones(3, 1).bool(), logits=True)
        plain = without_sharing(model_of(MAKES[make]))
        for row, (origin, before, token) in enumerate([(2, 8, 3), (0, 4, 4), (0, 3, 5)]):
            alone = plain.prefill(*pad([SOURCES[origin]]), logits=True)
            tokens = torch.tensor([[before, token]])
            want = plain.extend(alone, tokens, torch.ones(1, 2).bool(), logits=True)
            assert_close(found[row], want[0, -1:], **CLOSE)


def test_very_uneven_rows_get_copies_rather_than_empty_places():
    origin = [0] * 12 + [1, 2]
    assert Layout.of(origin, 3) is None  # 36 places for 14 rows
    batch = rows_of(origin)
    shared, copied = model_of(MAKES["t5"]), without_sharing(model_of(MAKES["t5"]))
    with torch.no_grad():
        reading = shared.prefill(batch.source, batch.source_mask, logits=False).select(origin)
        assert kept(reading) == (14, 14)
        assert_close(shared.logits(batch), copied.logits(batch), **CLOSE)


def test_a_decoder_of_unknown_make_keeps_copies():
    lm = model_of(lambda: UMT5ForConditionalGeneration(UMT5Config(**T5_SIZES, **COMMON)))
    assert lm._sharing is None
    batch = rows_of(UNEVEN)
    with torch.no_grad():
        found = lm.logits(batch)
        for row, origin in enumerate(UNEVEN):
            n = int(batch.mask[row].sum())
            start = torch.tensor([[0, *batch.tokens[row, : n - 1].tolist()]])
            want = lm.model(input_ids=torch.tensor([SOURCES[origin]]), decoder_input_ids=start)
            assert_close(found[row, :n], want.logits[0], **CLOSE)


@pytest.mark.parametrize("origin", [[0], [0, 1], [1, 0], [0, 0, 1], [2, 0, 2, 1], [1, 1, 0, 0]])
def test_rows_go_to_their_sources_and_come_back(origin: list[int]):
    sources = max(origin) + 1
    layout = Layout.of(origin, sources)
    assert layout is not None
    rows = torch.randn(len(origin), 3, 4)
    together = layout.together(rows)
    assert together.shape == (sources, layout.width * 3, 4)
    for source in range(sources):
        own = rows[[i for i, other in enumerate(origin) if other == source]].reshape(-1, 4)
        assert torch.equal(together[source, : len(own)], own)
    assert torch.equal(layout.apart(together), rows)
