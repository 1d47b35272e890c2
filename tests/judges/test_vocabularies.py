"""Whether a prompt is judged by its ids: where policy and classifier have one vocabulary."""

from copy import deepcopy
from pathlib import Path

import pytest

from pgtg.config import classifier_of
from pgtg.judges.template import Prompt
from pgtg.tasks.prompt import PromptTask
from tests.support.classifiers import model, tokenizer
from tests.support.tiny_prompt import tiny_prompt


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes of one family, and a classifier of another."""
    folder = tmp_path_factory.mktemp("models")
    for name, family in (("m", "gpt2"), ("larger", "gpt2"), ("other", "bert")):
        words = tokenizer(family)
        model(family, len(words)).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("policy", "judge", "same"),
    [
        ("m", "m", True),
        ("m", "./m", True),
        ("m", "larger", True),
        ("m", "other", False),
        ("m", None, False),
    ],
)
def test_ids_are_judged_where_the_vocabularies_are_one(
    models: Path,
    policy: str,
    judge: str | None,
    same: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(models)
    cfg = deepcopy(tiny_prompt())
    classifier = classifier_of(cfg)
    assert classifier is not None
    cfg.policy.path, classifier.path = policy, judge
    (found,) = PromptTask(cfg, tmp_path).prompts([[5, 9]], ["text"])
    assert found == Prompt("text", (5, 9) if same else None)
