"""A fine-tuned classifier: what is trained, how texts are read, and what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pgtg.errors import ArtifactError
from pgtg.judges.finetuned import FineTuned
from pgtg.judges.rendering import Renderer
from pgtg.judges.template import Template
from pgtg.methods.finetune import ClassLoss, TextBatch
from pgtg.types import Labelled
from tests.support.classifiers import MAX_TOKENS, model, tokenizer, words

TEMPLATES = {"roberta": "{sentence} It was {mask} .", "gpt2": "{sentence}\nIt was"}
TEXTS = ["a b c great", "d e f terrible film", "great great", "x terrible y"]
EXAMPLES = [Labelled(str(i), text, 1 - i % 2) for i, text in enumerate(TEXTS)]


def tuned(family: str, kind: str = "head", **options: Any) -> FineTuned:
    known = tokenizer(family)
    own: Any = {"mode": "string", "max_tokens": MAX_TOKENS}
    renderer = Renderer(known, Template.parse(TEMPLATES[family]), words(family), **own)
    ids = [int(known(word, add_special_tokens=False)["input_ids"][0]) for word in words(family)]
    given: dict[str, Any] = {"kind": kind, "max_tokens": 12} | options
    return FineTuned(model(family, len(known)), renderer, ids, **given)


BOTH = [(family, kind) for family in TEMPLATES for kind in ("head", "prompt")]


@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_it_learns_texts_that_can_be_told_apart_and_is_read_back(
    family: str, kind: str, tmp_path: Path
):
    own = tuned(family, kind)
    before = own.log_probs(EXAMPLES)
    batch = TextBatch(own.rows(TEXTS), [example.label for example in EXAMPLES])
    loss = ClassLoss(own, vocabulary=False)
    optimizer = torch.optim.AdamW([p for _, p in own.trained()], lr=3e-3)
    own.train()
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(batch, loss.count(batch)).value
        value.backward()
        optimizer.step()
    found = own.log_probs(EXAMPLES)
    assert found.argmax(-1).tolist() == batch.targets
    own.save(tmp_path / "weights.safetensors")
    again = tuned(family, kind, seed=5).load(tmp_path / "weights.safetensors")
    assert again.log_probs(EXAMPLES).tolist() == found.tolist() != before.tolist()
    assert not any(p.requires_grad for p in again.parameters())


def test_a_text_alone_is_cut_at_its_end_and_read_at_its_first_token():
    own = tuned("roberta", max_tokens=5)
    short, long = own.rows(["a", "a b c d e f g"])
    whole = tuned("roberta", max_tokens=40).rows(["a b c d e f g"])[0]
    assert not short.cut and long.cut and not whole.cut
    assert long.ids == [whole.ids[0], *whole.ids[1:4], whole.ids[-1]] and long.position == 0
    in_template = tuned("roberta", "prompt").rows(["a"])[0]
    mask = tokenizer("roberta").mask_token_id
    assert in_template.ids[in_template.position] == mask


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_label_words_answer_before_any_training_as_the_model_does(family: str):
    own = tuned(family, "prompt")
    rows = own.rows(TEXTS)
    found = own.logits(rows, vocabulary=True)
    for row, logits in zip(rows, found, strict=True):
        alone = own.model(torch.tensor([row.ids])).logits[0, row.position]
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(own.logits(rows), found[:, own._words])


def test_only_the_top_layers_and_the_head_are_trained():
    names = {name for name, _ in tuned("roberta", layers=1).trained()}
    assert names and all(".layer.1." in name or name.startswith("head.") for name in names)
    everything = {name for name, _ in tuned("roberta").trained()}
    assert any("word_embeddings" in name for name in everything)
    assert not any("lm_head.dense" in name for name in everything)  # it answers nothing
    assert {name.split(".")[0] for name, _ in tuned("gpt2", layers=0).trained()} == {"head"}
    stack = {name.split(".")[2] for name, _ in tuned("gpt2", "prompt", layers=9).trained()}
    assert stack == {"h"}  # all layers where it has fewer; embeddings and final norm stay


def test_heads_are_drawn_from_the_seed_and_weights_of_another_model_are_refused(tmp_path: Path):
    one, same, other = (tuned("gpt2", seed=seed) for seed in (1, 1, 2))
    weights = [own.head[1].weight for own in (one, same, other)]  # type: ignore[index]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    one.save(tmp_path / "weights.safetensors")
    with pytest.raises(ArtifactError, match="of another model than the classifier"):
        tuned("roberta").load(tmp_path / "weights.safetensors")
