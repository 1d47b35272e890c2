"""The command line: what is called with what, exit codes, messages; train itself is a stand-in."""

import os
import signal
import subprocess
import sys
import types
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from pgtg.cli import jobs
from pgtg.cli.main import app
from pgtg.config import RunConfig
from pgtg.errors import ConfigError, DivergedError
from pgtg.runs.folder import RunFolder


@dataclass
class Calls:
    """What the commands called, and what the stand-in for training does then."""

    runs: list[tuple[RunConfig, Path, dict[str, Any]]] = field(default_factory=list)
    stages: list[tuple[Any, ...]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    fail: Any = None  # called with the config, may raise


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    return stand_in(monkeypatch, tmp_path)


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Train, the stages and eval only note their calls; the current folder is a fresh one."""
    seen = Calls()

    def train(cfg: RunConfig, run_dir: Path, *, page: Any, **how: Any) -> dict[str, float]:
        assert page is jobs.credit_page
        seen.runs.append((cfg, run_dir, {**how, "quiet": os.environ.get("PGTG_QUIET")}))
        if not RunFolder(run_dir).exists():
            RunFolder(run_dir).create(asdict(cfg), {})
        if seen.fail:
            seen.fail(cfg)
        return {"loss": 1.0}

    def run_stage(cfg: RunConfig, run_dir: Path, stage: str, **how: Any) -> None:
        seen.stages.append((cfg.sample.k, run_dir, stage, how["round"]))

    def evaluate_saved(path: Path, **how: Any) -> dict[str, float]:
        seen.evaluations.append({"path": path, **how})
        return {}

    parts = {"train": train, "run_stage": run_stage}
    for name, functions in {"run": parts, "evaluate": {"evaluate_saved": evaluate_saved}}.items():
        module = types.ModuleType(f"pgtg.pipeline.{name}")
        module.__dict__.update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    return seen


def pgtg(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(args), prog_name="pgtg")
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def test_train_makes_a_folder_of_its_own(calls: Calls):
    pgtg("train", "summarize", "seed=2")
    pgtg("train", "summarize", "seed=2")
    (cfg, first, _), (_, second, _) = calls.runs
    assert (cfg.seed, cfg.run_dir) == (2, None)
    assert first != second and first.parent == Path("outputs/summarize/quickstart/seed2").absolute()
    assert (first / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.parametrize(
    "args",
    [
        ["summarize", "sample.k=4", "--force", "run_dir=mine", "aggregator=max"],
        ["--force", "summarize", "sample.k=4", "run_dir=mine", "aggregator=max"],
        ["summarize", "run_dir='mine'", "aggregator=max", "sample.k=4", "--force"],
    ],
)
def test_overrides_stand_on_either_side_of_flags(calls: Calls, args: list[str]):
    pgtg("train", *args)
    ((cfg, folder, how),) = calls.runs
    assert (cfg.sample.k, cfg.aggregator.name, folder.name) == (4, "max", "mine")
    assert how["force"] is True


@pytest.mark.slow
def test_flags_last_for_one_call_only(calls: Calls):
    pgtg("train", "summarize", "--quiet", "--force")
    pgtg("train", "summarize")
    assert [(how["force"], how["quiet"]) for _, _, how in calls.runs] == [
        (True, "1"),
        (False, None),
    ]


def test_a_run_folder_may_have_any_name(calls: Calls):
    pgtg("train", "summarize", "run_dir=a b/c=1,d(2)")
    assert calls.runs[0][1] == Path("a b/c=1,d(2)").absolute()


@pytest.mark.slow
def test_a_later_call_goes_on_with_the_runs_own_config(calls: Calls):
    pgtg("train", "summarize", "run_dir=mine", "sample.k=5", "aggregator=max")
    started = Path("mine/.hydra/overrides.yaml").read_text()
    pgtg("train", "summarize", "run_dir=mine")
    pgtg("train", "summarize", "run_dir=mine", "sample.k=6")
    pgtg("sample", "summarize", "run_dir=mine", "--round", "1")
    assert [cfg.sample.k for cfg, _, _ in calls.runs] == [5, 5, 6]
    assert {cfg.aggregator.name for cfg, _, _ in calls.runs} == {"max"}
    assert calls.stages == [(5, Path("mine"), "sample", 1)]
    assert Path("mine/.hydra/overrides.yaml").read_text() == started


def test_a_sweep_is_one_run_folder_for_each_job(calls: Calls):
    args = [
        "-m",
        "summarize",
        "aggregator=avg,max",
        "seed=0,1",
        "sample.k=2",
        "run_dir=all",
    ]
    result = pgtg("train", *args)
    names = {(cfg.aggregator.name, cfg.seed): folder for cfg, folder, _ in calls.runs}
    assert len(names) == 4 and all(cfg.sample.k == 2 for cfg, _, _ in calls.runs)
    assert names["max", 1] == Path("all/aggregator=max,seed=1").absolute()
    assert "job 3 (aggregator=max,seed=1)" in result.stderr


@pytest.mark.slow
def test_a_failed_job_is_shown_when_it_fails_and_the_others_run(calls: Calls):
    def fail(cfg: RunConfig) -> None:
        if cfg.seed == 0:
            raise DivergedError("loss is nan at step 3")

    calls.fail = fail
    result = pgtg("train", "summarize", "-m", "seed=0,1", code=1)
    lines = result.stderr.splitlines()
    shown = lines.index("error: job 0 (seed=0): loss is nan at step 3")
    assert len(calls.runs) == 2 and lines[shown + 1].startswith("job 1 (seed=1)")
    assert lines[-1].startswith("error: the sweep has failed jobs")


def test_a_sweep_with_a_wrong_job_is_refused_before_it_starts(calls: Calls):
    result = pgtg("train", "summarize", "-m", "sample.k=3,1", code=2)
    assert "sample.k: found 1" in result.stderr and calls.runs == []


def _raise(error: BaseException) -> Any:
    def fail(cfg: RunConfig) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"), [(DivergedError("loss is nan"), 1), (ConfigError("k: a", "l: b"), 2)]
)
def test_known_errors_are_one_line_each_and_an_exit_code(calls: Calls, error: Exception, code: int):
    calls.fail = _raise(error)
    result = pgtg("train", "summarize", code=code)
    assert result.stderr.splitlines() == [f"error: {line}" for line in str(error).splitlines()]
    assert result.stdout == ""


@pytest.mark.parametrize("error", [ValueError("odd\nthing"), SystemExit(7)])
def test_unforeseen_errors_are_one_line_and_a_traceback_in_the_log(
    calls: Calls, error: BaseException
):
    calls.fail = _raise(error)
    result = pgtg("train", "summarize", "run_dir=mine", code=1)
    (line,) = result.stderr.splitlines()
    assert type(error).__name__ in line and "log.txt" in line
    assert "Traceback" in Path("mine/log.txt").read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_run_with_their_code(calls: Calls, signum: int, code: int):
    before = signal.getsignal(signum)
    calls.fail = lambda cfg: os.kill(os.getpid(), signum)
    result = pgtg("train", "summarize", "run_dir=mine", code=code)
    assert "run_dir=" in result.stderr and "mine" in result.stderr
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["train", "sumarize"], ["no task 'sumarize'", "'summarize'"]),
        (["train", "sample.k=3"], ["the task comes first"]),
        (["train", "summarize", "aggregator=mox", "sample.k=0"], ["'max'", "sample.k: found 0"]),
        (["sample", "summarize"], ["give run_dir="]),
        (["ls", "metricks"], ["no group 'metricks'", "'metrics'"]),
        (["eval", "nowhere"], ["there is no folder nowhere"]),
        (["eval", ".", "--split", "dev"], ["--split", "validation"]),
    ],
)
def test_wrong_calls_exit_2_and_run_nothing(calls: Calls, args: list[str], parts: list[str]):
    result = pgtg(*args, code=2)
    assert all(part in result.stderr for part in parts), result.stderr
    assert (calls.runs, calls.stages, calls.evaluations) == ([], [], [])
    assert not Path("outputs").exists()


@pytest.mark.parametrize("args", [["trian"], ["train", "summarize", "--forse"]])
def test_unknown_commands_and_flags_exit_2(calls: Calls, args: list[str]):
    assert args[-1] in pgtg(*args, code=2).stderr
    assert (calls.runs, calls.stages, calls.evaluations) == ([], [], [])


def test_cfg_job_prints_the_config_and_runs_nothing(calls: Calls):
    result = pgtg("train", "summarize", "--cfg", "job", "aggregator=min")
    assert yaml.safe_load(result.stdout)["aggregator"]["name"] == "min"
    assert "dir:" in pgtg("train", "summarize", "--cfg", "hydra").stdout
    assert calls.runs == [] and not Path("outputs").exists()


def test_dry_run_prints_counts_and_writes_nothing(calls: Calls):
    result = pgtg("train", "summarize", "--dry-run", "sample.k=4", "sample.sources=10")
    assert "generations" in result.stdout and "(10" not in result.stderr
    assert calls.runs == [] and list(Path().iterdir()) == []


def test_every_stage_is_a_command(calls: Calls):
    for stage in ("sample", "score", "aggregate", "align", "improve"):
        pgtg(stage, "summarize", "run_dir=mine", "sample.k=2")
    assert [stage for _, _, stage, _ in calls.stages] == [
        "sample", "score", "aggregate", "align", "improve",
    ]  # fmt: skip


def test_a_stage_checks_what_train_checks_before_it_writes(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PGTG_CACHE_SIZE", "lots")
    assert "PGTG_CACHE_SIZE" in pgtg("sample", "summarize", "run_dir=mine", code=2).stderr
    monkeypatch.delenv("PGTG_CACHE_SIZE")
    Path("empty").mkdir()
    own = ["policy=pretrained", "policy.path=empty", "experiment=none", "data=newswire"]
    assert "empty" in pgtg("sample", "summarize", "run_dir=mine", *own, code=2).stderr
    assert calls.stages == [] and not Path("mine").exists()


def test_eval_of_a_run_folder_leaves_its_config_to_the_run(calls: Calls):
    Path("mine").mkdir()
    pgtg("eval", "mine", "--split", "test", "--metrics", "rouge, meteor", "sample.k=2")
    (call,) = calls.evaluations
    assert (call["path"], call["split"], call["cfg"]) == (Path("mine"), "test", None)
    assert (call["metrics"], call["overrides"]) == (["rouge", "meteor"], ["sample.k=2"])


@pytest.mark.slow
def test_eval_of_a_transformers_folder_composes_a_config(calls: Calls):
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    pgtg("eval", "model")
    pgtg("eval", "model", "policy=t5_small")
    first, second = (call["cfg"].policy for call in calls.evaluations)
    assert first.path == second.path == "model" and first.tiny_t5 is None
    assert (first.prefix, second.prefix) == ("", "summarize: ")


def test_ls_lists_names_with_descriptions(calls: Calls):
    assert "avg, max, min, sum" in pgtg("ls").stdout
    lines = pgtg("ls", "aggregators").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["avg", "max", "min", "sum"]
    assert "log-probability" in pgtg("ls", "heads").stdout
    assert "bertscore" in pgtg("ls", "metrics").stdout
    assert "cnn_dm_t5_base" in pgtg("ls", "experiments").stdout


def test_help_shows_examples(calls: Calls):
    assert "pgtg train summarize" in pgtg("--help").stdout
    assert "aggregator=avg,sum,min,max" in pgtg("train", "--help").stdout
    assert "Example" in pgtg("sample", "--help").stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["train", ""], ["preferences", "prompt", "summarize"], marks=pytest.mark.slow),
        (["train", "summarize", "agg"], ["aggregator="]),
        pytest.param(
            ["train", "summarize", "aggregator", "="],
            ["avg", "max", "min", "sum"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["train", "summarize", "aggregator", "=", ""],
            ["avg", "max", "min", "sum"],
            marks=pytest.mark.slow,
        ),
        (["train", "summarize", "aggregator", "=", "m"], ["max", "min"]),
        pytest.param(["ls", "agg"], ["aggregators"], marks=pytest.mark.slow),
    ],
)
def test_bash_completion(words: list[str], expected: list[str]):
    """Bash cuts words at `=`; what is completed then is the option alone."""
    env = {
        **os.environ,
        "_PGTG_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["pgtg", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = "from pgtg.cli.main import app; app(prog_name='pgtg')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    found = done.stdout.split()
    assert found == expected, done.stderr


def test_zsh_completion_completes_whole_words():
    from pgtg.cli.completion import complete_overrides

    context = typer.Context(typer.main.get_command(app))
    experiments = [name for name, _ in complete_overrides(context, "experiment=qu")]
    assert "experiment=quickstart" in experiments
    assert "experiment=" in [name for name, _ in complete_overrides(context, "")]
    nested = dict(complete_overrides(context, "reward.fi"))
    assert nested["reward.fit.lr="] == "a number" and "reward.fit=" not in nested
    assert all(name.startswith("reward.fi") for name in nested)


def test_a_run_folder_cannot_lie_at_a_device(calls: Calls):
    for place in ("/dev/null", "/dev/null/run"):
        error = pgtg("train", "summarize", f"run_dir={place}", code=2).stderr
        assert "run_dir: /dev/null is no folder" in error
