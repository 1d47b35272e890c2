"""Disk and memory of a run: by hand, and against what real runs take."""

import re
import shutil
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import pytest

from pgtg.config import RunConfig, TinyT5Config
from pgtg.config.compose import run_config
from pgtg.errors import MissingResourceError
from pgtg.pipeline.plan.models import ModelSize, ModelSizes
from pgtg.pipeline.plan.room import bytes_below, require_room, room_for

MIB = 2.0**20
SMALL = [
    "experiment=none",
    "policy=pretrained",
    "policy.max_source_tokens=40",
    "policy.max_target_tokens=16",
    "data.newswire.train=60",
    "data.newswire.validation=16",
    "data.newswire.test=4",
    "sample.sources=12",
    "sample.heldout_sources=8",
    "sample.k=3",
    "sample.max_new_tokens=12",
    "sample.batch_tokens=512",
    "reward.fit.updates=3",
    "reward.fit.micro_batch=4",
    "reward.fit.validate_every=2",
    "reward.fit.checkpoint_every=1",
    "reward.mlp_width=64",
    "schedule.unit=updates",
    "schedule.total=6",
    "schedule.retrain_every=2",
    "schedule.retrain_until=4",
    "improve.micro_batch=4",
    "improve.accumulate=1",
    "improve.validate_every=1",
    "improve.checkpoint_every=1",
    "method.controls=[uniform]",
    "judge=rouge1",
    "evaluate.splits=[test]",
    "evaluate.diagnose=0",
    "cache=off",
    "threads=1",
]


@lru_cache
def sized(*overrides: str) -> RunConfig:
    return run_config("summarize", [*SMALL, "policy.path=x", *overrides])


def test_the_disk_by_hand():
    """A policy and a reward model of W bytes, no files next to them, no head; 3 rounds, 2 lines.

    A round keeps a reward model (W) and for each line weights, best weights and two moments (4 W).
    A state to resume from is weights, moments and best (4 W), twice while it is replaced.
    """
    w = 100 * MIB
    model = ModelSize(int(w / 4), int(w / 4), files=0.0)
    sizes = ModelSizes(model, model, head=0)
    tables = room_for(
        sized(),
        ModelSizes(ModelSize(0, 0, files=0.0), ModelSize(0, 0, files=0.0), 0),
        3,
        on_cpu=True,
    )
    everything = room_for(sized("keep_rounds=all"), sizes, 3, on_cpu=True)
    assert everything.disk_end - tables.disk_end == pytest.approx(3 * 9 * w)
    # the last line's state of 8 W, before its own 4 W are kept
    assert everything.disk - tables.disk == pytest.approx((3 * 9 - 4 + 8) * w)
    last = room_for(sized("keep_rounds=last"), sizes, 3, on_cpu=True)
    # the last round, and for each line weights and best weights of one earlier round
    assert last.disk_end - tables.disk_end == pytest.approx((9 + 4) * w)
    plain = room_for(sized("keep_rounds=last", "improve.keep=last"), sizes, 3, on_cpu=True)
    assert plain.disk_end - tables.disk_end == pytest.approx((1 + 2 * 3) * w)
    # two rounds, and in place of the last line's 3 W its state, which holds no best weights (3 W)
    assert plain.disk - tables.disk == pytest.approx((2 * 7 - 3 + 2 * 3) * w)


def test_tokens_and_token_rewards_are_counted():
    """5,000 examples of 40 + 16 tokens at 2 bytes; rewards of 16 tokens in float32 for the 2 x 4
    examples of each of three rounds. Fewer than 4,096 are not kept."""
    none = ModelSizes(ModelSize(0, 0, files=0.0), ModelSize(0, 0, files=0.0), head=0)
    ends = [room_for(sized(), none, 3, on_cpu=True, train=n).disk_end for n in (0, 100, 5000)]
    assert ends[1] - ends[0] == pytest.approx(3 * 2 * 4 * 16 * 4)
    assert ends[2] - ends[1] == pytest.approx(5000 * (40 + 16) * 2)


def test_the_memory_by_hand():
    """Policy training: weights, gradients, two moments, best weights and the reward model, each W.

    On a CPU also the copies that a state is written from (3 W), and the moments of the round before
    (2 W); with a GPU these and the moments on their way.
    """
    w = 100 * MIB
    model = ModelSize(int(w / 4), int(w / 4), files=0.0)
    found = room_for(sized(), ModelSizes(model, model, head=0), 2, on_cpu=False)
    assert found.activations == 0  # no config to know the width from
    assert found.device == pytest.approx(6 * w)
    on_cpu = room_for(sized(), ModelSizes(model, model, head=0), 2, on_cpu=True)
    assert on_cpu.host - found.host == pytest.approx((6 + 5) * w - (5 + 2) * w, rel=0.1)
    without_best = sized("improve.keep=last", "reward.fit.keep=last")
    found = room_for(without_best, ModelSizes(model, model, head=0), 2, on_cpu=False)
    assert found.device == pytest.approx(5 * w)
    with_kl = sized("method.reinforce=0.1", "method.kl=0.1")
    found = room_for(with_kl, ModelSizes(model, model, head=0), 2, on_cpu=False)
    assert found.device == pytest.approx(7 * w)


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": int(1e9)})
    monkeypatch.setattr("pgtg.pipeline.plan.room.shutil.disk_usage", lambda path: usage)
    require_room([sized()], tmp_path / "run", 0.9e9)
    with pytest.raises(MissingResourceError, match=r"1\.2 GB of disk, and 1\.0 GB are free"):
        require_room([sized("keep_rounds=all")], tmp_path / "run", 1.1e9)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights").write_bytes(bytes(int(3e8)))  # what is there needs no room
    require_room([sized()], tmp_path / "run", 1.1e9)
    with pytest.raises(MissingResourceError, match="2 runs need"):
        require_room([sized(), sized()], tmp_path / "run", 1.5e9)


def test_a_file_with_two_names_is_one(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert bytes_below(tmp_path) == 5


# --- real runs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 large enough that its weights, not the tables, take the room."""
    from pgtg.data.worlds.newswire import vocabulary
    from pgtg.models.tiny.t5 import build

    folder = tmp_path_factory.mktemp("t5")
    sizes = TinyT5Config(384, 1536, 64, 6, 3, 3, 0.1, 0)
    world = run_config("summarize").data.newswire
    assert world is not None
    t5, tokenizer = build(vocabulary(world), sizes, 0)
    t5.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all", "last"])
def test_the_plan_is_what_a_real_run_takes(model: Path, tmp_path: Path, keep: str):
    """Most and last bytes on the disk, and of memory, within 10 %.

    Memory is that of a process of its own, as the system counts it; the disk is looked at all the
    time, files with several names once. improve.keep=last, since which round is best is chance.
    """
    values = [*SMALL, f"policy.path={model}", f"keep_rounds={keep}", "improve.keep=last"]
    run = tmp_path / "run"
    code = (
        "import sys; from pgtg.pipeline import plan; import pgtg.pipeline.run;"
        "from pgtg.config.compose import run_config;"
        "print(plan.needs(run_config('summarize', sys.argv[1:])))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, *values], capture_output=True, text=True, check=True
    ).stdout
    planned = {key: float(value) for key, value in re.findall(r"(\w+)=([\d.e+]+)", said)}
    command = [sys.executable, "-m", "pgtg", "train", "summarize", *values, f"run_dir={run}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    disk = memory = 0.0
    while process.poll() is None:
        try:
            disk = max(disk, bytes_below(run))
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory = max(memory, 1024.0 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0]))
        except (OSError, IndexError):
            pass  # a file was renamed, or the process ended, while it was looked at
        time.sleep(0.01)
    assert process.returncode == 0
    found = {"disk": disk, "disk_end": float(bytes_below(run)), "host": memory}
    ratios = {name: planned[name] / value for name, value in found.items()}
    assert all(0.9 <= ratio <= 1.1 for ratio in ratios.values()), (ratios, found)
    shutil.rmtree(run)
