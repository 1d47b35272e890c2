"""Decoding through torch.compile: the same tokens, and a line where it cannot be."""

import subprocess
import sys
from typing import Any

import pytest
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from pgtg.errors import ConfigError
from pgtg.models import language
from pgtg.models.backends import compiled
from pgtg.models.batch import token_batch
from pgtg.models.generate import Decoding, generate
from pgtg.models.language import LanguageModel
from pgtg.types import TokenIds
from tests.support.cases import some
from tests.support.tiny_models import EOS, FAMILIES, ORIGIN, SOURCES, TOKENS, VOCAB, build

NEW = 12


def sample(lm: LanguageModel, **more: Any) -> dict[int, list[TokenIds]]:
    how: dict[str, Any] = {"k": 3, "eos_ids": [EOS], "decoding": Decoding(False, NEW)} | more
    return dict(generate(lm, SOURCES, ["a", "b", "c"], batch_tokens=10**4, seed_key=(1,), **how))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the passes that would be compiled, which are made as they are."""
    seen: list[int] = []

    def seen_pass(model: nn.Module, **given: Any) -> Any:
        tokens = given["decoder_input_ids" if "decoder_input_ids" in given else "input_ids"]
        seen.append(tokens.shape[1])
        return model(**given)

    monkeypatch.setattr(compiled, "_compiled", lambda device: seen_pass)
    monkeypatch.setattr(language, "_proved_compiled", set())
    return seen


@pytest.mark.parametrize("family", some(FAMILIES, "t5", "gpt2"))
def test_only_the_step_of_a_token_is_compiled(family: str, calls: list[int]):
    lm = build(family).eval()
    expected = sample(lm)
    assert not calls
    assert sample(lm, compiled=True) == expected
    assert set(calls) == {1} and len(calls) == NEW - 1
    del calls[:]
    lm.logits(token_batch(SOURCES, TOKENS, ORIGIN))  # nothing else is
    assert not calls


@pytest.mark.parametrize("family", some(FAMILIES, "t5", "bart", "gpt2", "llama"))
def test_steps_have_few_shapes_and_say_the_same(
    family: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Also when rows end, and fewer go on."""
    shapes = set[tuple[int, int]]()

    def seen_step(model: nn.Module, **given: Any) -> Any:
        out = model(**given)
        own = getattr(out.past_key_values, "self_attention_cache", out.past_key_values)
        shapes.update((len(out.logits), layer.keys.shape[2]) for layer in own.layers)
        return out

    monkeypatch.setattr(compiled, "_compiled", lambda device: seen_step)
    lm = build(family).eval()
    more: dict[str, Any] = {"k": 13, "eos_ids": range(VOCAB // 4)}
    expected = sample(lm, **more)
    lengths = [len(ids) for rows in expected.values() for ids in rows]
    assert min(lengths) < NEW and max(lengths) == NEW and len(lengths) == 39
    assert sample(lm, compiled=True, **more) == expected
    assert {rows for rows, _ in shapes} <= {48, 32, 24, 16} and len(shapes) > 1
    assert len({length for _, length in shapes}) == 1


def test_sizes_are_few():
    sizes = sorted(2**n * m for n in range(4, 9) for m in (1, 1.5))
    for number in range(1, 200):
        assert compiled.size(number) == next(found for found in sizes if found >= number)


def test_a_cache_that_has_no_fixed_length_is_refused(calls: list[int]):
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    lm = LanguageModel(MistralForCausalLM(MistralConfig(vocab_size=VOCAB, **sizes)))
    with pytest.raises(ConfigError, match=r"no fixed length \(DynamicSlidingWindowLayer\)"):
        lm.require_compiled()
    assert not calls


def test_what_gives_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch):
    def wrong(model: nn.Module, **given: Any) -> Any:
        out = model(**given)
        out.logits = out.logits + 1
        return out

    monkeypatch.setattr(compiled, "_compiled", lambda device: wrong)
    monkeypatch.setattr(language, "_proved_compiled", set())
    with pytest.raises(ConfigError, match="compiled, GPT2LMHeadModel gives other logits"):
        build("gpt2").require_compiled()


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def broken(model: nn.Module, **given: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(compiled, "_compiled", lambda device: broken)
    monkeypatch.setattr(language, "_proved_compiled", set())
    lm = build("gpt2").train()
    with pytest.raises(ConfigError, match=r"here \(RuntimeError: no C\+\+ compiler\); sample"):
        lm.require_compiled()
    assert lm.training and "more" not in repr(lm)


REAL = """
import sys
import torch
from torch.testing import assert_close

from tests.models.backends.test_compiled import *
lm = build(sys.argv[1]).eval()
lm.require_compiled()
greedy = Decoding(True, NEW)
for k, decoding in ((1, greedy), (3, Decoding(False, NEW))):
    expected = sample(lm, k=k, decoding=decoding)
    assert sample(lm, k=k, decoding=decoding, compiled=True) == expected, (k, decoding)
with torch.no_grad():
    for part in lm.parameters():
        part.mul_(1.3)  # trained since: nothing of the weights is compiled in
batch = token_batch(SOURCES, TOKENS, ORIGIN)
with torch.no_grad():
    expected = lm._two_steps(batch, compiled=False)
    assert_close(lm._two_steps(batch, compiled=True), expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_compiled_for_real(family: str):
    """In a process of its own: a compiler's settings and workers are its process's."""
    subprocess.run([sys.executable, "-c", REAL, family], check=True)
