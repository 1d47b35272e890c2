"""What a model has answered, kept: a classifier LM scores each prompt once per list of examples.

One sqlite file holds the answers of one classifier (weights, template, words, rendering, readout)
to one list of examples; its name is the hash of all that. It is only a cache: shared by stages,
rounds, resumed runs and the jobs of a sweep, safe among them and after a kill at any instant
(write-ahead log). A damaged file is set aside and made again; if it cannot be written, the memo is
kept in memory. An answer that comes from the file is what the classifier gave, bit for bit.
"""

import contextlib
import json
import math
import secrets
import sqlite3
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pgtg.errors import PgtgError
from pgtg.judges.template import Prompt
from pgtg.runs.files import content_hash
from pgtg.runs.layout import folded
from pgtg.runs.locks import locked

if TYPE_CHECKING:
    from pgtg.types import Labelled  # pulls in torch

BUSY_S = 60.0  # how long a writer waits for others; each holds the file for milliseconds
TABLE = (
    "CREATE TABLE IF NOT EXISTS answered "
    "(name TEXT PRIMARY KEY, crc INTEGER NOT NULL, answer BLOB NOT NULL)"
)

Warn = Callable[[str], None]
Demos = Sequence[Sequence["Labelled"]] | None  # demonstrations of each example


class PromptClassifier(Protocol):
    """What is asked of a classifier here; `judges.classifier.Classifier` has it."""

    words: list[str]

    @property
    def at_once(self) -> int: ...

    def log_probs(
        self, prompt: Prompt, examples: Sequence["Labelled"], demos: Demos = None
    ) -> np.ndarray: ...

    def log_probs_of(
        self, prompts: Sequence[Prompt], examples: Sequence["Labelled"]
    ) -> np.ndarray: ...

    def identity(self, prompt: Prompt) -> Prompt: ...

    def describe(self) -> Mapping[str, Any]: ...


def _to_stderr(text: str) -> None:
    print(folded(f"warning: {text}", sys.stderr), file=sys.stderr)


class Answers:
    """Bytes by name, in a sqlite file or in memory; several threads and processes may use it.

    Args:
        path: The file; None keeps all in memory.
        warn: Told once, in one line, when the file is set aside or cannot be used.
    """

    def __init__(self, path: Path | None, warn: Warn = _to_stderr):
        self._path, self._warn = path, warn
        self._memory: dict[str, bytes] = {}
        self._file: sqlite3.Connection | None = None
        self._turn = threading.RLock()
        if path is not None:
            self._guarded(lambda: None)

    def get(self, key: str) -> bytes | None:
        """What was put under this name, or None."""
        with self._turn:
            if self._path is not None:
                query = "SELECT crc, answer FROM answered WHERE name = ?"
                found = self._guarded(lambda: self._connected().execute(query, (key,)).fetchone())
                if self._path is not None:  # damaged: it is computed and put again
                    return found[1] if found and zlib.crc32(found[1]) == found[0] else None
            return self._memory.get(key)

    def put_all(self, answers: Mapping[str, bytes]) -> None:
        """Keeps what stands under each name: all of it or, if killed, nothing."""
        rows = [(key, zlib.crc32(value), value) for key, value in answers.items()]
        with self._turn:
            if self._path is not None:
                self._guarded(lambda: self._store(rows))
            if self._path is None:
                self._memory |= answers

    def _store(self, rows: Sequence[tuple[str, int, bytes]]) -> None:
        file = self._connected()
        file.execute("BEGIN IMMEDIATE")
        try:
            file.executemany("INSERT OR REPLACE INTO answered VALUES (?, ?, ?)", rows)
            file.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                file.execute("ROLLBACK")
            raise

    def close(self) -> None:
        with self._turn:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """The action's result; a damaged file is made again, an unusable one left for memory."""
        try:
            try:
                self._connected()
                return action()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:  # not a database, or malformed
                self._set_aside(error)
                self._connected()
                return action()
        except (sqlite3.Error, OSError, PgtgError) as error:
            self._warn(f"{self._path} cannot be used ({error}): answers stay in memory")
            self.close()
            self._path = None
            return None

    def _connected(self) -> sqlite3.Connection:
        assert self._path is not None
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._lock()):  # sqlite does not wait when several switch a new file to WAL
                self._file = _connect(self._path)
        return self._file

    def _lock(self) -> Path:
        return Path(f"{self._path}.lock")

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Renames a damaged file, unless another process has done so already."""
        assert self._path is not None
        self.close()
        with locked(self._lock()):
            if _sound(self._path):
                return
            aside = self._path.with_name(f"{self._path.name}.damaged-{secrets.token_hex(4)}")
            for ending in ("", "-wal", "-shm"):  # the log belongs to the damaged file
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self._path}{ending}").rename(f"{aside}{ending}")
        self._warn(f"{self._path} is damaged ({error}): set aside as {aside.name}, made again")


class Memo:
    """Float32 arrays of one shape by name, in a sqlite file or in memory.

    Args:
        path: As for `Answers`.
        shape: Of each array; what has another size in the file is not there.
        warn: As for `Answers`.
    """

    def __init__(self, path: Path | None, shape: tuple[int, ...], warn: Warn = _to_stderr):
        self._answers, self._shape = Answers(path, warn), shape

    def get(self, key: str) -> np.ndarray | None:
        """What was put under this name, or None."""
        found = self._answers.get(key)
        if found is None or len(found) != 4 * math.prod(self._shape):
            return None
        return np.frombuffer(found, "<f4").reshape(self._shape).astype(np.float32)

    def put(self, key: str, values: np.ndarray) -> None:
        """Keeps an array of the memo's shape under this name."""
        self.put_all([key], [values])

    def put_all(self, keys: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
        """Keeps an array of the memo's shape under each name: all of them or, if killed, none."""
        for values in arrays:
            if values.shape != self._shape or values.dtype != np.float32:
                raise ValueError(f"{values.dtype} {values.shape}, not float32 {self._shape}")
        blobs = [np.ascontiguousarray(values, "<f4").tobytes() for values in arrays]
        self._answers.put_all(dict(zip(keys, blobs, strict=True)))

    def close(self) -> None:
        self._answers.close()


@dataclass(frozen=True)
class Counts:
    """The cost of judging: asked for (the same whether the memo knew it or not), and really run."""

    judged_prompts: int  # distinct prompts, per split
    judged_sequences: int  # these prompts times the examples of their split
    computed_prompts: int
    computed_sequences: int


class PromptScores:
    """A classifier with its memo: asks each distinct prompt once per split, and counts.

    Args:
        folder: Where memos are kept, shared by runs; None keeps them in memory.
        warn: Told in one line of a memo that is damaged or cannot be used.
    """

    def __init__(self, classifier: PromptClassifier, folder: Path | None, warn: Warn = _to_stderr):
        self.classifier = classifier
        self._folder, self._warn = folder, warn
        self._memos: dict[str, Memo] = {}
        self._asked: dict[str, dict[str, int]] = {}  # split -> prompt's key -> examples
        self._computed: dict[str, list[int]] = {}  # split -> prompts, sequences
        self._about: str | None = None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        split: str,
        examples: Sequence["Labelled"],
        demos: Demos = None,
    ) -> np.ndarray:
        """float32 [P, E, C]: log-probabilities [nats] of the label words, for the whole split.

        Args:
            split: Its name, for the counts.
            examples: All of the split; sub-batches are views of the result.
            demos: Demonstrations shown with each example.
        """
        memo = self._memo(examples, demos)
        asked, done = self._asked.setdefault(split, {}), self._computed.setdefault(split, [0, 0])
        out = np.empty((len(prompts), len(examples), len(self.classifier.words)), np.float32)
        rows: dict[str, list[int]] = {}  # of each distinct prompt
        for row, prompt in enumerate(prompts):
            rows.setdefault(key_of(self.classifier.identity(prompt)), []).append(row)
        unknown: list[str] = []
        for own, places in rows.items():
            asked[own] = len(examples)
            found = memo.get(own)
            if found is None:
                unknown.append(own)
            else:
                out[places] = found
        size = self.classifier.at_once if demos is None else 1
        for start in range(0, len(unknown), size):
            part = unknown[start : start + size]
            first = [prompts[rows[own][0]] for own in part]
            if demos is None:
                found = self.classifier.log_probs_of(first, examples)
            else:
                found = self.classifier.log_probs(first[0], examples, demos)[None]
            memo.put_all(part, list(found))
            done[0], done[1] = done[0] + len(part), done[1] + len(part) * len(examples)
            for own, values in zip(part, found, strict=True):
                out[rows[own]] = values
        return out

    def counts(self, split: str | None = None) -> Counts:
        """Of one split, or of all together."""
        splits = list(self._asked) if split is None else [split]
        asked = [self._asked.get(name, {}) for name in splits]
        done = [self._computed.get(name, [0, 0]) for name in splits]
        return Counts(
            sum(map(len, asked)),
            sum(sum(each.values()) for each in asked),
            sum(each[0] for each in done),
            sum(each[1] for each in done),
        )

    @property
    def judged_prompts(self) -> int:
        return self.counts().judged_prompts

    @property
    def judged_sequences(self) -> int:
        return self.counts().judged_sequences

    @property
    def computed_sequences(self) -> int:
        return self.counts().computed_sequences

    def close(self) -> None:
        for memo in self._memos.values():
            memo.close()

    def _memo(self, examples: Sequence["Labelled"], demos: Demos) -> Memo:
        self._about = self._about or content_hash(dict(self.classifier.describe()))
        texts = [example.text for example in examples]
        shown = None if demos is None else [[(d.text, d.label) for d in each] for each in demos]
        key = content_hash([self._about, texts, shown])
        if key not in self._memos:
            path = None if self._folder is None else self._folder / f"{key[:32]}.sqlite"
            shape = (len(texts), len(self.classifier.words))
            self._memos[key] = Memo(path, shape, self._warn)
        return self._memos[key]


def key_of(prompt: Prompt) -> str:
    """A prompt's name in a memo."""
    return json.dumps([prompt.text, prompt.ids])


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that commits each statement by itself."""
    file = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last answers
        file.execute(TABLE)
    except sqlite3.Error:
        file.close()
        raise
    return file


def _sound(path: Path) -> bool:
    try:
        file = _connect(path)
        try:
            return file.execute("PRAGMA quick_check").fetchone() == ("ok",)
        finally:
            file.close()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        return False
