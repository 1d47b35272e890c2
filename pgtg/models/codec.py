"""Text to token ids and back, for sources, targets and generations. Ids stay ids after this."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from pgtg.config import PolicyConfig
from pgtg.errors import ConfigError
from pgtg.models.special_tokens import Frame, encode, end_tokens, frame
from pgtg.types import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Codec:
    """How a policy reads sources and writes targets.

    Args:
        tokenizer: The policy's tokenizer.
        is_encoder_decoder: Sources of an encoder-decoder end with its special tokens; a causal LM's
            source runs straight into the target.
        prefix: Text before the source ("summarize: ").
        suffix: Text after the source (a causal LM's "\\nTL;DR:"); never cut.
        target_prefix: Text before a target (a causal LM's " ").
        max_source_tokens: Longest source with prefix, suffix and special tokens.
        max_target_tokens: Longest target with its end token.
        ends: End tokens that the model's configs name in addition to the tokenizer's own.
        cut_start: Sources that are too long lose their beginning, not their end.
    """

    tokenizer: "PreTrainedTokenizerBase"
    is_encoder_decoder: bool
    prefix: str
    suffix: str
    target_prefix: str
    max_source_tokens: int
    max_target_tokens: int
    ends: tuple[int, ...] = ()
    cut_start: bool = False

    @classmethod
    def of(
        cls,
        policy: PolicyConfig,
        tokenizer: Any,
        is_encoder_decoder: bool,
        ends: Sequence[int] = (),
        *,
        cut_start: bool = False,
    ) -> Self:
        """As a config's section `policy` says."""
        return cls(
            tokenizer,
            is_encoder_decoder,
            policy.prefix,
            policy.suffix,
            policy.target_prefix,
            policy.max_source_tokens,
            policy.max_target_tokens,
            tuple(ends),
            cut_start=cut_start,
        )

    @cached_property
    def _source_frame(self) -> Frame:
        """Special tokens before and after a source."""
        before, after = self._frame(target=False)
        return before, after if self.is_encoder_decoder else []

    @cached_property
    def _target_frame(self) -> Frame:
        """Special tokens before and after a target, of which the last one ends it.

        What a tokenizer would put behind the end token is left out, since nothing is read there;
        where it puts no end token at all, the target gets one.
        """
        if not self.is_encoder_decoder:
            return [], self.eos_ids[:1]
        before, after = self._frame(target=True)
        ends = [place for place, number in enumerate(after) if number in self.eos_ids]
        return before, after[: ends[0] + 1] if ends else [*after, *self.eos_ids[:1]]

    def _frame(self, *, target: bool) -> Frame:
        try:
            return frame(self.tokenizer, target=target)
        except ConfigError as error:
            raise ConfigError(f"policy.path: {error}") from error

    @cached_property
    def eos_ids(self) -> TokenIds:
        """All tokens that end a text; the first one ends the targets.

        Raises:
            ConfigError: Neither tokenizer nor model names one.
        """
        if not self.known_ends:
            raise ConfigError("policy.path: its tokenizer has no end-of-text token; set one in it")
        return self.known_ends

    @cached_property
    def known_ends(self) -> TokenIds:
        """End tokens that tokenizer and model name; perhaps none."""
        return list(dict.fromkeys([*end_tokens(self.tokenizer), *self.ends]))

    @cached_property
    def uncut(self) -> Self:
        """The same for targets of any length."""
        return replace(self, max_target_tokens=sys.maxsize)

    @property
    def lead(self) -> str:
        """What is written before a target, in one run with it."""
        return self.target_prefix

    def _ids(self, text: str) -> TokenIds:
        return encode(self.tokenizer, text) if text else []

    def _batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """`_ids` of each text."""
        if not (texts and all(texts)):
            return [self._ids(text) for text in texts]
        given: Any = self.tokenizer(text=list(texts), add_special_tokens=False, verbose=False)
        return given["input_ids"]

    def encode_source(self, text: str) -> tuple[TokenIds, bool]:
        """Ids of prefix + text + suffix, and whether the text was cut to fit.

        Raises:
            ConfigError: Prefix, suffix and special tokens alone leave no room for text.
        """
        return self.encode_sources([text])[0]

    def encode_target(self, text: str) -> tuple[TokenIds, bool]:
        """Ids of a target with its end token, and whether it was cut (and has no end) to fit."""
        return self.encode_targets([text])[0]

    def encode_sources(self, texts: Sequence[str]) -> list[tuple[TokenIds, bool]]:
        """`encode_source` of each text, by one call of the tokenizer."""
        before, after = self._source_frame
        tail = self._ids(self.suffix) + after
        room = self.max_source_tokens - len(tail)
        if room <= len(before) + len(self._ids(self.prefix)):
            raise ConfigError(
                f"policy.max_source_tokens={self.max_source_tokens}: prefix, suffix and special "
                "tokens leave no room for text; raise it or shorten them"
            )
        bodies = [before + ids for ids in self._batch([self.prefix + text for text in texts])]
        if self.cut_start:
            long, most = room - len(before), room
            whole = [(b if len(b) <= most else before + b[-long:], len(b) > most) for b in bodies]
            return [(body + tail, cut) for body, cut in whole]
        return [(body[:room] + tail, len(body) > room) for body in bodies]

    def encode_targets(self, texts: Sequence[str]) -> list[tuple[TokenIds, bool]]:
        """`encode_target` of each text, by one call of the tokenizer."""
        before, after = self._target_frame
        rows = self._batch([self.target_prefix + text for text in texts])
        whole, room = [before + ids + after for ids in rows], self.max_target_tokens
        return [(ids[:room], len(ids) > room) for ids in whole]

    def decode(self, ids: TokenIds) -> str:
        """Text of a generation without special tokens and outer white space."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # a list only where a list of lists is decoded
        return text.strip()


@dataclass(frozen=True)
class PromptCodec(Codec):
    """How a policy writes prompts of fixed length: from a start text, and spaces as they are."""

    start_text: str | None = None  # null = the tokenizer's end-of-text token

    @cached_property
    def eos_ids(self) -> TokenIds:
        return []  # nothing ends a prompt before its length

    @cached_property
    def start_ids(self) -> TokenIds:
        """What the policy reads before its first token.

        Raises:
            ConfigError: The start text has no token.
        """
        if self.start_text is None:
            ids = (end_tokens(self.tokenizer) or [*self.ends])[:1]
        else:
            ids = self._ids(self.start_text)
        if not ids:
            raise ConfigError(f"policy.start_text={self.start_text!r}: it has no token")
        return ids

    def encode_sources(self, texts: Sequence[str]) -> list[tuple[TokenIds, bool]]:
        return [([*self.start_ids, *self._ids(text)], False) for text in texts]

    def decode(self, ids: TokenIds) -> str:
        """The prompt with its exact spacing."""
        text = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
