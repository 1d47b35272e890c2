"""Artifacts: folders that exist once their manifest does, and that a kill cannot tear.

An artifact grows in a hidden folder next to its place, `.NAME.<hash of inputs>.partial`. `commit`
seals it: files and folders synced, `manifest.json` written last, then two renames. Killed between
them, the next writer finishes from what lies there (`settle`):

    .NAME.next   complete, and so the newest: it becomes NAME
    .NAME.old    what NAME was before: comes back where there is neither NAME nor .NAME.next

so at every instant one complete version is on the disk. Hidden names are scratch: no manifest lists
them, and those that end in `.tmp` are garbage. Artifacts may come from a stranger: names that lead
outside, links, files that the manifest does not list and changed bytes are refused.
"""

import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pgtg.errors import ArtifactError, PgtgError
from pgtg.runs.files import (
    content_hash,
    finite,
    read_json,
    remove,
    sha256,
    sync,
    write_json,
    writing,
)
from pgtg.runtime.distributed import first

SCHEMA = 1
MANIFEST = "manifest.json"
KEPT = 1000  # manifests that are remembered as they were read
SETTLED = 50_000_000  # [ns] after which a file's next change is sure to have another time
_READ: dict[tuple[int, ...], dict[str, Any]] = {}  # by the state of their file
REDO = "delete the folder {folder} and repeat the command: it will be made again"


def safe_name(name: object) -> str:
    """A relative posix path that stays in its folder and holds no hidden part.

    Raises:
        ArtifactError: Absolute, empty, with `..`, `.`, a backslash, a NUL or a hidden part.
    """
    text = name if isinstance(name, str) else ""
    if not text or "\\" in text or "\0" in text:
        raise ArtifactError(f"not a file name inside an artifact: {name!r:.80}")
    if any(part == "" or part.startswith(".") for part in text.split("/")):
        raise ArtifactError(f"a file name leads outside its artifact or is hidden: {text!r:.80}")
    return text


def walk_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of each file below `folder`, sorted, hidden names left out.

    Raises:
        ArtifactError: A link, a pipe or a device among them.
    """
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", below) for name, below in walk_files(path))
        elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            yield entry.name, path
        else:
            raise ArtifactError(f"{path} is a link or a device, not a plain file: delete it")


class Artifact:
    """A folder of files with a manifest. Made by `RunFolder.artifact`, or on a bare path.

    Making one touches nothing. Reading needs no lock; `working`, `commit` and `remove` do.
    """

    _began: float | None = None  # when work on it started; None: not here, or not in one go

    def __init__(self, path: Path):
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether a valid manifest is there. The files' bytes are `verify`'s matter."""
        try:
            self.manifest()
        except ArtifactError:
            return False
        return True

    def manifest(self) -> dict[str, Any]:
        """schema, kind, inputs, metrics, position, extra, files {name: {bytes, sha256}}.

        extra.seconds is the wall time from `working` to `commit`; None where a killed process had
        done a part of the work before. It is in no hash.

        Raises:
            ArtifactError: Missing, damaged, of another schema, or naming unsafe files.
        """
        return _read_manifest(self.path)

    @first
    def made_from(self, inputs: str) -> bool:
        """Whether it is there and made from these inputs; then its files are verified.

        Raises:
            ArtifactError: A file is missing, changed, a link, or not listed.
        """
        if not self.exists() or self.manifest()["inputs"] != inputs:
            return False
        self.verify()
        return True

    def verify(self) -> dict[str, Any]:
        """The manifest, after each file was compared with its size and sha256 there.

        Raises:
            ArtifactError: A file is missing, changed, a link, or not listed; names it.
        """
        manifest = self.manifest()
        here = dict(walk_files(self.path))
        here.pop(MANIFEST, None)
        redo = REDO.format(folder=self.path)
        dropped = manifest["extra"].get("dropped", [])
        for name, expected in manifest["files"].items():
            path = here.pop(name, None)
            if path is None and name in dropped:
                continue
            if path is None:
                raise ArtifactError(f"{self.path / name} is missing; {redo}")
            if path.stat().st_size != expected["bytes"]:
                found = path.stat().st_size
                raise ArtifactError(
                    f"{path} has {found} bytes instead of {expected['bytes']}; {redo}"
                )
            if sha256(path) != expected["sha256"]:
                raise ArtifactError(f"{path} is damaged (its sha256 differs); {redo}")
        for path in here.values():
            raise ArtifactError(f"{path} is not in the manifest next to it: delete that file")
        return manifest

    def file(self, name: str) -> Path:
        """Path of a file or folder in this artifact, which need not exist; `verify` checks bytes.

        Raises:
            ArtifactError: A name that leads outside, or a link on the way to it.
        """
        path = self.path
        for part in safe_name(name).split("/"):
            path = path / part
            if path.is_symlink():
                raise ArtifactError(f"{path} is a link, not a plain file: delete it")
        return path

    @first
    def working(self, inputs: str, *, fresh: bool = False) -> Path:
        """The hidden folder in which this artifact grows.

        What a killed run left there is kept when it was made for the same `inputs`, unless `fresh`;
        what was made for others is deleted. Artifacts inside it (fit states) are settled as well.
        """
        settle(self.path)
        partial = self._partial(inputs)
        with writing(partial):
            for left in _partials(self.path):
                if fresh or left != partial:
                    remove(left)
            partial.mkdir(parents=True, exist_ok=True)
            sync(partial.parent)
        clean(partial)
        (partial / MANIFEST).unlink(missing_ok=True)  # killed while it was being sealed
        self._began = None if any(partial.iterdir()) else time.monotonic()
        return partial

    @first
    def commit(
        self,
        *,
        inputs: str,
        metrics: Mapping[str, float] | None = None,
        position: int = 0,
        kind: str | None = None,
        **extra: Any,
    ) -> "Artifact":
        """Seals the working folder and puts it in this artifact's place, over an older version.

        Args:
            inputs: The hash that `working` was called with.
            metrics: Finite numbers to keep with it.
            position: Bytes of metrics.jsonl that belong to this and what came before it.
            kind: Stage; the folder's name by default.
            extra: What else json can hold (round, step, ...), under "extra" in the manifest;
                `seconds` among it replaces the time that was measured.

        Raises:
            PgtgError: Nothing to commit, or the disk refuses; an older version stays as it is.
        """
        partial = self._partial(inputs)
        if not partial.is_dir():
            raise PgtgError(f"{self.path}: nothing to commit for these inputs; call working first")
        seconds = None if self._began is None else round(time.monotonic() - self._began, 3)
        body = {"schema": SCHEMA, "kind": kind or self.path.name, "inputs": inputs}
        body |= {
            "metrics": finite(metrics or {}, str(self.path)),
            "position": position,
            "extra": {"seconds": seconds, **extra},
        }
        seal(partial, body)
        self._place(partial)
        return self

    @first
    def drop(self, names: Iterable[str]) -> None:
        """Deletes files for good, to save room. The manifest still names them, so that what was
        made from this artifact still fits it."""
        manifest = self.manifest()
        names = sorted({*manifest["extra"].get("dropped", []), *names} & {*manifest["files"]})
        body = {**manifest, "extra": {**manifest["extra"], "dropped": names}}
        write_json(self.path / MANIFEST, {**body, "checksum": content_hash(body)})
        with writing(self.path):
            for name in names:
                self.file(name).unlink(missing_ok=True)

    @first
    def remove(self) -> None:
        """Deletes the artifact and what was growing for it, at once."""
        settle(self.path)
        for folder in [self.path, *_partials(self.path)]:
            if folder.is_dir():
                remove(folder)

    def _partial(self, inputs: str) -> Path:
        return self.path.parent / f".{self.path.name}.{content_hash(inputs)[:16]}.partial"

    def _place(self, partial: Path) -> None:
        replace_folder(partial, self.path)


def hash_of(artifacts: Iterable[Artifact], config_part: Any) -> str:
    """Hash of a stage's inputs: what its parents hold, and the config that it depends on."""
    parents = [
        {key: manifest[key] for key in ("kind", "inputs", "files")}
        for manifest in (artifact.manifest() for artifact in artifacts)
    ]
    return content_hash({"parents": parents, "config": config_part})


def seal(folder: Path, body: Mapping[str, Any]) -> None:
    """Deletes scratch, syncs all files and folders, and writes the manifest last."""
    with writing(folder):
        for path in [*_hidden(folder)]:
            remove(path)
        files, folders = {}, {folder}
        for name, path in walk_files(folder):
            if name == MANIFEST:
                continue
            sync(path)
            folders.update(folder.joinpath(name).parents[: name.count("/")])
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for each in folders:
            sync(each)
    content = {**body, "files": files}
    write_json(folder / MANIFEST, {**content, "checksum": content_hash(content)})


def replace_folder(new: Path, final: Path) -> None:
    """Puts the complete folder `new` in the place of `final`; see the top of this file."""
    with writing(final):
        settle(final)
        new.rename(_sibling(final, "next"))  # from here on it is the newest version
        sync(final.parent)
        settle(final)


def settle(final: Path) -> None:
    """Finishes the exchange that a killed `replace_folder` left in the middle."""
    newest, former = _sibling(final, "next"), _sibling(final, "old")
    with writing(final):
        if newest.is_dir():
            if final.exists():
                if former.exists():
                    remove(former)
                final.rename(former)
            newest.rename(final)
            sync(final.parent)
        if former.exists() and final.exists():
            remove(former)
        elif former.exists():
            former.rename(final)
            sync(final.parent)


def clean(folder: Path, skip: Iterable[str] = ()) -> None:
    """Deletes garbage and settles half-done exchanges everywhere below `folder`.

    Only for the one writer of the folder: another's temporary files would go as well.
    """
    for path in [*_hidden(folder, skip)]:
        if path.name.endswith(".tmp"):
            remove(path)
        elif path.name.endswith((".next", ".old")):
            settle(path.parent / path.name[1:].rpartition(".")[0])


def _hidden(folder: Path, skip: Iterable[str] = ()) -> Iterator[Path]:
    """Hidden names below `folder`, and what is hidden inside partial folders."""
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in set(skip)]
        yield from (Path(parent) / name for name in folders + files if name.startswith("."))


def _sibling(final: Path, what: str) -> Path:
    return final.parent / f".{final.name}.{what}"


def _partials(final: Path) -> list[Path]:
    if not final.parent.is_dir():
        return []
    start, end = f".{final.name}.", ".partial"
    hidden = (path for path in final.parent.iterdir() if path.name.startswith(start))
    return [
        path
        for path in sorted(hidden)
        if path.name.endswith(end) and "." not in path.name[len(start) : -len(end)]
    ]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if folder.is_symlink() or not path.exists():
        reason = "is a link" if folder.is_symlink() else "is missing or was never finished"
        raise ArtifactError(f"{folder} {reason}: run the command that makes it")
    found = path.stat()
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if state in _READ:
        return {**_READ[state]}
    manifest = _checked_manifest(folder, path)
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > SETTLED:
        while len(_READ) >= KEPT:
            del _READ[next(iter(_READ))]
        _READ[state] = {**manifest}
    return manifest


def _checked_manifest(folder: Path, path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    damaged = ArtifactError(f"{path} is damaged; {REDO.format(folder=folder)}")
    if not isinstance(manifest, dict):
        raise damaged
    if manifest.get("schema") != SCHEMA:
        found = repr(manifest.get("schema"))[:20]
        raise ArtifactError(f"{path} has schema {found}, this pgtg reads {SCHEMA}: make it again")
    checksum = manifest.pop("checksum", None)
    shape = {
        "kind": str,
        "inputs": str,
        "metrics": dict,
        "position": int,
        "files": dict,
        "extra": dict,
    }
    if any(not isinstance(manifest.get(key), kind) for key, kind in shape.items()):
        raise damaged
    dropped = manifest["extra"].get("dropped", [])
    if not isinstance(dropped, list) or not all(isinstance(name, str) for name in dropped):
        raise damaged
    if manifest["position"] < 0:
        raise damaged
    try:
        if content_hash(manifest) != checksum:
            raise damaged
    except RecursionError as error:
        raise damaged from error
    for name, expected in manifest["files"].items():
        safe_name(name)
        if not isinstance(expected, dict) or {*expected} != {"bytes", "sha256"}:
            raise damaged
    return manifest
