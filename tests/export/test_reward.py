"""`pgtg export reward`: what plain Transformers reads is what the run's reward model gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import spearmanr
from torch import nn
from transformers import AutoModelForTokenClassification, AutoTokenizer
from typer.testing import CliRunner

from pgtg.cli.main import app
from pgtg.data.generations import read_generations
from pgtg.export import reward
from pgtg.export.distil import LeastSquares
from pgtg.models.batch import token_batch
from pgtg.models.reward import HeadSpec, build_reward_model, load_reward_model, randomize_head
from pgtg.models.token_classifier import load_token_classifier
from pgtg.ops.bounds import BOUNDS
from pgtg.pipeline.run import run_stage
from pgtg.runs.folder import RunFolder, read_table
from tests.support.finished import finished_run
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_exports import llama, tiny_causal
from tests.support.tiny_models import build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny_causal(llama(tmp_path_factory)), tmp_path_factory)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reward"
    assert said("reward", run, "--out", out).exit_code == 0
    return out


def said(*words: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, words)])


def other_head(run: Path, to: Path, *overrides: str) -> Path:
    """The run with another reward model on the same samples."""
    copy = Path(shutil.copytree(run, to / "run"))
    policy = json.loads(json.dumps(RunFolder(run).open().config()))["policy"]["path"]
    cfg = tiny_causal(Path(policy), *overrides)
    for stage in ("align", "score", "aggregate"):
        run_stage(cfg, copy, stage, round=0, force=True)
    return copy


def stored(run: Path, part: str = "heldout") -> Any:
    return read_generations(RunFolder(run).artifact("rounds", "00", "sample"), part)


def test_plain_transformers_gives_the_rewards_that_the_run_wrote(run: Path, exported: Path):
    """Of each held-out text by itself: r = bound(logit) at the token's place."""
    plain = AutoModelForTokenClassification.from_pretrained(exported).eval()
    texts, table = stored(run), read_table(run / "rounds/00/score/heldout.parquet")
    for tokens, origin, expected in zip(texts.tokens, texts.origin, table["reward"], strict=True):
        source = texts.sources[origin]
        with torch.no_grad():
            z = plain(input_ids=torch.tensor([source + tokens])).logits[0, len(source) :, 0]
        np.testing.assert_allclose(BOUNDS["softplus"](z), expected, rtol=1e-4, atol=1e-6)
    assert AutoTokenizer.from_pretrained(exported).get_vocab()


def test_the_folder_says_what_it_is(run: Path, exported: Path):
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlamaForTokenClassification"]
    assert (config["id2label"], config["label2id"]) == ({"0": "reward"}, {"reward": 0})
    assert (config["problem_type"], config["classifier_dropout"]) == ("regression", 0.0)
    with safe_open(exported / "model.safetensors", "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert (shapes["score.weight"], shapes["score.bias"]) == ([1, 16], [1])
    assert not any(name.startswith("lm_head") for name in shapes)
    about = json.loads((exported / "pgtg_reward.json").read_text())
    assert (about["bound"], about["aggregator"]["name"]) == ("softplus", "avg")
    assert about["distilled"] is None and about["reload"]["largest_gap"] < 1e-5
    figures = RunFolder(run).artifact("rounds", "00", "aggregate").manifest()["metrics"]
    assert about["figures"] == {k.removeprefix("aggregate/"): v for k, v in figures.items()}
    card = (exported / "README.md").read_text()
    assert card.startswith("---\npipeline_tag: token-classification\nlibrary_name: transformers\n")
    pairs = 100 * figures["aggregate/heldout_pair_accuracy"]
    assert f"| pairs ordered as they are preferred | {pairs:.1f} % |" in card
    assert "raw output z" in card and "base_model:" not in card.split("---")[1]
    for file in exported.iterdir():  # where it was made is nobody's business
        assert str(run.parents[2]).encode() not in file.read_bytes(), file


def test_a_backbone_of_fewer_layers_is_exported_with_as_many(run: Path, tmp_path: Path):
    """With the fitted normaliser in its description; the exported rewards are without it."""
    normalised = ["reward.normalize=place", "method.transform=exp"]
    copy = other_head(run, tmp_path, "reward.layers=1", *normalised)
    assert said("reward", copy, "--out", tmp_path / "out").exit_code == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_hidden_layers"] == 1
    about = json.loads((tmp_path / "out/pgtg_reward.json").read_text())
    fitted = json.loads((copy / "rounds/00/align/reward/reward_normalizer.json").read_text())
    assert about["normaliser"] == fitted and {*fitted} == {"mean", "sd", "least", "longest"}
    with torch.no_grad():
        texts = stored(copy)
        rows = range(len(texts.tokens))
        sources = [texts.sources[o] for o in texts.origin]
        inputs = token_batch(sources, texts.tokens, rows)
        expected = load_reward_model(copy / "reward").eval()(inputs)[inputs.mask]
        found = load_token_classifier(tmp_path / "out")(inputs)[inputs.mask]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def paper(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return other_head(run, tmp_path_factory.mktemp("paper"), "reward.head=paper")


def test_a_distilled_head_is_the_least_squares_fit(paper: Path, tmp_path: Path):
    """Against numpy's solver on all states at once; the fidelity against its definition."""
    found = said("reward", paper, "--out", tmp_path / "out", "--distil")
    assert found.exit_code == 0
    model, learned = load_reward_model(paper / "reward").eval(), stored(paper, "train")
    states, z = tokens_of(model, learned)
    columns = np.concatenate([states, np.ones((len(states), 1))], 1)
    best = np.linalg.lstsq(columns, z, rcond=None)[0]
    score = load_token_classifier(tmp_path / "out").model.get_submodule("score")
    assert isinstance(score, nn.Linear)
    fitted = columns @ np.append(score.weight.detach().numpy()[0], score.bias.item())
    assert ((fitted - z) ** 2).sum() == pytest.approx(((columns @ best - z) ** 2).sum(), rel=1e-3)
    held, own = tokens_of(model, stored(paper))
    spearman: Any = spearmanr(own, held @ score.weight.detach().numpy()[0])
    lost = json.loads((tmp_path / "out/pgtg_reward.json").read_text())["distilled"]
    assert (
        lost["spearman"] == pytest.approx(spearman.statistic, abs=1e-3) and lost["of"] == "heldout"
    )
    assert lost["tokens"] == len(own)
    figures = RunFolder(paper).artifact("rounds", "00", "aggregate").manifest()["metrics"]
    assert lost["pairs"] == pytest.approx(figures["aggregate/heldout_pair_accuracy"])
    assert f"Spearman {lost['spearman']:.3f}" in (tmp_path / "out/README.md").read_text()


def tokens_of(model: Any, texts: Any) -> tuple[np.ndarray, np.ndarray]:
    """States after, and z of, all tokens, one text at a time."""
    states, z = [], []
    with torch.no_grad():
        for tokens, origin in zip(texts.tokens, texts.origin, strict=True):
            one = token_batch([texts.sources[origin]], [tokens], [0])
            states.append(model.backbone.states(one)[0, 1:].double().numpy())
            z.append(model.raw(one)[0].double().numpy())
    return np.concatenate(states), np.concatenate(z)


def test_a_linear_head_is_distilled_to_itself():
    model = build_reward_model(build("llama"), HeadSpec("linear", "softplus", 1), 0).eval()
    randomize_head(model, 3)
    fit = LeastSquares(model)
    sources = [[5, 6, i] for i in range(20)]
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, 23, 6).tolist() for _ in sources]
    fit.add(token_batch(sources, tokens, range(20)))
    assert fit.tokens == 120
    weight, bias = fit.solve()
    own = dict(model.head.named_parameters())
    torch.testing.assert_close(
        weight.float(), own["score.weight"][0].detach(), rtol=1e-2, atol=1e-3
    )
    torch.testing.assert_close(bias.float(), own["score.bias"][0].detach(), rtol=1e-2, atol=1e-3)


def one_line(found: Any, match: str) -> None:
    assert found.exit_code == 2, found.output
    lines = found.stderr.splitlines()
    assert len(lines) == 1 and match in lines[0], found.stderr


def test_heads_that_are_not_linear_say_what_to_do(run: Path, paper: Path, tmp_path: Path):
    out = tmp_path / "out"
    one_line(said("reward", paper, "--out", out), "reward.head=paper is no linear layer: --distil")
    logprob = other_head(run, tmp_path, "reward.head=logprob")
    for flags in ((), ("--distil",)):
        found = said("reward", logprob, "--out", out, *flags)
        one_line(found, "reward.head=logprob is no function of the state after a token")
    assert not out.exists()


def test_an_encoder_decoder_is_refused(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    t5 = finished_run(tiny(*SHORT), tmp_path_factory)
    one_line(said("reward", t5, "--out", tmp_path / "out", "--distil"), "is an encoder-decoder")


def test_what_is_there_is_not_written_over(run: Path, exported: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    one_line(said("reward", run, "--out", mine), "is there already")
    one_line(said("reward", run, "--out", mine, "--force"), "is no earlier export")
    one_line(said("reward", run, "--out", mine / "thesis.txt", "--force"), "is a file")
    one_line(said("reward", tmp_path / "none", "--out", tmp_path / "out"), "no run folder at")
    assert (mine / "thesis.txt").read_text() == "years of work"
    earlier = Path(shutil.copytree(exported, tmp_path / "earlier"))
    (earlier / "README.md").write_text("of before")
    assert said("reward", run, "--out", earlier, "--force").exit_code == 0
    assert "of before" not in (earlier / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_reads_otherwise_is_not_left_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = reward.classifier_of

    def off(lm: Any, score: nn.Linear) -> Any:
        wrong = nn.Linear(score.in_features, 1)
        wrong.load_state_dict({k: v + 0.01 for k, v in score.state_dict().items()})
        return made(lm, wrong)

    monkeypatch.setattr(reward, "classifier_of", off)
    one_line(said("reward", run, "--out", tmp_path / "out"), "gives other logits")
    assert [*tmp_path.iterdir()] == []
