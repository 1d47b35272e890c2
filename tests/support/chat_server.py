"""A small OpenAI-compatible server of chat completions over a Transformers model."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Model:
    """Answers greedily; where a request has a schema, with the likeliest of what that allows."""

    def __init__(self, path: Path):
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path).eval()
        self.given: list[dict[str, Any]] = []
        self.turn = threading.Lock()

    def ids(self, text: str) -> torch.Tensor:
        found = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        return found["input_ids"]

    def likeliest(self, text: str, ways_on: Sequence[str]) -> str:
        """By the probability of its first token."""
        if len(ways_on) == 1:
            return ways_on[0]
        logits = self.model(self.ids(text)).logits[0, -1]
        return max(ways_on, key=lambda way: logits[self.ids(way)[0, 0]].item())

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, tokenize=False
        )
        with self.turn, torch.no_grad():
            if "response_format" in body:
                said = self.by_schema(prompt, body["response_format"]["json_schema"]["schema"])
            else:
                ids = self.ids(prompt)
                whole = self.model.generate(ids, max_new_tokens=body["max_tokens"], do_sample=False)
                said = self.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
            counts = [self.ids(text).shape[1] for text in (prompt, said)]
            usage = dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))
            message = {"role": "assistant", "content": said}
            self.given.append({"choices": [{"index": 0, "message": message}], "usage": usage})
            return self.given[-1]

    def by_schema(self, prompt: str, schema: dict[str, Any]) -> str:
        """A ranking of all labels, or a whole number as the score."""
        ((name, of),) = schema["properties"].items()
        said = f'{{"{name}": '
        if name == "score":
            numbers = range(round(of["minimum"]), round(of["maximum"]) + 1)
            return said + self.likeliest(prompt + said, [str(n) for n in numbers]) + "}"
        order, left = list[str](), list(of["items"]["enum"])
        while left:
            begun = json.dumps(order)[:-1] + (', "' if order else '"')  # ["A", "
            order.append(self.likeliest(prompt + said + begun, left))
            left.remove(order[-1])
        return said + json.dumps(order) + "}"


@contextmanager
def chat_server(path: Path) -> Iterator[tuple[str, Model]]:
    """Its address and what answers there, until the end of the block."""
    model = Model(path)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer({"data": [{"id": path.name}]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(model.completion(json.loads(body)))

        def answer(self, body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
