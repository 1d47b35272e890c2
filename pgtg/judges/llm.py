"""`judge=llm`: a large model says which texts are better, over an OpenAI-compatible endpoint.

- `mode=rank`: all texts of a source stand in one question, in two orders (`swap`), since models
  favour a place. A text's score is the share of the others that it is placed above [%], the mean
  over both orders; where the orders disagree on a pair, it ties. A text that is alone in its source
  (greedy text of a validation) is ranked against the source's reference: 100 is better, 0 is worse.
- `mode=score`: a question for each text, a number between `lowest` and `highest`.

An answer is read with patience (`verdicts`), but never completed: one that lacks a text is asked
for again, and if that does not help its texts are not judged (NaN), as are those that the model
refuses or that are too long for it. What was answered is kept under the hash of all that was sent;
the key is not part of it.
"""

import json
import math
import os
import string
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.config import LLMJudgeConfig, RunConfig, endpoints
from pgtg.errors import ConfigError, MissingResourceError
from pgtg.judges import verdicts
from pgtg.judges.asking import Template
from pgtg.judges.endpoint import Endpoint, Reply
from pgtg.judges.judge import Columns, Judge
from pgtg.judges.memo import Answers
from pgtg.judges.pool import joined
from pgtg.judges.reference import then
from pgtg.judges.spending import Spending
from pgtg.judges.threads import Threads
from pgtg.models.chat import ChatCodec
from pgtg.models.codec import Codec
from pgtg.runs.files import content_hash
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.types import Example, TokenIds

LABELS = string.ascii_uppercase
ASKED = 3  # times that a question is asked for an answer that can be used
VERSION = 1  # to be raised whenever the same answer would be read otherwise
WHY = {  # a text is not judged
    "refused": "refused",
    "too long": "too long for the model",
    "unusable": "without an answer that can be used",
}
Points = list[float]


@dataclass(frozen=True)
class Question:
    """One request.

    Args:
        prompt: What is asked.
        schema: Of the answer's JSON.
        texts: Which of the group's texts it is about.
        read: The points of these texts in an answer; None if it cannot be used.
    """

    prompt: str
    schema: Mapping[str, Any]
    texts: list[int]
    read: Callable[[str], Points | None]


@dataclass(frozen=True)
class Outcome:
    """What became of a question: points, or why there are none (a key of WHY)."""

    points: Points
    why: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that are judged together.

    Args:
        places: Of each row, which of the group's distinct texts it is.
        questions: None where there is nothing to ask, since all texts are one.
    """

    rows: list[int]
    places: list[int]
    questions: list[Question]

    def scores(self, outcomes: Sequence[Outcome]) -> Iterator[tuple[int, float, str]]:
        """Each row with its score, the mean over the questions about it; NaN and why not."""
        for row, place in zip(self.rows, self.places, strict=True):
            if not self.questions:
                yield row, EQUAL, ""
                continue
            own = [
                (outcome, question.texts.index(place))
                for question, outcome in zip(self.questions, outcomes, strict=True)
                if place in question.texts
            ]
            why = next((outcome.why for outcome, _ in own if outcome.why), "")
            points = [outcome.points[i] for outcome, i in own if not outcome.why]
            yield row, math.nan if why else sum(points) / len(points), why


EQUAL = 50.0  # of texts that are one [%]


class LLMJudge(Judge):
    """Asks an endpoint.

    Args:
        how: The judge's options.
        endpoint: Of `how.base_url`.
        template: Of `how.mode`.
        kept: The answers that are known.
    """

    def __init__(self, how: LLMJudgeConfig, endpoint: Endpoint, template: Template, kept: Answers):
        self.alone = how.mode == "score"
        self._how, self._endpoint, self._template, self._kept = how, endpoint, template, kept
        self._threads = Threads(how.concurrency)
        self._spending = Spending(how)
        self._log: RunLog | None = None
        self._lock = threading.Lock()
        self._failed: Exception | None = None
        self._judged, self._lost = 0, Counter[str]()

    def __call__(
        self,
        tokens: Sequence[TokenIds],
        texts: Sequence[str],
        examples: Sequence[Example],
        codec: Codec,
    ) -> Future[Columns]:
        """Columns "score" and "unjudged": why there is no score, "" where there is one."""
        chat, rows_of = isinstance(codec, ChatCodec), dict[str, list[int]]()
        for row, example in enumerate(examples):
            rows_of.setdefault(example.id, []).append(row)
        groups = [
            self._group(rows, [texts[row] for row in rows], examples[rows[0]], chat)
            for rows in rows_of.values()
        ]
        asked: dict[str, Future[list[Outcome]]] = {}
        for question in (question for group in groups for question in group.questions):
            if question.prompt not in asked:
                asked[question.prompt] = self._asked(question)

        def columns(outcomes: list[Outcome]) -> Columns:
            of = dict(zip(asked, outcomes, strict=True))
            scores, whys = [math.nan] * len(texts), [""] * len(texts)
            for group in groups:
                for row, score, why in group.scores([of[q.prompt] for q in group.questions]):
                    scores[row], whys[row] = score, why
            with self._lock:
                self._judged += len(texts)
                self._lost.update(why for why in whys if why)
            return {"score": scores, "unjudged": whys}

        return then(joined(list(asked.values())), columns)

    def describe(self) -> Mapping[str, Any]:
        how = self._how
        scale = {"lowest": how.lowest, "highest": how.highest} if how.mode == "score" else {}
        return scale | {
            "judge": how.name,
            "version": VERSION,
            "base_url": self._endpoint.url,
            "model": how.model,
            "mode": how.mode,
            "template": self._template.text,
            "criteria": how.criteria,
            "swap": how.swap,
            "json_schema": how.json_schema,
            "request": dict(how.request),
        }

    def keep_in(self, folder: RunFolder, log: RunLog) -> None:
        self._log = log
        self._spending.keep_in(folder.path, self._template.text)

    def tell(self) -> None:
        if self._log is None:
            return
        self._log.say(f"judge {self._how.name}: {self._spending.told()}")
        with self._lock:
            lost, judged = self._lost, self._judged
            self._lost, self._judged = Counter(), 0
        if lost:
            parts = ", ".join(f"{number} {WHY[why]}" for why, number in sorted(lost.items()))
            self._log.warn(
                f"judge {self._how.name}: {lost.total()} of {judged} texts are not judged "
                f"({parts}): no ranking holds them"
            )

    def close(self) -> None:
        self._endpoint.close()
        self._threads.close()
        self._kept.close()

    # --- what is asked

    def _group(self, rows: list[int], texts: Sequence[str], example: Example, chat: bool) -> Group:
        own = list(dict.fromkeys(texts))
        places = [own.index(text) for text in texts]
        if self._how.mode == "score":
            asked = [self._question(own, [place], example, chat) for place in range(len(own))]
            return Group(rows, places, asked)
        if len(texts) == 1 and example.references[0] != own[0]:
            own.append(example.references[0])
        if len(own) == 1:
            return Group(rows, places, [])
        orders = [[*range(len(own))]]
        orders += [orders[0][::-1]] if self._how.swap else []
        return Group(rows, places, [self._question(own, o, example, chat) for o in orders])

    def _question(
        self, texts: Sequence[str], order: list[int], example: Example, chat: bool
    ) -> Question:
        """The question about some texts, in an order."""
        how, labels = self._how, LABELS[: len(order)]
        prompt = self._template.filled(example, [texts[place] for place in order], labels, chat)
        if how.mode == "score":
            low, high = how.lowest, how.highest

            def scored(answer: str) -> Points | None:
                found = verdicts.score(answer, low, high)
                return None if found is None else [found]

            return Question(prompt, verdicts.score_schema(low, high), order, scored)

        def ranked(answer: str) -> Points | None:
            places = verdicts.ranking(answer, labels)
            if places is None:
                return None
            most = len(labels) - 1
            return [100.0 * (most - place) / most for place in places]

        return Question(prompt, verdicts.ranking_schema(labels), order, ranked)

    def _asked(self, question: Question) -> Future[list[Outcome]]:
        """The question's outcome, from what is known or from a thread."""
        how = self._how
        body: dict[str, Any] = {"model": how.model}
        body["messages"] = [{"role": "user", "content": question.prompt}]
        body |= {name: value for name, value in how.request.items() if value is not None}
        if how.json_schema:
            form = {"name": how.mode, "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        key = content_hash([VERSION, self._endpoint.url, body])
        if (known := self._kept.get(key)) is not None:
            outcome = _outcome(question, Reply(**json.loads(known)))
            if outcome.why != "unusable":
                self._spending.known()
                made: Future[list[Outcome]] = Future()
                made.set_result([outcome])
                return made
        return self._threads.submit(self._answered, question, body, key)

    def _answered(self, question: Question, body: Mapping[str, Any], key: str) -> list[Outcome]:
        """Ask until an answer can be used; after ASKED times none is there.

        Raises:
            ConfigError: The server refuses the request itself.
            GoneError: It does not answer.
        """
        outcome = Outcome([], "unusable")
        for _ in range(ASKED):
            if self._failed is not None:
                raise self._failed
            try:
                reply = self._endpoint.ask(body)
            except (ConfigError, MissingResourceError) as error:
                self._failed = error  # no other question need find out
                raise
            outcome = _outcome(question, reply)
            self._spending.add(reply, outcome.why or "used")
            if outcome.why != "unusable":
                self._kept.put_all({key: json.dumps(vars(reply)).encode()})
                break
        return [outcome]


def _outcome(question: Question, reply: Reply) -> Outcome:
    if reply.kind != "answer":
        return Outcome([], reply.kind)
    points = question.read(reply.text)
    if points is not None:
        return Outcome(points)
    return Outcome([], "refused" if verdicts.declines(reply.text) else "unusable")


# --- how it is had


def open_llm(cfg: RunConfig) -> LLMJudge:
    """The config's endpoint; nothing is asked yet.

    Raises:
        ConfigError: The template cannot be used, or nobody has said that texts may be sent there.
        MissingResourceError: The key's variable is not set.
    """
    how = _options(cfg)
    endpoint, template = _endpoint(how), Template.of(how)
    path = None
    if cfg.cache != "off":
        name = content_hash([endpoint.url, how.model])[:32]
        path = Path(cfg.cache).expanduser() / "answers" / f"llm-{name}.sqlite"
    return LLMJudge(how, endpoint, template, Answers(path))


def check(cfg: RunConfig, *, fetch: bool) -> list[str]:
    """What can be known of the endpoint before a run; whether it is there, if it may be asked.

    Raises:
        ConfigError: The template, the key or the number of texts cannot be used.
        GoneError: It is not there.
        MissingResourceError: The key's variable is not set.
    """
    how = _options(cfg)
    endpoint = _endpoint(how, retries=0)
    Template.of(how)
    if how.mode == "rank" and cfg.sample.k > len(LABELS):
        raise ConfigError(
            f"sample.k: found {cfg.sample.k}, but judge.mode=rank puts all of them into one "
            f"question, expected at most {len(LABELS)}"
        )
    if fetch:
        endpoint.look()
    if how.key_env is not None and endpoints.is_open(endpoint.url):
        return [f"judge.base_url={endpoint.url}: texts and key are sent without encryption (http)"]
    return []


def _options(cfg: RunConfig) -> LLMJudgeConfig:
    assert isinstance(cfg.judge, LLMJudgeConfig)  # config check
    return cfg.judge


def _endpoint(how: LLMJudgeConfig, *, retries: int | None = None) -> Endpoint:
    """The endpoint with its key, which is read here and handed to nobody else.

    Raises:
        ConfigError: Nobody has said that texts and key may be sent there.
        MissingResourceError: The key's variable is not set.
    """
    assert how.base_url is not None  # config check
    endpoints.require(how.base_url)
    key = None if how.key_env is None else os.environ.get(how.key_env, "").strip()
    if key == "":
        raise MissingResourceError(
            f"judge.key_env: ${how.key_env} is not set: put the server's key into it, or give "
            "judge.key_env=null for a server that asks for none"
        )
    tries = how.retries if retries is None else retries
    return Endpoint(how.base_url, key, timeout=how.timeout, retries=tries)
