"""Human token truth: what somebody marked as errors in completions, next to what is preferred.

Each data set is read from a folder that the user names, as it is published; nothing of it is here.

- `qa_feedback`: four answers a question, compared two by two; errors of the first are marked.
- `prmbench`: solutions in steps, each with one into which wrong steps were planted.
- `mqm_ted_zhen`: 15 translations of a sentence, with the errors that a rater marked and weighed.
- `xsum_hallucination`: 5 summaries of an article that is not included, marked by 3 annotators.
- `own`: rows with `prompt`, `completion` and `spans` [[start, end, label], ...], next to rows of
  preferences in any form of `pairs`.

Rows that cannot be used are dropped and counted with their reason, as are single spans; groups in
which nothing is preferred stay, since their spans are truth all the same.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pgtg.config import DataConfig
from pgtg.config.registry import look_up
from pgtg.data import adapters
from pgtg.data.columns import cell, require_columns
from pgtg.data.marks import NO_SPAN, Span, covered, spans_of, within
from pgtg.data.pairs import Ranking, canonical, rankings_of
from pgtg.data.splits import Tally, read_rows, text_problem
from pgtg.data.tables import SOURCES, Row, Table, of_file
from pgtg.errors import ConfigError, DataError
from pgtg.types import DataCounts

SPLIT = "train"  # what the one split of these data is called in `data.limit`
MQM = {"Major": 5.0, "Minor": 1.0, "Neutral": 0.0, "No-error": 0.0}  # Freitag et al. 2021, Table 2
MQM_PUNCTUATION = 0.1  # of a minor one
XSUM_SYSTEMS = ("BERTS2S", "TConvS2S", "PtGen", "TranS2S", "Gold")


@dataclass(frozen=True)
class Spanned:
    """A prompt with its completions, what is preferred among them, and where their errors are.

    Args:
        ranking: Prompt, completions, and scores or pairs; all scores are equal, and no pair is
            there, where nobody compared.
        spans: For each completion its errors, as they were marked: they may overlap, but lie
            within the text. None: nobody looked for errors in it.
    """

    ranking: Ranking
    spans: tuple[tuple[Span, ...] | None, ...]


class _Unusable(Exception):
    """Why a row is dropped."""


Make = Callable[[Row, str, list[str]], Spanned]  # of a row, its id and where to put notes


@dataclass(frozen=True)
class SpanData:
    """A published data set with marked errors.

    Args:
        about: What it is, in a line.
        file: Name of its file, perhaps packed (.gz).
        source: Repository and path of that file.
        licence: Of the data.
        columns: That its rows must have.
        rows: Rows that belong together, put into one.
        make: Makes a `Spanned` of such a row.
    """

    about: str
    file: str
    source: str
    licence: str
    columns: tuple[str, ...]
    rows: Callable[[Iterable[Row]], Iterable[Row]]
    make: Make

    def table(self, path: Path) -> Table:
        """Its rows in a folder, or in a file of any name.

        Raises:
            DataError: It is not there; says where it is published.
        """
        names = (self.file, f"{self.file}.gz")
        found = [path] if path.is_file() else [path / n for n in names if (path / n).is_file()]
        if not found:
            what = f"no {self.file} (or .gz) in it" if path.is_dir() else "no such file or folder"
            raise DataError(
                f"data.path={path}: {what}; fetch it from {self.source} (licence {self.licence})"
            )
        table = of_file(found[0])
        return replace(table, rows=self.rows(_checked(table, self.columns)), total=None)


def read_spanned(name: str, cfg: DataConfig) -> tuple[list[Spanned], list[DataCounts]]:
    """All of a data set, and what became of its rows.

    Args:
        name: Key of `SPANNED`, or "own".
        cfg: `path`; `limit`, at most so many groups; `as_chat`, prompts become a user's turn.

    Raises:
        ConfigError: An unknown name.
        DataError: The data are not there, unreadable, or without preferences or spans.
    """
    if name == "own":
        return _own(cfg)
    data = look_up(SPANNED, name, "the data set")
    path = Path(str(cfg.path)).expanduser()

    def make(row: Row, id: str) -> tuple[Spanned, list[str]]:
        notes = list[str]()
        return _within(data.make(row, id, notes), notes), notes

    found, counts = _kept(data.table(path), make, cfg.limit.get(SPLIT))
    if cfg.as_chat:
        found = [replace(one, ranking=_as_turn(one.ranking)) for one in found]
    return found, [counts]


def _kept(
    table: Table, make: Callable[[Row, str], tuple[Spanned, list[str]]], limit: int | None
) -> tuple[list[Spanned], DataCounts]:
    """What can be used of a table's rows."""

    def counted(row: Row, id: str, tally: Tally) -> Spanned | None:
        try:
            found, notes = make(row, id)
        except _Unusable as problem:
            tally.note(tally.dropped, str(problem), id)
            return None
        for note, times in Counter(notes).items():
            tally.note(tally.cut, note, id, times)
        return found

    found = list[Spanned]()
    counts = read_rows(
        replace(table, columns=None),
        SPLIT,
        counted,
        lambda there, where: None,
        into=found,
        id_column=None,
        limit=limit,
    )
    return found, counts


def _checked(table: Table, columns: Sequence[str]) -> Iterator[Row]:
    """The rows, once the first one has the columns.

    Raises:
        DataError: It has not.
    """
    for number, row in enumerate(table.rows):
        if number == 0:
            require_columns(columns, list(row), table.name)
        yield row


def _within(one: Spanned, notes: list[str]) -> Spanned:
    """Only spans that hold a character of their text; the others are noted."""

    pairs = zip(one.ranking.completions, one.spans, strict=True)
    kept = [None if spans is None else within(text, spans, notes) for text, spans in pairs]
    return replace(one, spans=tuple(kept))


def _as_turn(ranking: Ranking) -> Ranking:
    turns = [{"role": "user", "content": ranking.prompt}]
    return replace(ranking, prompt=canonical(turns))


def _text(value: Any, what: str) -> str:
    problem = text_problem(value, what)
    if problem is not None:
        raise _Unusable(problem)
    return value


# --- qa_feedback


def _qa_feedback(row: Row, id: str, notes: list[str]) -> Spanned:
    """Prompt, completions and spans as `adapters` makes them."""
    (found,) = adapters.qa_feedback([row])
    prompt = _text(found["prompt"], "question with passages")
    texts = [_text(text, "completion") for text in found["completions"]]
    compared = found["pairs"]
    if not isinstance(compared, list) or any(who is None for _, _, who in compared):
        raise _Unusable("comparisons that are not six of 0, 1, 2")
    pairs = tuple((i, j) if who > 0 else (j, i) for i, j, who in compared if who)
    wins = Counter(better for better, _ in pairs)
    losses = Counter(other for _, other in pairs)
    scores = tuple(float(wins[n] - losses[n]) for n in range(len(texts)))
    if found["spans"] is None:
        raise _Unusable("missing errors")
    spans = _spans(found["spans"][0])
    ranking = Ranking(id, prompt, tuple(texts), scores, pairs)
    return Spanned(ranking, (spans, *([None] * (len(texts) - 1))))


def _spans(given: Any) -> tuple[Span, ...]:
    """[start, end, label] of each."""
    if (found := spans_of(given)) is None:
        raise _Unusable(NO_SPAN)
    return found


# --- prmbench


def _prmbench(row: Row, id: str, notes: list[str]) -> Spanned:
    """The right solution is preferred to the modified one, whose wrong steps are its spans.

    Steps are lines. The right one counts as not annotated: most of it stands in the other as well.
    """
    question, kind = _text(row.get("question"), "question"), row.get("classification")
    right, wrong = (_steps(row.get(f"{which}_process")) for which in ("original", "modified"))
    places: Any = row.get("error_steps")
    if not places:
        raise _Unusable("no wrong step")
    texts = ("\n".join(right), "\n".join(wrong))
    if texts[0] == texts[1]:
        raise _Unusable("original equals modified")
    ends = [0]
    for step in wrong:
        ends.append(ends[-1] + len(step) + 1)
    spans = list[Span]()
    for place in places:
        if type(place) is int and 1 <= place < len(ends):
            spans.append((ends[place - 1], ends[place] - 1, str(kind)))
        else:
            notes.append("wrong steps beyond the last one left out")
    if not spans:
        raise _Unusable("no wrong step among the steps")
    ranking = Ranking(id, f"{question}\n\n", texts, (1.0, 0.0))
    return Spanned(ranking, (None, tuple(spans)))


def _steps(given: Any) -> list[str]:
    if not isinstance(given, list) or not given or not all(isinstance(s, str) for s in given):
        raise _Unusable("a process that is no list of steps")
    return given


# --- mqm_ted_zhen


def _segments(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of a segment, which need not be next to each other."""
    found: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        found.setdefault((row["doc"], row["seg_id"]), []).append(row)
    for (doc, segment), own in found.items():
        yield {"id": f"{doc}:{segment}", "rows": own}


def _mqm(row: Row, id: str, notes: list[str]) -> Spanned:
    """Translations by their weighed errors, fewest first; labels are severities.

    Errors without a place (omissions, mostly) count in the score alone.
    """
    by_system: dict[str, list[Row]] = {}
    for one in row["rows"]:
        by_system.setdefault(one["system"], []).append(one)
    texts, scores, spans = list[str](), list[float](), list[tuple[Span, ...]]()
    for errors in by_system.values():
        marked = [str(e["target"]) for e in errors]
        plain = {text.replace("<v>", "").replace("</v>", "") for text in marked}
        if len(plain) != 1:
            raise _Unusable("a system with several translations of a segment")
        texts.append(f" {_text(plain.pop(), 'translation')}")
        scores.append(0.0 - sum(_weight(error) for error in errors))
        own = list[Span]()
        for error, text in zip(errors, marked, strict=True):
            place = re.fullmatch(r"(.*?)<v>(.*?)</v>(.*)", text, re.DOTALL)
            if place is not None and "<v>" not in place[3]:
                start = 1 + len(place[1])
                own.append((start, start + len(place[2]), error["severity"]))
            elif "v>" in text:
                notes.append("marks that are no <v>...</v> left out")
            elif _weight(error):
                notes.append("errors without a place count in the ranking alone")
        spans.append(tuple(own))
    if len(texts) < 2:
        raise _Unusable("fewer than 2 translations")
    source = _text(row["rows"][0]["source"], "source")
    prompt = f"Chinese: {source}\nEnglish:"
    return Spanned(Ranking(row["id"], prompt, tuple(texts), tuple(scores)), tuple(spans))


def _weight(error: Row) -> float:
    severity = error["severity"]
    if severity not in MQM:
        raise _Unusable(f"unknown severity {str(severity)[:20]!r}")
    if severity == "Minor" and error["category"] == "Fluency/Punctuation":
        return MQM_PUNCTUATION
    return MQM[severity]


# --- xsum_hallucination


def _articles(rows: Iterable[Row]) -> Iterator[Row]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row["bbcid"], []).append(row)
    for article, own in found.items():
        yield {"id": str(article), "rows": own}


def _xsum(row: Row, id: str, notes: list[str]) -> Spanned:
    """Summaries by the share of words that annotators leave unmarked (the published "Faithful");
    what more than half of them mark is an error. The prompt is empty: the articles are not there.
    """
    by_system: dict[str, list[Row]] = {}
    for one in row["rows"]:
        by_system.setdefault(one["system"], []).append(one)
    texts, scores, spans = list[str](), list[float](), list[tuple[Span, ...]]()
    for system in sorted(by_system, key=_known_first):
        own = by_system[system]
        text = _text(own[0]["summary"], "summary")
        marks: dict[str, list[Span]] = {}
        for one in own:
            marked = marks.setdefault(one["worker_id"], [])
            if one["hallucination_type"] != "NULL":
                place = _place(one, text)
                if place is None:
                    notes.append("spans that are not in their text left out")
                else:
                    marked.append((*place, one["hallucination_type"]))
        texts.append(text)
        scores.append(math.fsum(_faithful(text, m) for m in marks.values()) / len(marks))
        spans.append(_by_majority(text, list(marks.values())))
    if len(texts) < 2:
        raise _Unusable("fewer than 2 summaries")
    return Spanned(Ranking(row["id"], "", tuple(texts), tuple(scores)), tuple(spans))


def _known_first(system: str) -> tuple[int, str]:
    known = XSUM_SYSTEMS.index(system) if system in XSUM_SYSTEMS else len(XSUM_SYSTEMS)
    return known, system


def _place(row: Row, text: str) -> tuple[int, int] | None:
    """Where a span is: at the offsets, which count from 1, or else the nearest place of its words.

    White space at the ends of the words is written as backslash and n there.
    """
    words = str(row["hallucinated_span"]).removeprefix("\\n").removesuffix("\\n")
    try:
        start = int(row["hallucinated_span_start"]) - 1
    except ValueError:
        return None
    places = [m.start() for m in re.finditer(re.escape(words), text)] if words.strip() else []
    if not places:
        return None
    nearest = min(places, key=lambda place: abs(place - start))
    return nearest, nearest + len(words)


def _faithful(text: str, marked: Sequence[Span]) -> float:
    """Share [0, 1] of words, parted by spaces, that are not wholly under a span."""
    under = covered(len(text), marked)
    words = [word.span() for word in re.finditer(r"\S+", text)]
    return sum(not all(under[start:end]) for start, end in words) / len(words)


def _by_majority(text: str, annotators: Sequence[Sequence[Span]]) -> tuple[Span, ...]:
    """What more than half of the annotators mark, by the label that most of them give; "mixed"
    where two labels have as many."""
    labels = sorted({label for marked in annotators for _, _, label in marked})
    votes = {
        label: [
            sum(column)
            for column in zip(
                *(covered(len(text), [s for s in m if s[2] == label]) for m in annotators),
                strict=True,
            )
        ]
        for label in labels
    }
    anyone = zip(*(covered(len(text), marked) for marked in annotators), strict=True)
    found = list[str | None]()
    for place, marks in enumerate(anyone):
        given = [(votes[label][place], label) for label in labels]
        most = [label for number, label in given if number == max(given)[0]]
        error = 2 * sum(marks) > len(annotators)
        found.append(None if not error else most[0] if len(most) == 1 else "mixed")
    spans, start = list[Span](), 0
    for label, run in groupby(found):
        end = start + len(list(run))
        if label is not None:
            spans.append((start, end, label))
        start = end
    return tuple(spans)


# --- own


def _own(cfg: DataConfig) -> tuple[list[Spanned], list[DataCounts]]:
    """Rows with `spans` are truth; all others are preferences."""
    if cfg.path is None or cfg.name not in SOURCES:
        raise ConfigError("data.path is not set: give a file or a folder with your rows")
    table = SOURCES[cfg.name](cfg, SPLIT)
    rows = list(table.rows)
    marked = [row for row in rows if cell(row, "spans") is not None]
    if not marked:
        raise DataError(
            f"{table.name}: no row has spans: expected rows with prompt, completion and "
            "spans [[start, end, label], ...]"
        )
    others = [row for row in rows if cell(row, "spans") is None]
    if not others:
        raise DataError(
            f"{table.name}: all rows have spans, and no row says what is preferred: expected "
            "rows with chosen and rejected, or completions with ranks, scores or pairs"
        )
    rankings, counts = rankings_of(Table(table.name, others), cfg, SPLIT)
    if rankings.conversational and not cfg.as_chat:
        raise DataError(
            f"{table.name}: preferences are conversations, and completions with spans are plain "
            "texts: give both as plain texts, with data.as_chat=true for a chat template"
        )

    def make(row: Row, id: str) -> tuple[Spanned, list[str]]:
        prompt = _text(cell(row, cfg.columns.source), "prompt")
        text, notes = _text(cell(row, "completion"), "completion"), list[str]()
        spans = _spans(cell(row, "spans"))
        ranking = Ranking(f"spans {id}", prompt, (text,), (0.0,))
        return _within(Spanned(ranking, (spans,)), notes), notes

    found, of_spans = _kept(Table(table.name, marked), make, cfg.limit.get(SPLIT))
    if cfg.as_chat:
        found = [replace(one, ranking=_as_turn(one.ranking)) for one in found]
    compared = [Spanned(one, (None,) * len(one.completions)) for one in rankings]
    return [*compared, *found], [counts, of_spans]


SPANNED: dict[str, SpanData] = {
    "qa_feedback": SpanData(
        "4 answers a question, compared two by two; error spans of the first answer",
        "dev_feedback.json",
        "github.com/allenai/FineGrainedRLHF, tasks/qa_feedback/data/dev_feedback.json",
        "Apache-2.0",
        ("question", "passages", *(f"prediction {n}" for n in range(1, 5)), "preference"),
        adapters.as_given,
        _qa_feedback,
    ),
    "prmbench": SpanData(
        "solutions with planted wrong steps, each against the right one",
        "target_data.jsonl",
        "github.com/ssmisya/PRMBench, "
        "mr_eval/tasks/prmtest_classified_subset400/data/target_data.jsonl",
        "Apache-2.0",
        ("question", "original_process", "modified_process", "error_steps", "classification"),
        adapters.as_given,
        _prmbench,
    ),
    "mqm_ted_zhen": SpanData(
        "15 translations of a segment with weighed error spans",
        "mqm_ted_zhen.tsv",
        "github.com/google/wmt-mqm-human-evaluation, ted/zhen/mqm_ted_zhen.tsv",
        "Apache-2.0",
        ("system", "doc", "seg_id", "source", "target", "category", "severity"),
        _segments,
        _mqm,
    ),
    "xsum_hallucination": SpanData(
        "5 summaries an article (not included), hallucinated spans of 3 annotators",
        "hallucination_annotations_xsum_summaries.csv",
        "github.com/google-research-datasets/xsum_hallucination_annotations, "
        "hallucination_annotations_xsum_summaries.csv",
        "CC BY 4.0",
        (
            "bbcid",
            "system",
            "summary",
            "hallucination_type",
            "hallucinated_span",
            "hallucinated_span_start",
            "worker_id",
        ),
        _articles,
        _xsum,
    ),
}
