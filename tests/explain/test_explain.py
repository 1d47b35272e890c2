"""Token credit: what runs say of their texts and of others, and the forms that it is written in."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from typer.testing import CliRunner

from pgtg.cli.main import app
from pgtg.errors import ConfigError, DataError
from pgtg.explain import runs
from pgtg.explain.credit import ranks
from pgtg.explain.gather import Credit, Options, gather
from pgtg.explain.runs import alike, open_run
from pgtg.explain.write import explain
from pgtg.judges.pool import JudgePool
from pgtg.models.batch import token_batch
from pgtg.models.codec import Codec
from pgtg.models.reward import load_reward_model
from pgtg.pipeline.run import run_stage
from pgtg.runs.folder import read_jsonl, read_table
from pgtg.runs.log import RunLog
from pgtg.tasks.summarize import SummarizeTask
from tests.support.explain_codecs import HOSTILE, codec, together
from tests.support.finished import finished_run
from tests.support.terminal import shown as on_screen
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_prompt import tiny_prompt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny(*SHORT), tmp_path_factory, name="avg")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cfg = tiny(*SHORT, "aggregator=max", "reward.head=paper")
    return finished_run(cfg, tmp_path_factory, "sample", "align", name="max")


def found(path: Path, **options: Any) -> Credit:
    return gather(path, Options(**options), RunLog(None, quiet=True))


def all_views(credit: Credit) -> Iterator[tuple[str, Any]]:
    for group in credit.groups:
        for entry in group.entries:
            for number, view in enumerate(entry.views):
                yield group.id, (number, entry, view)


def rewards_alone(path: Path, source: list[int], tokens: list[int]) -> list[float]:
    """By the run's own reward model, one text at a time."""
    with torch.no_grad():
        model = load_reward_model(path / "reward").eval()
        return model(token_batch([source], [tokens], [0]))[0].tolist()


def test_last_rounds_texts_are_shown_as_the_stages_wrote_them(run: Path):
    """Rewards of score, evaluations of aggregate, the judge's scores; no model is loaded."""
    folder = run / "rounds" / "00"
    samples = [read_table(path) for path in sorted((folder / "sample/heldout").glob("*.parquet"))]
    score, made = (read_table(folder / f"{s}/heldout.parquet") for s in ("score", "aggregate"))
    credit = found(run)
    expected = {}
    for n, text in enumerate([text for table in samples for text in table["text"]]):
        key = (made["source_id"][n], tuple(score["tokens"][n]))
        expected[key] = (text, score["reward"][n], made["evaluation"][n], made["score"][n])
    assert len(credit.groups) == 3 and len({id for id, _ in expected}) == 6
    for id, (_, entry, view) in all_views(credit):
        text, reward, evaluation, judged = expected[id, tuple(p.id for p in view.pieces)]
        assert (view.text, list(view.rewards), entry.score) == (text, reward, judged)
        assert view.evaluation == pytest.approx(evaluation, rel=1e-12)
        assert together(view.text, list(view.pieces)) == view.text
    for group in credit.groups:
        example = next(e for e in credit.runs[0].task.examples("validation") if e.id == group.id)  # type: ignore
        assert (group.source, group.references) == (example.source, example.references)
        scores = [entry.score for entry in group.entries]
        assert scores == sorted(scores, key=lambda s: -(s or 0))


def test_reward_model_is_asked_only_without_fitting_scores(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same numbers up to rounding in batches of another make-up; a stale score is not used."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("  - targets\n", ""))  # other inputs of score
    asked: list[Path] = []
    load = runs.load_reward_model
    monkeypatch.setattr(runs, "load_reward_model", lambda path: asked.append(path) or load(path))
    expected = found(run)
    assert asked == []
    made = found(copy)
    assert asked == [copy / "reward"]
    for (_, (_, _, a)), (_, (_, _, b)) in zip(all_views(expected), all_views(made), strict=True):
        assert_close(torch.tensor(a.rewards), torch.tensor(b.rewards), rtol=1e-4, atol=1e-6)
    source = made.groups[0].source
    ids = made.runs[0].codec.encode_source(source)[0]
    view = made.groups[0].entries[0].views[0]
    alone = rewards_alone(run, ids, [piece.id for piece in view.pieces])
    assert_close(torch.tensor(view.rewards), torch.tensor(alone), rtol=1e-4, atol=1e-6)


def test_other_runs_read_the_same_tokens(run: Path, other: Path):
    credit = found(run, n=2, others=(other,))
    assert [r.label for r in credit.runs] == ["avg, head state_action", "max, head paper"]
    for group in credit.groups:
        ids = credit.runs[0].codec.encode_source(group.source)[0]
        for entry in group.entries:
            mine, theirs = entry.views
            assert mine.pieces == theirs.pieces and mine.rewards != theirs.rewards
            alone = rewards_alone(other, ids, [piece.id for piece in theirs.pieces])
            assert_close(torch.tensor(theirs.rewards), torch.tensor(alone), rtol=1e-4, atol=1e-6)
        values = [entry.views[1].evaluation for entry in group.entries]
        assert [entry.views[1].rank for entry in group.entries] == ranks(values)


def test_runs_that_cut_texts_alike():
    a, b = codec("words"), codec("words")
    assert alike(a, b)
    assert not alike(a, Codec(b.tokenizer, True, "summarize: ", "", "", 500, 500))
    assert not alike(a, codec("unigram"))


def test_train_and_test_sources(run: Path):
    """Train has no scored tokens, test has no generations: both are computed."""
    trained = found(run, split="train", n=2)
    assert trained.origin == "train generations of round 0"
    credit = found(run, split="test", n=2)
    assert credit.origin == "new generations of the trained policy on test"
    examples = {e.id: e for e in credit.runs[0].task.examples("test")}  # type: ignore
    assert [group.id for group in credit.groups] == [*examples][:2]
    with JudgePool(tiny().judge) as judge:
        for group in credit.groups:
            references = [examples[group.id].references] * len(group.entries)
            texts = [entry.views[0].text for entry in group.entries]
            expected = judge.submit(texts, references).result()
            assert [entry.score for entry in group.entries] == expected
            assert len(texts) == 3
    assert found(run, split="test", n=2).groups == credit.groups
    assert "new generations" in found(run, split="validation", n=7).origin


def test_users_texts_are_read_and_compared_by_prompt(run: Path, tmp_path: Path, capsys: Any):
    """Unknown words, emoji and scripts keep their text; lines that cannot be used are named."""
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": "the p", "completion": text} for text in (HOSTILE[0], HOSTILE[1])]
    rows += [{"prompt": "q .", "completion": "the .", "reference": "r"}, {"prompt": "q ."}]
    lines = [json.dumps(row) for row in rows] + ["{broken", '["a"]', '{"prompt": 1}', ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    credit = found(run, text=path)
    said = " ".join(capsys.readouterr().err.split())
    assert "4 of 7 rows left out: 1 missing completion (line 4); 1 broken JSON (line 5)" in said
    assert "1 not a JSON object (line 6); 1 non-string prompt (line 7)" in said
    first, second = credit.groups
    assert {entry.views[0].text for entry in first.entries} == set(HOSTILE[:2])
    assert [entry.views[0].rank for entry in first.entries] == [1, 2] and first.pairs == 0
    assert second.references == ("r",) and second.entries[0].score is None
    for id, (_, _, view) in all_views(credit):
        source = credit.runs[0].codec.encode_source("the p" if id == "text 1" else "q .")[0]
        alone = rewards_alone(run, source, [piece.id for piece in view.pieces])
        assert_close(torch.tensor(view.rewards), torch.tensor(alone), rtol=1e-4, atol=1e-6)


def test_written_tables_hold_the_same_numbers(run: Path, other: Path, tmp_path: Path):
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    for out in (lines, table):
        explain(run, Options(out=out, n=2, others=(other,), quiet=True))
    rows, columns = read_jsonl(lines), read_table(table)
    assert len(rows) == 2 * 3 * 2 and [*rows[0]] == [*columns]
    for n, row in enumerate(rows):
        assert {k: v for k, v in row.items() if k != "rewards"} == {
            k: columns[k][n] for k in row if k != "rewards"
        }
        assert_close(torch.tensor(row["rewards"]), torch.tensor(columns["rewards"][n]))
        spans = zip(row["starts"], row["ends"], strict=True)
        assert "".join(row["text"][start:end] for start, end in spans) == row["text"]
        assert len(row["tokens"]) == len(row["strings"]) == len(row["rewards"])


def test_terminal_joins_tokens_and_marks_them_without_colours(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    credit = found(run, n=1)
    explain(run, Options(n=1, quiet=True))
    plain = capsys.readouterr().out
    digits = str.maketrans("", "", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    text = credit.groups[0].entries[0].views[0].text
    assert text and text in plain.translate(digits) and "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    explain(run, Options(n=1, quiet=True))
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured and ";48;2;" in coloured and not set("⁰¹²³") & set(coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    explain(run, Options(n=1, quiet=True))
    assert ";48;2;" not in (without := capsys.readouterr().out) and set("⁰¹²³⁴⁵⁶⁷⁸⁹") & set(without)


def test_how_good_the_reward_model_is_stands_above_the_first_text(
    run: Path, other: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    made = json.loads((run / "rounds/00/aggregate/manifest.json").read_text())["metrics"]
    pairs, free = (
        f"{100 * made[f'aggregate/heldout_{name}']:.1f} %"
        for name in ("pair_accuracy", "log_prob_wins")
    )
    explain(run, Options(n=1, quiet=True))
    head = capsys.readouterr().out.split("source: ")[0]
    assert f"{pairs} of pairs ordered as they are preferred, held-out sources" in head
    assert f"start policy's log-probability {free}, chance 50.0 %" in head
    explain(run, Options(n=1, html=tmp_path / "a.html", quiet=True))
    assert f"{pairs} of pairs ordered" in (tmp_path / "a.html").read_text()
    assert open_run(other).worth == ""  # its texts were not evaluated yet


@pytest.mark.slow
def test_on_a_terminal_of_40_columns_nothing_is_wider(run: Path):
    shown = on_screen([sys.executable, "-m", "pgtg", "explain", str(run), "--n", "1"], 40)
    assert shown.code == 0 and shown.wide == [], shown.text


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 80])
def test_on_a_terminal_texts_are_broken_at_words(run: Path, width: int):
    shown = on_screen([sys.executable, "-m", "pgtg", "explain", str(run), "--n", "1"], width)
    assert shown.code == 0 and shown.wide == [], shown.text
    plain = on_screen(
        [sys.executable, "-m", "pgtg", "explain", str(run), "--n", "1"], 10_000, env={}
    )
    assert shown.text.split() == plain.text.split()


@pytest.mark.slow
def test_prompts_of_the_last_round_compete_with_each_other(tmp_path: Path):
    """Distinct prompts, ranked among all of them even where few are shown; spaces as sampled."""
    folder = tmp_path / "prompt"
    for stage in ("sample", "align", "score"):
        run_stage(tiny_prompt(), folder, stage)
    (group,) = found(folder).groups
    table = read_table(folder / "rounds/00/sample/train/00000.parquet")
    assert len(group.entries) == len({tuple(tokens) for tokens in table["tokens"]})
    assert {entry.views[0].text for entry in group.entries} == set(table["text"])
    (few,) = found(folder, n=2).groups
    assert few.entries == group.entries[:2]
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"completion": group.entries[0].views[0].text}))
    (mine,) = found(folder, text=path).groups
    assert_close(
        torch.tensor(mine.entries[0].views[0].rewards),
        torch.tensor(group.entries[0].views[0].rewards),
        rtol=1e-4,
        atol=1e-6,
    )
    with pytest.raises(ConfigError, match="leave it out"):
        found(folder, split="test")


def test_labels_and_tasks(run: Path, tmp_path: Path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    credit = found(run, n=1, others=(copy, copy, run))
    assert [r.label for r in credit.runs] == ["avg (avg)", "avg (copy)"]


def test_errors_are_one_line_and_exit_2(run: Path, tmp_path: Path):
    mle, empty = Path(shutil.copytree(run, tmp_path / "mle")), tmp_path / "empty.jsonl"
    config = (mle / "config.yaml").read_text()
    (mle / "config.yaml").write_text(config.replace("name: pgtg", "name: mle"))
    empty.write_text('{"prompt": "a"}\n')
    calls = {
        "method=mle has no reward model": [str(mle)],
        "no split 'tset'; did you mean 'test'?": [str(run), "--split", "tset"],
        "no usable row: 1 missing completion (line 1)": [str(run), "--text", str(empty)],
        "No such file": [str(run), "--text", str(tmp_path / "none")],
        "give one": [str(run), "--text", str(empty), "--split", "test"],
        "needs --out": [str(run), "--format", "jsonl"],
        "expected one of jsonl, parquet": [str(run), "--format", "xml", "--out", "a"],
        "give --format": [str(run), "--out", "a.txt"],
        "is a folder": [str(run), "--html", str(tmp_path)],
        "no run folder": [str(tmp_path / "none")],
    }
    for message, arguments in calls.items():
        result = CliRunner().invoke(app, ["explain", *arguments])
        assert result.exit_code == 2, (message, result.output)
        assert message in result.stderr and len(result.stderr.splitlines()) == 1
    with pytest.raises(DataError, match="no usable row"):
        found(run, text=empty)


def test_missing_data_is_said_and_texts_are_still_shown(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    def gone(self: SummarizeTask, split: str) -> list:
        raise DataError("validation.jsonl: gone")

    expected = found(run, n=1)
    monkeypatch.setattr(SummarizeTask, "examples", gone)
    credit = found(run, n=1)
    assert "references left out" in " ".join(capsys.readouterr().err.split())
    assert credit.groups[0].source == expected.groups[0].source
    assert credit.groups[0].references == ()
