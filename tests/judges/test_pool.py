"""Judges and their worker processes: the same bits for any number of workers, no process left."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nltk
import pytest

from pgtg.config import MetricsConfig, TextJudgeConfig
from pgtg.config.registry import JUDGES
from pgtg.errors import ConfigError, MissingResourceError, PgtgError
from pgtg.judges import TextJudge
from pgtg.judges import pool as pool_module
from pgtg.judges.pool import CHUNK, INLINE_S, JudgePool, free_cores
from pgtg.judges.text import build_judge
from pgtg.metrics import build_metrics, compute

ASSETS = Path(os.environ.get("PGTG_ASSETS", "/nonexistent"))
SENTENCE = "the a storm storms harbour closed closing boat boats waited outside . today"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i % 13] for i in range(n, n + n % 9)) for n in range(3 * CHUNK + 5)]
REFERENCES = [[" ".join(WORDS[:n]), " ".join(WORDS[n:])] for n in (i % 12 + 1 for i in range(101))]


def test_judges_are_the_metrics_of_the_same_name():
    metrics, _ = build_metrics(MetricsConfig(["rouge", "meteor_stem", "chrf"], "regex"))
    columns = compute(metrics, TEXTS, REFERENCES)
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "meteor_stem", "chrf"):
        judge = build_judge(TextJudgeConfig(name, 0))
        assert judge.score(TEXTS, REFERENCES) == columns[name]
        assert judge.describe()["judge"] == name
        assert name == "chrf" or judge.describe()["sentence_splitter"] == "regex"
    pooled = {s.name for s in JUDGES.specs if not (s.main or s.prompts or s.absent)}
    assert set(columns) | {"meteor"} == pooled


def test_unknown_judge_names_the_nearest():
    with pytest.raises(ConfigError, match=r"judge\.name.*'meteor_stm'.*did you mean 'meteor_stem'"):
        build_judge(TextJudgeConfig("meteor_stm", 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_resource_refuses_before_any_process_starts(monkeypatch, tmp_path, workers):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(MissingResourceError, match=r"nltk.downloader wordnet"):
        JudgePool(TextJudgeConfig("meteor", workers))
    with pytest.raises(ConfigError, match=r"judge.workers=-1"):
        JudgePool(TextJudgeConfig("meteor_stem", -1))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(workers):
    expected = build_judge(TextJudgeConfig("meteor_stem", 0)).score(TEXTS, REFERENCES)
    assert len({*expected}) > 10
    with JudgePool(TextJudgeConfig("meteor_stem", workers)) as pool:
        futures = [pool.submit(TEXTS, REFERENCES), pool.submit(TEXTS[:1], REFERENCES[:1])]
        assert [future.result() for future in futures] == [expected, expected[:1]]
        assert pool.score([], []) == []
        assert pool.describe()["judge"] == "meteor_stem"


def test_unequal_lengths_are_a_mistake_of_the_caller():
    with (
        JudgePool(TextJudgeConfig("rouge1", 0)) as pool,
        pytest.raises(ValueError, match="2 texts, 1"),
    ):
        pool.submit(["a", "b"], [["a"]])


def test_a_score_that_is_not_finite_is_an_error(monkeypatch):
    broken = TextJudge("broken", lambda text, _: math.nan if text == "b" else 1.0, {})
    monkeypatch.setattr(pool_module, "build_judge", lambda *_: broken)
    with JudgePool(TextJudgeConfig("broken", 0)) as pool:
        assert pool.score(["a"], [["a"]]) == [1.0]
        with pytest.raises(PgtgError, match="judge broken: score nan for the text 'b'"):
            pool.score(["a", "b"], [["a"], ["a"]])


@pytest.mark.slow
def test_a_dead_worker_gives_one_clear_line():
    with JudgePool(TextJudgeConfig("meteor_stem", 1)) as pool:
        pool.score(TEXTS[:1], REFERENCES[:1])
        workers: Any = pool._workers
        (worker,) = workers._processes
        os.kill(worker, signal.SIGKILL)
        for _ in range(2):  # at result(), and at submit() once the executor knows
            with pytest.raises(PgtgError, match=r"worker process died.*judge.workers=0") as caught:
                pool.score(TEXTS, REFERENCES)
            assert "\n" not in str(caught.value)


SCRIPT = """
import os, signal, sys
from pgtg.config import TextJudgeConfig
from pgtg.judges.pool import JudgePool
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
print("main module runs", flush=True)
pool = JudgePool(TextJudgeConfig("chrf", 1))
print(pool.score(["the cats sat"], [["the cat sat down"]]), flush=True)
print(*pool._workers._processes, flush=True)
{then}
pool.close()
print("closed", flush=True)
"""


def start(then: str, *how: str) -> Any:  # a Popen with text pipes
    return subprocess.Popen(
        [sys.executable, *how, *([SCRIPT.format(then=then)] if how == ("-c",) else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_a_script_without_a_main_guard_runs_once(tmp_path):
    """Spawned processes import the parent's main module, unless it is kept from them."""
    (tmp_path / "script.py").write_text(SCRIPT.format(then=""))
    process = start("", str(tmp_path / "script.py"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    lines = out.splitlines()
    assert lines.count("main module runs") == 1
    assert lines[1] == str(
        build_judge(TextJudgeConfig("chrf", 0)).score(["the cats sat"], [["the cat sat down"]])
    )
    assert lines[-1] == "closed"


@pytest.mark.slow
def test_ctrl_c_reaches_the_parent_only():
    """The whole group gets the signal, as from a terminal: the worker continues and is closed."""
    then = """
try:
    import time; print("ready", flush=True); time.sleep(60)
except KeyboardInterrupt:
    print(pool.score(["a"], [["a"]]), flush=True)
"""
    process = start(then, "-c")
    while (line := process.stdout.readline()) and line != "ready\n":
        pass
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines() == ["[100.0]", "closed"]
    assert err == ""


@pytest.mark.slow
def test_workers_end_when_the_parent_is_killed():
    process = start("import time; time.sleep(60)", "-c")
    lines = [process.stdout.readline() for _ in range(3)]
    worker = int(lines[2])
    assert alive(worker)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(worker)


@pytest.mark.slow
def test_a_worker_imports_no_torch():
    """Workers start fast: neither judges nor metrics pull a heavy library in."""
    script = (
        "import sys, pgtg.judges.pool, pgtg.metrics; from pgtg.config import TextJudgeConfig;"
        "early = {'torch', 'nltk', 'numpy', 'transformers'} & set(sys.modules);"
        "pgtg.judges.text.build_judge(TextJudgeConfig('rougeLsum', 0)).score(['a'], [['a']]);"
        "print(early, {'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    run = [sys.executable, "-c", script]
    assert subprocess.check_output(run, text=True).strip() == "set() set()"


@pytest.mark.real
@pytest.mark.skipif(not (ASSETS / "nltk_data").is_dir(), reason="set PGTG_ASSETS to try WordNet")
def test_meteor_with_wordnet_in_a_worker(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(ASSETS / "nltk_data")])
    expected = build_judge(TextJudgeConfig("meteor", 0)).score(TEXTS, REFERENCES)
    with JudgePool(TextJudgeConfig("meteor", 1)) as pool:
        assert pool.score(TEXTS, REFERENCES) == expected


def test_without_a_number_workers_start_once_judging_takes_long(monkeypatch):
    """Inline at first; then in processes, with the same scores."""
    texts = [f"the mayor of town {i} opened a bridge" for i in range(40)]
    references = [["a bridge was opened by the mayor"]] * len(texts)
    monkeypatch.setattr("pgtg.judges.pool.free_cores", lambda: 1)
    with JudgePool(TextJudgeConfig("rouge1", None)) as pool:
        first = pool.score(texts, references)
        assert pool._workers is None and 0 < pool._spent < INLINE_S
        monkeypatch.setattr("pgtg.judges.pool.INLINE_S", 0.0)
        assert pool.score(texts, references) == first
        assert pool._workers is not None and len(pool._workers._processes) == 1
    with JudgePool(TextJudgeConfig("rouge1", 0)) as pool:
        pool.score(texts, references)
        assert pool.score(texts, references) == first and pool._workers is None


@pytest.mark.parametrize(
    ("cores", "count", "share", "expected"),
    [(1, 1, "", 0), (2, 1, "", 0), (3, 1, "", 2), (64, 1, "", 4), (16, 8, "", 0), (64, 1, "3", 2)],
)
def test_workers_that_there_are_cores_for(monkeypatch, cores, count, share, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr("pgtg.runtime.distributed.count", lambda: count)
    monkeypatch.setenv("PGTG_THREADS", share)
    assert free_cores() == expected
