"""The benchmarks still run: each phase of `make bench`, and scripts that can be made small."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "encode_once.py": [
        "--sources",
        "2",
        "--source-tokens",
        "16",
        "--tokens",
        "4",
        "--repeats",
        "1",
    ],
    "paper_runs.py": ["--size", "tiny", "--updates", "4", "--device", "cpu"],
    "sharded.py": ["--layers", "1", "--width", "64"],
    "chosen.py": ["--largest", "1000", "--repeats", "1"],
    "judged_prompts.py": ["--layers", "1", "--texts", "8", "--repeats", "1"],
    "versions.py": [str(SCRIPTS.parent), "--only", "judge, METEOR exact + stem", "--repeats", "1"],
    "compiled.py": ["--only", "Llama, 64 wide", "--repeats", "1"],
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    for name, value in {"SOURCES": 2, "SOURCE": 16, "NEW": 4, "EXAMPLES": 4, "WORDS": 5}.items():
        monkeypatch.setattr(bench, name, value)
    return bench


@pytest.mark.slow
def test_each_phase_of_make_bench(bench: Any, capsys: pytest.CaptureFixture[str]):
    for name, phase in bench.PHASES.items():
        made = phase(torch.device("cpu"))
        made.run()
        assert made.count > 0 and made.unit, name


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_a_script_runs(script: str, tmp_path: Path):
    words = [sys.executable, str(SCRIPTS / script), *SMALL[script]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
