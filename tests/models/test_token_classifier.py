"""Exported reward models: the same z in plain Transformers; what a stranger may have changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForTokenClassification

from pgtg.config import AggregatorConfig
from pgtg.errors import ConfigError, PgtgError
from pgtg.models.chat import ChatCodec
from pgtg.models.codec import Codec, PromptCodec
from pgtg.models.language import LanguageModel
from pgtg.models.loading import save_folder
from pgtg.models.reward import HeadSpec, RewardModel, build_reward_model, randomize_head
from pgtg.models.tiny.lm import build_tokenizer
from pgtg.models.token_classifier import (
    REWARD_JSON,
    About,
    TokenClassifier,
    about_from_json,
    classifier_of,
    codec_as_json,
    codec_from_json,
    load_reading,
    load_token_classifier,
)
from tests.support.strangers import edit
from tests.support.tiny_exports import FAMILIES, causal
from tests.support.tiny_models import ORIGIN, SOURCES, TOKENS, VOCAB, batch, build

ABOUT = About(
    "preferences", "mine", 3, "linear", "softplus", AggregatorConfig("max", 1.5, True), "exp", True
)
TOKENIZER = build_tokenizer([f"w{i}" for i in range(VOCAB - 5)], masked=False)


def linear(lm: LanguageModel, bound: str = "softplus") -> tuple[RewardModel, nn.Linear]:
    model = build_reward_model(lm, HeadSpec("linear", bound, 1), 0).eval()
    randomize_head(model, 1)
    score = model.head.get_submodule("score")
    assert isinstance(score, nn.Linear)
    return model, score


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_plain_class_are_z_at_each_token(family: str, tmp_path: Path):
    """Saved, read back by Transformers alone, one sequence at a time without padding."""
    model, score = linear(LanguageModel(causal(family, VOCAB)))
    save_folder(classifier_of(model.backbone.model, score), TOKENIZER, tmp_path)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert type(plain).__name__.endswith("ForTokenClassification")
    with torch.no_grad():
        expected = model.raw(batch())
        for row, (tokens, origin) in enumerate(zip(TOKENS, ORIGIN, strict=True)):
            ids = torch.tensor([SOURCES[origin] + tokens])
            z = plain(input_ids=ids).logits[0, len(SOURCES[origin]) :, 0]
            assert_close(z, expected[row, : len(tokens)], rtol=1e-4, atol=1e-5)
    assert expected[batch().mask].std() > 0.1


@pytest.mark.parametrize("bound", ["softplus", "sigmoid"])
def test_rewards_are_those_of_the_reward_model_with_padding_on_any_side(bound: str):
    model, score = linear(LanguageModel(causal("llama", VOCAB)), bound)
    plain = TokenClassifier(classifier_of(model.backbone.model, score), bound).eval()
    with torch.no_grad():
        for side in ("left", "right"):
            inputs = batch(sources_to=side, tokens_to=side, fill=(3, 9, 1))
            found, expected = plain(inputs)[inputs.mask], model(inputs)[inputs.mask]
            assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "t5", "bart"])
def test_families_without_such_a_class_are_refused_in_one_line(family: str):
    lm = build(family)
    with pytest.raises(ConfigError, match="has no token classifier with one linear") as error:
        classifier_of(lm.model, nn.Linear(16, 1))
    assert "\n" not in str(error.value) and "pgtg export tokens" in str(error.value)


def test_a_layer_of_another_size_or_without_bias_is_refused(monkeypatch: pytest.MonkeyPatch):
    lm = LanguageModel(causal("llama", VOCAB))
    with pytest.raises(ConfigError, match="another name or size"):
        classifier_of(lm.model, nn.Linear(15, 1))
    lm.model.config.token_classification_bias = False
    with pytest.raises(ConfigError, match="has no bias"):
        classifier_of(lm.model, nn.Linear(16, 1))


CODECS = [
    Codec(TOKENIZER, False, "a: ", " b", " ", 7, 5, (2, 4), cut_start=True),
    ChatCodec(TOKENIZER, False, "", "", "", 7, 5),
    PromptCodec(TOKENIZER, False, "", "", "", 7, 5, start_text="w1"),
    PromptCodec(TOKENIZER, False, "", "", "", 7, 5),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_what_the_json_says_comes_back(codec: Codec):
    text = json.dumps(ABOUT.as_json() | {"reading": codec_as_json(codec)})
    assert about_from_json(json.loads(text)) == ABOUT
    assert codec_from_json(json.loads(text)["reading"], TOKENIZER) == codec


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    model, score = linear(LanguageModel(causal("llama", VOCAB)))
    save_folder(classifier_of(model.backbone.model, score), TOKENIZER, folder)
    about = ABOUT.as_json() | {"format": 1, "reading": codec_as_json(CODECS[0])}
    (folder / REWARD_JSON).write_text(json.dumps(about))
    return folder


@pytest.fixture
def strangers(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


def refused(folder: Path, match: str, *loaders: Any) -> None:
    for load in loaders or (load_token_classifier, load_reading):
        with pytest.raises(PgtgError, match=match) as error:
            load(folder)
        assert "\n" not in str(error.value)


def test_an_exported_folder_is_read(exported: Path):
    about, codec = load_reading(exported)
    assert about == ABOUT and replace(codec, tokenizer=TOKENIZER) == CODECS[0]
    model = load_token_classifier(exported)
    assert not model.training and not model.model.training
    with torch.no_grad():
        assert model(batch()).shape == batch().tokens.shape


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 2}, "describes no exported reward model of format 1"),
        ({"bound": "os.system"}, "describes no exported"),
        ({"aggregator": {"name": "max", "temperature": 0.0, "length_normalized": True}}, "no expo"),
        ({"aggregator": {"name": "max", "temperature": "2", "length_normalized": True}}, "no expo"),
        (
            {"aggregator": {"name": "nobody", "temperature": 2.0, "length_normalized": True}},
            "nobod",
        ),
        ({"weights": {"transform": "log", "reward_to_go": False}}, "describes no exported"),
        ({"run": None}, "describes no exported"),
    ],
)
def test_a_json_that_says_something_else(strangers: Path, change: dict[str, Any], match: str):
    edit(strangers / REWARD_JSON, **change)
    refused(strangers, match)


@pytest.mark.parametrize(
    "change",
    [{"kind": "evil"}, {"max_source_tokens": -1}, {"prefix": 3}, {"ends": ["a"]}, {"more": 1}],
)
def test_a_json_that_says_no_way_to_read_texts(strangers: Path, change: dict[str, Any]):
    reading = json.loads((strangers / REWARD_JSON).read_text())["reading"]
    edit(strangers / REWARD_JSON, reading=reading | change)
    refused(strangers, "describes no exported", load_reading)


def test_what_is_no_exported_folder(strangers: Path, tmp_path: Path):
    refused(tmp_path / "none", "`pgtg export reward` writes one")
    (strangers / REWARD_JSON).write_text("[1]")
    refused(strangers, "describes no exported")
    (strangers / REWARD_JSON).write_text("{")
    refused(strangers, "is not readable json")
    (strangers / REWARD_JSON).unlink()
    refused(strangers, "`pgtg export reward` writes one")


def test_links_lead_nowhere(strangers: Path, tmp_path: Path):
    secret = tmp_path / "secret"
    (strangers / "model.safetensors").rename(secret)
    (strangers / "model.safetensors").symlink_to(secret)
    refused(strangers, "is a link: an exported folder holds plain files")


def test_files_and_claims_that_are_too_large(strangers: Path):
    with (strangers / REWARD_JSON).open("ab") as file:
        file.truncate(2**26)
    refused(strangers, "more than the .* allowed")
    shutil.copy(strangers / "config.json", strangers / REWARD_JSON)
    refused(strangers, "describes no exported")


def test_weights_of_another_model(strangers: Path):
    edit(strangers / "config.json", hidden_size=4096, vocab_size=10**6)
    refused(strangers, "claims .* weights", load_token_classifier)
    edit(strangers / "config.json", hidden_size=16, vocab_size=VOCAB, id2label={"0": "a", "1": "b"})
    refused(strangers, "2 labels, a reward model has one", load_token_classifier)


def test_a_model_that_lacks_its_score(strangers: Path):
    save_folder(causal("llama", VOCAB), TOKENIZER, strangers)
    edit(strangers / "config.json", id2label={"0": "reward"})
    refused(strangers, "lacks 2 of the weights of a LlamaForToken", load_token_classifier)
