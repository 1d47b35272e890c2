"""The command line: parse, compose, dispatch, exit code. Nothing else.

Parameters of a run are `key=value` only; `--flags` say how to run. Exit codes: 0 ok, 1 the run
failed, 2 usage, config or data, 130 Ctrl-C, 143 after saving on SIGTERM. stdout holds results,
stderr the rest. Everything slow is imported inside the commands.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pgtg.cli.completion import complete_groups, complete_overrides, complete_tasks
from pgtg.cli.reporting import printable, reporting, say
from pgtg.cli.usage import COLUMNS, examples, short
from pgtg.errors import ConfigError, PgtgError

HELP = """Preference-grounded token-level guidance: learn a reward for each token from rankings of
whole texts, and use it to improve a language model.

Start with: pgtg train summarize
"""
app = typer.Typer(
    name="pgtg",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": COLUMNS},
)


def show_version(asked: bool) -> None:
    """Print the installed version and stop."""
    if asked:
        from pgtg import __version__

        typer.echo(f"pgtg {__version__}")
        raise typer.Exit


@app.callback()
def entry(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=show_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


class Cfg(StrEnum):
    """What --cfg prints."""

    job = "job"
    hydra = "hydra"
    all = "all"


Task = Annotated[
    str | None, typer.Argument(help="The task, e.g. summarize.", autocompletion=complete_tasks)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Parameters, e.g. aggregator=max seed=1 experiment=cnn_dm_t5_small.",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="Folder of your own config files.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="A yaml file of parameters, e.g. a run's config.yaml."),
]


def run_plugins(files: list[Path] | None) -> list[Path] | None:
    """Run the user's own files before anything is looked up by name."""
    if files:
        from pgtg.config import plugins

        try:
            plugins.use(files)
        except PgtgError as error:
            say(f"error: {printable(str(error))}")
            raise typer.Exit(error.exit_code) from error
    return files


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        is_eager=True,
        callback=run_plugins,
        help="Run an own Python file that adds methods, judges, ... (docs/extending).",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Resume although the run's config changed.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show results and errors only.")]


def show_wide(ctx: typer.Context, asked: bool) -> None:
    """All columns of this call's tables, jobs in other processes included."""
    if not asked:
        return
    from pgtg.runs.layout import WIDE

    if WIDE not in os.environ:
        os.environ[WIDE] = "1"
        ctx.call_on_close(lambda: os.environ.pop(WIDE, None))


Wide = Annotated[
    bool,
    typer.Option(
        "--wide",
        is_eager=True,
        callback=show_wide,
        help="Tables with all columns, wider than the terminal or not.",
    ),
]
Round = Annotated[int | None, typer.Option("--round", min=0, help="Round; default: the next one.")]

TRAIN_EXAMPLES = examples(
    "pgtg train summarize  # the embedded quickstart",
    "pgtg train summarize aggregator=max seed=1  # one option, one value changed",
    "pgtg train summarize experiment=cnn_dm_t5_small  # the paper's hyper-parameters",
    "pgtg train summarize data=files data.path=my policy=t5_small",
    "pgtg train summarize run_dir=outputs/mine  # resumes it if it is unfinished",
    "pgtg train summarize -m aggregator=avg,sum,min,max seed=0,1 sweep_dir=outputs/sweep",
    "pgtg train summarize --dry-run --probe",
    "pgtg train summarize --cfg job",
)


def named(task: str | None, command: str) -> str:
    """The task that a command was given.

    Raises:
        ConfigError: None was; lists them.
    """
    if task is None:
        from pgtg.config.registry import TASKS

        raise ConfigError(
            f"pgtg {command} needs a task: {', '.join(TASKS)} (pgtg ls tasks says what each is)"
        )
    return task


def with_file(task: str, config: Path | None, overrides: list[str] | None) -> list[str]:
    """The parameters of the file of --config, if any, and then those of the command line."""
    if config is None:
        return overrides or []
    from pgtg.config.files import overrides_of

    return [*overrides_of(config, task), *(overrides or [])]


@app.command(epilog=TRAIN_EXAMPLES)
def train(
    task: Task = None,
    overrides: Overrides = None,
    multirun: Annotated[
        bool, typer.Option("-m", "--multirun", help="One run for each combination of key=a,b.")
    ] = False,
    cfg: Annotated[Cfg | None, typer.Option("--cfg", help="Print the config, run nothing.")] = None,
    config: ConfigFile = None,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, print counts and sizes, write nothing.")
    ] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="With --dry-run: time a few steps, say how long it takes."),
    ] = False,
    quiet: Quiet = False,
    wide: Wide = False,
) -> None:
    """Run the whole alternation: sample, align, improve, evaluate; resume an unfinished run."""
    with reporting():
        from pgtg.cli.calls import Call

        task = named(task, "train")
        values = with_file(task, config, overrides)
        call = Call.parse(task, values, config_dir, multirun=multirun)
        if probe and not dry_run:
            raise ConfigError(
                "--probe goes with --dry-run: it times a few steps of what is planned"
            )
        if cfg is not None:
            call.show_config(cfg.value)
        elif dry_run:
            call.dry_run(probe=probe)
        else:
            call.launch(force=force, quiet=quiet)


def stage_command(stage: str, doc: str) -> None:
    """Add the command that runs one stage of a round on a run folder."""

    def command(
        task: Task = None,
        overrides: Overrides = None,
        round: Round = None,
        config: ConfigFile = None,
        config_dir: ConfigDir = None,
        plugin: Plugins = None,
        force: Force = False,
        quiet: Quiet = False,
        wide: Wide = False,
    ) -> None:
        with reporting():
            from pgtg.cli.calls import Call

            task = named(task, stage)
            call = Call.parse(task, with_file(task, config, overrides), config_dir)
            call.run_stage(stage, round, force=force, quiet=quiet)

    example = f"pgtg {stage} summarize run_dir=outputs/mine"
    app.command(stage, help=doc, epilog=examples(example))(command)


stage_command("sample", "Draw generations from the policy and let the judge score them.")
stage_command("score", "Reward each token of the samples with the reward model.")
stage_command("aggregate", "Turn token rewards into one evaluation per sequence.")
stage_command("align", "Train the reward model to rank as the judge does.")
stage_command("improve", "Train the policy with the token rewards.")

EVAL_EXAMPLES = examples(
    "pgtg eval outputs/mine --split test",
    "pgtg eval outputs/mine --metrics rouge,chrf",
    "pgtg eval path/to/transformers-folder data=files data.path=my --split validation",
)


@app.command("eval", epilog=EVAL_EXAMPLES)
def evaluate(
    path: Annotated[Path, typer.Argument(help="A run folder, or a Transformers folder.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option("--split", help="validation or test.")] = "validation",
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Names, e.g. rouge,meteor.")
    ] = None,
    task: Annotated[
        str,
        typer.Option("--task", help="For a Transformers folder.", autocompletion=complete_tasks),
    ] = "summarize",
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
    wide: Wide = False,
) -> None:
    """Evaluate the policy of a run, or any model that Transformers loads."""
    with reporting():
        from pgtg.cli.calls import evaluate_folder

        evaluate_folder(path, split, metrics, task, overrides, config_dir, quiet=quiet)


REPORT_EXAMPLES = examples(
    "pgtg report outputs/summarize/multirun/mine  # a sweep: its groups over seeds",
    "pgtg report a b --baseline method=mle --metrics rougeLsum,meteor_stem",
    "pgtg report sweep --baseline uniform  # against each group's own control",
    "pgtg report sweeps --layout poster  # the paper's tables with ours",
)


@app.command(epilog=REPORT_EXAMPLES)
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders with runs below.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="Row to test against: method=mle, a control, a label, none."
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Columns to show, e.g. rougeLsum,meteor_stem.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split; test if all runs have it.")
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help="full or poster.")] = "full",
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path(
        "outputs/report"
    ),
    wide: Wide = False,
) -> None:
    """Compare finished runs: tables, tests and figures, as Markdown, LaTeX, CSV, JSON and HTML."""
    with reporting():
        from pgtg.cli.calls import report_folders

        report_folders(folders, out, baseline, metrics, split, layout)


ExportedReward = Annotated[
    Path | None,
    typer.Option("--reward", help="A folder of `pgtg export reward`, in the run folder's place."),
]


def one_of(run: Path | None, reward: Path | None) -> Path:
    """The folder that reads texts: a run's, or an exported reward model's.

    Raises:
        ConfigError: Neither is named, or both are.
    """
    if (run is None) == (reward is None):
        raise ConfigError("give a run folder, or --reward FOLDER with an exported reward model")
    return run or reward or Path()


EXPLAIN_EXAMPLES = examples(
    "pgtg explain outputs/mine  # a few sources in the terminal",
    "pgtg explain outputs/mine --html credit.html --with outputs/max --with outputs/sum",
    "pgtg explain outputs/mine --split test --n 200 --out credit.parquet",
    "pgtg explain outputs/mine --text my.jsonl  # your own prompts and completions",
    "pgtg explain --reward exported --text my.jsonl  # by a reward model of `pgtg export`",
)


@app.command(epilog=EXPLAIN_EXAMPLES)
def explain(
    path: Annotated[
        Path | None, typer.Argument(help="A run folder with a reward model.", show_default=False)
    ] = None,
    reward: ExportedReward = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Sources: train, validation or test; default: the last round's."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="Your texts: jsonl with prompt, completion, maybe reference."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="Sources (or prompts); 3 in the terminal, else 50."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write one offline page.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="jsonl or parquet.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write tokens and rewards.")] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Another run that reads the same texts; may be repeated."),
    ] = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Show which tokens raise or lower a text in the ranking of a run's reward model."""
    with reporting():
        from pgtg.cli.calls import explain_run

        explain_run(one_of(path, reward), split, text, n, html, format, out, others, quiet=quiet)


export = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What is used elsewhere: a run's reward model, policy, token rewards, preferences.",
    short_help="Write a run's reward model, policy, token rewards, preferences",
)
app.add_typer(export, name="export")
RunPath = Annotated[Path, typer.Argument(help="A run folder.")]
OutFolder = Annotated[Path, typer.Option("--out", help="The folder to write.")]
Replace = Annotated[bool, typer.Option("--force", help="Replace an earlier export.")]

REWARD_EXAMPLES = examples(
    "pgtg export reward outputs/mine --out reward  # a run with reward.head=linear",
    "pgtg export reward outputs/mine --out reward --distil  # another head, fitted by a linear one",
)


@export.command("reward", epilog=REWARD_EXAMPLES)
def export_reward(
    run: RunPath,
    out: OutFolder,
    distil: Annotated[
        bool, typer.Option("--distil", help="Fit a linear head to a run's that is none.")
    ] = False,
    force: Replace = False,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Write the reward model as a Transformers token classifier, which vLLM serves as well."""
    with reporting():
        from pgtg.cli.calls import export_reward as written

        written(run, out, distil=distil, force=force, quiet=quiet)


def folder_command(what: str, doc: str) -> None:
    """Add the command that writes a part of a run as a folder."""

    def command(
        run: RunPath,
        out: OutFolder,
        force: Replace = False,
        plugin: Plugins = None,
        quiet: Quiet = False,
    ) -> None:
        with reporting():
            from pgtg.cli.calls import export_folder

            export_folder(what, run, out, force=force, quiet=quiet)

    example = f"pgtg export {what} outputs/mine --out {what}"
    export.command(what, help=doc, epilog=examples(example))(command)


folder_command(
    "policy", "Write the policy as a Transformers folder: weights, tokenizer, decoding, card."
)
folder_command(
    "preferences", "Write what the judge said of the run's generations, for pgtg train preferences."
)

TOKENS_EXAMPLES = examples(
    "pgtg export tokens outputs/mine --out tokens.jsonl  # what the last round learned from",
    "pgtg export tokens outputs/mine --split test --out tokens.parquet",
    "pgtg export tokens --reward exported --text my.jsonl --out tokens.jsonl",
)


@export.command("tokens", epilog=TOKENS_EXAMPLES)
def export_tokens(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    run: Annotated[Path | None, typer.Argument(help="A run folder.", show_default=False)] = None,
    reward: ExportedReward = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Your texts: jsonl with prompt, completion.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="The run's texts: train (default), validation or test."),
    ] = None,
    round: Annotated[
        int | None, typer.Option("--round", min=0, help="Whose texts; default: the last.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Prompts; default: all.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="jsonl or parquet.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Write a reward, an advantage and a weight for each token, with ids and offsets."""
    with reporting():
        from pgtg.cli.calls import export_tokens as written

        written(one_of(run, reward), out, text, split, round, n, format, force=force, quiet=quiet)


benchmark = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What is learned, against ground truth that people marked.",
    short_help="Hold token rewards against errors that people marked",
)
app.add_typer(benchmark, name="benchmark")

CREDIT_EXAMPLES = examples(
    "pgtg benchmark credit qa_feedback data.path=qa-feedback policy.path=SmolLM2-135M",
    "pgtg benchmark credit own data.path=my.jsonl policy.path=Qwen3-0.6B run_dir=outputs/credit",
    "pgtg benchmark credit ... aggregator=avg,min reward.head=state_action,linear,logprob",
    about="Data sets: qa_feedback, prmbench, mqm_ted_zhen, xsum_hallucination (data.path is a "
    "folder that you fetched), or own: preferences, and rows with prompt, completion, spans "
    "[[start, end, label], ...].",
)


@benchmark.command("credit", epilog=CREDIT_EXAMPLES)
def benchmark_credit(
    dataset: Annotated[str, typer.Argument(help="Marked errors, and preferences among texts.")],
    overrides: Overrides = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Parts of the questions.")] = 5,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
    wide: Wide = False,
) -> None:
    """Learn token rewards from preferences alone; do they find the errors that people marked?

    One row for each combination of key=a,b, next to baselines; by folds of questions.
    """
    with reporting():
        from pgtg.cli.calls import benchmark_credit as measured

        measured(dataset, overrides, folds, config_dir, quiet=quiet)


@benchmark.callback()
def benchmark_group() -> None:
    """What is learned, against ground truth that people marked."""


LS_EXAMPLES = examples(
    "pgtg ls aggregators",
    "pgtg ls outputs/sweep  # done, running, stopped, failed (why), ... runs of a sweep",
    "pgtg ls cache",
)


@app.command("ls", epilog=LS_EXAMPLES)
def list_names(
    group: Annotated[
        str | None,
        typer.Argument(
            help="One group, a sweep's folder, or cache; all groups in short if left out.",
            autocompletion=complete_groups,
        ),
    ] = None,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
    wide: Wide = False,
) -> None:
    """List tasks, experiments, aggregators, methods, ...; how far a sweep is; what is cached."""
    with reporting():
        from pgtg.cli.listing import show

        show(group, config_dir)


@app.command(
    "help",
    epilog=examples(
        "pgtg help sample.k  # a key: type, values in the config files, comment",
        "pgtg help reward  # all keys of a section",
        "pgtg help train  # a command",
    ),
)
def explain_word(
    ctx: typer.Context,
    word: Annotated[
        str | None, typer.Argument(help="A command, a key of the config, or a section of it.")
    ] = None,
) -> None:
    """Say what a command or a key of the config is."""
    group = ctx.parent.command if ctx.parent is not None else None
    commands = getattr(group, "commands", {})
    if word is None and ctx.parent is not None:
        typer.echo(ctx.parent.get_help())
    elif word in commands:
        own = commands[word]
        typer.echo(own.get_help(own.context_class(own, info_name=word, parent=ctx.parent)))
    else:
        with reporting():
            from pgtg.cli.listing import explain as explained

            explained(word)


DOCTOR_EXAMPLES = examples(
    "pgtg doctor  # this machine, and the quickstart",
    "pgtg doctor summarize experiment=cnn_dm_t5_small  # what that run would need",
    "pgtg doctor prompt dataset=sst2 --online  # also ask the hub for what is not here",
    "pgtg doctor --env  # a block for a bug report",
)


@app.command(epilog=DOCTOR_EXAMPLES)
def doctor(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK] [KEY=VALUE]...",
            help="As for train; the quickstart if left out.",
            show_default=False,
        ),
    ] = None,
    env: Annotated[bool, typer.Option("--env", help="Print a block for a bug report.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the hub for what is not on this machine.")
    ] = False,
    multirun: Annotated[
        bool, typer.Option("-m", "--multirun", help="The overrides are of a sweep.")
    ] = False,
    config_dir: ConfigDir = None,
    plugin: Plugins = None,
) -> None:
    """Name every problem of this machine and this config, and what fixes each. Exit code 1 if any.

    Nothing is fetched and nothing is left written.
    """
    with reporting():
        if env:
            from pgtg.doctor.environment import block

            typer.echo(block())
            return
        from pgtg.cli import calls

        well = calls.doctor(words or [], config_dir, multirun=multirun, online=online)
    if not well:
        raise typer.Exit(1)


cache = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What runs share.",
    short_help="Prune what runs share",
)
app.add_typer(cache, name="cache")

PRUNE_EXAMPLES = examples(
    "pgtg cache prune  # down to the limit, PGTG_CACHE_SIZE",
    "pgtg cache prune --max-size 2GB  # oldest use first, never what is in use",
    "pgtg cache prune --all",
)


@cache.command(epilog=PRUNE_EXAMPLES)
def prune(
    everything: Annotated[
        bool, typer.Option("--all", help="Delete all that is not in use.")
    ] = False,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Bytes to keep, e.g. 2GB.")
    ] = None,
) -> None:
    """Delete from the cache what was used longest ago. It only saves time: nothing is lost."""
    with reporting():
        from pgtg.cli.listing import prune_cache
        from pgtg.runs.entries import default_cache

        prune_cache(default_cache(), everything=everything, max_size=max_size)


@cache.callback()
def cache_group() -> None:
    """The cache by content hash; `pgtg ls cache` lists it."""


for group in (app, export, benchmark, cache):
    short(group)
