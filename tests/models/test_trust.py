"""Code of a stranger, and what it makes us fetch: first seen to work on a weakened reader."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from pgtg.cli.calls import Call
from pgtg.config import TinyT5Config
from pgtg.config.compose import run_config
from pgtg.errors import ArtifactError, MissingResourceError, PgtgError
from pgtg.models import loading
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model, save_language_model
from pgtg.models.tiny.t5 import build
from pgtg.runs.folder import RunFolder, write_json
from tests.support.strangers import Payload, edit, model, plain, refused  # noqa: F401 (fixtures)

# --- code


def test_pickled_weights(model: Path, tmp_path: Path):
    marker = tmp_path / "ran"
    (model / "model.safetensors").unlink()
    torch.save({"shared.weight": Payload(marker)}, model / "pytorch_model.bin")
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the attack works"
    marker.unlink()
    refused(model, r"pickles.*are not read", MissingResourceError)
    assert not marker.exists()


def test_pickled_shards(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An index of safetensors may name pickles."""
    marker = tmp_path / "ran"
    (model / "model.safetensors").unlink()
    torch.save({"shared.weight": Payload(marker)}, model / "shard.bin")
    index = {"metadata": {}, "weight_map": {"shared.weight": "shard.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    real = torch.load
    with monkeypatch.context() as weakened:
        weakened.setattr(torch, "load", lambda *a, **k: real(*a, **{**k, "weights_only": False}))
        with contextlib.suppress(TypeError):  # what it makes of the pickle afterwards
            AutoModelForSeq2SeqLM.from_pretrained(model)
    assert marker.exists(), "the attack works"
    marker.unlink()
    refused(model, "only safetensors")
    assert not marker.exists()


CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast, T5Config
Path({marker!r}).touch()
class Config(T5Config):
    model_type = "{kind}"
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def evil(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model folder with code, and the file that the code makes."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(sys, "path", [*sys.path])
    marker = tmp_path / "ran"
    (model / "evil.py").write_text(CODE.format(marker=str(marker), kind="evil"))
    return model, marker


@pytest.mark.parametrize("kind", ["evil", "t5"])
def test_code_of_a_model(evil: tuple[Path, Path], kind: str):
    """A kind that Transformers does not know is refused; one it knows is built by its own code."""
    folder, marker = evil
    edit(folder / "config.json", model_type=kind, auto_map={"AutoConfig": "evil.Config"})
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists(), "the attack works"
    marker.unlink()
    if kind == "t5":
        assert type(load_language_model(str(folder))[0].model).__module__.startswith("transformers")
    else:
        refused(folder, "custom code", MissingResourceError)
    assert not marker.exists()


def test_code_of_a_tokenizer(evil: tuple[Path, Path]):
    folder, marker = evil
    known = {
        "auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]},
        "tokenizer_class": "Tokenizer",
    }
    edit(folder / "tokenizer_config.json", **known)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists(), "the attack works"
    marker.unlink()
    with contextlib.suppress(PgtgError):  # or Transformers' own class reads the same files
        load_language_model(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_kernels_are_not_fetched(model: Path, monkeypatch: pytest.MonkeyPatch, key: str):
    """The package `kernels` fetches code from the hub and runs it."""
    edit(model / "config.json", **{key: "stranger/kernel"})
    with monkeypatch.context() as weakened:
        weakened.setattr(loading, "check_folder", lambda path: None)
        with pytest.raises(MissingResourceError, match=r"`?kernels`? is"):
            load_language_model(str(model))  # it asks for the package
    refused(model, "would fetch code")


def test_quantisers_are_refused(model: Path):
    edit(model / "config.json", quantization_config={"quant_method": "stranger"})
    refused(model, "quantised")


# --- fetching


def test_an_adapter_of_another_model_fetches_nothing(model: Path, monkeypatch: pytest.MonkeyPatch):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "stranger/base"}')
    with monkeypatch.context() as weakened:
        weakened.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: True)
        (model / "config.json").rename(model / "hidden")
        with pytest.raises(OSError, match=r"stranger/base|connect"):
            AutoModelForSeq2SeqLM.from_pretrained(str(model))
        (model / "hidden").rename(model / "config.json")
    refused(model, "adapter")


class Listener(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "call"), [("policy", "eval"), ("data", "eval"), ("data", "train")]
)
def test_reading_a_strangers_run_fetches_nothing(tmp_path: Path, section: str, call: str):
    """Its config names a hub model, or hub data; only HF_HUB_OFFLINE=0 lets it fetch them."""
    from tests.support.tiny import TINY

    names = {
        "policy": ["policy=pretrained", "policy.path=stranger/model", "data=files", "reward=same"],
        "data": [
            "policy=pretrained",
            "policy.path=stranger/model",
            "data=files",
            "data.name=hub",
            "reward=same",
        ],
    }[section]
    own = [v for v in TINY if not v.startswith(("policy.", "data."))]
    where = [f"data.path={tmp_path if section == 'policy' else 'stranger/data'}"]
    (tmp_path / "test.jsonl").write_text('{"document": "a b", "summary": "a"}\n')
    (tmp_path / "train.jsonl").write_text('{"document": "a b", "summary": "a"}\n')
    where += ["data.columns.source=document", "data.columns.references=[summary]"]
    cfg = run_config("summarize", [*own, *names, *where])
    run = RunFolder(tmp_path / "run").create(asdict(cfg) | {"run_dir": None}, {})
    artifact = run.artifact("policy")
    model, tokenizer = build(["a", "b"], TinyT5Config(8, 16, 4, 2, 1, 1, 0.0, 1), 0)
    folder = artifact.working("x")
    if section == "policy":
        write_json(folder / "adaptor.json", {"language_model": "x"})
    else:
        save_language_model(LanguageModel(model), tokenizer, folder)
    artifact.commit(inputs="x")
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        seen = {}
        for offline in ("0", None):
            Listener.asked.clear()
            environment = {k: v for k, v in os.environ.items() if not k.endswith("OFFLINE")}
            environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
            environment |= {"HF_HOME": str(tmp_path / "hf")} | (
                {} if offline is None else {"HF_HUB_OFFLINE": offline}
            )
            words = ["eval", str(run.path), "--split", "test"]
            if call == "train":
                words = ["train", "summarize", f"run_dir={run.path}"]
            command = [sys.executable, "-m", "pgtg", *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            seen[offline] = list(Listener.asked)
            assert done.returncode == 2, done.stderr
            assert "Traceback" not in done.stderr
        server.shutdown()
    assert any("stranger" in path for path in seen["0"]), "the attack works"
    assert seen[None] == []


def test_evaluation_of_a_run_folder_goes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pgtg.cli.calls import evaluate_folder

    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if "OFFLINE" not in k})
    with pytest.raises(ArtifactError):
        evaluate_folder(tmp_path, "test", None, "summarize", None, None, quiet=False)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_going_on_with_a_run_goes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A new run may fetch; an existing folder's config is perhaps a stranger's."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if "OFFLINE" not in k})
    Call.parse("summarize", [f"run_dir={tmp_path / 'new'}"], None, multirun=False).jobs()
    assert "HF_HUB_OFFLINE" not in os.environ
    RunFolder(tmp_path / "run").create(asdict(run_config("summarize")), {})
    Call.parse("summarize", [f"run_dir={tmp_path / 'run'}"], None, multirun=False).jobs()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
