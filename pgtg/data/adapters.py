"""Published preference data as the columns of `pairs`: what `data.format` may name.

Each format takes the rows of a data set as it is published and gives rows with `prompt`, `chosen`
and `rejected`, or with `prompt`, `completions` and `ranks`, `scores` or `pairs`. Conversations
become lists of {role, content}. Whether a row can be used is not decided here: what it lacks is
handed on, as None or a list that is too short, and `pairs` drops and counts it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

from pgtg.config import ColumnsConfig
from pgtg.data.columns import cell, require_columns
from pgtg.data.tables import Row

Adapter = Callable[[Iterable[Any]], Iterable[Any]]
Turns = list[dict[str, Any]]

# what adapters call their columns, and a file of one's own has where the config says nothing else
COLUMNS = ColumnsConfig(
    source="prompt",
    references=[],
    chosen="chosen",
    rejected="rejected",
    completions="completions",
    ranks="ranks",
    scores="scores",
    pairs="pairs",
    margin="margin",
    tools="tools",
    spans="spans",
)
SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant"}
_TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")  # HH-RLHF, Nectar
_TAGGED = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")  # HelpSteer2


def as_given(rows: Iterable[Row]) -> Iterable[Row]:
    """Columns as `data.columns` names them."""
    return rows


@dataclass(frozen=True)
class Published:
    """A published format.

    Args:
        name: What `data.format` calls it.
        columns: Those that its rows must have.
        read: Makes rows for `pairs` of the published ones.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Iterable[Row]], Iterator[Row]]

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows for `pairs`.

        Raises:
            DataError: After the last row, if none of them had one of the columns.
        """
        met = dict[str, None]()

        def watched() -> Iterator[Row]:
            for row in rows:
                met.update(dict.fromkeys(row))
                yield row

        yield from self.read(watched())
        if met:  # without any row there is another error
            require_columns(self.columns, list(met), f"the data (data.format={self.name})")


def ultrafeedback(rows: Iterable[Row]) -> Iterator[Row]:
    """`instruction`, `completions[4]`: scored by the mean rating of up to four aspects.

    The published `overall_score` is left alone: its mistakes are known (OpenBMB/UltraFeedback,
    issue 8), and the mean of the ratings is what others rank by. A completion without any rating
    ("N/A") is not judged. The system prompts under which completions were sampled are left out.
    """
    for row in rows:
        yield {
            "prompt": row.get("instruction"),
            "completions": cell(row, "completions.response"),
            "scores": _each(cell(row, "completions.annotations"), _mean_rating),
        }


def _mean_rating(annotations: Any) -> float | None:
    """Of the aspects with a number for a rating; None where there is none."""
    aspects = annotations.values() if isinstance(annotations, Mapping) else ()
    given = [str(one.get("Rating")) for one in aspects if isinstance(one, Mapping)]
    ratings = [float(rating) for rating in given if re.fullmatch(r"\d+(\.\d+)?", rating)]
    return sum(ratings) / len(ratings) if ratings else None


def hh_rlhf(rows: Iterable[Row]) -> Iterator[Row]:
    """`chosen` and `rejected`: whole transcripts of "Human:" and "Assistant:"."""
    for row in rows:
        yield {key: _turns(row.get(key), _TRANSCRIPT) for key in ("chosen", "rejected")}


def nectar(rows: Iterable[Row]) -> Iterator[Row]:
    """`prompt`: a transcript that ends in "Assistant:", `answers[7]` with their ranks."""
    for row in rows:
        prompt = _turns(row.get("prompt"), _TRANSCRIPT)
        if prompt and prompt[-1] == _answer(""):
            del prompt[-1]
        yield {
            "prompt": prompt,
            "completions": _each(cell(row, "answers.answer"), lambda text: [_answer(text)]),
            "ranks": cell(row, "answers.rank"),
        }


def helpsteer2(rows: Iterable[Row]) -> Iterator[Row]:
    """Consecutive rows of one `prompt` (two, as published), each a `response` with `helpfulness`.

    Later turns of a prompt begin with "<extra_id_1>Assistant" or "<extra_id_1>User".
    """
    for prompt, group in groupby(rows, lambda row: row.get("prompt")):
        found = list(group)  # a row that is alone is one completion: dropped and counted
        yield {
            "prompt": _turns(prompt, _TAGGED),
            "completions": [[_answer(row.get("response"))] for row in found],
            "scores": [row.get("helpfulness") for row in found],
        }


def helpsteer3(rows: Iterable[Row]) -> Iterator[Row]:
    """`context` of turns, `response1`, `response2`, and `overall_preference` from -3 (the first is
    much better) to 3 (the second is)."""
    for row in rows:
        yield {
            "prompt": _list(row.get("context")),
            "completions": [[_answer(row.get(key))] for key in ("response1", "response2")],
            "pairs": [[1, 0, row.get("overall_preference")]],
        }


def tldr_comparisons(rows: Iterable[Row]) -> Iterator[Row]:
    """`info`, `summaries[2]`, and `choice` between them, 0 or 1.

    Source of the prompt: arXiv:2009.01325, Appendix B.2.
    """
    for row in rows:
        info = {key: cell(row, f"info.{key}") for key in ("subreddit", "title", "post", "article")}
        text = info["article"] if info["post"] is None else info["post"]
        lines = [f"SUBREDDIT: r/{info['subreddit']}"] if info["subreddit"] else []
        lines += [f"TITLE: {info['title']}"] if info["title"] else []
        choice: Any = row.get("choice")
        known = type(choice) is int and choice in (0, 1)
        yield {
            "prompt": "\n\n".join([*lines, f"POST: {text}", "TL;DR:"])
            if isinstance(text, str)
            else None,
            "completions": _each(cell(row, "summaries.text"), _after_space),
            "scores": [float(i == choice) for i in (0, 1)] if known else None,
        }


def qa_feedback(rows: Iterable[Row]) -> Iterator[Row]:
    """`prediction 1` to `prediction 4` of a `question` with `passages`, and six comparisons.

    `preference` compares 1-2, 1-3, 1-4, 2-3, 2-4, 3-4: 1 for the first, 2 for the second, 0 for
    neither. A passage is its title and then its sentences. Completions begin with the space that
    parts them from the prompt, so an offset into a prediction is one more in its completion. Errors
    are marked in the first alone.

    Source of the prompt: allenai/FineGrainedRLHF, reward_modeling/run_pref_rm.py.
    """
    places = list(combinations(range(4), 2))
    signs = {1: 1, 2: -1, 0: 0}
    for row in rows:
        question, preference = row.get("question"), row.get("preference")
        pairs: Any = preference
        if isinstance(preference, list | tuple) and len(preference) == len(places):
            whos = [signs.get(who) if type(who) is int else None for who in preference]
            pairs = [[i, j, who] for (i, j), who in zip(places, whos, strict=True)]
        texts = [_after_space(row.get(f"prediction {n}")) for n in range(1, 5)]
        errors, first = cell(row, "feedback.errors"), row.get("prediction 1")
        shift = len(texts[0]) - len(first) if isinstance(first, str) and texts[0] else 0
        yield {
            "prompt": _with_passages(question, row.get("passages")),
            "completions": texts,
            "pairs": pairs,
            "spans": None if errors is None else [_errors(errors, shift), None, None, None],
        }


def _errors(given: Any, shift: int) -> Any:
    """[start, end, label] of each error, as far as it has them."""
    if not isinstance(given, list | tuple):
        return given
    found = list[Any]()
    for error in given:
        parts = error if isinstance(error, Mapping) else {}
        places = [parts.get("start"), parts.get("end")]
        moved = [place + shift if type(place) is int else place for place in places]
        found.append([*moved, parts.get("error type")])
    return found


def _with_passages(question: Any, passages: Any) -> str | None:
    """What is known and then the question, words parted by single spaces; None without either.

    The released code has the question first. Here a prompt that is too long loses its beginning.
    """
    known = _list(passages)
    if not isinstance(question, str) or not question.strip() or known is None:
        return None
    parts = ["context:"] if known else []
    for passage in known:
        if not isinstance(passage, list | tuple) or not passage:
            return None
        parts += [f"wikipage: {passage[0]}", "text:", *map(str, passage[1:])]
    return " ".join(" ".join([*parts, "question:", question, "answer:"]).split())


# --- texts


def _turns(text: Any, marks: re.Pattern[str]) -> Turns | None:
    """The turns of a conversation in one text, without the white space around each; None of what
    is no text, or an empty one. What stands before the first mark is the user's."""
    if not isinstance(text, str) or not text.strip():
        return None
    first, *others = marks.split(text)  # then speaker and words, alternating
    found = [("User", first)] if first.strip() else []
    found += zip(others[::2], others[1::2], strict=True)
    return [{"role": SPEAKERS[who], "content": words.strip()} for who, words in found]


def _answer(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _after_space(text: Any) -> Any:
    """A completion that follows a prompt which ends in a word."""
    return text if not isinstance(text, str) or text[:1].isspace() else f" {text}"


def _list(values: Any) -> list[Any] | None:
    return list(values) if isinstance(values, list | tuple) else None


def _each(values: Any, make: Callable[[Any], Any]) -> list[Any] | None:
    """`make` of each, where it is a list."""
    return None if (given := _list(values)) is None else [make(value) for value in given]


ADAPTERS: dict[str, Adapter] = {
    "auto": as_given,
    **{
        one.name: one
        for one in (
            Published("ultrafeedback", ("instruction", "completions"), ultrafeedback),
            Published("hh_rlhf", ("chosen", "rejected"), hh_rlhf),
            Published("nectar", ("prompt", "answers"), nectar),
            Published("helpsteer2", ("prompt", "response", "helpfulness"), helpsteer2),
            Published(
                "helpsteer3",
                ("context", "response1", "response2", "overall_preference"),
                helpsteer3,
            ),
            Published("tldr_comparisons", ("info", "summaries", "choice"), tldr_comparisons),
            Published(
                "qa_feedback",
                ("question", "passages", *(f"prediction {n}" for n in range(1, 5)), "preference"),
                qa_feedback,
            ),
        )
    },
}
