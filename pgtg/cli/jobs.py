"""One training run as a Hydra job, alone or within a sweep.

Errors leave a job as `PgtgError`s, never as `SystemExit`: Hydra's launchers run many jobs in one
process. `--force` and `--quiet` reach jobs in other processes through `hydra.job.env_set`.
"""

import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pgtg.cli.reporting import say
from pgtg.config import RunConfig, TextJudgeConfig
from pgtg.config.compose import run_config
from pgtg.config.sources import loader, register, typed
from pgtg.errors import PgtgError, RunError
from pgtg.runtime import distributed
from pgtg.runtime.signals import Interrupted, install

FORCE, QUIET, THREADS = "PGTG_FORCE", "PGTG_QUIET", "PGTG_THREADS"

register()  # here as well: a launcher's worker unpickles `job`, and so imports this module first


def job(cfg: DictConfig) -> dict[str, float]:
    """Train as the config says, in the folder that Hydra made for this job."""
    this = HydraConfig.get()
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and main_thread() is current_thread():
        install()  # a launcher's worker: SIGTERM saves there as well
    folder = Path(this.runtime.output_dir)
    saved = saved_config(folder)
    with logged(folder):
        own = [Path(s.path) for s in this.runtime.config_sources if s.provider == "command-line"]
        config_dir, task = (own[0] if own else None), str(this.job.config_name)
        overrides = [str(text) for text in this.overrides.task]
        # composed once more: here an experiment's values yield to the groups of the call
        run = run_config(task, overrides, config_dir=config_dir, saved=saved)
        if saved is None:
            _rewrite(folder / ".hydra" / "config.yaml", run)
        done = _result(run, folder) if this.mode == RunMode.MULTIRUN else None
        if done is not None:
            say(f"job {this.job.num}: complete, nothing to run")
            return done
        share = int(os.environ.get(THREADS) or 0)
        judge = run.judge
        if share and isinstance(judge, TextJudgeConfig) and judge.workers:
            judge.workers = min(judge.workers, share - 1)  # only where this job has cores for them
        from pgtg.pipeline.run import train

        return train(run, folder, force=bool(os.environ.get(FORCE)), page=credit_page)


def credit_page(run: Path) -> Path:
    """Make the token-credit page of a run folder; where it lies."""
    from pgtg.explain.gather import Options
    from pgtg.explain.write import explain

    page = run / "token_credit.html"
    explain(run, Options(html=page, quiet=True))
    return page


@distributed.first
def _rewrite(path: Path, run: RunConfig) -> None:
    """Hydra's own note of the config, as the run has it."""
    if path.is_file():
        OmegaConf.save(OmegaConf.create(asdict(run)), path)


def launch(
    task: str, overrides: Sequence[str], *, multirun: bool = False, config_dir: Path | None = None
) -> None:
    """Hand a call to Hydra: one job, or a sweep with its launchers and sweepers.

    Raises:
        PgtgError: The job failed, or the first failed job of a sweep once all have run.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    with _hydra(config_dir) as app:
        start = app.multirun if multirun else app.run
        try:
            start(task, job, [*overrides, f"hydra.mode={mode.name}"])
        except PgtgError as error:
            if not multirun:
                raise
            first = f"the sweep has failed jobs (named above); the first: {error}"
            raise RunError(first) from error


def show(kind: str, task: str, overrides: Sequence[str], config_dir: Path | None) -> None:
    """Print what Hydra composes of a call as yaml: its own part ("hydra"), or "all" of it."""
    with _hydra(config_dir) as app:
        app.show_cfg(task, list(overrides), kind, package=None)


@contextmanager
def _hydra(config_dir: Path | None) -> Iterator[Hydra]:
    """Hydra over `conf/` and the user's own folder, as `hydra.main` makes it: that would parse a
    command line, read all files again, and compose once more to ask for the mode."""
    app = Hydra("jobs", loader(config_dir))
    GlobalHydra.instance().initialize(app)
    try:
        with typed():
            yield app
    finally:
        GlobalHydra.instance().clear()


def _result(run: RunConfig, folder: Path) -> dict[str, float] | None:
    """What a complete run of a sweep came to; None if there is something to run."""
    from pgtg.runs.folder import read_json
    from pgtg.runs.sweeps import is_complete

    if os.environ.get(FORCE) or not is_complete(folder, asdict(run) | {"run_dir": None}):
        return None
    return read_json(folder / "summary.json")


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The config of an existing run folder, None where none has been started there."""
    if not folder.is_dir():
        return None
    from pgtg.runs.folder import RunFolder

    run = RunFolder(folder)
    return run.runnable_config() if run.exists() else None


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Turn what nobody foresaw into one line for the user and a traceback in the run's log."""
    try:
        yield
    except PgtgError as error:
        _note(folder, error)
        raise
    except Interrupted as stop:
        _note(folder, stop)
        stop.add_note(f"resume it with run_dir={folder}")
        raise
    except (Exception, SystemExit) as error:
        log = folder / "log.txt"
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} unexpected error\n")
            traceback.print_exception(error, file=file)
        first = (str(error).strip() or "no message").splitlines()[0]
        text = f"{type(error).__name__}: {first} (unexpected; traceback in {log})"
        failed = RunError(text)
        _note(folder, failed)
        raise failed from error


def _note(folder: Path, error: BaseException) -> None:
    """What ended the run, or kept it from beginning, in its own log, where `pgtg ls` looks."""
    if isinstance(error, Interrupted):
        word = "stopped"
    else:
        refused = isinstance(error, PgtgError) and error.exit_code == 2 and not error.begun
        word = "refused" if refused else "error"
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    lines = "".join(f"{now} {word}: {line}\n" for line in str(error).splitlines())
    # what is refused before it begins leaves nothing
    if folder.is_dir() and distributed.tells(error):
        with suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(lines)


class FailedJob(JobReturn):
    """A failed job whose error is raised where it is asked for, without Hydra's own message."""

    @property
    def return_value(self) -> Any:
        raise self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class ReportJobs(Callback):
    """In a sweep: names each job when it starts, and says what failed when it fails."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            say(f"{_title(config)}: {config.hydra.runtime.output_dir}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status != JobStatus.FAILED:
            return
        job_return.__class__ = FailedJob
        if config.hydra.mode == RunMode.MULTIRUN:
            error = job_return._return_value
            for line in str(error).splitlines() or [repr(error)]:
                say(f"error: {_title(config)}: {line}")


def _title(config: DictConfig) -> str:
    return f"job {config.hydra.job.num} ({config.hydra.job.override_dirname})"
