"""Preferences that exist already: a prompt, its completions, and who prefers which.

Formats, by their columns (`data.columns` gives other names):

- *pairs*, TRL's: `chosen`, `rejected`, and `prompt`, or without it the prompt that both begin with;
  perhaps a `margin`.
- *rankings*: `completions`, and `ranks` (1 is best, equal is a tie, null is not judged) or `scores`
  (higher is better).
- *comparisons*: `completions`, and `pairs` of [i, j, who]: who > 0: i is better, < 0: j, 0: a tie.

Next to `completions` there may be `spans`: for each of them the errors that somebody marked in it,
[[start, end, label], ...] in characters, or null where nobody looked for any. Nothing learns from
them; evaluation asks how likely they are.

Prompts and completions are texts, or conversations: lists of {role, content}, of which the last
turn is the completion. Completions in turns follow the prompt, or are whole conversations that
begin with it (TRL allows both), or whose first user turn is a prompt in text. A conversation
becomes a prompt as canonical JSON of its messages, with the row's `tools`; what the model reads of
it is its chat template's business (`models/chat.py`).

Rows that cannot be used are dropped and counted with their reason, as everywhere (`splits`). Rows
with the prompt of an earlier row are further preferences of it. A file of plain texts with
conversations in it is a mistake of the file, and an error.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pgtg.config import ColumnsConfig, DataConfig
from pgtg.data.adapters import ADAPTERS, COLUMNS
from pgtg.data.columns import cell
from pgtg.data.marks import NO_SPAN, Span, spans_of, within
from pgtg.data.rows import Rows, RowWriter, Stored
from pgtg.data.splits import OddRows, Tally, fingerprint, has_split, read_rows, text_problem
from pgtg.data.tables import SOURCES, Row, Table, has_file
from pgtg.errors import ConfigError, DataError
from pgtg.types import DataCounts, Example

ROLES = ("system", "developer", "user", "assistant", "tool")
KEPT = ("role", "content", "name", "tool_calls", "tool_call_id")  # of a message
OTHER_SIDE = "on the other side of data.validation_share"  # why a row is not of its split
MISSPELT = 0.82  # how alike a column's name and another are: promts, Prompt; not prompt_id
Turns = list[dict[str, Any]]
Pairs = tuple[tuple[int, int], ...]
Marks = tuple[tuple[Span, ...] | None, ...]  # of each completion; None: nobody looked for errors
# prompt, texts, scores, pairs, marks
_Judged = tuple[Turns | str, list[str], list[float], Pairs | None, Marks | None]

_TEXT, _NUMBERS = pa.large_string(), pa.list_(pa.float64())
SCHEMA = pa.schema(
    {
        "id": _TEXT,
        "prompt": _TEXT,
        "completions": pa.large_list(_TEXT),
        "scores": _NUMBERS,
        "winners": pa.list_(pa.int32()),
        "losers": pa.list_(pa.int32()),
        "margin": pa.float64(),
        "marks": _TEXT,  # JSON
    }
)


@dataclass(frozen=True)
class Ranking:
    """A prompt with K completions, and what somebody prefers among them.

    Args:
        id: Of the row.
        prompt: Text, or the canonical JSON of a conversation.
        completions: K texts.
        scores: One of each, higher is better; only their order matters. Of comparisons: how often
            it won less how often it lost.
        pairs: (better, other) completions, where only pairs were compared.
        margin: Of two completions: what the better one is to be above the other [nats].
        marks: Of each completion the errors that somebody marked in it; they may overlap, but lie
            within the text.
    """

    id: str
    prompt: str
    completions: tuple[str, ...]
    scores: tuple[float, ...]
    pairs: Pairs | None = None
    margin: float | None = None
    marks: Marks | None = None

    @property
    def best(self) -> int:
        """The completion that is preferred; the first of several."""
        return self.scores.index(max(self.scores))


class Rankings(Stored[Ranking]):
    """The preferences of a split, each made when it is asked for.

    Attributes:
        conversational: Whether prompts are conversations.
        format: "pairs", "rankings" or "comparisons".
    """

    def __init__(self, rows: Rows, conversational: bool, format: str):
        self._rows, self.conversational, self.format = rows, conversational, format

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, place: int) -> Ranking:
        id, prompt, completions, scores, winners, losers, margin, written = (
            self._rows.value(name, place) for name in SCHEMA.names
        )
        pairs = None if winners is None else tuple(zip(winners, losers, strict=True))
        marks = None if written is None else tuple(map(spans_of, json.loads(written)))
        return Ranking(id, prompt, tuple(completions), tuple(scores), pairs, margin, marks)

    def sizes(self) -> np.ndarray:
        """Completions of each row; nothing is read."""
        return self._rows.lengths("completions")

    def ids(self) -> list[str]:
        """Of all rows; nothing else is read."""
        return self._rows.column("id")


class Chosen(Stored[Example]):
    """The preferred completion of each row as its target."""

    def __init__(self, rankings: Rankings):
        self.rankings = rankings

    def __len__(self) -> int:
        return len(self.rankings)

    def at(self, place: int) -> Example:
        one = self.rankings[place]
        target = one.completions[one.best]
        return Example(one.id, one.prompt, (target,), target)


class EveryCompletion(Stored[Example]):
    """Each completion of each row as a target, those of a row one after another."""

    def __init__(self, rankings: Rankings):
        self.rankings = rankings
        self._ends = np.cumsum(rankings.sizes(), dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, place: int) -> Example:
        row = int(np.searchsorted(self._ends, place, side="right"))
        one = self.rankings[row]
        number = place - (int(self._ends[row]) - len(one.completions))
        target = one.completions[number]
        return Example(f"{one.id}/{number}", one.prompt, (target,), target)


class RankingWriter:
    """Takes the rankings of a split one by one."""

    def __init__(self) -> None:
        self._rows = RowWriter(SCHEMA)

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, one: Ranking) -> None:
        values: list[Any] = [one.id, one.prompt, list(one.completions), list(one.scores)]
        for side in (0, 1):
            values.append(None if one.pairs is None else [pair[side] for pair in one.pairs])
        values += [one.margin, None if one.marks is None else json.dumps(one.marks)]
        self._rows.append(dict(zip(SCHEMA.names, values, strict=True)))

    def finish(self) -> Rows:
        return self._rows.finish()


def splits_train(cfg: DataConfig) -> bool:
    """Whether validation is a share of the training prompts: the data have no split of their own.

    Where a hub's or nobody's file is meant, `data.splits.validation` decides: a name or null.
    """
    if cfg.validation_share is None or not has_split(cfg, "validation"):
        return False
    return cfg.splits.get("validation") is None and not has_file(cfg, "validation")


def read_rankings(
    cfg: DataConfig, split: str, tally: Tally | None = None
) -> tuple[Rankings, DataCounts]:
    """The preferences of one split, and what became of its rows.

    Args:
        tally: Where to count, for who wants the prompts' fingerprints afterwards.

    Raises:
        ConfigError: No path, an unknown format, or a fold where nothing is shared out.
        DataError: Missing file, split or column; unpaired feedback; conversations among plain
            texts; no usable row.
        MissingResourceError: A hub data set that is neither in the cache nor within reach.
    """
    if cfg.name not in SOURCES:
        raise ConfigError(f"data.name={cfg.name!r} is not read from rows: give files or hub")
    if cfg.path is None:
        raise ConfigError("data.path is not set: give a file, a folder or a hub id")
    if cfg.validation_fold and not splits_train(cfg):
        raise ConfigError(
            f"data.validation_fold={cfg.validation_fold}: no share of the training prompts "
            "validates here (data.validation_share is null, or there is a validation split)"
        )
    divided = split in ("train", "validation") and splits_train(cfg)
    published = cfg.format not in (None, "auto")
    cfg = replace(cfg, columns=COLUMNS) if published else cfg
    table = SOURCES[cfg.name](cfg, "train" if divided else split)
    if published:
        rows = ADAPTERS[str(cfg.format)](table.rows)
        table = replace(table, rows=rows, columns=None, total=None)
    return rankings_of(table, cfg, split, tally, divided=divided)


def rankings_of(
    table: Table, cfg: DataConfig, split: str, tally: Tally | None = None, *, divided: bool = False
) -> tuple[Rankings, DataCounts]:
    """The preferences in the rows of a table; errors as `read_rankings`.

    Args:
        divided: The table holds both sides of `data.validation_share`.
    """
    writer, reader = RankingWriter(), _Reader(cfg, split, table.name, divided)
    counts = read_rows(
        table,
        split,
        reader,
        lambda there, where: _require_format(there, cfg.columns, where),
        into=writer,
        id_column=cfg.columns.id,
        limit=cfg.limit.get(split),
        tally=tally,
    )
    return Rankings(writer.finish(), bool(reader.conversational), reader.format), counts


def _validates(prompt: Turns | str, share: float, fold: int) -> bool:
    """By a hash of the prompt alone: the same in all runs, and for all rows of the prompt.

    Args:
        fold: Which part of the hashes: 0 for the first `share` of them, 1 for the next, ...
    """
    digest = hashlib.blake2b(json.dumps(prompt, sort_keys=True).encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big")
    return fold * share * 2**64 <= place < (fold + 1) * share * 2**64


def _require_format(there: Sequence[str], columns: ColumnsConfig, where: str) -> None:
    """Columns from which preferences can be read, and the prompts' if they are not implicit.

    Raises:
        DataError: There are none; says what was found.
    """

    def known(*names: str | None) -> bool:
        return all(name and name.split(".")[0] in there for name in names)

    pairs = known(columns.chosen, columns.rejected)
    judged = any(known(one) for one in (columns.ranks, columns.scores, columns.pairs))
    if not pairs and not (known(columns.completions) and judged):
        if "label" in there and "completion" in there:
            raise DataError(
                f"{where}: unpaired feedback (prompt, completion, label): it says of no text that "
                "it is better than another of the same prompt; give pairs (chosen, rejected) or "
                "rankings"
            )
        raise DataError(
            f"{where}: no preferences in its columns ({', '.join(there)}): expected chosen and "
            "rejected, or completions with ranks, scores or pairs; data.columns.chosen=... names "
            "others, data.format=... a published format"
        )
    if known(columns.source):
        return
    lowered = {name.lower(): name for name in there}
    close = difflib.get_close_matches(columns.source.lower(), lowered, n=1, cutoff=MISSPELT)
    if close or columns.source != COLUMNS.source:
        found = lowered[close[0]] if close else ""
        hint = f"did you mean {found!r}? data.columns.source={found}; " if close else ""
        raise DataError(
            f"{where} has no column {columns.source!r}: {hint}columns: {', '.join(there)}"
        )


class _Unusable(Exception):
    """Why a row is dropped."""


@dataclass
class _Reader:
    """Makes rankings of rows, and remembers what all rows must agree in."""

    cfg: DataConfig
    split: str
    where: str
    divided: bool  # a share of the prompts validates
    conversational: bool | None = None
    format: str = ""
    first: str = ""  # id of the row that decided both
    implicit: bool | None = None  # prompts in text are what chosen and rejected begin with

    def __call__(self, row: Row, name: str, tally: Tally) -> Ranking | None:
        columns, notes = self.cfg.columns, list[str]()
        try:
            if columns.chosen in row or cell(row, str(columns.chosen)) is not None:
                kind, (prompt, texts, scores, pairs, marks) = "pairs", self._pair(row, name)
            else:
                prompt, texts, scores, pairs, marks = self._completions(row, notes)
                kind = "rankings" if pairs is None else "comparisons"
            written = self._written(prompt, row)
            if self.divided:
                share, fold = float(self.cfg.validation_share or 0), self.cfg.validation_fold
                validates = _validates(prompt, share, fold)
                if validates != (self.split == "validation"):
                    raise _Unusable(OTHER_SIDE)
            margin = self._margin(row, of_two=len(texts) == 2 and pairs is None)
            self._one_form(name, kind, talk=not isinstance(prompt, str))
            found = Ranking(name, written, tuple(texts), tuple(scores), pairs, margin, marks)
            self._seen(found, tally, notes)
        except _Unusable as problem:
            tally.note(tally.dropped, str(problem), name)
            return None
        for note in notes:
            tally.note(tally.cut, note, name)
        return found

    def _pair(self, row: Row, name: str) -> _Judged:
        columns = self.cfg.columns
        prompt, chosen, rejected = (
            cell(row, str(key)) for key in (columns.source, columns.chosen, columns.rejected)
        )
        if isinstance(chosen, str) and isinstance(rejected, str):
            if self.implicit is None:
                self.implicit = columns.source.split(".")[0] not in row
            if self.implicit:
                if prompt is not None:
                    raise DataError(
                        f"{self.where}: row {name} has a prompt, and rows before it have none: "
                        "give all rows one, or none"
                    )
                prompt = _common(chosen, rejected)
                chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        prompt, texts = _texts(prompt, [chosen, rejected], ["chosen", "rejected"])
        if texts[0] == texts[1]:
            raise _Unusable("chosen equals rejected")
        return prompt, texts, [1.0, 0.0], None, None

    def _completions(self, row: Row, notes: list[str]) -> _Judged:
        columns = self.cfg.columns
        given = _unpacked(cell(row, str(columns.completions)))
        if not isinstance(given, list | tuple):
            raise _Unusable("missing completions" if given is None else "completions are no list")
        prompt, texts = _texts(cell(row, str(columns.source)), given, ["completion"] * len(given))
        compared, ranks, values = (
            _unpacked(cell(row, str(key))) for key in (columns.pairs, columns.ranks, columns.scores)
        )
        marks = self._marks(row, texts, notes)
        if compared is not None:
            scores, pairs = _compared(compared, len(texts), notes)
        else:
            sign = 1 if ranks is None else -1
            kept, scores = _ranked(values if ranks is None else ranks, texts, notes, sign=sign)
            texts, pairs = [texts[i] for i in kept], None
            marks = None if marks is None else tuple(marks[i] for i in kept)
        if len(texts) < 2:
            raise _Unusable("fewer than 2 completions")
        if len(set(texts)) < 2:
            raise _Unusable("equal completions only")
        if pairs == () or (pairs is None and min(scores) == max(scores)):
            raise _Unusable("all tied: nothing is preferred")
        return prompt, texts, scores, pairs, marks

    def _marks(self, row: Row, texts: list[str], notes: list[str]) -> Marks | None:
        """The errors that are marked in each text; None where nobody marked any in this row."""
        given = _unpacked(cell(row, str(self.cfg.columns.spans)))
        if given is None:
            return None
        if not isinstance(given, list | tuple) or len(given) != len(texts):
            raise _Unusable("not as many lists of spans as completions")
        found = [None if own is None else spans_of(own) for own in given]
        if any(f is None and own is not None for f, own in zip(found, given, strict=True)):
            raise _Unusable(NO_SPAN)
        pairs = zip(texts, found, strict=True)
        return tuple(None if own is None else within(text, own, notes) for text, own in pairs)

    def _margin(self, row: Row, *, of_two: bool) -> float | None:
        given = cell(row, str(self.cfg.columns.margin))
        if given is None or given == "":
            return None
        margin = _number(given, "margin")
        if margin < 0:
            raise _Unusable("a negative margin")
        if margin and not of_two:
            raise _Unusable("a margin that is not of two ranked completions")
        return margin

    def _written(self, prompt: Turns | str, row: Row) -> str:
        """A prompt as text, a plain one as a user's turn where the config asks for it."""
        if isinstance(prompt, str):
            user = {"role": "user", "content": prompt}
            return canonical([user]) if self.cfg.as_chat else prompt
        tools = _unpacked(cell(row, str(self.cfg.columns.tools)))
        if not isinstance(tools, list | tuple | None):
            raise _Unusable("tools that are no list")
        try:
            text = canonical(prompt, tools)
            text.encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise _Unusable("messages or tools that are no JSON in UTF-8") from error
        return text

    def _one_form(self, name: str, kind: str, *, talk: bool) -> None:
        """Remembers what a usable row is.

        Raises:
            DataError: An earlier one was something else.
        """
        if self.conversational is None:
            self.format, self.conversational, self.first = kind, talk, name
        if talk != self.conversational:
            plain, turns = (self.first, name) if talk else (name, self.first)
            raise DataError(
                f"{self.where}: row {plain} is plain text and row {turns} a conversation: "
                "give them in one form"
            )
        if kind != self.format:
            raise DataError(
                f"{self.where}: row {self.first} has {self.format} and row {name} {kind}: "
                "give one format a file"
            )

    def _seen(self, found: Ranking, tally: Tally, notes: list[str]) -> None:
        """Whether an earlier row was this one, or had its prompt."""
        odd = OddRows.of(self.cfg, self.split)
        prompt, own = fingerprint(found.prompt), fingerprint(repr(replace(found, id="")))
        earlier = tally.seen.setdefault(prompt, set())
        if own in earlier:
            if not odd.repeats:
                raise _Unusable("duplicate row")
            notes.append("duplicate row kept")
        elif earlier:
            notes.append("prompt of an earlier row: further preferences")
        earlier.add(own)


def canonical(turns: Turns, tools: Any = None) -> str:
    """A conversation as text: equal where it is the same."""
    whole = {"messages": turns} | ({"tools": tools} if tools else {})
    return json.dumps(whole, ensure_ascii=False, sort_keys=True)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value)


def _turns(value: Any) -> Turns:
    if not isinstance(value, list | tuple):
        raise _Unusable("a prompt that is no list of turns")
    found: Turns = []
    for turn in value:
        if not isinstance(turn, Mapping) or "role" not in turn:
            raise _Unusable("a turn that is no {role, content}")
        if turn["role"] not in ROLES:
            raise _Unusable(f"unknown role {str(turn['role'])[:20]!r}")
        content = turn.get("content")
        if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            raise _Unusable("content that is no text")
        if isinstance(content, str) and text_problem(content, "turn") == "broken Unicode turn":
            raise _Unusable("broken Unicode turn")
        found.append({key: turn[key] for key in KEPT if turn.get(key) is not None})
    return found


def _texts(
    prompt: Any, completions: Sequence[Any], names: Sequence[str]
) -> tuple[Turns | str, list[str]]:
    """The prompt and the text of each completion; of conversations all turns before the last."""
    talks = [_is_turns(one) for one in completions]
    if _is_turns(prompt) or any(talks):
        if None in completions:
            raise _Unusable(f"missing {names[list(completions).index(None)]}")
        if not all(talks):
            raise _Unusable("prompt and completions partly in turns")
        read = [_conversation(prompt, one) for one in completions]
        shared, texts = read[0][0] if read else [], [text for _, text in read]
        if any(turns != shared for turns, _ in read):
            raise _Unusable("turns before the last differ")
        if not shared:
            raise _Unusable("empty prompt")
    else:
        texts = [_text(one, name) for one, name in zip(completions, names, strict=True)]
        shared = _text(prompt, "prompt")
    if not all(text.strip() for text in texts):
        raise _Unusable("empty completion")
    return shared, texts


def _conversation(prompt: Any, completion: Any) -> tuple[Turns, str]:
    """All turns before the last one, and its text.

    A completion in turns follows its prompt, or is the whole conversation: then it begins with the
    prompt's turns, or the prompt is a text and its first user turn.
    """
    turns = _turns(completion)
    if isinstance(prompt, str):
        asked = next((turn for turn in turns if turn["role"] == "user"), {})
        if prompt.strip() and prompt.strip() != asked.get("content", "").strip():
            raise _Unusable("a prompt in text that is not the first user turn of its completions")
    elif prompt is not None:
        before = _turns(prompt)
        if turns[: len(before)] != before:
            if before[-1]["role"] == "user" and turns[0]["role"] in ("system", "developer", "user"):
                raise _Unusable("a completion that begins otherwise than its prompt")
            turns = before + turns
    last = turns[-1]
    if last["role"] != "assistant":
        raise _Unusable(f"the last turn is the {last['role']}'s, not the assistant's")
    if not isinstance(last.get("content"), str):
        raise _Unusable("an answer without text")
    return turns[:-1], last["content"]


def _text(value: Any, what: str) -> str:
    problem = text_problem(value, what)
    if problem is not None and not (what != "prompt" and problem.startswith("empty")):
        raise _Unusable(problem)
    return value


def _common(one: str, other: str) -> str:
    """What both texts begin with, up to the white space before they differ."""
    both = enumerate(zip(one, other, strict=False))
    differ = next((i for i, (a, b) in both if a != b), min(len(one), len(other)))
    end = max((i for i in range(differ) if one[i].isspace()), default=0)
    if not one[:end].strip():
        raise _Unusable("no prompt: chosen and rejected begin differently")
    return one[:end]


def _unpacked(value: Any) -> Any:
    """A list that stands in a text, as in a csv, is JSON."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value) if value.strip() else None
    return value


def _number(value: Any, what: str) -> float:
    """A finite number, which may stand in a text, as in a csv."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            if math.isfinite(found := float(value)):
                return found
    raise _Unusable(f"a {what} that is no number")


def _ranked(
    values: Any, texts: list[str], notes: list[str], *, sign: int
) -> tuple[list[int], list[float]]:
    """The completions that were judged, by number, and their scores."""
    if not isinstance(values, list | tuple):
        raise _Unusable("missing ranks and scores")
    if len(values) != len(texts):
        raise _Unusable("not as many ranks or scores as completions")
    judged = [i for i, value in enumerate(values) if value is not None]
    if len(judged) < len(values):
        notes.append("completions that nobody judged left out")
    what = "score" if sign > 0 else "rank"
    return judged, [sign * _number(values[i], what) for i in judged]


def _compared(given: Any, completions: int, notes: list[str]) -> tuple[list[float], Pairs]:
    """Wins less losses of each completion, and the pairs, the better one first."""
    scores, pairs = [0.0] * completions, []
    for one in given if isinstance(given, list | tuple) else [None]:
        if not isinstance(one, list | tuple) or len(one) != 3:
            raise _Unusable("a pair that is no [i, j, who]")
        i, j, who = (_number(value, "part of a pair") for value in one)
        if i == j or not {i, j} <= {*range(completions)}:
            raise _Unusable("a pair of completions that are not there")
        if not who:
            notes.append("tied pairs left out")
            continue
        better, other = map(int, (i, j) if who > 0 else (j, i))
        pairs.append((better, other))
        scores[better] += 1
        scores[other] -= 1
    return scores, tuple(pairs)
