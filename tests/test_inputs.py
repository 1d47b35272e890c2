"""What real files, folders and terminals trip over: said in one line, or it works."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_cli import Calls, pgtg, stand_in
from test_compatibility import gpt2, saved
from tiny import _quiet  # noqa: F401 (a fixture)

from pgtg import sweeps
from pgtg.compose import run_config
from pgtg.config import ColumnsConfig, DataConfig
from pgtg.errors import ConfigError, DataError
from pgtg.judges.pool import JudgePool
from pgtg.store import RunFolder
from pgtg.tasks.data import load_split
from pgtg.tasks.summarize import SummarizeTask
from pgtg.train import train

WORDS = ["Sure", "the", "café", "<b>", "opened"]
SHORT = [
    "experiment=none",
    "data=files",
    "policy=pretrained",
    "policy.max_source_tokens=12",
    "policy.max_target_tokens=8",
    "sample.sources=6",
    "sample.heldout_sources=4",
    "sample.k=3",
    "sample.max_new_tokens=6",
    "reward.mlp_width=4",
    "reward.fit.updates=1",
    "reward.fit.micro_batch=2",
    "reward.fit.accumulate=1",
    "reward.fit.validate_every=1",
    "improve.micro_batch=2",
    "improve.accumulate=1",
    "schedule.unit=updates",
    "schedule.total=1",
    "schedule.retrain_every=1",
    "schedule.retrain_until=0",
    "judge=chrf",
    "judge.workers=0",
    "method.controls=[]",
    "metrics.names=[chrf]",
    "evaluate.diagnose=0",
    "evaluate.splits=[test]",
    "cache=off",
    "threads=1",
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    return stand_in(monkeypatch, tmp_path)


def rows(split: str, count: int) -> str:
    """Rows of their own for each split, and at the end one without a target."""
    texts = [" ".join([WORDS[n % 5], split, WORDS[n * 2 % 5], str(n)]) for n in range(count)]
    lines = [{"source": text, "target": text.partition(" ")[2]} for text in texts]
    return "".join(f"{json.dumps(line)}\n" for line in [*lines, {"source": "x"}])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run on files, begun through a link to its folder; tests work on copies of it."""
    home = tmp_path_factory.mktemp("made")
    (home / "data").mkdir()
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        text = rows(split, count)
        if split == "validation":  # one text of train
            text = rows("train", 8).splitlines(keepends=True)[2] + text
        (home / "data" / f"{split}.jsonl").write_text(text)
    (home / "real").mkdir()
    (home / "latest").symlink_to("real", target_is_directory=True)
    own = [f"data.path={home / 'data'}", f"policy.path={saved(home / 'gpt2', gpt2())}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGTG_QUIET", "1")
        train(run_config("summarize", [*SHORT, *own]), home / "latest")
    return home


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "real", tmp_path / "run"))


# --- folders


def test_a_run_folder_may_be_a_link(made: Path):
    assert (made / "latest").is_symlink()
    assert (made / "real" / "summary.json").is_file()


def test_a_sweep_folder_may_be_a_link(tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch", target_is_directory=True)
    sweeps.record(tmp_path / "link", ["pgtg"], {"seed=0": ["seed=0"]})
    assert sweeps.asked_for(tmp_path / "scratch") == {"seed=0": ["seed=0"]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file", "file is a file, not a folder"),
        ("file/below", "file is a file, not a folder"),
        ("dangling/below", "dangling is a link to nowhere, which is not there"),
        ("${x}", "found '${x}'"),
    ],
)
def test_what_cannot_be_a_run_folder(calls: Calls, name: str, said: str):
    Path("file").write_text("")
    Path("dangling").symlink_to("nowhere")
    lines = pgtg("train", "summarize", f"run_dir={name}", code=2).stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert said in line
    assert calls.runs == [] and sorted(os.listdir()) == ["dangling", "file"]


def test_a_run_folder_may_end_in_a_backslash(calls: Calls):
    pgtg("train", "summarize", "run_dir=a\\")
    assert calls.runs[0][1].name == "a\\"


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "set back by the test")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    home = tmp_path / f"pgtg-home-{os.getuid()}"
    assert f"caches go to {home} (set HOME)" in pgtg("ls", "aggregators").stderr
    assert os.environ["HOME"] == str(home)
    assert home.stat().st_mode & 0o077 == 0
    home.rmdir()
    home.symlink_to(tmp_path)  # another user's trap
    assert "is not ours: set HOME" in pgtg("ls", "aggregators", code=2).stderr


# --- sweeps


def test_a_sweep_without_a_job(calls: Calls):
    for flags in ([], ["--cfg", "job"], ["--dry-run"]):
        said = pgtg("train", "summarize", "-m", "experiment=glob(zz*)", *flags, code=2).stderr
        assert "error: the sweep has no job" in said
    assert "the sweep has no job" in pgtg("doctor", "-m", "experiment=glob(zz*)", code=1).stdout
    assert calls.runs == []


def test_a_sweep_with_the_same_job_twice(calls: Calls):
    said = pgtg("train", "summarize", "-m", "seed=0,1,0", "sweep_dir=s", code=2).stderr
    assert "error: the sweep has the same job twice: seed=0\n" in said
    assert calls.runs == [] and not Path("s").exists()


# --- what a run, an evaluation and an explanation say of their data


def test_a_run_says_what_became_of_the_rows_and_which_texts_repeat(made: Path):
    log = (made / "real" / "log.txt").read_text()
    assert "data test: 4 of 5 rows; 1 missing reference (first: 4)" in log
    assert "warning: data: 1 of the 5 texts of validation stand in train too" in log
    kept = json.loads((made / "real" / "eval" / "results_test.json").read_text())
    assert all(found["rows"]["kept"] == 4 for found in kept.values())


def test_explanations_count_the_split_that_they_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PGTG_QUIET")
    page = tmp_path / "page.html"
    said = pgtg("explain", str(run), "--split", "test", "--html", str(page)).stderr
    assert "data test: 4 of 5 rows; 1 missing reference" in said


def test_evaluations_name_their_data_and_leave_earlier_ones(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PGTG_QUIET")
    shown = pgtg("eval", str(run), "--split", "test")
    first = (run / "eval" / "policy_test.json").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test.jsonl").write_text(rows("other", 2))
    other = pgtg("eval", str(run), f"data.path={tmp_path / 'other'}", "--split", "test")
    assert f"on files {run_data(run)}, test" in shown.stdout
    assert f"on files {tmp_path / 'other'}, test" in other.stdout
    assert "data test: 2 of 3 rows" in other.stderr
    assert (run / "eval" / "policy_test.json").read_bytes() == first
    (beside,) = (run / "eval").glob("policy_test-????????.json")
    assert json.loads(beside.read_text())["examples"] == 2


def run_data(run: Path) -> str:
    return RunFolder(run).config()["data"]["path"]


def test_a_run_that_cannot_be_written_is_evaluated_nevertheless(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    opens = os.open

    def read_only(path: Any, flags: int, *rest: Any, **how: Any) -> int:
        if str(path).startswith(str(run)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opens(path, flags, *rest, **how)

    monkeypatch.setattr("os.open", read_only)
    shown = pgtg("eval", str(run), "--split", "test")
    assert "chrf" in shown.stdout
    assert "not kept" in shown.stderr and "Read-only file system" in shown.stderr
    assert not (run / "eval" / "policy_test.json").exists()


@pytest.mark.parametrize("command", ["explain", "eval"])
def test_a_terminal_that_shows_few_characters(run: Path, command: str):
    """A stand-in for PYTHONIOENCODING=ascii: the output is read in strict ASCII."""
    from typer.testing import CliRunner

    from pgtg.cli import app

    split = ["--split", "test"] if command == "eval" else ["--split", "train"]
    moved = run.rename(run.with_name("Läufe"))
    result = CliRunner(charset="ascii").invoke(app, [command, str(moved), *split])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "?" in result.stdout or r"L\xe4ufe" in result.stdout


# --- files


def test_split_aliases_in_saved_folders(tmp_path: Path):
    import datasets

    data = datasets.Dataset.from_list([{"source": "a b", "target": "a"}])
    two = datasets.Dataset.from_list([{"source": f"{n} b", "target": "a"} for n in range(2)])
    columns = ColumnsConfig(None, "source", ["target"])
    for alias in ("valid", "val", "dev"):
        datasets.DatasetDict({"train": data, alias: two}).save_to_disk(tmp_path / alias)
        cfg = DataConfig("files", str(tmp_path / alias), columns=columns)
        assert len(load_split(cfg, "validation")[0]) == 2
        with pytest.raises(DataError, match=f"no split 'test': splits: train, {alias}"):
            load_split(cfg, "test")


def task(folder: Path, references: list[str], judge: str) -> SummarizeTask:
    for split in ("train", "validation"):
        lines = [{"source": f"{split} {n}", "target": t} for n, t in enumerate(references)]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)
    own = [f"data.path={folder}", "policy.path=x", f"judge={judge}", "evaluate.splits=[validation]"]
    cfg = run_config("summarize", [*SHORT, *own])
    return SummarizeTask(cfg, JudgePool(cfg.judge))


@pytest.mark.parametrize(
    ("share", "judge", "outcome"),
    [(0.4, "rougeL", "said"), (0.6, "rougeL", "refused"), (1.0, "chrf", "silent")],
)
def test_a_judge_reads_half_of_the_letters_or_is_refused(
    tmp_path: Path, share: float, judge: str, outcome: str
):
    letters = (
        10 * "今" if share == 1.0 else "a" * round(10 * (1 - share)) + "今" * round(10 * share)
    )
    asked = task(tmp_path, [letters], judge)
    if outcome == "refused":
        with pytest.raises(ConfigError, match=r"60(\.0)? ?%.*judge=chrf"):
            asked.read()
        return
    asked.read()
    assert bool(asked.remarks) == (outcome == "said")
    assert all("40" in line for line in asked.remarks)
