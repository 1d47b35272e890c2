"""`pgtg export tokens`: rewards, advantages and weights of each token, by their definitions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pgtg.cli.main import app
from pgtg.data.generations import read_generations
from pgtg.runs.files import read_jsonl
from pgtg.runs.folder import RunFolder, read_table
from tests.support.finished import finished_run
from tests.support.tiny import _quiet  # noqa: F401 (a fixture)
from tests.support.tiny_exports import llama, tiny_causal

COLUMNS = ["id", "prompt", "completion", "prompt_ids", "completion_ids", "offsets"]
COLUMNS += ["reward", "advantage", "weight"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny_causal(llama(tmp_path_factory)), tmp_path_factory)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reward"
    found = CliRunner().invoke(app, ["export", "reward", str(run), "--out", str(out)])
    assert found.exit_code == 0
    return out


def said(*words: object) -> Any:
    return CliRunner().invoke(app, ["export", "tokens", *map(str, words)])


def test_rows_are_what_the_run_learned_from(run: Path, tmp_path: Path):
    """Every ranked text with the score stage's rewards; A_t and w_t from their formulas."""
    assert said(run, "--out", tmp_path / "t.jsonl").exit_code == 0
    rows = read_jsonl(tmp_path / "t.jsonl")
    texts = read_generations(RunFolder(run).artifact("rounds", "00", "sample"), "train")
    table = read_table(run / "rounds/00/score/train.parquet")
    assert [*rows[0]] == [*COLUMNS, "score"] and len(rows) == len(texts.tokens) == 48
    for n, row in enumerate(rows):
        assert row["completion_ids"] == texts.tokens[n] and row["completion"] == texts.texts[n]
        assert row["prompt_ids"] == texts.sources[texts.origin[n]]
        assert row["score"] == texts.scores[n]
        reward = np.array(table["reward"][n])
        np.testing.assert_allclose(row["reward"], reward)
        np.testing.assert_allclose(row["advantage"], reward - reward.mean(), atol=1e-12)
        np.testing.assert_allclose(row["weight"], reward / reward.sum(), rtol=1e-12)
        assert sum(row["weight"]) == pytest.approx(1)
        assert "".join(row["completion"][a:b] for a, b in row["offsets"]) == row["completion"]


def test_weights_are_the_methods_own(run: Path, tmp_path: Path):
    """transform=exp and reward-to-go, as `improve` weighs targets with them."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = (copy / "config.yaml").read_text()
    for before, after in (("transform: none", "transform: exp"), ("to_go: false", "to_go: true")):
        assert before in config
        config = config.replace(before, after)
    (copy / "config.yaml").write_text(config)
    assert said(copy, "--out", tmp_path / "t.jsonl").exit_code == 0
    for row in read_jsonl(tmp_path / "t.jsonl"):
        to_go = np.cumsum(row["reward"][::-1])[::-1]
        expected = np.exp(to_go) / np.exp(to_go).sum()
        np.testing.assert_allclose(row["weight"], expected, rtol=1e-9)


def test_weights_by_a_threshold_are_the_methods_own(run: Path, tmp_path: Path):
    """1/|y| from the threshold that the newest policy was trained with, less below."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = (copy / "config.yaml").read_text()
    assert "weights: share" in config
    (copy / "config.yaml").write_text(config.replace("weights: share", "weights: sign"))
    refused = said(copy, "--out", tmp_path / "t.jsonl")
    assert refused.exit_code == 2 and "its threshold is known once the policy" in refused.output
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("threshold: null", "threshold: 0.5"))
    assert said(copy, "--out", tmp_path / "t.jsonl").exit_code == 0
    for row in read_jsonl(tmp_path / "t.jsonl"):
        expected = np.where(np.array(row["reward"]) >= 0.5, 1.0, -0.1) / len(row["reward"])
        np.testing.assert_allclose(row["weight"], expected, rtol=1e-6)


def test_an_exported_folder_writes_the_same_as_its_run(run: Path, exported: Path, tmp_path: Path):
    text = tmp_path / "mine.jsonl"
    rows = [{"prompt": "the plot was", "completion": "neat ."}, {"prompt": "x", "completion": "a"}]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source, out in (((run,), "a"), (("--reward", exported), "b")):
        found = said(*source, "--text", text, "--out", tmp_path / f"{out}.jsonl")
        assert found.exit_code == 0, found.output
    ours, its = (read_jsonl(tmp_path / f"{name}.jsonl") for name in "ab")
    assert len(ours) == 2 and [*ours[0]] == COLUMNS
    for a, b in zip(ours, its, strict=True):
        assert a["completion_ids"] == b["completion_ids"] and a["prompt_ids"] == b["prompt_ids"]
        np.testing.assert_allclose(a["reward"], b["reward"], rtol=1e-4)


def test_parquet_holds_the_same(run: Path, tmp_path: Path):
    for name in ("t.jsonl", "t.parquet"):
        assert said(run, "--split", "validation", "--out", tmp_path / name).exit_code == 0
    rows, table = read_jsonl(tmp_path / "t.jsonl"), read_table(tmp_path / "t.parquet")
    assert [*table] == [*rows[0]] and len(rows) == 16
    for n, row in enumerate(rows):
        for name in ("id", "prompt", "completion", "completion_ids", "offsets", "score"):
            assert table[name][n] == row[name]
        np.testing.assert_allclose(table["weight"][n], row["weight"], rtol=1e-6)


def test_wrong_calls_are_one_line(run: Path, exported: Path, tmp_path: Path):
    text, there = tmp_path / "mine.jsonl", tmp_path / "there.jsonl"
    text.write_text('{"prompt": "a", "completion": "neat"}\n')
    there.write_text("mine")
    out = ("--out", tmp_path / "out.jsonl")
    calls: dict[str, tuple[object, ...]] = {
        "give a run folder, or --reward FOLDER": out,
        "or --reward FOLDER with": (run, "--reward", exported, *out),
        "has no texts: give --text FILE": ("--reward", exported, *out),
        "is there already": (run, "--out", there),
        "give --format jsonl or": (run, "--out", tmp_path / "out.txt"),
        "is a folder": (run, "--out", tmp_path),
        "--round 7: ": (run, "--round", 7, *out),
        "the texts are yours or the run's": (run, "--text", text, "--split", "train", *out),
        "there is no split 'trian'": (run, "--split", "trian", *out),
        "no round has stored texts of test": (run, "--split", "test", "--round", 0, *out),
        "no run folder at": (tmp_path / "none", *out),
        "No such file": (run, "--text", tmp_path / "none", *out),
    }
    for match, words in calls.items():
        found = said(*words)
        assert found.exit_code == 2, (match, found.output)
        assert match in found.stderr and len(found.stderr.splitlines()) == 1, found.stderr
    assert there.read_text() == "mine"
    assert said(run, "--out", there, "--force").exit_code == 0
    assert len(read_jsonl(there)) == 48
