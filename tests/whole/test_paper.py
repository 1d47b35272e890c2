"""The paper's protocol: rows that are read, the experiments' values, a scaled run of each."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from pgtg.config import RunConfig
from pgtg.config.checks import value_at
from pgtg.config.compose import run_config
from pgtg.data.fewshot import load_fewshot
from pgtg.errors import ConfigError, DataError, MissingResourceError
from pgtg.explain.gather import Options
from pgtg.explain.write import explain
from pgtg.metrics.meteor import require_wordnet
from pgtg.pipeline.context import opened
from pgtg.pipeline.evaluate import evaluate_saved
from pgtg.pipeline.evaluation.system import System
from pgtg.pipeline.evaluation.text import TextEvaluation
from pgtg.pipeline.run import train
from pgtg.report.write import report
from pgtg.runs.folder import RunFolder, read_jsonl
from pgtg.runs.log import RunLog
from pgtg.tasks import open_task
from pgtg.tasks.summarize import SummarizeTask
from tests.models.test_codec import codec
from tests.support.cases import some

COLUMNS = {"cnn_dm": ("article", "highlights"), "xsum": ("document", "summary")}
ROWS = {"cnn_dm": 11490, "xsum": 11334}  # of the test splits
SUMMARIES = [f"{data}_t5_{size}" for data in COLUMNS for size in ("small", "base")]


def table(data: str, rows: int) -> list[dict[str, str]]:
    """Rows with the data set's columns; one in 50 has an empty source or reference, or repeats."""
    source, reference = COLUMNS[data]
    made: list[dict[str, str]] = []
    for i in range(rows):
        row = {"id": f"id{i}", source: f"The mayor opened bridge {i}.", reference: f"Bridge {i}."}
        if i % 200 == 50:
            row[source] = ""
        elif i % 200 == 100:
            row[reference] = " "
        elif i % 200 == 150:
            row[source] = made[i - 1][source]
        elif i % 200 == 199:
            row |= {source: made[i - 1][source], reference: made[i - 1][reference]}
        made.append(row)
    return made


def write(folder: Path, data: str, rows: dict[str, int]) -> list[str]:
    """Parquet files of so many rows by split, and the overrides to read them as that data set."""
    for split, number in rows.items():
        path = folder / f"{split}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table(data, number)), path)
    splits = ",".join(f"{split}:{split}.parquet" for split in rows)
    return ["data.name=files", f"data.path={folder}", f"data.splits={{{splits}}}"]


@pytest.mark.parametrize("experiment", some(SUMMARIES, SUMMARIES[0]))
def test_all_rows_of_the_published_splits_are_read(experiment: str, tmp_path: Path):
    """The paper's n, with repeats and empty texts; what is odd is kept, and counted."""
    data = experiment.split("_t5")[0]
    files = write(tmp_path, data, {"train": 200, "validation": 400, "test": ROWS[data]})
    task = SummarizeTask(run_config("summarize", [f"experiment={experiment}", *files]))
    assert len(task.to_evaluate("test")) == ROWS[data]
    assert (len(task.examples("train")), len(task.examples("validation"))) == (200, 400)
    kept = task.counts["test"]
    assert (kept.rows, kept.kept, kept.dropped) == (ROWS[data], ROWS[data], {})
    odd = ("empty source", "empty reference", "duplicate row", "duplicate source, other references")
    assert {reason.removesuffix(" kept") for reason in kept.truncated} == set(odd)
    assert sum(kept.truncated.values()) in range(
        4 * (ROWS[data] // 200), 4 * (ROWS[data] // 200) + 4
    )


@pytest.mark.parametrize(("name", "classes", "rows"), [("sst2", 2, 1821), ("agnews", 4, 7600)])
def test_all_rows_of_a_published_classification_test_are_read(
    name: str, classes: int, rows: int, tmp_path: Path
):
    cfg = run_config("prompt", [f"experiment={name}_paper", f"data.path={tmp_path}"])
    assert cfg.data.fewshot is not None
    folder = tmp_path / cfg.data.fewshot.folders[0]
    folder.mkdir()
    texts = [f"a text of number {i}" for i in range(rows)]
    texts[7] = texts[11] = ""
    texts[20:40] = texts[:20]
    for split, chosen in (("train", texts[:64]), ("dev", texts[64:128]), ("test", texts)):
        with (folder / f"{split}.tsv").open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, delimiter="\t")
            out.writerow(["sentence" if split == "test" else "text", "label"])
            out.writerows([text, i % classes] for i, text in enumerate(chosen))
    found = load_fewshot(cfg.data, "test", 0)
    assert found is not None and len(found[0]) == found[1].kept == rows
    assert found[1].truncated == {"empty text kept": 4, "repeated text kept": 20 + 1}


# The paper's and its released code's values; what differs stands in docs/deviations.md.
SHARED: dict[str, Any] = {
    "policy.prefix": "summarize: ",
    "policy.max_source_tokens": 1024,
    "policy.max_target_tokens": 128,
    "policy.trainable_layers": None,
    "policy.dropout": True,
    "policy.dtype": "float32",
    "data.repeats": {"train": "keep"},
    "data.empty": {"train": "keep"},
    "data.limit": {},
    "sample.k": 3,
    "sample.temperature": 1.0,
    "sample.top_k": 50,
    "sample.top_p": 1.0,
    "sample.max_new_tokens": 127,  # max_length 128 counts the decoder's start token
    "judge.name": "meteor",
    "judge.reference": "as_trained",
    "reward.path": "google-t5/t5-small",
    "reward.layers": None,
    "reward.head": "paper",
    "reward.bound": "softplus",
    "reward.mlp_width": 2048,
    "reward.replay": 0,
    "reward.fit.micro_batch": 8,
    "reward.fit.accumulate": 4,
    "reward.fit.optimizer": "adam",
    "reward.fit.lr": 5e-5,
    "reward.fit.weight_decay": 0.0,
    "reward.fit.clip": 5.0,
    "reward.fit.schedule": "plateau",
    "reward.fit.plateau_factor": 0.8,
    "reward.fit.plateau_patience": 2,
    "reward.fit.patience": 7,
    "reward.fit.keep": "last",
    "aggregator.name": "avg",
    "aggregator.temperature": 2.0,
    "aggregator.length_normalized": False,
    "method.name": "pgtg",
    "method.transform": "none",
    "method.reward_to_go": False,
    "method.entropy": 0.0,
    "method.reinforce": 0.0,
    "method.controls": ["uniform", "shuffled", "untrained"],
    "improve.micro_batch": 8,
    "improve.accumulate": 4,
    "improve.optimizer": "adamw",
    "improve.lr": 5e-5,
    "improve.weight_decay": 0.0,
    "improve.clip": 5.0,
    "improve.schedule": "constant",
    "improve.patience": 0,
    "improve.keep": "last",
    "schedule.unit": "epochs",
    "schedule.total": 5.0,
    "schedule.retrain_every": 0.5,
    "schedule.retrain_until": 2.0,
    "metrics.names": ["rouge", "meteor", "bertscore"],
    "metrics.sentence_splitter": "punkt",
    "evaluate.reference": "as_trained",
    "evaluate.decodings": ["greedy"],
    "evaluate.examples": None,
    "keep_rounds": "last",
}
OF_DATA: dict[str, dict[str, Any]] = {  # 287,113 and 204,045 articles: 8,973 and 6,377 updates
    "cnn_dm": {
        "data.path": "abisee/cnn_dailymail",
        "data.subset": "3.0.0",
        "sample.sources": 898 * 32,
        "reward.fit.updates": 898,
        "reward.fit.validate_every": 2244,
    },
    "xsum": {
        "data.path": "EdinburghNLP/xsum",
        "sample.sources": 638 * 32,
        "reward.fit.updates": 638,
        "reward.fit.validate_every": 1595,
    },
}


def values(cfg: RunConfig, table: dict[str, Any]) -> dict[str, Any]:
    return {key: value_at(cfg, key) for key in table}


@pytest.mark.parametrize("experiment", SUMMARIES)
def test_summarization_experiments_carry_the_papers_values(experiment: str):
    data, size = experiment.split("_t5_")
    cfg = run_config("summarize", [f"experiment={experiment}"])
    expected = SHARED | OF_DATA[data] | {"policy.path": f"google-t5/t5-{size}"}
    assert values(cfg, expected) == expected
    assert (cfg.experiment, cfg.name, cfg.task) == (experiment, experiment, "summarize")


def tiny_t5(folder: Path, texts: list[str]) -> Path:
    """A random T5 of some thousand weights with a tokenizer of the texts' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = dict.fromkeys(
        w for t in texts for w, _ in pre_tokenizers.Whitespace().pre_tokenize_str(t)
    )
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1}
    special: dict[str, Any] = {"eos_token_id": 1, "pad_token_id": 0}
    config = T5Config(vocab_size=len(vocabulary), **sizes, **special)
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A punkt_tab of our own, before what NLTK finds on this machine (WordNet)."""
    import nltk
    from nltk.tokenize import _get_punkt_tokenizer
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk"), *nltk.data.path])
    save_punkt_params(PunktParameters(), str(folder))
    _get_punkt_tokenizer.cache_clear()


def has_wordnet() -> bool:
    try:
        require_wordnet()
    except MissingResourceError:
        return False
    return True


@pytest.mark.parametrize(("how", "known"), [("as_given", False), ("as_trained", True)])
@pytest.mark.slow
def test_references_are_scored_as_given_or_as_the_policy_reads_them(
    how: str, known: bool, tmp_path: Path
):
    """`as_trained`: cut at the longest target, line breaks gone, unknown words lost: so in the
    judge's scores, the metrics' and the kept samples."""
    rows = [
        {"id": f"{i}", "article": f"The mayor opened bridge {i} .", "highlights": text}
        for i, text in enumerate(["Bridge 1\nwas opened . Nobody came .", "Bridge 2 . Zanzibar"])
    ]
    texts = ["Bridge 1 2 was opened . Nobody came", "The mayor opened bridge"]
    model = tiny_t5(tmp_path / "t5", texts)
    for split in ("train", "validation", "test"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    names = "{train:train.parquet,validation:validation.parquet,test:test.parquet}"
    cfg = run_config(
        "summarize",
        [
            "experiment=cnn_dm_t5_small",
            "data.name=files",
            f"data.path={tmp_path}",
            f"data.splits={names}",
            f"policy.path={model}",
            f"reward.path={model}",
            "policy.max_target_tokens=7",
            "judge=rouge1",
            "metrics.names=[rouge]",
            "metrics.sentence_splitter=regex",
            f"judge.reference={how}",
            f"evaluate.reference={how}",
            "sample.max_new_tokens=4",
        ],
    )
    given = [row["highlights"] for row in rows]
    read = ["Bridge 1 was opened . Nobody came", "Bridge 2 ."]
    expected = read if known else given
    with open_task(cfg, tmp_path) as task:
        assert isinstance(task, SummarizeTask) and task.judge is not None
        ctx = opened(cfg, RunFolder(tmp_path / "run"), RunLog(None, quiet=True), task)
        codec = ctx.load_start()[1]
        for texts in (given, read):
            scores = task.judge([[]] * 2, texts, task.examples("test"), codec).result()["score"]
            assert (scores == pytest.approx([100.0, 100.0])) == (texts == expected)
        results, samples = TextEvaluation(cfg).results(ctx, System("start", None), "test")
    assert [row["references"] for row in samples["greedy"]] == [[text] for text in expected]
    assert (results["reference"], results["references_cut"]) == (how, 1 if known else 0)


@pytest.mark.parametrize(
    ("change", "surroundings", "refused"),
    [
        ("data.empty.train=drop", {}, True),
        ("data.empty.train=drop", {"suffix": " tldr :"}, False),
        ("data.empty.train=drop data.empty.validation=drop", {}, False),
    ],
)
def test_an_empty_source_needs_text_around_it(
    change: str, surroundings: dict[str, str], refused: bool, tmp_path: Path
):
    """A causal LM cannot start from nothing: refused in one line, with what helps."""
    files = write(tmp_path, "cnn_dm", {"train": 60, "validation": 60, "test": 60})
    cfg = run_config("summarize", ["experiment=cnn_dm_t5_small", *files, *change.split()])
    task = SummarizeTask(cfg)
    for split in ("train", "validation"):
        task.examples(split)
    causal = codec("gpt2", **surroundings)
    if refused:
        with pytest.raises(
            DataError, match=r"data validation: 1 sources are empty \(first: id50\)"
        ):
            task.require_readable(causal)
    else:
        task.require_readable(causal)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.repeats.trian=keep", "data.repeats.trian: there is no such split; did you mean"),
        ("data.empty.test=kept", "data.empty.test: there is no 'kept'; did you mean 'keep'"),
        (
            "data=newswire data.empty.test=keep",
            "data.empty: only summaries from files or the hub",
        ),
        ("evaluate.reference=given", "evaluate.reference: there is no 'given'"),
        ("judge.reference=trained", "judge.reference: there is no 'trained'"),
    ],
)
def test_wrong_values_are_refused_by_name(change: str, said: str):
    with pytest.raises(ConfigError, match=re.escape(said)):
        run_config("summarize", ["experiment=none", "data.path=/tmp", *change.split()])


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SUMMARIES)
def test_a_scaled_run_of_each_summarization_experiment(
    experiment: str, tmp_path: Path, nltk_data: None, monkeypatch: pytest.MonkeyPatch
):
    """Its own schedule over 64 articles (an epoch of two updates), on models of some thousand
    weights, evaluated on as many rows as the published test split has; then resumed, evaluated
    again, reported and explained from what the last round left."""
    monkeypatch.setenv("PGTG_QUIET", "1")
    data, run = experiment.split("_t5")[0], tmp_path / "run"
    source, reference = COLUMNS[data]
    files = write(tmp_path, data, {"train": 64, "validation": 40, "test": ROWS[data]})
    texts = [f"summarize: {row[key]}" for row in table(data, 300) for key in (source, reference)]
    model = tiny_t5(tmp_path / "t5", texts)
    scaled = [f"policy.path={model}", f"reward.path={model}", "sample.sources=64"]
    scaled += ["sample.heldout_sources=16", "reward.fit.updates=2", "reward.mlp_width=8"]
    scaled += ["improve.validate_every=2", "evaluate.splits=[test]", "evaluate.diagnose=4"]
    scaled += ["sample.max_new_tokens=12", "cache=off", "threads=1", "evaluate.start_policy=false"]
    scaled += ["metrics.names=[rouge,meteor]"] if has_wordnet() else ["metrics.names=[rouge]"]
    scaled += [] if has_wordnet() else ["judge=meteor_stem", "judge.reference=as_trained"]
    cfg = run_config("summarize", [f"experiment={experiment}", *files, *scaled])
    final = train(cfg, run)
    assert [p.name for p in sorted((run / "rounds").iterdir())] == ["00", "01", "02", "03", "04"]
    found = json.loads((run / "eval/results_test.json").read_text(encoding="utf-8"))
    assert set(found) == {"pgtg", "uniform", "shuffled", "untrained"}
    for system in found.values():
        assert (system["examples"], system["reference"]) == (ROWS[data], "as_trained")
        assert system["metrics"][0]["sentence_splitter"] == "punkt"
        samples = run / "eval" / "test" / system["system"] / "samples_greedy.jsonl"
        assert len(read_jsonl(samples)) == ROWS[data]
    weights = sorted(run.glob("rounds/*/*/**/*.safetensors"))
    assert {path.parts[len(run.parts) + 1] for path in weights} == {"04"}
    assert train(cfg, run) == final
    again = evaluate_saved(run, split="validation", metrics=None, overrides=[], cfg=None)
    assert again["examples"] == 40
    report([run], tmp_path / "report")
    explain(run, Options(html=tmp_path / "page.html", quiet=True))
    assert (tmp_path / "page.html").is_file()
