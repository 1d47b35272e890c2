"""The doctor: each planted problem is named with what fixes it, all at once; nothing is left."""

import fcntl
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgtg import doctor
from pgtg.config import RunConfig
from pgtg.config.compose import run_config
from pgtg.doctor import Finding, Surroundings, machine, needs
from tests.cli.test_main import pgtg
from tests.support.sim_device import NAME


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    monkeypatch.chdir(tmp_path)
    return Surroundings(tmp_path / "outputs", tmp_path / "cache")


OWN = ("experiment=none", "data=files", "policy=pretrained", "evaluate.splits=[train]")
OWN += ("++data.splits.validation=null", "++data.splits.test=null")
QUICK = run_config("summarize", ["cache=off"])


def config(*overrides: str) -> RunConfig:
    return run_config("summarize", [*overrides])


def only(found: list[Finding], state: str = "problem") -> Finding:
    (one,) = [each for each in found if each.state == state]
    return one


def test_a_healthy_machine_is_said_to_be_well_and_left_as_it_was(around: Surroundings):
    result = pgtg("doctor")
    assert result.stdout.splitlines()[-1] == "all is well"
    assert list(Path().iterdir()) == []


def test_all_problems_come_at_once_each_with_what_fixes_it(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NLTK_DATA", str(around.outputs))
    monkeypatch.setattr("nltk.data.path", [])
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    Path("f").write_text("a file")
    wrong = ["agregator=max", "judge=meteor", "logger=wandb", "logger.mode=online"]
    wrong += ["experiment=cnn_dm_t5_small", "run_dir=f/x", "metrics.names=[rouge,bertscore]"]
    said = pgtg("doctor", *wrong, code=1).stdout
    for part in (
        "did you mean 'aggregator'",
        "python -m nltk.downloader wordnet",
        "HF_HUB_OFFLINE=0 hf download google-t5/t5-small",
        "HF_HUB_OFFLINE=0 python -c \"import datasets; datasets.load_dataset('abisee/cnn",
        "metrics.bertscore_model=",
        "wandb login",
        "f/x cannot be written",
    ):
        assert part in said, part
    assert "Traceback" not in said


def test_a_check_that_breaks_is_a_finding_and_the_others_are_made(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
):
    def broken(cfg: RunConfig | None, around: Surroundings):
        yield doctor.good("device", "so far")
        raise RuntimeError("odd\nthing")

    monkeypatch.setitem(doctor.CHECKS, "device", broken)
    found = doctor.examine(QUICK, [], around)
    assert only(found).text == "this could not be examined: RuntimeError: odd"
    assert {one.about for one in found} > {"device", "packages", "disk", "judge"}


def test_packages_are_held_against_their_ranges(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
):
    asked = ["numpy<1", "typer>=0.20", "no-such-package>=3,<4", "colorama; os_name == 'no'"]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: asked)
    wrong = [one for one in machine.packages(None, around) if one.state == "problem"]
    assert [one.fix.split("pip install ")[1] for one in wrong] == [
        "'numpy<1'",
        "'no-such-package<4,>=3'",
    ]
    assert "numpy" in wrong[0].text and "is not installed" in wrong[1].text


def test_devices_and_dtypes(around: Surroundings, monkeypatch: pytest.MonkeyPatch):
    assert "mps" in only([*machine.device(config("device=mps"), around)]).text
    monkeypatch.setattr(machine, "_bfloat16_ratio", lambda device: 4.0)
    slow = only([*machine.device(config("policy.dtype=bfloat16"), around)], "warning")
    assert "4.0 x slower" in slow.text and slow.fix.startswith("policy.dtype=float32")
    assert all(one.state == "ok" for one in machine.device(QUICK, around))
    many = only([*machine.device(config("threads=9999"), around)], "warning")
    assert many.fix == f"threads={len(os.sched_getaffinity(0))}"


def test_the_dtype_probe_measures_time():
    assert 0.001 < machine._bfloat16_ratio("cpu") < 1000


def test_folders_that_cannot_be_written(around: Surroundings, monkeypatch: pytest.MonkeyPatch):
    Path("file").write_text("in the way")
    bad = Surroundings(Path("file/runs"), Path("file"))
    assert "cannot be written" in only([*machine.outputs(None, bad)]).text
    assert "cache=off" in only([*machine.cache(None, bad)]).fix
    assert [one.text for one in machine.cache(None, Surroundings(Path(), None))] == ["off"]
    monkeypatch.setenv("PGTG_CACHE_SIZE", "many")
    assert "PGTG_CACHE_SIZE" in only([*machine.cache(None, around)]).text

    def no_locks(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert "no file locks" in only([*machine.outputs(None, around)]).text
    assert sorted(path.name for path in Path().iterdir()) == ["file"]


def test_models_by_folder_cache_and_hub(around: Surroundings, monkeypatch: pytest.MonkeyPatch):
    folder = Path("model")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    cfg = config(*OWN, "data.splits.train=config.json", "data.path=model", "policy.path=model")
    assert "safe_serialization=True" in only([*needs.models(cfg, around)]).fix
    (folder / "model.safetensors").write_bytes(b"")
    there, unread = needs.models(cfg, around)
    assert there.state == "ok" and "cannot be loaded" in unread.text
    cfg.policy.path = "some/model"
    assert "forbids" in only([*needs.models(cfg, around)]).text
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert only([*needs.models(cfg, around)], "warning").fix == "hf download some/model"

    def asked(*args: object, **kwargs: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", asked)
    online = Surroundings(around.outputs, around.cache, online=True)
    assert only([*needs.models(cfg, online)]).text.endswith("for us: no network")
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *a, **k: None)
    assert "the run will fetch it" in next(needs.models(cfg, online)).text


def test_data_that_cannot_be_read(around: Surroundings):
    Path("train.jsonl").write_text('{"a": 1}\n')
    cfg = config(*OWN, "data.splits.train=train.jsonl", "data.path=.", "policy.path=x/y")
    assert "train.jsonl" in only([*needs.data(cfg, around)]).text
    os.truncate("train.jsonl", needs.READ_AT_MOST + 1)
    assert "--dry-run" in only([*needs.data(cfg, around)], "warning").fix


def test_room_is_held_against_the_plan(around: Surroundings, monkeypatch: pytest.MonkeyPatch):
    """Exactly at the estimate of --dry-run."""
    from pgtg.pipeline.plan import needs as estimate

    monkeypatch.setattr(
        "pgtg.pipeline.plan.room._program", lambda: 5e8
    )  # this process grows meanwhile
    found = estimate(QUICK)
    assert found is not None
    memory, disk = int(found.host), int(found.disk)
    for less in (1, 0):
        monkeypatch.setattr(needs, "memory_bytes", lambda less=less: (10**12, memory - less))
        usage = type("Usage", (), {"free": disk - less})
        monkeypatch.setattr(needs.shutil, "disk_usage", lambda path, usage=usage: usage)
        states = [next(check(QUICK, around)).state for check in (needs.memory, needs.disk)]
        assert states == (["problem", "problem"] if less else ["ok", "warning"])  # below 1 GB
    if not torch.accelerator.is_available():
        assert needs._gpu(QUICK) is None
    # any accelerator whose module tells its memory is asked
    module = torch.get_device_module(NAME)
    monkeypatch.setattr(module, "mem_get_info", lambda device: (3, 5), raising=False)
    assert needs._gpu(replace(QUICK, device=NAME)) == (3, 5)


def test_a_sweep_and_the_prompt_task_are_examined(around: Surroundings):
    assert "all is well" in pgtg("doctor", "summarize", "-m", "seed=0,1").stdout
    said = pgtg("doctor", "prompt").stdout
    assert "a tiny classifier of the set-up" in said and "reviews: train" in said
    assert "did you mean 'summarize'" in pgtg("doctor", "sumarize", code=1).stdout


def test_the_environment_block_is_complete_and_private(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    monkeypatch.setenv("HF_HOME", str(Path.home() / "models"))
    said = pgtg("doctor", "--env").stdout
    assert said.startswith("```\npgtg: ") and said.rstrip().endswith("```")
    for part in ("python: ", "torch: ", "cpu: ", "memory: ", "gpu: ", "HF_HOME: ~/models"):
        assert part in said
    assert "secret" not in said


@pytest.mark.slow
def test_no_traceback_in_a_process_of_its_own(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "pgtg", "doctor", "prompt", "data_seed=x", "device=cuda:99"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "data_seed=x: expected a whole number" in done.stdout


def test_prompts_that_validate_are_no_lost_rows(around: Surroundings):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(40)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["data.path=train.jsonl", "data.validation_share=0.3", "policy.path=x"]
    cfg = run_config("preferences", own)
    (found,) = needs.data(cfg, around)
    sizes = re.findall(r"(?:train|validation) (\d+)", found.text)
    assert found.state == "ok" and sum(map(int, sizes)) == 40 and len(sizes) == 2
