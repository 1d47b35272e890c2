"""Sweeps: what is left to run, the status table, threads, and launchers of other processes."""

import copy
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import joblib
import pytest
import torch
import yaml
from hydra.core.config_store import ConfigStore

from pgtg.cli import jobs
from pgtg.cli.calls import Call, _thread_share
from pgtg.config import RunConfig
from pgtg.config.compose import run_config
from pgtg.config.overrides import folder_name
from pgtg.errors import ArtifactError, DivergedError
from pgtg.pipeline.context import opened
from pgtg.pipeline.run import ROUNDS, train
from pgtg.pipeline.stages import improve
from pgtg.runs import sweeps
from pgtg.runs.folder import RunFolder, read_json, write_json
from pgtg.runs.log import ENDED, RunLog
from pgtg.runtime.signals import Interrupted
from tests.cli.test_main import Calls, pgtg, stand_in
from tests.support.finished import finished_run
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import TINY, results, tiny

QUICK = run_config("summarize")
SHORT = ("schedule.total=1", "schedule.retrain_until=0", "evaluate.diagnose=0")
ARGS = ["summarize", "-m", "seed=0,1", "sample.k=2", "sweep_dir=all"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    return stand_in(monkeypatch, tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "s" / "seed=0").create(asdict(run_config("summarize")), {})


def table(*lines: str) -> list[str]:
    """The words of each line."""
    return [" ".join(line.split()) for line in lines]


def shown(folder: str) -> list[str]:
    return table(*pgtg("ls", folder).stdout.splitlines())


def complete(calls: Calls, *bad: int) -> None:
    """The stand-in for training now ends its runs, but for seeds that diverge."""

    def end(cfg: RunConfig) -> None:
        _, folder, _ = calls.runs[-1]
        if cfg.seed in bad:
            raise DivergedError(f"loss is nan\nseed {cfg.seed}")
        write_json(folder / "summary.json", {"loss": 1.0})

    calls.fail = end


@pytest.mark.slow
def test_the_same_command_runs_only_what_is_not_complete(calls: Calls):
    complete(calls, 1)
    first = pgtg("train", *ARGS, code=1)
    assert "sweep all: 2 runs: 2 missing" in first.stderr
    assert shown("all")[:4] == table(
        "run state note", "seed=0 done", "seed=1 failed seed 1", "2 runs: 1 done, 1 failed"
    )
    complete(calls)
    calls.runs.clear()
    second = pgtg("train", *ARGS)
    assert [cfg.seed for cfg, _, _ in calls.runs] == [1]
    assert "sweep all: 2 runs: 1 done, 1 failed" in second.stderr
    assert "job 0: complete, nothing to run" in second.stderr.splitlines()
    assert shown("all")[-1] == "2 runs: 2 done"


@pytest.mark.slow
def test_a_wider_sweep_adds_its_jobs_and_the_table_says_how_to_go_on(calls: Calls):
    complete(calls, 0)
    pgtg("train", *ARGS[:2], "seed=0", *ARGS[3:], code=1)
    complete(calls, 1)
    pgtg("train", *ARGS[:2], "seed=1", *ARGS[3:], code=1)
    *_, counts, command = shown("all")
    assert counts == "2 runs: 2 failed"
    assert set(sweeps.asked_for(Path("all"))) == {"sample.k=2,seed=0", "sample.k=2,seed=1"}
    said = shlex.split(command.removeprefix("resume with: "))
    complete(calls)
    calls.runs.clear()
    pgtg(*said[1:])
    assert [cfg.seed for cfg, _, _ in calls.runs] == [1]  # what was asked for last


def test_a_complete_run_counts_for_its_own_config_only(run: RunFolder):
    """Another config is handed to training, which refuses it; so is everything with --force."""
    cfg = run_config("summarize")
    assert jobs._result(cfg, run.path) is None
    write_json(run.path / "summary.json", {"loss": 2.0})
    assert jobs._result(cfg, run.path) == {"loss": 2.0}
    assert jobs._result(run_config("summarize", ["keep_rounds=last"]), run.path) == {"loss": 2.0}
    assert jobs._result(run_config("summarize", ["sample.k=3"]), run.path) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGTG_FORCE", "1")
        assert jobs._result(cfg, run.path) is None


@pytest.mark.slow
def test_work_on_a_complete_run_makes_it_incomplete(tmp_path_factory: pytest.TempPathFactory):
    """Until it is complete again: the user may have deleted an artifact, or forced a change."""
    folder = finished_run(tiny(*SHORT), tmp_path_factory)
    assert (folder / "summary.json").is_file()
    shutil.rmtree(folder / "rounds" / "00" / "improve")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(improve, "_make", lambda *a: seen.append((folder / "summary.json").exists()))
        with pytest.raises(ArtifactError):
            train(tiny(*SHORT), folder)
    assert seen and not any(seen)


@pytest.mark.slow
def test_run_dir_and_sweep_dir_name_the_folder_of_a_sweep(calls: Calls):
    pgtg("train", "summarize", "-m", "seed=0,1", "run_dir=a b")
    pgtg("train", "summarize", "-m", "seed=0,1", "sweep_dir=~/x", "hydra.sweep.dir=own")
    assert set(read_json(Path("a b/sweep.json"))["jobs"]) == {"seed=0", "seed=1"}
    assert set(read_json(Path("own/sweep.json"))["jobs"]) == {"seed=0", "seed=1"}
    refused = pgtg("train", "summarize", "sweep_dir=x", code=2)
    assert "sweep_dir is the folder of a sweep (-m)" in refused.stderr


@pytest.mark.slow
def test_jobs_are_listed_under_the_names_of_their_folders(calls: Calls):
    """The list is written before Hydra makes the folders: the two must agree, key for key."""
    odd = ["data.limit.train=5,6", "policy.prefix='a b','c=d'", "aggregator=max", "++seed=1"]
    pgtg("train", "summarize", "-m", "sweep_dir=all", *odd)
    made = {folder.name for _, folder, _ in calls.runs}
    assert set(read_json(Path("all/sweep.json"))["jobs"]) == made and len(made) == 4


def test_long_names_of_two_jobs_never_meet():
    start = "x" * 300
    names = {folder_name(start + end) for end in ("a", "b")}
    assert len(names) == 2 and all(len(name) <= 200 for name in names)
    assert folder_name("aggregator=max,seed=1") == "aggregator=max,seed=1"


# ---------------------------------------------------------------- status


def log(run: RunFolder, *lines: str) -> None:
    text = "".join(f"2024-01-01T00:00:00+00:00 {line}\n" for line in lines)
    (run.path / "log.txt").write_text(text)


def state(run: RunFolder) -> tuple[str, str]:
    (found,) = sweeps.statuses(run.path.parent)
    return found.state, found.note.removeprefix("2024-01-01T00:00:00+00:00 ")


def test_states_come_from_the_run_folder(run: RunFolder):
    log(run, "run folder x", "sample train round 0: 3/5")
    with run.lock():
        assert state(run) == ("running", "sample train round 0: 3/5")
    kind, note = state(run)
    assert kind == "stopped" and "cut off; last: " in note and "3/5" in note
    log(run, "run folder x", "error: loss is nan", "error: try a lower rate")
    assert state(run) == ("failed", "try a lower rate")
    log(run, "run folder x", "error: loss is nan", "run folder x", "sample")
    assert "loss is nan" not in state(run)[1]  # it was begun again since
    log(run, "run folder x", "sample", "stopped: stopped by SIGINT")
    assert state(run) == ("stopped", "stopped by SIGINT")
    log(run, "run folder x", "sample", "run folder x", ENDED)
    assert state(run) == ("partly done", "")
    log(run, "run folder x", "run folder x", ENDED, "run folder x", "error: loss is nan")
    assert state(run) == ("failed", "loss is nan")
    write_json(run.path / "summary.json", {})
    assert state(run) == ("done", "")


def test_a_call_that_was_refused_leaves_a_run_what_it_was(run: RunFolder, tmp_path: Path):
    later = "a later call was refused: give --force"
    log(run, "run folder x", "run folder x", ENDED, "refused: give --force")
    assert state(run) == ("partly done", later)
    log(run, "run folder x", "stopped: by SIGTERM", "refused: give --force")
    assert state(run) == ("stopped", f"by SIGTERM; {later}")
    never = tmp_path / "never"
    never.mkdir()
    (never / "log.txt").write_text("2024-01-01T00:00:00+00:00 refused: no such file\n")
    assert sweeps.status(never, "never") == sweeps.Status("never", "refused", "no such file")


def test_looking_at_a_run_does_not_keep_it_from_starting(run: RunFolder):
    code = (
        "import fcntl, os, sys, time; f = os.open(sys.argv[1], os.O_RDONLY);"
        "fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True); time.sleep(0.1); os.close(f);"
        "time.sleep(60)"
    )
    with run.lock():
        pass
    command = [sys.executable, "-c", code, str(run.path / "run.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None and looking.stdout.readline()
        with run.lock():
            looking.kill()


def test_errors_stand_in_the_runs_own_log(calls: Calls):
    calls.fail = lambda cfg: 1 / 0
    pgtg("train", "summarize", "run_dir=mine", code=1)
    assert sweeps.status(Path("mine"), "mine").note.startswith("ZeroDivisionError: division by")


def test_ls_of_what_is_no_sweep_is_one_line(calls: Calls, tmp_path: Path):
    assert "holds no run" in pgtg("ls", str(tmp_path), code=2).stderr
    (tmp_path / "sweep.json").write_text('{"jobs": 3}')
    assert "damaged" in pgtg("ls", str(tmp_path), code=2).stderr


def test_runs_without_a_list_are_shown_too(calls: Calls):
    complete(calls)
    pgtg("train", "summarize", "run_dir=all/a/one")
    pgtg("train", "summarize", "run_dir=all/two")
    assert shown("all")[1:] == table("a/one done", "two done", "2 runs: 2 done")


@pytest.mark.slow
def test_a_sweep_ends_with_a_table_of_its_jobs(calls: Calls):
    complete(calls, 1)
    said = pgtg("train", *ARGS, code=1).stderr
    lines = table(*said.splitlines())
    start = lines.index("sweep all") + 1
    head, done, failed, counts, again, error, *_ = lines[start:]
    assert error.startswith("error: the sweep has failed jobs")
    assert head == "run state note" and done == "seed=0 done" and failed == "seed=1 failed seed 1"
    assert counts == "2 runs: 1 done, 1 failed" and again.startswith("resume with: pgtg train")
    assert "follow with" not in said  # the jobs have run here, one after the other


def test_cache_commands(calls: Calls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGTG_CACHE", "here")
    train(tiny("cache=here", *SHORT), Path("run"))
    listed = pgtg("ls", "cache").stdout
    (run,) = (line for line in listed.splitlines() if line.startswith("summarize quickstart"))
    assert re.fullmatch(r"summarize quickstart seed 0 +\S+ [kM]B .* \d+ \w+(, \d+ \w+)*", run)
    counts = re.findall(r"(\d+) [a-z_]+(?:,|$)", listed.split("here:")[0], re.MULTILINE)
    entries = sum(map(int, counts))
    assert f"here: {entries} entries" in listed and "limit 20.0 GB" in listed
    assert "--max-size: found 'x'" in pgtg("cache", "prune", "--max-size", "x", code=2).stderr
    assert "0 entries deleted" in pgtg("cache", "prune").stdout
    assert "0 left" in pgtg("cache", "prune", "--max-size", "0").stdout
    assert "here: 0 entries, 0 B" in pgtg("ls", "cache").stdout


# ---------------------------------------------------------------- launchers


def overrides(*args: str) -> dict[str, str]:
    """What a sweep hands to Hydra in addition to the user's own words."""
    call = Call.parse("summarize", ["sweep_dir=s", *args], None, multirun=True)
    _, found = call._sweep(call.jobs())
    return dict(text.split("=", 1) for text in found)


@pytest.mark.parametrize(
    ("asked", "threads", "torch", "pools"),
    [
        (-1, [None] * 4, "2", "2"),  # 8 cores over 4 jobs
        (2, [None] * 4, "4", "4"),
        (-5, [None] * 20, "2", "2"),  # all cores but four
        (100, [None] * 2, "4", "4"),
        (-1, [3] * 4, "2", "3"),  # as the config says
        (-1, [1, 3], "4", "4"),
        (-1, [None] * 20, "1", "1"),
    ],
)
def test_joblib_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int, threads: list[int | None], torch: str, pools: str
):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    runs = [replace(QUICK, threads=number) for number in threads]
    launcher = {"_target_": "a.JoblibLauncher", "n_jobs": asked}
    assert _thread_share(launcher, runs) == [
        f"+hydra.job.env_set.PGTG_THREADS='{torch}'",
        f"+hydra.job.env_set.OMP_NUM_THREADS='{pools}'",
        f"+hydra.job.env_set.MKL_NUM_THREADS='{pools}'",
    ]


def test_a_job_takes_its_share(calls: Calls, monkeypatch: pytest.MonkeyPatch):
    """The judge's processes too; the config's own number of threads comes first for torch."""
    monkeypatch.setenv("PGTG_THREADS", "3")
    seen = []
    calls.fail = lambda cfg: seen.append(cfg.judge.workers)
    pgtg("train", "summarize", "judge.workers=8")
    assert seen == [2]
    folder, before = RunFolder(Path("x")), torch.get_num_threads()
    try:
        for threads, expected in ((None, 3), (2, 2)):
            opened(
                replace(QUICK, threads=threads), folder, RunLog(None, mute=True), cast(Any, None)
            )
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_jobs_one_after_the_other_keep_the_threads(calls: Calls):
    assert not any("THREADS" in key for key in overrides("seed=0"))


@pytest.fixture
def ray_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config that Ray's plugin registers; the plugin itself needs all of Ray."""
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        node = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"}
        node |= {"ray": {"init": {"address": None}, "remote": {}}}
        store = ConfigStore.instance()
        monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
        store.store(group="hydra/launcher", name="ray", node=node, provider="ray_launcher")


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"]),
        ("submitit_slurm", ["hydra.launcher.partition=gpu", "hydra.launcher.cpus_per_task=4"]),
        ("ray", ["+hydra.launcher.ray.init.num_cpus=4"]),
    ],
)
def test_launchers_compose(calls: Calls, ray_plugin: None, launcher: str, options: list[str]):
    args = ["summarize", "-m", "seed=0,1", f"hydra/launcher={launcher}", *options]
    found = yaml.safe_load(pgtg("train", *args, "--cfg", "hydra").stdout)["hydra"]["launcher"]
    assert found["_target_"].lower().endswith(f"{launcher.replace('submitit_', '')}launcher")
    for option in options:
        key, _, value = option.partition("=")
        part = found
        for name in key.split(".")[2:]:
            part = part[name]
        assert str(part) == value
    # only joblib's jobs share one machine's cores
    assert ("+hydra.job.env_set.OMP_NUM_THREADS" in overrides(*args[2:])) == (launcher == "joblib")


def test_a_launcher_that_is_not_installed_names_the_extra(calls: Calls):
    args = ["summarize", "-m", "seed=0,1", "hydra/launcher=rq"]
    assert "pip install hydra-joblib-launcher" in pgtg("train", *args, code=2).stderr
    assert calls.runs == [] and not Path("outputs").exists()


@pytest.mark.slow
def test_submitit_for_real(tmp_path: Path):
    """Slurm's launcher with its local executor: jobs are pickled and run by other processes."""
    bare = [word for word in TINY if not word.startswith("cache=")]
    command = [sys.executable, "-m", "pgtg", "train", "summarize", "-m", *bare, "seed=0,1"]
    command += [f"sweep_dir={tmp_path / 's'}", "hydra/launcher=submitit_local"]
    command += ["hydra.launcher.timeout_min=5", f"cache={tmp_path / 'cache'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert [one.state for one in sweeps.statuses(tmp_path / "s")] == ["done", "done"]
    train(tiny("seed=1"), tmp_path / "alone")
    assert results(tmp_path / "s" / "seed=1") == results(tmp_path / "alone")


@pytest.mark.slow
def test_joblib_for_real(tmp_path: Path):
    """Jobs in several processes: the bits of runs one by one, a failure named in time and in its
    log, threads as shared out, and a second call that runs only what failed."""
    bare = [word for word in TINY if not word.startswith(("threads=", "cache="))]
    command = [sys.executable, "-m", "pgtg", "train", "summarize", "-m", *bare, "threads=1"]
    command += ["aggregator=avg,max", "improve.lr=0.005,1e38", "hydra/launcher=joblib"]
    command += [f"sweep_dir={tmp_path / 's'}", "hydra.launcher.n_jobs=2", "--quiet"]
    command += [f"cache={tmp_path / 'cache'}"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    for first in (True, False):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        lines = done.stderr.splitlines()
        assert done.returncode == 1, done.stderr
        failed = [line for line in lines if line.startswith("error: job ")]
        assert len(failed) == 2 and all("lr=1e+38" in line for line in failed)
        assert sum("complete, nothing to run" in line for line in lines) == (0 if first else 2)
    found = {one.run: one for one in sweeps.statuses(tmp_path / "s")}
    assert [one.state for one in found.values()] == ["done", "done", "failed", "failed"]
    for aggregator in ("avg", "max"):
        name = f"aggregator={aggregator},improve.lr=0.005"
        train(tiny(f"aggregator={aggregator}"), tmp_path / aggregator)
        assert results(tmp_path / "s" / name) == results(tmp_path / aggregator)
        assert "improve round 0 update 1" in found[name.replace("0.005", "1e+38")].note


def test_stages_run_alone_and_a_refused_call_are_told_from_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    values = [*(word for word in TINY if not word.startswith("run_dir")), *SHORT]
    pgtg("sample", "summarize", *values, "run_dir=runs/a")
    assert shown("runs")[1].startswith("a partly done")
    pgtg("sample", "summarize", "sample.k=2", "run_dir=runs/a", code=2)
    assert shown("runs")[1].startswith("a partly done a later call was refused: sample.k")

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setitem(ROUNDS, "align", stop)
    pgtg("align", "summarize", *values, "run_dir=runs/a", code=143)
    assert shown("runs")[1] == "a stopped stopped by SIGTERM"
