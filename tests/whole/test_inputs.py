"""What real files, folders and terminals trip over: said in one line, or it works."""

import errno
import json
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pgtg.cli.completion import complete_overrides
from pgtg.cli.main import app
from pgtg.config import ColumnsConfig, DataConfig, LoggerConfig
from pgtg.config.compose import run_config
from pgtg.config.sweep import hydra_part
from pgtg.data.splits import load_split
from pgtg.doctor import Surroundings, needs
from pgtg.errors import ConfigError, DataError, MissingResourceError
from pgtg.models.loading import load_language_model
from pgtg.pipeline.run import train
from pgtg.runs import sweeps
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.runs.tracker import run_name, tracker
from pgtg.tasks.summarize import SummarizeTask
from tests.cli.test_main import Calls, pgtg, stand_in
from tests.models.test_compatibility import gpt2, saved
from tests.support.tiny import _quiet  # noqa: F401 (a fixture)

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


def test_the_version(calls: Calls):
    from importlib.metadata import version

    assert pgtg("--version").stdout == f"pgtg {version('pgtg-lm')}\n"


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_cache_size_that_is_none(calls: Calls, monkeypatch: pytest.MonkeyPatch, flags: list[str]):
    monkeypatch.setenv("PGTG_CACHE_SIZE", "lots")
    said = pgtg("train", "summarize", *flags, code=2).stderr.splitlines()
    (line,) = [line for line in said if line.startswith("error: ")]
    assert line.startswith("error: PGTG_CACHE_SIZE: found 'lots'")
    assert calls.runs == [] and os.listdir() == []


# --- own config files


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "conf" / "experiment"
    (folder / "sub").mkdir(parents=True)
    text = "# Mine.\n# @package _global_\ndefaults:\n  - override /data: files\n"
    for name in ("reviews", "sub/deep"):  # one has the name of another task's default experiment
        (folder / f"{name}.yaml").write_text(text)
    return tmp_path / "conf"


def test_own_experiments_are_listed_and_completed(calls: Calls, own: Path):
    listed = pgtg("ls", "experiments", "--config-dir", str(own)).stdout.splitlines()
    found = {line.split()[0]: line.partition("  ")[2].strip() for line in listed}
    assert found["reviews"] == found["sub/deep"] == "Mine." and "quickstart" in found
    assert "no folder nowhere" in pgtg("ls", "data", "--config-dir", "nowhere", code=2).stderr
    context = typer.Context(typer.main.get_command(app))
    context.params["config_dir"] = own
    names = [name for name, _ in complete_overrides(context, "experiment=")]
    assert "experiment=sub/deep" in names


def test_a_launcher_is_read_with_the_experiment_that_is_asked_for(own: Path):
    """Not with the task's default one, whose name an own experiment of another task may have."""
    asked = ["experiment=none", "hydra/sweeper=basic"]
    assert hydra_part("prompt", asked, own)["sweep"]["dir"]


# --- trackers


@dataclass
class Wandb:
    """A stand-in for W&B that cannot be reached, or says that it could."""

    reached: bool
    started: list[dict[str, Any]] = field(default_factory=list)

    def init(self, **how: Any) -> object:
        self.started.append(how)
        if how["mode"] == "online" and not self.reached:
            raise OSError("API key is invalid")
        offline, folder = how["mode"] == "offline", f"{how['dir']}/wandb/{how['mode']}-run-1/files"
        return SimpleNamespace(finish=lambda exit_code: None, offline=offline, dir=folder)

    def Settings(self, **how: Any) -> object:
        return how


@pytest.mark.parametrize(
    ("key", "reached", "modes", "said"),
    [
        (False, True, ["offline"], "nobody is logged in to W&B (wandb login)"),
        (True, False, ["online", "offline"], "W&B cannot be reached (API key is invalid)"),
        (True, True, ["online"], ""),
    ],
)
def test_a_run_that_is_not_tracked_online_as_asked_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: bool,
    reached: bool,
    modes: list[str],
    said: str,
):
    wandb = Wandb(reached)
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # pyright: ignore
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    cfg = LoggerConfig(name="wandb", project="p", entity=None, group=None, mode="online")
    RunLog(tmp_path, tracker=tracker(cfg, tmp_path, {"name": "mine"})).close(0)
    assert [how["mode"] for how in wandb.started] == modes
    logged = (tmp_path / "log.txt").read_text()
    for text in (capsys.readouterr().err, logged):
        assert (said in text) if said else not text
        assert (f"wandb sync {tmp_path}/wandb/offline-run-1\n" in text) == bool(said)


def test_jobs_have_names_of_their_own_that_wandb_takes():
    folders = [Path(f"sweep/{'x' * 140},seed={seed}") for seed in range(2)]
    names = {run_name({"name": "mine"}, folder) for folder in folders}
    assert len(names) == 2 and all(len(name) == 128 for name in names)
    assert run_name({"name": "mine"}, Path("s/seed=1")) == "mine seed=1"


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
    (second,) = (run / "eval").glob("policy_test-????????.json")
    assert json.loads(second.read_text())["examples"] == 2


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("seed=4", "seed"),
        ("policy=t5_small", "policy.path, policy.dropout"),
        ("method=mle", "method.name"),
    ],
)
def test_what_an_evaluation_does_not_read_is_refused(run: Path, override: str, keys: str):
    said = pgtg("eval", str(run), override, code=2).stderr
    assert said.startswith(f"error: {keys}: pgtg eval reads the run's trained policy as it is")


def test_a_model_folder_is_no_judge_of_prompts(made: Path):
    said = pgtg("eval", str(made / "gpt2"), "--task", "prompt", code=2).stderr
    assert "error: judge.classifier.path: " in said and "is no run folder" in said


def test_an_evaluated_models_positions_are_counted(made: Path):
    given = [*SHORT, f"data.path={made / 'data'}", "policy.max_source_tokens=100"]
    said = pgtg("eval", str(made / "gpt2"), *given, code=2).stderr
    assert "source and generation take 100 + 8 = 108 positions" in said


def test_prompts_have_no_metrics_of_texts(made: Path):
    own = ["judge=classifier", f"judge.classifier.path={made / 'gpt2'}", "--metrics", "rouge"]
    said = pgtg("eval", str(made / "gpt2"), "--task", "prompt", *own, code=2).stderr
    assert "error: --metrics: a prompt run has no texts to compare" in said


def test_a_metrics_model_is_looked_at_before_a_run_folder_is_made(made: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(made / "gpt2" / name, bare)
    own = [*SHORT, f"data.path={made / 'data'}", f"policy.path={made / 'gpt2'}"]
    own += ["metrics.names=[bertscore]", f"metrics.bertscore_model={bare}"]
    own += ["metrics.bertscore_layers=1", f"run_dir={tmp_path / 'run'}"]
    said = pgtg("train", "summarize", *own, code=2).stderr
    assert "error: metrics.bertscore_model=" in said and "no tokens but special ones" in said
    assert not (tmp_path / "run").exists()


def test_an_explanation_is_written_through_a_link(run: Path, tmp_path: Path):
    (tmp_path / "page.html").symlink_to(tmp_path / "there.html")
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "there.jsonl")
    files = ["--html", str(tmp_path / "page.html"), "--out", str(tmp_path / "rows.jsonl")]
    pgtg("explain", str(run), *files)
    assert (tmp_path / "page.html").is_symlink() and (tmp_path / "there.html").is_file()
    assert (tmp_path / "rows.jsonl").is_symlink() and (tmp_path / "there.jsonl").is_file()


def test_a_report_folder_that_cannot_be_one(calls: Calls):
    Path("file").write_text("")
    Path("link").symlink_to("gone")
    for name, said in (("file", "is a file"), ("link", "is a link to gone")):
        error = pgtg("report", ".", "--out", name, code=2).stderr
        assert error.startswith(f"error: --out: {name} {said}")


def test_a_run_folder_is_named_once(calls: Calls):
    said = pgtg("train", "summarize", "run_dir=here", "hydra.run.dir=there", code=2).stderr
    assert said == "error: run_dir=here and hydra.run.dir=there name the folder: leave one out\n"


def test_the_doctor_lists_lost_and_repeated_rows(made: Path):
    cfg = run_config("summarize", [*SHORT, f"data.path={made / 'data'}", "policy.path=x"])
    found = [*needs.data(cfg, Surroundings(made, None))]
    assert [one.state for one in found] == ["ok", *["warning"] * 4]
    assert "train 8, validation 5, test 4 examples" in found[0].text
    assert found[3].text == "test: 4 of 5 rows; 1 missing reference (first: 4)"
    assert found[4].text == "1 of the 5 texts of validation stand in train too"
    limited = replace(cfg, data=replace(cfg.data, limit={"train": 2, "validation": 1, "test": 1}))
    assert [one.state for one in needs.data(limited, Surroundings(made, None))] == ["ok"]


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
    split = ["--split", "test"] if command == "eval" else ["--split", "train"]
    moved = run.rename(run.with_name("Läufe"))
    result = CliRunner(charset="ascii").invoke(app, [command, str(moved), *split])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "?" in result.stdout or r"L\xe4ufe" in result.stdout


# --- files


def test_weights_of_other_sizes_are_named(tmp_path: Path):
    folder = Path(saved(tmp_path / "gpt2", gpt2()))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 16}))
    first = r"first: transformer.wpe.weight, \[32, 16\] in the files, \[16, 16\] by the config"
    with pytest.raises(MissingResourceError, match=f"1 of its weights .*{first}"):
        load_language_model(str(folder))


def test_a_data_file_that_is_a_link_to_nothing(tmp_path: Path):
    (tmp_path / "train.jsonl").symlink_to("gone.jsonl")
    cfg = DataConfig("files", str(tmp_path), columns=ColumnsConfig(None, "source", ["target"]))
    said = r"train.jsonl \(a link to gone.jsonl\): No such file or directory"
    with pytest.raises(DataError, match=said):
        load_split(cfg, "train")


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
    made = SummarizeTask(cfg)
    made.open_judge()
    return made


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
