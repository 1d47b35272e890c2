"""Decoding without waiting: caches written in place, masks made once, few looks at the device."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import MistralConfig, MistralForCausalLM

from pgtg.models import generate as generating
from pgtg.models import masks, reading
from pgtg.models.batch import token_batch
from pgtg.models.cache import RoomyLayer
from pgtg.models.generate import LOOK_EVERY, Decoding, generate, growing_cache
from pgtg.models.language import LanguageModel
from pgtg.ops.masking import pad
from pgtg.types import TokenIds
from tests.support.cases import some
from tests.support.sim_device import NAME, counted_syncs
from tests.support.tiny_models import EOS, FAMILIES, ORIGIN, SOURCES, TOKENS, VOCAB, build

NEW = 24
ENDS = [EOS, 4, 7]
CACHES = "self_attention_cache", "cross_attention_cache"  # of an encoder-decoder
SAMPLING = Decoding(False, NEW, temperature=0.8, top_k=12, top_p=0.95)


def sample(lm: LanguageModel, **more: Any) -> dict[int, list[TokenIds]]:
    options: dict[str, Any] = {"k": 3, "eos_ids": ENDS, "decoding": SAMPLING, "seed_key": (1,)}
    return dict(generate(lm, SOURCES, ["a", "b", "c"], batch_tokens=10**4, **options | more))


@pytest.mark.parametrize("family", some(FAMILIES, "t5", "gpt2", "llama"))
def test_an_accelerator_waits_once_in_eight_tokens_and_says_the_same(family: str):
    lm = build(family)
    endless, ended = sample(lm, eos_ids=[]), sample(lm)
    lm = lm.to(NAME)
    with counted_syncs() as syncs:
        assert sample(lm, eos_ids=[]) == endless
    assert 0 < syncs.total() <= NEW / LOOK_EVERY, syncs
    assert sample(lm) == ended  # rows that ended between two looks are cut, then dropped


@pytest.mark.parametrize("family", some(FAMILIES, "t5", "llama"))
@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_batch_holds_no_more_tokens_than_its_budget(
    family: str, k: int, monkeypatch: pytest.MonkeyPatch
):
    """Counted in the caches, at each token; an encoder-decoder's sources count once, but for the
    time when few of most sources' rows are left."""
    lm, budget, source, new, held, batches = build(family), 460, 30, 8, [], []
    prefill, extend, drawn = lm.prefill, lm.extend, 0

    def tokens_in(cache: Any) -> int:
        rows, _, tokens, _ = cache.layers[0].keys.shape
        return rows * tokens

    def begun(source: torch.Tensor, *args: Any, **more: Any) -> Any:
        nonlocal drawn
        batches.append(len(source))
        drawn = 0
        return prefill(source, *args, **more)

    def counted(read: Any, *args: Any, **more: Any) -> Any:
        found = extend(read, *args, **more)
        parts = [getattr(read.cache, name, None) for name in CACHES]
        held.append(sum(map(tokens_in, filter(None, parts))) or tokens_in(read.cache))
        return found

    def choose(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        """The third token ends all rows but the first source's and two of each other's."""
        nonlocal drawn
        drawn += 1
        row = torch.arange(len(logits))
        ended = (row >= k) & (row % k >= 2) if drawn == 3 else row < 0
        return torch.where(ended, EOS, 5)

    monkeypatch.setattr(lm, "prefill", begun)
    monkeypatch.setattr(lm, "extend", counted)
    monkeypatch.setattr(generating, "choose", choose)
    texts = [[5 + i % 7] * source for i in range(40)]
    decoding, keys = Decoding(False, new, top_k=12), [str(i) for i in range(40)]
    options: dict[str, Any] = {"eos_ids": [EOS], "decoding": decoding, "seed_key": (1,)}
    done = dict(generate(lm, texts, keys, k=k, batch_tokens=budget, **options))
    assert len(done) == 40 and sum(batches) == 40
    assert max(held) <= budget
    apart, shared = k * (source + new), max(source + k * new, k * (source + new) / 2)
    assert max(batches) == int(budget // (shared if lm.is_encoder_decoder else apart))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_reading_a_batch_whose_origin_the_host_knows_waits_for_nothing(family: str, training: bool):
    lm = build(family).to(NAME).train(training)
    batch = token_batch(SOURCES, TOKENS, ORIGIN, NAME)
    with counted_syncs() as syncs:
        lm.logits(batch)
        lm.states(batch)
    assert not syncs.total(), syncs


def test_a_look_names_the_token_whose_logits_were_not_finite():
    unseen = generating.Unseen()
    for t in range(4):
        logits = torch.zeros(2, 5)
        logits[1] = float("nan") if t == 2 else 0.0
        unseen.add(torch.tensor([t, t]), logits)
    with pytest.raises(generating.DivergedError, match="at token 12 of a generation"):
        unseen.look(13)


@pytest.mark.parametrize("family", some(FAMILIES, "t5", "gpt2", "llama"))
def test_caches_written_in_place_give_the_same_bits_when_rows_are_dropped(
    family: str, monkeypatch: pytest.MonkeyPatch
):
    lm = build(family)

    def logits_of(room: int) -> list[torch.Tensor]:
        with torch.no_grad():
            read = lm.prefill(*pad(SOURCES), logits=True).select([0, 0, 1, 2, 2])
            if room:
                read.reserve(room)
            cache = getattr(read.cache, "self_attention_cache", read.cache)
            assert all(isinstance(layer, RoomyLayer) == bool(room) for layer in cache.layers)
            found = []
            for t in range(6):
                rows = len(read.output)
                step = (torch.arange(rows)[:, None] + t) % VOCAB
                found.append(lm.extend(read, step, torch.ones(rows, 1).bool(), logits=True))
                if t in (1, 3):
                    read = read.select([rows - 1, 0, 1])
            return found

    wanted = logits_of(0)
    for room in (1, 3, 6):  # of too little room more is made
        assert all(map(torch.equal, logits_of(room), wanted))
    monkeypatch.setattr(reading, "make_room", lambda cache, room: None)
    concatenated = sample(lm)
    monkeypatch.undo()
    assert sample(lm) == concatenated


def test_windows_keep_their_own_cache_and_masks():
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    config = MistralConfig(vocab_size=VOCAB, sliding_window=4, **sizes)
    lm = LanguageModel(MistralForCausalLM(config).eval())
    assert not lm._masks.for_tokens
    with torch.no_grad():
        read = lm.prefill(*pad([SOURCES[0]]), logits=True)
        read.reserve(8)
        assert not any(isinstance(layer, RoomyLayer) for layer in read.cache.layers)
        for t in range(6):
            lm.extend(read, torch.tensor([[3 + t]]), torch.ones(1, 1).bool(), logits=True)
        ids = torch.tensor([[*SOURCES[0], *range(3, 9)]])
        assert_close(read.output[:, 0], lm.model(ids).logits[:, -1], rtol=1e-4, atol=2e-5)
    assert growing_cache(build("t5")) == growing_cache(build("llama")) == ""
    assert "MistralForCausalLM" in growing_cache(lm) and "SlidingWindow" in growing_cache(lm)


@pytest.mark.parametrize("device", ["cpu", NAME])
def test_masks_are_the_definitions(device: str):
    real = torch.tensor([[False, True, True, True], [True, True, True, False]])
    found = masks.causal(real.to(device), 2)
    assert found is not None
    for row in range(2):
        for query in range(2):
            seen = [bool(real[row, key]) and key <= 2 + query for key in range(4)]
            assert found[row, 0, query].tolist() == seen
    whole, both = torch.ones(2, 4).bool().to(device), masks.bidirectional(real.to(device))
    assert both is not None and both.cpu().squeeze((1, 2)).equal(real)
    for made in (masks.causal(whole, 4), masks.causal(whole, 1), masks.bidirectional(whole)):
        assert (made is None) == (device == "cpu")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_sources_encoded_in_parts_are_the_same(family: str, monkeypatch: pytest.MonkeyPatch):
    lm = build(family)
    whole = sample(lm)
    monkeypatch.setattr("pgtg.models.language.CPU_SLICE", 1)
    assert sample(lm) == whole
