"""Published preference data as the columns of `pairs`: what `data.format` may name.

Each adapter takes the rows of a data set as it is published and gives rows with `prompt`, `chosen`
and `rejected`, or `prompt`, `completions` and `ranks`, `scores` or `pairs`.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from pgtg.data.tables import Row

Adapter = Callable[[Iterable[Any]], Iterable[Any]]


def as_given(rows: Iterable[Row]) -> Iterable[Row]:
    """Columns as `data.columns` names them."""
    return rows


def ultrafeedback(rows: Iterable[Row]) -> Iterator[Row]:
    """`instruction`, `completions[4]`: ranked by the sum of the ratings of their four aspects."""
    for row in rows:
        found: list[Any] = row.get("completions") or []
        scores: list[float | None] = []
        for one in found:
            ratings = [a.get("Rating") for a in (one.get("annotations") or {}).values()]
            known = [float(r) for r in ratings if str(r).replace(".", "", 1).isdigit()]
            scores.append(sum(known) / len(known) if known else None)
        texts = [one.get("response") for one in found]
        yield {"prompt": row.get("instruction"), "completions": texts, "scores": scores}


def nectar(rows: Iterable[Row]) -> Iterator[Row]:
    """`prompt` of "Human:" and "Assistant:", `answers[7]` with ranks."""
    for row in rows:
        answers: list[Any] = row.get("answers") or []
        yield {
            "prompt": _asked(turns_of(str(row.get("prompt") or ""))),
            "completions": [[{"role": "assistant", "content": a.get("answer")}] for a in answers],
            "ranks": [answer.get("rank") for answer in answers],
        }


def _asked(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Turns without an empty one of the assistant at their end."""
    return turns[:-1] if turns and not turns[-1]["content"] else turns


def hh_rlhf(rows: Iterable[Row]) -> Iterator[Row]:
    """`chosen` and `rejected`: whole transcripts of "Human:" and "Assistant:"."""
    for row in rows:
        yield {key: turns_of(str(row.get(key) or "")) for key in ("chosen", "rejected")}


def turns_of(transcript: str) -> list[dict[str, str]]:
    """The turns of a transcript; an "Assistant:" at its end is an empty one."""
    found: list[dict[str, str]] = []
    for part in ("\n\n" + transcript.strip()).split("\n\n"):
        for mark, role in (("Human:", "user"), ("Assistant:", "assistant")):
            if part.startswith(mark):
                found.append({"role": role, "content": part.removeprefix(mark).strip()})
                break
        else:  # a paragraph of the turn before
            if found:
                found[-1]["content"] = f"{found[-1]['content']}\n\n{part}".strip()
            elif part.strip():
                found.append({"role": "user", "content": part.strip()})
    return found


def tldr(rows: Iterable[Row]) -> Iterator[Row]:
    """Comparisons of two summaries: `info.post`, `summaries[2].text`, `choice`."""
    for row in rows:
        info: Any = row.get("info") or {}
        texts = [f" {str(one.get('text') or '').strip()}" for one in row.get("summaries") or []]
        post = info.get("post") or info.get("article") or ""
        lines = [f"SUBREDDIT: r/{info['subreddit']}"] if info.get("subreddit") else []
        lines += [f"TITLE: {info['title']}"] if info.get("title") else []
        choice = row.get("choice")
        yield {
            "prompt": "\n\n".join([*lines, f"POST: {post}", "TL;DR:"]),
            "completions": texts,
            "scores": [float(i == choice) for i in range(len(texts))],
        }


def helpsteer2(rows: Iterable[Row]) -> Iterator[Row]:
    """Consecutive rows of a `prompt`, each with a `response`; the better `helpfulness`."""
    for prompt, found in groupby(rows, lambda row: row.get("prompt")):
        both = [*found]  # one alone is dropped with its reason
        yield {
            "prompt": prompt,
            "completions": [one.get("response") for one in both],
            "scores": [one.get("helpfulness") for one in both],
        }


def helpsteer3(rows: Iterable[Row]) -> Iterator[Row]:
    """`context` of turns, `response1`, `response2`, `overall_preference` from -3 to 3."""
    for row in rows:
        texts = [row.get("response1"), row.get("response2")]
        preference = row.get("overall_preference") or 0
        yield {
            "prompt": row.get("context"),
            "completions": [[{"role": "assistant", "content": text}] for text in texts],
            "pairs": [[1, 0, preference]],
        }


def qa_feedback(rows: Iterable[Row]) -> Iterator[Row]:
    """Four predictions of a question with passages, compared two by two: 1 first, 2 second."""
    places = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for row in rows:
        passages = [" ".join(map(str, one)) for one in row.get("passages") or []]
        context = "\n".join(f"[{n}] {text}" for n, text in enumerate(passages, 1))
        signs = {1: 1, 2: -1, 0: 0}
        yield {
            "prompt": f"question: {row.get('question')}\ncontext:\n{context}\nanswer:",
            "completions": [f" {row.get(f'prediction {n}') or ''}".rstrip() for n in range(1, 5)],
            "pairs": [
                [i, j, signs.get(who, 0)]
                for (i, j), who in zip(places, row.get("preference") or [], strict=False)
            ],
        }


ADAPTERS: dict[str, Adapter] = {
    "auto": as_given,
    "ultrafeedback": ultrafeedback,
    "hh_rlhf": hh_rlhf,
    "nectar": nectar,
    "helpsteer2": helpsteer2,
    "helpsteer3": helpsteer3,
    "tldr_comparisons": tldr,
    "qa_feedback": qa_feedback,
}
