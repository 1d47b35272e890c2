"""The template of what a large model is asked: Jinja, in its sandbox.

What it may use: `source` and `messages` (what the texts answer, as one text and as turns), `texts`
(each with `label` and `text`), `labels`, `criteria`, `lowest` and `highest`, `references`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pgtg.config import LLMJudgeConfig
from pgtg.errors import ConfigError
from pgtg.runs.files import read_bytes
from pgtg.types import Example

SHIPPED = Path(__file__).with_name("templates")  # <mode>.jinja
MOST_BYTES = 2**20


@dataclass(frozen=True)
class Template:
    """A template with the options that it is filled by."""

    text: str
    how: LLMJudgeConfig

    @classmethod
    def of(cls, how: LLMJudgeConfig) -> "Template":
        """The config's template, or the one of its mode.

        Raises:
            ConfigError: It cannot be read or filled, or leaves out a text.
        """
        path = SHIPPED / f"{how.mode}.jinja" if how.template is None else Path(how.template)
        if not path.is_file():
            raise ConfigError(f"judge.template: there is no file '{path}' (in {Path.cwd()})")
        try:
            made = cls(read_bytes(path, max_bytes=MOST_BYTES).decode(), how)
        except UnicodeDecodeError as error:
            raise ConfigError(f"judge.template: {path} is no UTF-8 text") from error
        shown = ["the first text", "the second text"][: 1 if how.mode == "score" else 2]
        found = made.filled(Example("", "the source", ("a reference",), ""), shown, "AB", False)
        if left := [text for text in shown if text not in found]:
            raise ConfigError(
                f"judge.template: {path} leaves out {left[0]} of {len(shown)}: "
                "{% for text in texts %} {{ text.label }} {{ text.text }} {% endfor %}"
            )
        return made

    def filled(self, example: Example, texts: Sequence[str], labels: str, chat: bool) -> str:
        """The question about some texts of a source.

        Args:
            labels: One of each text.
            chat: The source is a conversation's canonical JSON.

        Raises:
            ConfigError: The template fails.
        """
        turns = [{"role": "user", "content": example.source}]
        turns = json.loads(example.source)["messages"] if chat else turns
        given: dict[str, Any] = {
            "source": "\n\n".join(turn.get("content") or "" for turn in turns),
            "messages": turns,
            "texts": [
                {"label": label, "text": text} for label, text in zip(labels, texts, strict=False)
            ],
            "labels": list(labels[: len(texts)]),
            "references": list(example.references),
            "criteria": self.how.criteria,
            "lowest": f"{self.how.lowest:g}",
            "highest": f"{self.how.highest:g}",
        }
        try:
            return self._compiled.render(given)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise self._refused(error) from error

    @cached_property
    def _compiled(self) -> Any:
        sandbox = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        try:
            return sandbox.from_string(self.text)
        except TemplateError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ConfigError:
        where = self.how.template or f"the one of judge.mode={self.how.mode}"
        line = f", line {error.lineno}" if hasattr(error, "lineno") else ""  # pyright: ignore
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ConfigError(f"judge.template: {where}{line}: {first}")
