"""A server that misbehaves: what is tried again, what is said, what is hidden."""

import email.utils
import threading
import time
from collections.abc import Iterator

import pytest

from pgtg.errors import ConfigError, PgtgError
from pgtg.judges import endpoint as module
from pgtg.judges.endpoint import Endpoint, GoneError, Reply
from tests.support.llm_server import KEY, Server, serving

BODY = {"model": "m", "messages": [{"role": "user", "content": '<answer>\nhi\n</answer> "score"'}]}


class Waits:
    """Stands in for waiting: notes how long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as own:
        yield own


def endpoint(
    server: Server, *, retries: int = 3, timeout: float = 5.0, key: str | None = KEY
) -> tuple[Endpoint, Waits]:
    made, waits = Endpoint(server.url, key, timeout=timeout, retries=retries), Waits()
    made._closed = waits  # pyright: ignore
    return made, waits


@pytest.mark.parametrize("mishap", ["429", "500", "cut", "drop", "garbage", "odd", "error"])
def test_what_may_pass_is_tried_again(server: Server, mishap: str):
    server.mishaps = [mishap, mishap]
    own, waits = endpoint(server)
    assert own.ask(BODY) == Reply("answer", '{"score": 2.002}', 100, 7)
    assert len(server.bodies) == 3 and server.bodies[0] == BODY
    assert server.keys == [f"Bearer {KEY}"] * 3
    assert [1 <= a / b <= 1.25 for a, b in zip(waits.seconds, (1, 2), strict=True)] == [True, True]


@pytest.mark.parametrize("mishap", ["slow", "drip"])
def test_a_try_ends_in_time(server: Server, mishap: str):
    """Also where a byte comes now and then."""
    server.mishaps = [mishap]
    own, waits = endpoint(server, timeout=0.3)
    began = time.monotonic()
    assert own.ask(BODY).kind == "answer"
    assert time.monotonic() - began < 5 and len(waits.seconds) == 1


def test_waits_double_up_to_a_bound_and_retry_after_is_kept_to(server: Server):
    server.always = "500"
    own, waits = endpoint(server, retries=8)
    with pytest.raises(GoneError, match=r"no answer after 9 tries \(the last: 500 <html>oops"):
        own.ask(BODY)
    expected = [1, 2, 4, 8, 16, 32, 60, 60]
    assert all(e <= w <= 1.25 * e for w, e in zip(waits.seconds, expected, strict=True))
    server.always, server.mishaps = "ok", ["429", "429"]
    server.retry_after = "33"
    own, waits = endpoint(server)
    own.ask(BODY)
    assert waits.seconds == [33.0, 33.0]
    server.mishaps, server.retry_after = ["429"], email.utils.formatdate(time.time() + 90)
    own, waits = endpoint(server)
    own.ask(BODY)
    assert 85 < waits.seconds[0] <= 90
    server.mishaps, server.retry_after = ["429"], "soon"
    own, waits = endpoint(server)
    own.ask(BODY)
    assert 1 <= waits.seconds[0] <= 1.25


def test_a_server_that_wants_to_be_left_alone_for_hours_has_gone(server: Server):
    server.mishaps, server.retry_after = ["429"], "86400"
    own, waits = endpoint(server)
    with pytest.raises(GoneError, match=r"no answer after 1 try \(the last: 429 slow down\); give"):
        own.ask(BODY)
    assert waits.seconds == []


def test_nobody_there():
    with serving() as gone:
        pass
    own, waits = endpoint(gone, retries=2)
    said = rf"judge.base_url={gone.url}: no answer after 3 tries \(the last: .*refused\); give"
    with pytest.raises(GoneError, match=said) as found:
        own.ask(BODY)
    assert found.value.exit_code == 2 and len(waits.seconds) == 2
    with pytest.raises(GoneError, match="no answer after 1 try"):
        own.look()


@pytest.mark.parametrize(
    ("mishap", "said"),
    [
        ("401", r"answers 401 Incorrect API key provided: Bearer <key>: is the key the server's"),
        ("404", r"answers 404 no such model model_not_found: judge.base_url or judge.model is not"),
        ("400", r"answers 400 response_format is not supported: judge.json_schema=false asks with"),
        ("redirect", r"answers 307"),
    ],
)
def test_what_will_not_pass_is_one_line_at_once(server: Server, mishap: str, said: str):
    server.always = mishap
    own, waits = endpoint(server)
    with serving() as other:
        server.redirect = f"{other.url}/chat/completions"
        with pytest.raises(ConfigError, match=said) as found:
            own.ask(BODY)
        assert other.keys == []  # the key went nowhere else
    assert KEY not in str(found.value) and "\n" not in str(found.value)
    assert len(server.bodies) == 1 and waits.seconds == []


@pytest.mark.parametrize(
    ("mishap", "reply"),
    [
        ("refusal", Reply("refused", "", 100, 7)),
        ("filter", Reply("refused")),
        ("long", Reply("too long")),
        ("empty", Reply("answer", "", 100, 7)),
        ("parts", Reply("answer", "", 100, 7)),
        ("echo", Reply("answer", '{"score": 2.002} for Bearer <key>', 100, 7)),
    ],
)
def test_other_answers(server: Server, mishap: str, reply: Reply):
    server.always = mishap
    assert endpoint(server)[0].ask(BODY) == reply


def test_the_key_is_sent_where_there_is_one(server: Server):
    endpoint(server, key=None)[0].ask(BODY)
    endpoint(server)[0].look()
    assert server.keys == [None, f"Bearer {KEY}"]
    server.always = "401"
    with pytest.raises(ConfigError, match=r"answers 401.*is the key the server's"):
        endpoint(server)[0].look()


def test_an_answer_without_end_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    with pytest.raises(GoneError, match="more than 10 bytes"):
        endpoint(server, retries=0)[0].ask(BODY)


def test_closing_ends_the_waiting(server: Server):
    server.always, server.retry_after = "429", "500"
    own = Endpoint(server.url, KEY, timeout=5, retries=3)
    found: list[BaseException] = []

    def asks() -> None:
        try:
            own.ask(BODY)
        except PgtgError as error:
            found.append(error)

    thread = threading.Thread(target=asks)
    thread.start()
    while not server.bodies:
        time.sleep(0.01)
    own.close()
    thread.join(10)
    assert not thread.is_alive() and str(found[0]) == "the judge was closed"
