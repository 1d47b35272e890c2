"""An OpenAI-compatible server of chat completions: one request a question, made again where that
may help.

What may pass (no connection, a cut one, a time-out, 429, 5xx, an answer that is no JSON) is tried
again after 1, 2, 4, ... s, or after as long as the server's Retry-After says. What will not (a
wrong key, model or request) is one line at once, and so is a server that does not come back.

The key is sent as a header, to the address of the config alone (redirects are not followed), and is
in no text that leaves this module: it is cut out of whatever the server says.
"""

import contextlib
import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgtg.errors import ConfigError, MissingResourceError, PgtgError

FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0  # between tries: doubled each time, up to the second
LONGEST_S = 600.0  # a server that asks to be left alone for longer has gone
MOST_BYTES = 8 * 2**20  # of an answer
LOOKING_S = 10.0  # how long the server may take to say that it is there
PASSING = (408, 409, 425, 429)  # statuses that may pass, as those from 500 on
TOO_LONG = ("context_length", "context length", "too many tokens", "maximum context")
HIDDEN = "<key>"


class GoneError(MissingResourceError):
    """The server does not answer any more."""


@dataclass(frozen=True)
class Reply:
    """What came back for a question.

    Args:
        kind: "answer", "refused", or "too long" for the model.
        text: The answer's.
        prompt_tokens: As the server counts them, 0 where it does not.
        completion_tokens: The same.
    """

    kind: str
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Passing(Exception):
    """Something that may pass, and after how many seconds if the server says so."""

    def __init__(self, what: str, after: float | None = None):
        super().__init__(what)
        self.after = after


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """A server, asked from any number of threads.

    Args:
        url: As `judge.base_url`.
        key: What is sent as the bearer's token; None: nothing is.
        timeout: Longest time that a try takes [s].
        retries: Tries after the first.
    """

    def __init__(self, url: str, key: str | None, *, timeout: float, retries: int):
        self.url = url.rstrip("/")
        self._key, self._timeout, self._retries = key, timeout, retries
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._closed = threading.Event()
        self._chance = random.Random()

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """The answer to a request of chat completions.

        Raises:
            ConfigError: The server refuses the request itself.
            GoneError: It did not answer, however often it was tried.
        """
        data = json.dumps(body).encode()
        for tries in range(1, self._retries + 2):
            try:
                return self._once(data)
            except _Passing as passing:
                backoff = min(FIRST_WAIT_S * 2 ** (tries - 1), MOST_WAIT_S)
                wait = max(backoff * (1 + self._chance.random() / 4), passing.after or 0.0)
                if tries > self._retries or wait > LONGEST_S:
                    raise self._gone(tries, passing) from None
                if self._closed.wait(wait):
                    raise PgtgError("the judge was closed") from None
        raise AssertionError  # the last try returns or raises

    def look(self) -> None:
        """Find that the server is there and takes the key; most have a list of their models.

        Raises:
            ConfigError: It does not take the key.
            GoneError: It is not there.
        """
        try:
            self._read("/models", None, min(LOOKING_S, self._timeout))
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (401, 403):
                    raise self._refused(error.code, self._said(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(1, _Passing(self._named(error))) from None

    def close(self) -> None:
        """Nobody waits any longer."""
        self._closed.set()

    def _once(self, data: bytes) -> Reply:
        try:
            raw = self._read("/chat/completions", data, self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                return self._of_status(error)
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(self._named(error)) from None
        try:
            return self._reply(json.loads(raw))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise _Passing(f"no completion: {self._clean(raw)!r:.80}") from None

    def _read(self, path: str, data: bytes | None, timeout: float) -> bytes:
        """What the server says, whole, within so many seconds."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        ends, parts, size = time.monotonic() + timeout, list[bytes](), 0
        request = urllib.request.Request(self.url + path, data, headers)
        with self._opener.open(request, timeout=timeout) as response:
            while part := response.read1(2**16):
                parts.append(part)
                size += len(part)
                if time.monotonic() > ends:
                    raise TimeoutError
                if size > MOST_BYTES:
                    raise OSError(f"more than {MOST_BYTES} bytes")
            if response.length:  # bytes that were promised and did not come
                raise http.client.IncompleteRead(b"".join(parts), response.length)
        return b"".join(parts)

    def _reply(self, whole: Any) -> Reply:
        if whole.get("error"):  # some proxies say so with status 200
            raise _Passing(f"error: {self._clean(json.dumps(whole['error']))[:200]}")
        choice, usage = whole["choices"][0], whole.get("usage") or {}
        counts = [int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion")]
        message = choice["message"]
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return Reply("refused", "", *counts)
        content = message.get("content")
        if isinstance(content, list):  # parts, of which some are text
            content = "".join(part.get("text") or "" for part in content)
        return Reply("answer", self._clean(content or ""), *counts)

    def _of_status(self, error: urllib.error.HTTPError) -> Reply:
        """What an answer with an error's status means.

        Raises:
            ConfigError: The request is wrong.
        """
        status, said = error.code, self._said(error)
        if status in PASSING or status >= 500:
            raise _Passing(f"{status} {said}".strip(), _seconds(error.headers.get("Retry-After")))
        if status in (400, 413, 422):
            if status == 413 or any(sign in said.lower() for sign in TOO_LONG):
                return Reply("too long")
            if "content_filter" in said or "content management policy" in said:
                return Reply("refused")
        raise self._refused(status, said)

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The message of an error, or how its body begins, on one line."""
        try:
            raw = error.read(2**16)
        except (OSError, http.client.HTTPException):
            return ""
        text = raw.decode(errors="replace")
        with contextlib.suppress(ValueError, RecursionError, AttributeError):  # no json: as it is
            found = json.loads(raw)
            found = found.get("error", found)
            if isinstance(found, dict):
                parts = (found.get("message"), found.get("code"))
                text = " ".join(str(part) for part in parts if part)
            else:
                text = str(found)
        return " ".join(self._clean(text).split())[:300]

    def _refused(self, status: int, said: str) -> ConfigError:
        fix = {
            401: ": is the key the server's (judge.key_env)?",
            403: ": may this key use the model?",
            404: ": judge.base_url or judge.model is not the server's",
        }
        if "response_format" in said or "json_schema" in said:
            fix[status] = ": judge.json_schema=false asks without a schema"
        end = fix.get(status, "")
        return ConfigError(f"judge.base_url={self.url} answers {status} {said}".strip() + end)

    def _gone(self, tries: int, last: _Passing) -> GoneError:
        times = "1 try" if tries == 1 else f"{tries} tries"
        return GoneError(
            f"judge.base_url={self.url}: no answer after {times} (the last: {last}); give the same "
            "command again to resume once it is there"
        )

    def _named(self, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"nothing within {self._timeout:g} s (judge.timeout)"
        return self._clean(str(reason) or type(reason).__name__)

    def _clean(self, text: str | bytes) -> str:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return text if not self._key else text.replace(self._key, HIDDEN)


def _seconds(given: str | None) -> float | None:
    """What Retry-After says, seconds or a date."""
    if given is None:
        return None
    with contextlib.suppress(ValueError):
        return max(float(given), 0.0)
    try:
        return max(email.utils.parsedate_to_datetime(given).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
