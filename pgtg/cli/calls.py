"""What a command line means: which config, which run folder, one job or many."""

import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pgtg.cli.jobs import FORCE, QUIET, THREADS, launch, logged, saved_config, show
from pgtg.cli.reporting import say
from pgtg.config import RunConfig
from pgtg.config.compose import Composed, as_run_config, composed, planned, run_config
from pgtg.config.overrides import as_hydra, quoted
from pgtg.config.sweep import hydra_part, job_folders, sweep, swept_keys
from pgtg.errors import ConfigError, PgtgError
from pgtg.runtime import distributed

OUTPUTS = Path("outputs")
CREDIT = "experiment=credit"
SUBDIR = "${pgtg_folder:${hydra.job.override_dirname}}"  # as in conf/


@dataclass(frozen=True)
class Call:
    """One call of train or of a stage.

    Args:
        task: Name of the task.
        overrides: All `key=value` but run_dir and sweep_dir.
        run_dir: The run folder asked for (with multirun: the folder of the sweep), if any.
        config_dir: The user's own config files, if any.
        multirun: One run for each combination of the overrides' `key=a,b`.
    """

    task: str
    overrides: list[str]
    run_dir: Path | None
    config_dir: Path | None
    multirun: bool = False

    @classmethod
    def parse(
        cls,
        task: str,
        overrides: Sequence[str] | None,
        config_dir: Path | None,
        *,
        multirun: bool = False,
    ) -> "Call":
        if "=" in task:
            raise ConfigError(f"the task comes first, e.g. pgtg train summarize {task}")
        values, run_dir = [], None
        for text in overrides or []:
            key, _, value = text.partition("=")
            if key == "sweep_dir" and not multirun:
                raise ConfigError("sweep_dir is the folder of a sweep (-m); a run has run_dir=...")
            if key in ("run_dir", "sweep_dir"):
                unset = value in ("", "null")
                run_dir = None if unset else Path(_unquoted(value)).expanduser()
            else:
                values.append(as_hydra(text, sweep=multirun))
        twice = [v for v in values if v.lstrip("+").startswith("hydra.run.dir=")]
        if run_dir is not None and twice:
            raise ConfigError(f"run_dir={run_dir} and {twice[0]} name the folder: leave one out")
        return cls(task, values, run_dir, config_dir, multirun)

    def jobs(self) -> list[RunConfig]:
        """The checked config of each run; says what composing them decided.

        Raises:
            ConfigError: With the problems of all of them.
        """
        _require_folder(self.run_dir)
        if not self.multirun:
            saved = saved_config(self.run_dir) if self.run_dir else None
            if saved is not None:
                stay_offline()
            found = [planned(self.task, self.overrides, config_dir=self.config_dir, saved=saved)]
        else:
            found, problems = [], []
            for job in self._sweep_jobs():
                try:
                    found.append(planned(self.task, job, config_dir=self.config_dir))
                except ConfigError as error:
                    problems += error.problems
            if problems:
                raise ConfigError(*dict.fromkeys(problems))
        _say(dict.fromkeys(note for _, notes in found for note in notes))
        return [run for run, _ in found]

    def first_job(self) -> tuple[RunConfig | None, list[str]]:
        """The config of the first run and what is wrong with it; none if values are wrong."""
        saved = saved_config(self.run_dir) if self.run_dir and not self.multirun else None
        cfg, problems, _ = self._composed(saved)
        run, more = as_run_config(cfg)
        return (None if more else run), problems + more

    def _sweep_jobs(self) -> list[list[str]]:
        """The overrides of each job of the sweep.

        Raises:
            ConfigError: There is none, or two are the same.
        """
        jobs = sweep(self.task, self.overrides, self.config_dir)
        if not jobs:
            raise ConfigError("the sweep has no job: a glob(...) that finds nothing, or a range")
        twins = {tuple(job) for job in jobs if jobs.count(job) > 1}
        if twins:
            same = "; ".join(" ".join(job) for job in twins)
            raise ConfigError(f"the sweep has the same job twice: {same}")
        return jobs

    def _composed(self, saved: Mapping[str, Any] | None) -> Composed:
        """The config of the run, or of a sweep's first job."""
        values = self._sweep_jobs()[0] if self.multirun else self.overrides
        return composed(self.task, values, config_dir=self.config_dir, saved=saved)

    def checked(self) -> list[RunConfig]:
        """`jobs`, once what they need is on this machine and will fit it.

        Raises:
            PgtgError: It is not, or will not.
        """
        runs = self.jobs()
        from pgtg.pipeline.plan import check_resources, check_room  # not for a refused config

        _warn([line for run in runs for line in check_resources(run, fetch=True)])
        check_room(runs, self.run_dir or OUTPUTS)
        return runs

    def folder(self, run: RunConfig) -> Path:
        """The run folder that was asked for, or a new one."""
        return self.run_dir or OUTPUTS / run.task / run.name / f"seed{run.seed}" / unique()

    def launch(self, *, force: bool, quiet: bool) -> None:
        """Check everything, then hand run or sweep to Hydra. If refused, nothing is written."""
        runs = self.checked()
        distributed.join(runs[0].device)
        if not self.multirun:  # a sweep's jobs may run on other machines
            from pgtg.pipeline.context import usable_device

            usable_device(runs[0])
        where, how = self._sweep(runs) if self.multirun else (None, self._run_folder(runs[0]))
        how += [
            f"+hydra.job.env_set.{key}='1'" for key, on in ((FORCE, force), (QUIET, quiet)) if on
        ]
        try:
            words = [*how, *self.overrides]
            launch(self.task, words, multirun=self.multirun, config_dir=self.config_dir)
        finally:
            if where is not None:
                _close(where)

    def show_config(self, kind: str) -> None:
        """Print the composed config (`job`), Hydra's own (`hydra`), or both (`all`) as yaml."""
        if kind != "job":
            hydras = [text for text in self.overrides if text.lstrip("+~").startswith("hydra")]
            first = [*hydras, *self._sweep_jobs()[0]] if self.multirun else self.overrides
            show(kind, self.task, first, self.config_dir)
            return
        saved = saved_config(self.run_dir) if self.run_dir and not self.multirun else None
        cfg, problems, notes = self._composed(saved)
        _say(notes)
        if problems:
            raise ConfigError(*problems)
        print(OmegaConf.to_yaml(cfg), end="")

    def dry_run(self, *, probe: bool = False) -> None:
        """Print what each run would do. Writes nothing.

        Args:
            probe: Also time some steps of each, in a folder that is deleted again.
        """
        from pgtg.pipeline.plan import NAMES, check_resources, check_room, describe
        from pgtg.runs.layout import listed

        runs = self.jobs()
        print(describe(runs, probed=probe))
        _warn([line for run in runs for line in check_resources(run)])
        for run in runs:
            if probe:
                from pgtg.pipeline.plan.probe import probe as timed
                from pgtg.pipeline.plan.probe import text_of

                print(listed([("time", text_of(timed(run)))], sys.stdout, width=NAMES), flush=True)
        check_room(runs, self.run_dir or OUTPUTS)

    def run_stage(self, stage: str, round: int | None, *, force: bool, quiet: bool) -> None:
        """Check what `launch` does, then run one stage on the run folder."""
        if self.run_dir is None:
            raise ConfigError(f"pgtg {stage} works on a run folder: give run_dir=<folder>")
        (run,) = self.checked()
        set_quiet(quiet)
        distributed.join(run.device)
        with logged(self.run_dir):
            from pgtg.pipeline.run import run_stage

            run_stage(run, self.run_dir, stage, round=round, force=force)

    def _run_folder(self, run: RunConfig) -> list[str]:
        folder = self.folder(run)
        # a run's .hydra/ stays as it was started, and one process writes it
        known = saved_config(folder) is not None or not distributed.is_first()
        return [f"hydra.run.dir={quoted(folder)}", *(["hydra.output_subdir=null"] if known else [])]

    def _sweep(self, runs: Sequence[RunConfig]) -> tuple[Path, list[str]]:
        """Where a sweep goes, and the overrides that say so, how its jobs are named and what they
        may use; the list of its jobs is written down."""
        from pgtg.runs import sweeps

        folder = self.run_dir or OUTPUTS / self.task / "multirun" / unique()
        swept, fixed = swept_keys(self.overrides)
        # Hydra leaves out names without the sign of what is added (++data.limit={train: 8})
        exclude = sorted(key.lstrip("+") for key in fixed) if swept else []
        given = ",".join(quoted(key) for key in exclude)
        how = [f"hydra.sweep.dir={quoted(folder)}"]
        how.append(f"hydra.job.config.override_dirname.exclude_keys=[{given}]")
        part = hydra_part(self.task, self.overrides, self.config_dir)
        basic = str(part["launcher"]["_target_"]).endswith("BasicLauncher")
        if distributed.count() > 1 and not basic:
            raise ConfigError(
                "hydra/launcher: several processes run the jobs of a sweep one after the other; "
                "leave hydra/launcher out, or start one process"
            )
        where = Path(next((v for v in map(_sweep_dir, self.overrides) if v), folder))
        if part["sweep"]["subdir"] == SUBDIR and str(part["sweeper"]["_target_"]).endswith(
            "BasicSweeper"
        ):
            jobs = self._sweep_jobs()
            command = ["pgtg", "train", self.task, "-m", f"sweep_dir={where}", *self.overrides]
            named = dict(zip(job_folders(jobs, exclude), jobs, strict=True))
            distributed.first(sweeps.record)(where, [shlex.quote(word) for word in command], named)
            found = [sweeps.status(where / name, name) for name in named]
            say(f"sweep {where}: {sweeps.summary(found)}")
        if not basic:
            slurm = "submitit_folder" in part["launcher"]
            said = f"; a folder of logs for each job id in {where}/.submitit" if slurm else ""
            say(f"follow with: pgtg ls {where}{said}")
        return where, [*how, *_thread_share(part["launcher"], runs)]


@distributed.first
def _close(where: Path) -> None:
    """Say how a sweep's jobs ended, whatever launched them."""
    from pgtg.runs import sweeps

    if found := sweeps.statuses(where):
        table = sweeps.table(where, found, sys.stderr)
        print(f"sweep {where}\n{table}", file=sys.stderr, flush=True)


@distributed.first
def _warn(lines: Sequence[str]) -> None:
    """Say on stderr, each line once."""
    for line in dict.fromkeys(lines):
        say(f"warning: {line}")


def _require_folder(folder: Path | None, key: str = "run_dir") -> None:
    """Refuse a run or sweep folder, or one for a report, that cannot be one.

    Raises:
        ConfigError: A file or a dangling link stands in its place, or its name cannot be used.
    """
    if folder is None:
        return
    if "${" in str(folder) or not str(folder).isprintable():
        raise ConfigError(f"{key}: found {str(folder)!r}, expected a folder's name without ${{")
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if path.is_file():
            raise ConfigError(f"{key}: {path} is a file, not a folder")
        if path.is_symlink():
            raise ConfigError(f"{key}: {path} is a link to {path.readlink()}, which is not there")
        if path.exists():
            raise ConfigError(f"{key}: {path} is no folder")  # a device, a pipe, a socket


def _unquoted(value: str) -> str:
    """A value without one pair of quotes around it."""
    whole = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
    return value[1:-1] if whole else value


@distributed.first
def _say(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def evaluate_folder(
    path: Path,
    split: str,
    metrics: str | None,
    task: str,
    overrides: Sequence[str] | None,
    config_dir: Path | None,
    *,
    quiet: bool,
) -> None:
    """Evaluate the policy of a run folder, or of a plain Transformers folder."""
    splits = ("validation", "test", "train")
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}")
    if split not in splits:
        raise ConfigError(f"--split: found '{split}', expected one of {', '.join(splits)}")
    values, run = list(overrides or []), None
    if (path / "config.json").is_file():  # a Transformers folder, with the config of this call
        chosen = [] if any(v.startswith("policy=") for v in values) else ["policy=pretrained"]
        own = [*chosen, *values, f"policy.path={quoted(path)}", "policy.tiny_t5=null"]
        run = run_config(task, own, config_dir=config_dir)
    set_quiet(quiet)
    names = [name.strip() for name in metrics.split(",")] if metrics else None
    if run is None:
        stay_offline()
    from pgtg.pipeline.evaluate import evaluate_saved

    evaluate_saved(
        path, split=split, metrics=names, overrides=values, cfg=run, config_dir=config_dir
    )


def stay_offline() -> None:
    """Fetch nothing: a run folder, perhaps a stranger's, names the models and data to read.

    What its owner has used is in the local cache; with HF_HUB_OFFLINE=0 it may fetch.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def report_folders(
    folders: Sequence[Path],
    out: Path,
    baseline: str | None,
    metrics: str | None,
    split: str | None,
    layout: str,
) -> None:
    """Report on the runs below some folders: the main table to stdout, all of it to `out`."""
    from pgtg.report.write import report

    _require_folder(out, "--out")
    names = [name.strip() for name in metrics.split(",")] if metrics else None
    options = {"baseline": baseline, "metrics": names, "split": split, "layout": layout}
    print("\n".join(report(folders, out, **options)))
    say(f"written to {out}")


def explain_run(
    path: Path,
    split: str | None,
    text: Path | None,
    n: int | None,
    html: Path | None,
    format: str | None,
    out: Path | None,
    others: Sequence[Path] | None,
    *,
    quiet: bool,
) -> None:
    """Token credit of a run: in the terminal, or in the files that are named."""
    stay_offline()
    from pgtg.explain.gather import Options
    from pgtg.explain.write import explain

    explain(path, Options(split, text, n, html, format, out, tuple(others or ()), quiet))


def export_reward(run: Path, out: Path, *, distil: bool, force: bool, quiet: bool) -> None:
    """A run's reward model as a Transformers token classifier."""
    _require_folder(out, "--out")
    stay_offline()
    from pgtg.export.reward import export_reward as write
    from pgtg.runs.log import RunLog

    write(run, out, distil=distil, force=force, log=RunLog(None, quiet=quiet))


def export_folder(what: str, run: Path, out: Path, *, force: bool, quiet: bool) -> None:
    """A run's "policy" as a Transformers folder, or its "preferences" as data of their task."""
    _require_folder(out, "--out")
    stay_offline()
    from pgtg.export.policy import export_policy
    from pgtg.export.preferences import export_preferences
    from pgtg.runs.log import RunLog

    write = {"policy": export_policy, "preferences": export_preferences}[what]
    write(run, out, force=force, log=RunLog(None, quiet=quiet))


def export_tokens(
    path: Path,
    out: Path,
    text: Path | None,
    split: str | None,
    round: int | None,
    n: int | None,
    format: str | None,
    *,
    force: bool,
    quiet: bool,
) -> None:
    """Token rewards as a table."""
    stay_offline()
    from pgtg.export.tokens import Asked
    from pgtg.export.tokens import export_tokens as write
    from pgtg.runs.log import RunLog

    asked = Asked(text, split, round, n)
    write(path, out, asked, format=format, force=force, log=RunLog(None, quiet=quiet))


def benchmark_credit(
    dataset: str,
    overrides: Sequence[str] | None,
    folds: int,
    config_dir: Path | None,
    *,
    quiet: bool,
) -> None:
    """Token rewards against marked errors, a row for each combination of the overrides."""
    chosen = [] if any(v.startswith("experiment=") for v in overrides or []) else [CREDIT]
    call = Call.parse("preferences", [*chosen, *(overrides or [])], config_dir, multirun=True)
    rows = call.jobs()
    folder = call.run_dir or OUTPUTS / "benchmark" / "credit" / dataset / unique()
    set_quiet(quiet)
    with logged(folder):
        from pgtg.benchmark.credit import Asked, credit

        credit(Asked(dataset, folds, rows), folder)


def _sweep_dir(override: str) -> str | None:
    """The folder that a user's own hydra.sweep.dir names; it wins over ours."""
    key, _, value = override.partition("=")
    return value.strip("'\"") if key.lstrip("+") == "hydra.sweep.dir" else None


def _thread_share(launcher: Mapping[str, Any], runs: Sequence[RunConfig]) -> list[str]:
    """Threads of each job where joblib runs several at once: together as many as there are cores.

    OpenMP's pools get the config's `threads` where all jobs name the same; torch gets each job's.
    """
    if not str(launcher["_target_"]).endswith("JoblibLauncher"):
        return []
    import joblib

    cores, asked = joblib.cpu_count(), int(launcher["n_jobs"] or 1)
    at_once = min(asked if asked > 0 else max(cores + 1 + asked, 1), len(runs))
    share = max(cores // at_once, 1)
    named = {run.threads or share for run in runs}
    pools = named.pop() if len(named) == 1 else share
    values = {THREADS: share, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), pools)}
    return [f"+hydra.job.env_set.{name}='{value}'" for name, value in values.items()]


def doctor(words: Sequence[str], config_dir: Path | None, *, multirun: bool, online: bool) -> bool:
    """Examine this machine and a config, print what was found; whether all is well.

    Args:
        words: The task (summarize if left out) and overrides, as for train.
        config_dir: The user's own config files, if any.
        multirun: The overrides are of a sweep; its first job is examined.
        online: Ask the hub for what is not on this machine.
    """
    from pgtg.doctor import Surroundings, examine, text_of
    from pgtg.runs.entries import default_cache

    task, *overrides = [*words] if words and "=" not in words[0] else ["summarize", *words]
    cfg, problems, folder = None, list[str](), OUTPUTS
    try:
        call = Call.parse(task, overrides, config_dir, multirun=multirun)
        folder = call.run_dir or OUTPUTS
        cfg, problems = call.first_job()
        hydra_part(task, call.overrides, config_dir)
    except PgtgError as error:
        problems = [*problems, *str(error).splitlines()]
    cache = default_cache() if cfg is None else Path(cfg.cache)
    around = Surroundings(folder, None if str(cache) == "off" else cache, online)
    found = examine(cfg, problems, around)
    print(text_of(found))
    return not any(one.state == "problem" for one in found)


@distributed.first
def unique() -> str:
    """A folder name that no other run has, however many start in the same second."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def set_quiet(quiet: bool) -> None:
    if quiet:
        os.environ[QUIET] = "1"
