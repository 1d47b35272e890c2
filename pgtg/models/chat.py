"""Conversations to token ids and back, by the model's own chat template.

What a policy reads is the conversation so far, with all that the template writes before an answer.
What it writes, and is rewarded for, is the answer and the token that ends it. All of the template's
other tokens are on the side that is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from pgtg.errors import ConfigError, DataError
from pgtg.models.codec import Codec
from pgtg.types import TokenIds

ASKED, ANSWER = "question", "answer"  # of a conversation that shows what a template writes


@dataclass(frozen=True)
class ChatCodec(Codec):
    """How a chat model reads conversations and writes answers.

    Sources are canonical JSON of {"messages": [...], "tools": [...]} (`data/pairs.py`). Those that
    are too long lose their beginning, but for a begin-of-text token.
    """

    @cached_property
    def _around(self) -> tuple[TokenIds, str, TokenIds]:
        """Ids that the template puts before an answer, beyond what asks for one; the white space
        that begins it; and what ends it.

        Raises:
            ConfigError: There is no template, or an answer does not follow what asks for it.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                "policy.path: its tokenizer has no chat template, and the data are conversations; "
                "choose a chat model, or give prompts and completions as plain texts"
            )
        turns = [{"role": "user", "content": ASKED}]
        asked = self._written(turns, None, asks=True)
        whole = self._written([*turns, {"role": "assistant", "content": ANSWER}], None, asks=False)
        opening, found, closing = whole.removeprefix(asked).partition(ANSWER)
        if not whole.startswith(asked) or not found:
            raise ConfigError(
                "policy.path: its chat template writes an answer otherwise than it asks for one, "
                f"so that no prompt can be told from its completion: {whole[:200]!r}"
            )
        # white space alone is the answer's own: tokenizers join it to the first word
        opened, space = ("", opening) if not opening.strip() else (opening, "")
        added: Any = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {number for number, token in added.items() if token.special}
        after = self._ids(closing)
        for place, number in enumerate(after):
            if number in special or number in self.known_ends:
                return self._ids(opened), space, after[: place + 1]
        if not self.known_ends:
            raise ConfigError(
                "policy.path: neither its chat template nor its tokenizer ends a text"
            )
        return self._ids(opened), space, [*after, *self.known_ends[:1]]

    @property
    def lead(self) -> str:
        return self._around[1]

    @cached_property
    def eos_ids(self) -> TokenIds:
        """All tokens that end an answer; the template's own first."""
        return list(dict.fromkeys([self._around[2][-1], *self.known_ends]))

    def _written(self, turns: Sequence[dict[str, Any]], tools: Any, *, asks: bool) -> str:
        """A conversation as the template writes it.

        Raises:
            DataError: The template refuses it.
        """
        try:
            found = self.tokenizer.apply_chat_template(
                list(turns), tools=tools, add_generation_prompt=asks, tokenize=False
            )
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(str(turn.get("role")) for turn in turns)
            raise DataError(
                f"the chat template of policy.path refuses a conversation of {roles}: {first}"
            ) from error
        assert isinstance(found, str)
        return found

    def encode_sources(self, texts: Sequence[str]) -> list[tuple[TokenIds, bool]]:
        """Ids of conversations with what asks for an answer, and whether their start was cut."""
        opening, begin = self._around[0], getattr(self.tokenizer, "bos_token_id", None)
        found = []
        for text in texts:
            whole = json.loads(text)
            ids = self._ids(self._written(whole["messages"], whole.get("tools"), asks=True))
            ids += opening
            kept = [begin] if ids[:1] == [begin] else []
            room = self.max_source_tokens - len(kept)
            cut = len(ids) > self.max_source_tokens
            found.append(([*kept, *ids[-room:]] if cut else ids, cut))
        return found

    def encode_targets(self, texts: Sequence[str]) -> list[tuple[TokenIds, bool]]:
        """Ids of answers with the token that ends them, and whether they were cut to fit."""
        _, lead, end = self._around
        whole = [[*ids, *end] for ids in self._batch([lead + text for text in texts])]
        room = self.max_target_tokens
        return [(ids[:room], len(ids) > room) for ids in whole]
