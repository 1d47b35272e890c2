"""A stand-in for a server of chat completions, which judges by a planted rule and misbehaves."""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-planted-0123456789"
ANSWER = re.compile(r'<answer(?: label="(\w)")?>\n(.*?)\n</answer>', re.DOTALL)
SLOW_S = 20.0  # longer than any test's time-out


def worth(text: str) -> float:
    """The planted rule: many different letters are good."""
    return len(set(text)) + len(text) / 1000


class Server:
    """What it was asked, and how it meets the next requests.

    Args:
        mishaps: Of the next requests, in their order; then `always`.
        always: "ok", or a mishap.
        biased: It says that the text that stands first is the best.
    """

    def __init__(self, worth: Callable[[str], float] = worth):
        self.worth = worth
        self.mishaps: list[str] = []
        self.always, self.biased = "ok", False
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.retry_after: str | None = None
        self.redirect = ""
        self.at_once = self.most_at_once = 0
        self.turn, self.closing = threading.Lock(), threading.Event()
        self.url = ""

    def nap(self) -> None:
        """Work on a question, counted until the answer, after which another may be asked."""
        with self.turn:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.closing.wait(0.02)
        with self.turn:
            self.at_once -= 1

    def content(self, prompt: str) -> str:
        """A good answer."""
        found = ANSWER.findall(prompt)
        if '"ranking"' not in prompt:
            return json.dumps({"score": min(self.worth(found[0][1]), 10.0)})
        order = found if self.biased else sorted(found, key=lambda one: -self.worth(one[1]))
        return json.dumps({"ranking": [label for label, _ in order]})

    def next(self) -> str:
        with self.turn:
            return self.mishaps.pop(0) if self.mishaps else self.always


def completion(content: str | None, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | more
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    own: Server

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, body: object, **headers: str) -> None:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        own = self.own
        own.keys.append(self.headers.get("Authorization"))
        good = self.path == "/v1/models" and own.always != "401"
        self.send(200 if good else 401, {"data": []})

    def do_POST(self) -> None:
        own, length = self.own, int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        with own.turn:
            own.bodies.append(body)
            own.keys.append(self.headers.get("Authorization"))
        with suppress(BrokenPipeError, ConnectionResetError):
            self.meet(own.next(), body)

    def meet(self, how: str, body: dict[str, Any]) -> None:
        own = self.own
        good, said = own.content(body["messages"][0]["content"]), self.headers.get("Authorization")
        contents = {
            "ok": good,
            "fenced": f"Well, let me think.\n```json\n{good}\n```",
            "prose": "All of them are fine.",
            "schema": json.dumps({"winner": "A"}),
            "missing": json.dumps({"ranking": json.loads(good).get("ranking", [])[:-1]}),
            "words": "I'm sorry, but I can't help with that.",
            "echo": f"{good} for {said}",
            "empty": "",
        }
        errors = {
            "401": (401, {"error": {"message": f"Incorrect API key provided: {said}"}}),
            "404": (404, {"error": {"message": "no such model", "code": "model_not_found"}}),
            "400": (400, {"error": {"message": "response_format is not supported"}}),
            "long": (400, {"error": {"message": "x", "code": "context_length_exceeded"}}),
            "filter": (400, {"error": {"message": "x", "code": "content_filter"}}),
            "500": (500, "<html>oops</html>"),
            "error": (200, {"error": {"message": "upstream"}}),
            "garbage": (200, "]]] no json {"),
            "odd": (200, {"choices": []}),
            "refusal": (200, completion(None, refusal="No.")),
            "parts": (200, completion(None)),
        }
        if how == "nap":
            own.nap()
            self.send(200, completion(good))
        elif how in contents:
            self.send(200, completion(contents[how]))
        elif how in errors:
            self.send(*errors[how])
        elif how == "429":
            after = {} if own.retry_after is None else {"Retry_After": own.retry_after}
            self.send(429, {"error": {"message": "slow down"}}, **after)
        elif how == "redirect":
            self.send(307, "", Location=own.redirect)
        elif how == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif how == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif how == "slow":
            own.closing.wait(SLOW_S)
        elif how == "drip":
            self.send_response(200)
            self.end_headers()
            while not own.closing.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()
        else:
            raise ValueError(how)


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    """A server on this machine, until the end of the block."""
    own = Server()
    handler = type("Own", (Handler,), {"own": own})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    own.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield own
    finally:
        own.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
