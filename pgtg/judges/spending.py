"""What asking a large model has cost: each request is a line of the run folder's `judge.jsonl`.

Requests that were made are paid for, also where a killed run makes their stage again, so nothing is
ever taken back here. `judge.json` has the sums.
"""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgtg.config import LLMJudgeConfig
from pgtg.errors import ConfigError
from pgtg.judges.endpoint import Reply
from pgtg.runs.files import content_hash, read_json, write_json
from pgtg.runtime import distributed

LINES, SUMS = "judge.jsonl", "judge.json"
COUNTED = ("prompt_tokens", "completion_tokens")


class Spending:
    """Requests, tokens and cost of a run.

    Args:
        how: Its prices.
    """

    def __init__(self, how: LLMJudgeConfig):
        self._how, self._folder = how, None
        self._lock = threading.Lock()
        self._here, self._known = Counter[str](), 0

    def keep_in(self, folder: Path, template: str) -> None:
        """Write to a run's folder from now on.

        Raises:
            ConfigError: The run was begun with another template.
        """
        made_with, before = content_hash(template), {}
        if (folder / SUMS).is_file():
            before = read_json(folder / SUMS)
        if before.get("template", made_with) != made_with:
            raise ConfigError(
                f"judge.template: {self._how.template or self._how.mode} is not the text that the "
                f"run in {folder} was begun with: put it back, or begin another run"
            )
        self._folder, self._template = folder, made_with
        self._write()

    def add(self, reply: Reply, outcome: str) -> None:
        """A request was answered."""
        line = {"outcome": outcome} | {name: getattr(reply, name) for name in COUNTED}
        with self._lock:
            _count(self._here, line)
            if self._folder is not None:
                with (self._folder / LINES).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def known(self) -> None:
        """An answer was known already."""
        with self._lock:
            self._known += 1

    def sums(self) -> dict[str, Any]:
        """Of the run, or of this process where it has no folder."""
        found = self._here
        if self._folder is not None and (self._folder / LINES).is_file():
            found = Counter[str]()
            for text in (self._folder / LINES).read_text(encoding="utf-8").splitlines():
                try:
                    _count(found, json.loads(text))
                except (ValueError, AttributeError, TypeError):  # a line that a kill cut short
                    continue
        how = self._how
        cost = None
        if how.price_input is not None and how.price_output is not None:
            cost = found["prompt_tokens"] * how.price_input
            cost = (cost + found["completion_tokens"] * how.price_output) / 1e6
        return {"model": how.model, "base_url": how.base_url, **found, "cost": cost}

    def told(self) -> str:
        """One line of the sums, which are written too."""
        found = self._write()
        words = f"{found.get('requests', 0):,} requests to {found['model']} in this run"
        words += f", {found.get('prompt_tokens', 0):,} tokens read"
        words += f" and {found.get('completion_tokens', 0):,} written"
        if found["cost"] is not None:
            words += f", cost {found['cost']:.4f}"
        return f"{words}; {self._known:,} answers were known"

    def _write(self) -> dict[str, Any]:
        found = self.sums()
        if self._folder is not None and distributed.is_first():
            write_json(self._folder / SUMS, found | {"template": self._template})
        return found


def _count(into: Counter[str], line: Mapping[str, Any]) -> None:
    into["requests"] += 1
    into[str(line["outcome"])] += 1
    for name in COUNTED:
        into[name] += int(line[name])
