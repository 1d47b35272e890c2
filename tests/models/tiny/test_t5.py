"""The tiny T5: one word a token, Transformers folders, and initial weights from the seed alone."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from pgtg.config import TinyT5Config
from pgtg.models.tiny.t5 import COPY_WORDS, build, build_tokenizer, copy_pairs

WORDS = [".", "rain", "will", "reach", "oslo"]
TINY = TinyT5Config(
    d_model=16, d_ff=32, d_kv=8, heads=2, encoder_layers=1, decoder_layers=1, dropout=0.0
)


def test_one_word_is_one_token_and_the_end_token_is_appended():
    tokenizer = build_tokenizer(WORDS)
    assert tokenizer("rain will reach oslo .")["input_ids"] == [4, 5, 6, 7, 3, 1]
    assert tokenizer("rain .", add_special_tokens=False)["input_ids"] == [4, 3]
    assert tokenizer("snow")["input_ids"] == [2, 1]
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2)


def test_decoding_joins_words_by_single_spaces():
    tokenizer = build_tokenizer(WORDS)
    text = "rain will reach oslo ."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("words", [["rain", "rain"], ["two words"], [""], ["</s>"]])
def test_words_that_cannot_be_tokens_are_refused(words: list[str]):
    with pytest.raises(ValueError, match="distinct"):
        build_tokenizer(words)


def test_plain_transformers_reloads_the_same_model_and_tokenizer(tmp_path: Path):
    model, tokenizer = build(WORDS, TINY, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model_again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    tokenizer_again = AutoTokenizer.from_pretrained(tmp_path)
    text = "rain will reach oslo ."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer_again(text, return_tensors="pt")["input_ids"].equal(ids)
    assert tokenizer_again.decode(ids[0], skip_special_tokens=True) == text
    with torch.no_grad():  # same bits in, same operations: equal logits, scaling included
        expected, found = model(ids, labels=ids).logits, model_again(ids, labels=ids).logits
    assert_close(found, expected, rtol=0, atol=0)


def test_logits_are_the_unscaled_product_with_small_embeddings():
    model, tokenizer = build(WORDS, TINY, seed=0)
    embeddings = model.get_input_embeddings().weight
    assert 0.03 < embeddings.std().item() < 0.07  # 0.05 of standard deviation 1, 8 x 16 draws
    ids = tokenizer("rain reach oslo", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model(ids, labels=ids, output_hidden_states=True)
    assert_close(out.logits, out.decoder_hidden_states[-1] @ embeddings.T)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build(WORDS, TINY, seed=7)[0].state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn  # building leaves torch's own generator as it was
    torch.manual_seed(2)
    same, other = build(WORDS, TINY, seed=7)[0], build(WORDS, TINY, seed=8)[0]
    assert all(same.state_dict()[name].equal(weight) for name, weight in first.items())
    assert not other.get_input_embeddings().weight.equal(first["shared.weight"])


def test_it_learns_to_copy_two_words():
    """60 updates bring the loss well below chance (log 4 = 1.39 nats a word): it trains at all."""
    words = ["rain", "snow", "fog", "hail"]
    model, tokenizer = build(words, TINY, seed=0)
    pairs = [f"{a} {b}" for a in words for b in words]
    ids = torch.tensor([tokenizer(pair)["input_ids"] for pair in pairs])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_copy_pairs_are_random_spans_of_the_words():
    pairs = copy_pairs(WORDS, 50, seed=3)
    assert len(pairs) == 50 and all(source == target for source, target in pairs)
    lengths = [len(source.split()) for source, _ in pairs]
    assert COPY_WORDS[0] <= min(lengths) < max(lengths) <= COPY_WORDS[1]
    assert {word for source, _ in pairs for word in source.split()} == set(WORDS)
    assert pairs == copy_pairs(WORDS, 50, seed=3) != copy_pairs(WORDS, 50, seed=4)
