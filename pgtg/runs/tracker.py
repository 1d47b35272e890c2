"""Trackers: where metrics go besides metrics.jsonl. A null object where none is wanted.

Each method may raise; `RunLog` says the first failure once and continues without the tracker. W&B
is imported only when `logger.name` is wandb, never asks for a login, and waits for the network for
a bounded time only: where going online fails, the same run id continues offline (`wandb sync`
later).
"""

import contextlib
import hashlib
import netrc
import os
import re
import secrets
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pgtg.config import LoggerConfig
from pgtg.runs.files import atomic

INIT_SECONDS = 30.0  # wait at most so long to get online
FINISH_SECONDS = 60.0  # and so long to upload what is left at the end
MOST, HASH = 128, 12  # characters of a name that W&B takes; of the hash of a longer one
_ID = re.compile(r"[a-z0-9]{8,32}")


class Tracker(Protocol):
    """What `RunLog` tells a tracker."""

    def start(self) -> str | None: ...

    def kept(self) -> str | None: ...

    def log(self, stage: str, round: int, step: int, values: Mapping[str, float]) -> None: ...

    def table(
        self, name: str, round: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None: ...

    def page(self, name: str, path: Path) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self, exit_code: int) -> None: ...


class NullTracker:
    """Tracks nothing."""

    def start(self) -> str | None:
        """Nothing to start, nothing to say."""

    def kept(self) -> str | None:
        """Nothing is kept."""

    def log(self, stage: str, round: int, step: int, values: Mapping[str, float]) -> None:
        """Drops the values."""

    def table(
        self, name: str, round: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Drops the rows."""

    def page(self, name: str, path: Path) -> None:
        """Drops the page."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Drops the values."""

    def close(self, exit_code: int) -> None:
        """Nothing to close."""


class WandbTracker:
    """One W&B run per run folder: its id is kept there, so that a resumed run continues in it."""

    def __init__(self, cfg: LoggerConfig, folder: Path, config: Mapping[str, Any]):
        self._cfg, self._folder, self._config = cfg, folder, config
        self._run: Any = None
        self._stages: set[str] = set()

    def start(self) -> str | None:
        """Starts or resumes the W&B run; offline where nobody is logged in or the net is down.

        Returns:
            What to say of a run that continues offline although it was to be online.
        """
        mode = online_mode(self._cfg.mode)
        with _quiet():
            if mode == "online" and not has_key():  # W&B would ask for a login, or wait
                self._run = self._init("offline")
                return "nobody is logged in to W&B (wandb login): the run is kept offline there"
            try:
                self._run = self._init(mode)
            except Exception as error:
                if mode != "online":
                    raise
                self._run = self._init("offline")
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                return f"W&B cannot be reached ({reason}): the run is kept offline there"
        return None

    def kept(self) -> str | None:
        """Where an offline run lies, and how to send it; None of one that is sent as it goes."""
        if self._run is None or not self._run.offline:
            return None
        return f"W&B: offline; when there is a net: wandb sync {Path(self._run.dir).parent}"

    def _init(self, mode: str) -> Any:
        import wandb

        directory = os.environ.get("WANDB_DIR") or str(self._folder)
        Path(directory).mkdir(parents=True, exist_ok=True)
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            id=_run_id(self._folder / "wandb_id"),
            resume="allow",
            project=os.environ.get("WANDB_PROJECT") or self._cfg.project,
            entity=self._cfg.entity or os.environ.get("WANDB_ENTITY"),
            group=self._cfg.group or os.environ.get("WANDB_RUN_GROUP"),
            name=run_name(self._config, self._folder),
            config=dict(self._config),
            dir=directory,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )

    def log(self, stage: str, round: int, step: int, values: Mapping[str, float]) -> None:
        """Values under "<stage>/…" on the stage's own axis, so that a resumed run drops none."""
        axis = f"{stage}/step"
        with _quiet():
            if stage not in self._stages:
                self._run.define_metric(axis)
                self._run.define_metric(f"{stage}/*", step_metric=axis)
                self._stages.add(stage)
            named = {k if k.startswith(f"{stage}/") else f"{stage}/{k}": values[k] for k in values}
            self._run.log({**named, f"{stage}/round": round, axis: step})

    def table(
        self, name: str, round: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """A table of one round, as `<name>/round_<n>`."""
        import wandb

        with _quiet():
            made = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({f"{name}/round_{round:02d}": made})

    def page(self, name: str, path: Path) -> None:
        """An HTML file, shown in the run and kept as an artifact."""
        import wandb

        with _quiet():
            self._run.log({name: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})
            artifact = wandb.Artifact(f"{name}-{self._run.id}", type="html")
            artifact.add_file(str(path))
            self._run.log_artifact(artifact)

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's summary values, as in the results table."""
        with _quiet():
            self._run.summary.update(dict(values))

    def close(self, exit_code: int) -> None:
        """Ends the W&B run as finished or failed, so that the next job starts one of its own."""
        run, self._run = self._run, None
        if run is not None:
            with _quiet():
                run.finish(exit_code=exit_code)


def tracker(cfg: LoggerConfig, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker that `logger.name` names: none or wandb. Nothing is started yet."""
    if cfg.name == "wandb":
        return WandbTracker(cfg, folder, config)
    return NullTracker()


def online_mode(mode: str | None) -> str:
    """W&B's mode: from the config, else WANDB_MODE, else online only where a key is at hand."""
    chosen = mode or os.environ.get("WANDB_MODE")
    if chosen:
        return {"dryrun": "offline", "run": "online"}.get(chosen, chosen)
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether the environment or netrc holds a key for the W&B server; it is not looked at."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urllib.parse.urlsplit(url).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def run_name(config: Mapping[str, Any], folder: Path) -> str:
    """What W&B shows a run as: its name and its folder's, so that no two jobs of a sweep share it.

    Names that W&B would not take for their length end in a hash of the whole.
    """
    name = f"{config.get('name')} {folder.name}"
    if len(name) <= MOST:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:HASH]
    return f"{name[: MOST - HASH - 1]}-{digest}"


def _run_id(path: Path) -> str:
    """The id kept in the run folder; a new one (not from the seeded generators) where none is."""
    if path.is_file() and not path.is_symlink():
        kept = path.read_text(encoding="ascii", errors="replace").strip()
        if _ID.fullmatch(kept):
            return kept
    fresh = secrets.token_hex(8)
    with atomic(path) as temporary:
        temporary.write_text(fresh + "\n", encoding="ascii")
    return fresh


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """W&B's own deprecation warnings are not the user's to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
