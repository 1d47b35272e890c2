"""What a command line means: which config, which run folder, one job or many."""

import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from pgtg.compose import as_hydra, composed, quoted, run_config, sweep, swept_keys
from pgtg.config import RunConfig
from pgtg.errors import ConfigError
from pgtg.jobs import FORCE, QUIET, launch, logged, saved_config

OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Call:
    """One call of train or of a stage.

    Args:
        task: Name of the task.
        overrides: All `key=value` but run_dir.
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
            if key == "run_dir":
                run_dir = (
                    Path(value.strip("'\"")).expanduser() if value not in ("", "null") else None
                )
            else:
                values.append(as_hydra(text))
        return cls(task, values, run_dir, config_dir, multirun)

    def jobs(self) -> list[RunConfig]:
        """The checked config of each run.

        Raises:
            ConfigError: With the problems of all of them.
        """
        if not self.multirun:
            saved = saved_config(self.run_dir) if self.run_dir else None
            return [run_config(self.task, self.overrides, config_dir=self.config_dir, saved=saved)]
        runs, problems = [], []
        for job in sweep(self.task, self.overrides, self.config_dir):
            try:
                runs.append(run_config(self.task, job, config_dir=self.config_dir))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(*dict.fromkeys(problems))
        return runs

    def launch(self, *, force: bool, quiet: bool) -> None:
        """Check everything, then hand run or sweep to Hydra. If refused, nothing is written."""
        from pgtg.plan import check_resources

        runs = self.jobs()
        for run in runs:
            check_resources(run)
        flags = ["--config-name", self.task, *(["--multirun"] if self.multirun else [])]
        flags += ["--config-dir", str(self.config_dir)] if self.config_dir else []
        how = self._sweep_folder() if self.multirun else self._run_folder(runs[0])
        how += [
            f"+hydra.job.env_set.{key}='1'" for key, on in ((FORCE, force), (QUIET, quiet)) if on
        ]
        launch(flags, [*how, *self.overrides])

    def show_config(self, kind: str) -> None:
        """Print the composed config (`job`), Hydra's own (`hydra`), or both (`all`) as yaml."""
        if kind != "job":
            flags = ["--config-name", self.task, "--cfg", kind]
            launch(flags, self.overrides)
            return
        saved = saved_config(self.run_dir) if self.run_dir and not self.multirun else None
        values = sweep(self.task, self.overrides)[0] if self.multirun else self.overrides
        cfg, problems = composed(self.task, values, config_dir=self.config_dir, saved=saved)
        if problems:
            raise ConfigError(*problems)
        print(OmegaConf.to_yaml(cfg), end="")

    def dry_run(self) -> None:
        """Print what each run would do. Writes nothing."""
        from pgtg.plan import check_resources, describe

        runs = self.jobs()
        for run in runs:
            print(describe(run))
        for run in runs:
            check_resources(run)

    def run_stage(self, stage: str, round: int | None, *, force: bool, quiet: bool) -> None:
        """Run one stage on the run folder."""
        if self.run_dir is None:
            raise ConfigError(f"pgtg {stage} works on a run folder: give run_dir=<folder>")
        (run,) = self.jobs()
        set_quiet(quiet)
        with logged(self.run_dir):
            from pgtg.train import run_stage

            run_stage(run, self.run_dir, stage, round=round, force=force)

    def _run_folder(self, run: RunConfig) -> list[str]:
        folder = self.run_dir or OUTPUTS / run.task / run.name / f"seed{run.seed}" / unique()
        known = saved_config(folder) is not None  # its .hydra/ stays as the run was started
        return [f"hydra.run.dir={quoted(folder)}", *(["hydra.output_subdir=null"] if known else [])]

    def _sweep_folder(self) -> list[str]:
        folder = self.run_dir or OUTPUTS / self.task / "multirun" / unique()
        swept, fixed = swept_keys(self.overrides)
        exclude = ",".join(quoted(key) for key in sorted(fixed)) if swept else ""
        names = f"hydra.job.config.override_dirname.exclude_keys=[{exclude}]"
        return [f"hydra.sweep.dir={quoted(folder)}", names]


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
    from pgtg.evaluate import evaluate_saved

    evaluate_saved(path, split=split, metrics=names, overrides=values, cfg=run)


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

    names = [name.strip() for name in metrics.split(",")] if metrics else None
    options = {"baseline": baseline, "metrics": names, "split": split, "layout": layout}
    print("\n".join(report(folders, out, **options)))
    print(f"written to {out}", file=sys.stderr)


def unique() -> str:
    """A folder name that no other run has, however many start in the same second."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def set_quiet(quiet: bool) -> None:
    if quiet:
        os.environ[QUIET] = "1"
