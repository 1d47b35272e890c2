"""What a stranger prepares, and how it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pgtg.config import TinyT5Config
from pgtg.errors import ArtifactError, PgtgError
from pgtg.judges.classifier import load_classifier
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model, save_language_model
from pgtg.models.tiny.t5 import build


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 as an honest person saves it."""
    folder = tmp_path_factory.mktemp("model")
    model, tokenizer = build(["a", "b"], TinyT5Config(8, 16, 4, 2, 1, 1, 0.0, 1), 0)
    save_language_model(LanguageModel(model), tokenizer, folder)
    return folder


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    """A copy that a stranger may change."""
    return Path(shutil.copytree(plain, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def refused(folder: Path, match: str, error: type[PgtgError] = ArtifactError) -> None:
    """One line, for a policy and for a classifier alike."""
    with pytest.raises(error, match=match) as caught:
        load_language_model(str(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(PgtgError, match=f"{match}|its config.json says"):  # a T5 is no classifier
        load_classifier(str(folder))


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))
