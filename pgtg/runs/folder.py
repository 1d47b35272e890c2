"""The run folder: the only part, with `artifacts` and `files` below it, that knows file names.

    config.yaml provenance.json run.lock      resolved config; who, when, with which versions
    metrics.jsonl metrics.check.json          written by `log`; the checksum of what is committed
    log.txt wandb_id wandb/                   written by `log`
    rounds/00/{sample,...,improve}/           artifacts: a manifest with checksums in each
    policy/ reward/ eval/                     the current best, published; results

A run folder may come from a stranger. Opening one reads plain yaml and json only, and refuses links
and devices in it, yaml tags, aliases and interpolations.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pgtg import DISTRIBUTION
from pgtg.config import plugins
from pgtg.errors import ArtifactError, ConfigError, PgtgError
from pgtg.runs.artifacts import (
    MANIFEST,
    SCHEMA,
    Artifact,
    clean,
    hash_of,
    replace_folder,
    safe_name,
    seal,
    walk_files,
)
from pgtg.runs.cache import cached
from pgtg.runs.files import (
    atomic,
    content_hash,
    load_tensors,
    read_bytes,
    read_json,
    read_jsonl,
    read_table,
    save_tensors,
    write_json,
    write_jsonl,
    write_table,
    writing,
)
from pgtg.runs.locks import acquire, is_held
from pgtg.runtime.distributed import first

__all__ = [
    "Artifact",
    "RunFolder",
    "atomic",
    "cached",
    "content_hash",
    "hash_of",
    "link_or_copy",
    "load_tensors",
    "provenance",
    "read_json",
    "read_jsonl",
    "read_table",
    "save_tensors",
    "write_json",
    "write_jsonl",
    "write_table",
]

CONFIG = "config.yaml"
FOREIGN = ("wandb", ".hydra")  # other tools' folders inside a run folder: left alone
# Keys that change no bit of a result, so that they may differ when a run is resumed.
NEUTRAL = ("run_dir", "logger", "quiet", "cache", "keep_rounds", "judge.workers")
NEUTRAL += tuple(f"judge.{key}" for key in ("key_env", "concurrency", "timeout", "retries"))
NEUTRAL += ("judge.price_input", "judge.price_output")
PACKAGES = ("pgtg", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")
PACKAGES += ("datasets", "hydra-core", "omegaconf", "rouge-score", "nltk", "wandb")


class RunFolder:
    """One run's folder. `lock` it before writing, then `create` it or `open` it."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().absolute()
        self._locked = False

    def exists(self) -> bool:
        """Whether a run was created here: its config, written last, is there."""
        return (self.path / CONFIG).is_file()

    def create(self, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> "RunFolder":
        """Writes provenance.json, then config.yaml, with which the run folder begins to exist.

        Raises:
            ArtifactError: A run is here already.
            ConfigError: The config holds an unresolved interpolation, or what yaml cannot hold.
        """
        if self.exists():
            raise ArtifactError(f"{self.path} already holds a run: resume it or choose another")
        text = _yaml_text(config)
        write_json(self.path / "provenance.json", provenance)
        with atomic(self.path / CONFIG) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return self

    def open(self) -> "RunFolder":
        """Checks that a run is here and that nothing in it leads outside.

        Whoever holds the lock also deletes the garbage of a killed run and ends its half-done
        exchanges; a reader of a running run changes nothing.

        Raises:
            ArtifactError: Missing, half-written, unreadable, or with a link or a device in it.
        """
        if not self.path.is_dir():
            raise ArtifactError(f"no run folder at {self.path}: `pgtg train` makes one")
        if not self.exists():
            raise ArtifactError(
                f"{self.path} has no {CONFIG}: it is no run folder, or the run was stopped before "
                "it began; `pgtg train … run_dir=` begins it there"
            )
        _refuse_links(self.path)
        if self._locked:
            clean(self.path, skip=FOREIGN)
        else:
            # In use (its writer will do it) or read-only (nothing can be written): read on.
            with contextlib.suppress(PgtgError), self.lock():
                clean(self.path, skip=FOREIGN)
        self.config()
        return self

    def config(self) -> dict[str, Any]:
        """The resolved config that the run was created with.

        Raises:
            ArtifactError: Unreadable, or with a yaml tag, alias or interpolation in it.
        """
        path = self.path / CONFIG
        return _parse_yaml(read_bytes(path, max_bytes=2**20), path)

    def runnable_config(self) -> dict[str, Any]:
        """`config`, for those who run code by the names that it holds.

        Raises:
            ConfigError: The run was made with a plugin that this call does not name.
        """
        config, path = self.config(), self.path / "provenance.json"
        made_with = read_json(path).get("plugins", []) if path.is_file() else []
        known = {plugin["name"] for plugin in plugins.described()}
        lacking = [str(p.get("name")) for p in made_with if p.get("name") not in known]
        if lacking:
            files = " ".join(f"--plugin {name}" for name in lacking)
            raise ConfigError(f"{self.path}: this run was made with {files}: give that file again")
        return config

    def config_diff(self, new: Mapping[str, Any]) -> list[str]:
        """Lines "key: old -> new" for all keys that may change results; empty when none differs."""
        old_flat, new_flat = flat(self.config()), flat(_parse_yaml(_yaml_text(new), "config"))
        return [
            f"{key}: {_show(old_flat, key)} -> {_show(new_flat, key)}"
            for key in dict.fromkeys([*old_flat, *new_flat])
            if not any(key == neutral or key.startswith(f"{neutral}.") for neutral in NEUTRAL)
            and _show(old_flat, key) != _show(new_flat, key)
        ]

    def reset_config(self, config: Mapping[str, Any]) -> None:
        """Puts another config in the place of the run's (the user forced it)."""
        text = _yaml_text(config)
        with atomic(self.path / CONFIG) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def lock(self) -> Iterator["RunFolder"]:
        """Holds the folder for one writer; the kernel frees it when the process ends, however.

        Raises:
            ArtifactError: Another process holds it; names its pid. Nobody waits.
        """
        path = self.path / "run.lock"
        with writing(path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                handle = _got(path)
            except BlockingIOError as error:
                raise ArtifactError(
                    f"run folder {self.path} is in use by process {_holder(path)}: wait for "
                    "it, stop it, or choose another run_dir"
                ) from error
        try:
            with writing(path):
                owner = {"pid": os.getpid(), "started": _now()}
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(owner).encode() + b"\n", 0)
            self._locked = True
            yield self
        finally:
            self._locked = False
            os.close(handle)

    def running(self) -> bool:
        """Whether a process holds the lock. Writes nothing."""
        return is_held(self.path / "run.lock")

    def artifact(self, *parts: str) -> Artifact:
        """The artifact at this place, for example `artifact("rounds", "00", "sample")`."""
        return Artifact(self.path.joinpath(*(safe_name(part) for part in parts)))

    def artifacts(self) -> list[Artifact]:
        """All committed artifacts, also those inside partial folders (fit states)."""
        found = []
        for parent, folders, files in os.walk(self.path):
            if Path(parent) == self.path:
                folders[:] = [name for name in folders if name not in FOREIGN]
            folders[:] = sorted(name for name in folders if not name.endswith((".tmp", ".old")))
            if MANIFEST in files and not parent.endswith(".partial"):
                found.append(Artifact(Path(parent)))
        return [artifact for artifact in found if artifact.exists()]

    def last_position(self) -> int:
        """Bytes of metrics.jsonl that the newest commit covers: the largest position of any."""
        return max((a.manifest()["position"] for a in self.artifacts()), default=0)

    @first
    def publish(self, name: str, source: Path, **extra: Any) -> Artifact:
        """Puts a copy of a folder at run_dir/`name`, over the former one, as an artifact.

        Files are hard links where the disk allows it, so that publishing a model costs no room.
        """
        target = self.artifact(name)
        fresh = self.path / f".{name}.{secrets.token_hex(6)}.tmp"
        with writing(target.path):
            for below, path in walk_files(Path(source)):
                if below != MANIFEST:
                    (fresh / below).parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(path, fresh / below)
        body = {"schema": SCHEMA, "kind": name, "inputs": "", "metrics": {}, "position": 0}
        seal(fresh, {**body, "extra": extra})
        replace_folder(fresh, target.path)
        return target


def provenance(argv: Sequence[str], seed: int) -> dict[str, Any]:
    """Where a result comes from: command, versions, commit, machine. Imports nothing heavy."""
    torch = sys.modules.get("torch")  # known only where the caller has loaded it
    device = None
    if torch is not None:
        from pgtg.runtime.device import device_name, pick_device

        found = pick_device("auto")
        device = {
            "name": platform.processor() or "cpu" if found.type == "cpu" else device_name(found),
            "threads": torch.get_num_threads(),
        }
    return {
        "argv": list(argv),
        "seed": seed,
        "time": _now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
        "packages": {name: _version(name) for name in PACKAGES},
        "plugins": plugins.described(),
        "git": _commit(Path(__file__).resolve().parents[2]),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(DISTRIBUTION if package == "pgtg" else package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> dict[str, Any] | None:
    """Commit of pgtg's own checkout, and whether it was changed since; None when installed."""
    if not (root / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode != 0:
        return None
    return {"commit": head.stdout.strip(), "changed": bool(dirty.stdout)}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _got(path: Path) -> int:
    """The held lock. Who only looks holds it for an instant: it is asked for a few times."""
    for pause in (0.05, 0.1, 0.2):
        with contextlib.suppress(BlockingIOError):
            return acquire(path, wait=False)
        time.sleep(pause)
    return acquire(path, wait=False)


def _holder(path: Path) -> str:
    """Pid in the lock file. The holder writes it just after it got the lock: wait a moment."""
    for _ in range(20):
        try:
            return str(int(json.loads(path.read_text(encoding="utf-8"))["pid"]))
        except (ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return "(unknown)"


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, which costs no room; a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def _refuse_links(folder: Path) -> None:
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        for name in folders + files:
            mode = (here / name).lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ArtifactError(f"{here / name} is a link or a device: delete it first")
        if here == folder:
            folders[:] = [name for name in folders if name not in FOREIGN]


def _yaml_text(config: Mapping[str, Any]) -> str:
    """Plain yaml that reads back to the same values."""
    try:
        text = yaml.dump(
            dict(config), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100
        )
    except yaml.YAMLError as error:
        raise ConfigError(f"the config holds what plain yaml cannot: {error}") from error
    if "${" in text:
        line = next(line for line in text.splitlines() if "${" in line)
        raise ConfigError(f"the config holds an unresolved interpolation: {line.strip()}")
    return text


class _PlainDumper(yaml.SafeDumper):
    """No anchors for values that occur twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# libyaml's, where PyYAML has it: ten times faster
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
DEEPEST = 100  # a config has half a dozen levels


def _parse_yaml(text: bytes | str, path: object) -> dict[str, Any]:
    way_out = "restore it from a copy, or start the run again in another run_dir"
    refused = (yaml.TagToken, yaml.AnchorToken, yaml.AliasToken)
    depth = 0
    try:
        for token in yaml.scan(text, _Loader):
            depth += isinstance(token, OPENS) - isinstance(token, CLOSES)
            if depth > DEEPEST:  # libyaml itself follows until the stack ends
                raise ArtifactError(f"{path} is not readable yaml (nested too deeply); {way_out}")
            if isinstance(token, refused):
                line = token.start_mark.line + 1
                raise ArtifactError(f"{path} line {line} has a yaml tag or alias: refused")
            if isinstance(token, yaml.ScalarToken) and "${" in token.value:
                line = token.start_mark.line + 1
                raise ArtifactError(f"{path} line {line} has an interpolation ${{…}}: refused")
        config = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path} is not readable yaml ({reason}); {way_out}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} holds no config; {way_out}")
    return config


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; lists and empty groups count as leaves."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _show(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False, default=str) if key in flat else "(absent)"
