"""`pgtg export policy`: a plain Transformers folder that writes what the run's policy writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

import pgtg
from pgtg.cli.main import app
from pgtg.export import policy
from pgtg.pipeline.run import run_stage
from pgtg.runs.files import read_jsonl
from pgtg.runs.folder import RunFolder
from tests.support.finished import finished_run
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_exports import llama, tiny_causal
from tests.support.tiny_preferences import EXAMPLE
from tests.support.tiny_prompt import tiny_prompt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny_causal(llama(tmp_path_factory)), tmp_path_factory)


def said(*words: object) -> Any:
    return CliRunner().invoke(app, ["export", "policy", *map(str, words)])


def test_plain_generate_writes_the_texts_of_the_evaluation(run: Path, tmp_path: Path):
    """By the exported generation_config alone."""
    out = tmp_path / "policy"
    assert said(run, "--out", out).exit_code == 0
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = read_jsonl(run / "eval/validation/pgtg/samples_greedy.jsonl")
    lines = (EXAMPLE / "validation.jsonl").read_text().splitlines()
    for row, line in zip(rows, lines, strict=False):
        ids = tokenizer(json.loads(line)["prompt"], return_tensors="pt", add_special_tokens=False)
        written = model.generate(**ids)[0, ids["input_ids"].shape[1] :].tolist()
        assert written == row["tokens"]
    assert len(rows) == 8
    results = json.loads((run / "eval/results_validation.json").read_text())
    mean = results["pgtg"]["decodings"]["greedy"]["mean"]["win_rate"]
    card = (out / "README.md").read_text()
    assert f" {mean:.2f} |" in card and "pipeline_tag: text-generation" in card
    for file in out.iterdir():
        assert str(run.parents[2]).encode() not in file.read_bytes(), file


def test_an_encoder_decoder_has_its_weights_and_start_token(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    t5 = finished_run(tiny(*SHORT), tmp_path_factory)
    assert said(t5, "--out", tmp_path / "out").exit_code == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    own = pgtg.load_policy(t5)[0].model
    for name, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.generation_config.decoder_start_token_id == own.config.decoder_start_token_id
    assert "text2text-generation" in (tmp_path / "out/README.md").read_text()


def one_line(found: Any, match: str) -> None:
    assert found.exit_code == 2, found.output
    lines = found.stderr.splitlines()
    assert len(lines) == 1 and match in lines[0], found.stderr


def test_what_cannot_be_exported_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    one_line(said(tmp_path / "none", "--out", out), "no run folder at")
    one_line(said(run, "--out", run), "is there already")
    one_line(said(run, "--out", run, "--force"), "is no earlier export")
    monkeypatch.setattr(policy, "TOLERANCE", -1.0)
    one_line(said(run, "--out", out), "gives other logits than the run's policy")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_an_adaptor_is_refused(tmp_path: Path):
    for stage in ("sample", "align", "score", "improve"):
        run_stage(tiny_prompt("method.controls=[]"), tmp_path / "run", stage)
    assert RunFolder(tmp_path / "run").artifact("policy").exists()
    one_line(said(tmp_path / "run", "--out", tmp_path / "out"), "cannot be merged")
