"""Text to token ids and back, for sources, targets and generations. Ids stay ids after this."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from pgtg.errors import ConfigError
from pgtg.types import TokenIds


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
    """

    tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool
    prefix: str
    suffix: str
    target_prefix: str
    max_source_tokens: int
    max_target_tokens: int

    @cached_property
    def _wrapping(self) -> tuple[TokenIds, TokenIds]:
        """Special tokens that the tokenizer puts before and after a text."""
        bare = self._ids("a")
        ids: Any = self.tokenizer("a")["input_ids"]
        full = list(ids)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], full[len(bare) :]

    @property
    def eos_ids(self) -> TokenIds:
        eos = getattr(self.tokenizer, "eos_token_id", None)
        if eos is None:
            raise ConfigError("policy.path: its tokenizer has no end-of-text token; set one in it")
        return [eos]

    def _ids(self, text: str) -> TokenIds:
        if not text:
            return []
        ids: Any = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids)

    def encode_source(self, text: str) -> tuple[TokenIds, bool]:
        """Ids of prefix + text + suffix, and whether the text was cut at its end to fit.

        Raises:
            ConfigError: Prefix, suffix and special tokens alone leave no room for text.
        """
        before, after = self._wrapping
        tail = self._ids(self.suffix) + (after if self.is_encoder_decoder else [])
        body = before + self._ids(self.prefix + text)
        room = self.max_source_tokens - len(tail)
        if room <= len(before) + len(self._ids(self.prefix)):
            raise ConfigError(
                f"policy.max_source_tokens={self.max_source_tokens}: prefix, suffix and special "
                "tokens leave no room for text; raise it or shorten them"
            )
        return body[:room] + tail, len(body) > room

    def encode_target(self, text: str) -> tuple[TokenIds, bool]:
        """Ids of a target with its end token, and whether it was cut (and has no end) to fit."""
        before, after = self._wrapping if self.is_encoder_decoder else ([], self.eos_ids)
        ids = before + self._ids(self.target_prefix + text) + after
        return ids[: self.max_target_tokens], len(ids) > self.max_target_tokens

    def decode(self, ids: TokenIds) -> str:
        """Text of a generation without special tokens and outer white space."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # a list only where a list of lists is decoded
        return text.strip()


@dataclass(frozen=True)
class PromptCodec(Codec):
    """How a policy writes prompts of fixed length: from a start text, and spaces as they are."""

    start_text: str | None = None  # null = the tokenizer's end-of-text token

    @property
    def eos_ids(self) -> TokenIds:
        return []  # nothing ends a prompt before its length

    @cached_property
    def start_ids(self) -> TokenIds:
        """What the policy reads before its first token.

        Raises:
            ConfigError: The start text has no token.
        """
        ids = self._ids(self.start_text) if self.start_text is not None else super().eos_ids
        if not ids:
            raise ConfigError(f"policy.start_text={self.start_text!r}: it has no token")
        return ids

    def encode_source(self, text: str) -> tuple[TokenIds, bool]:
        return [*self.start_ids, *self._ids(text)], False

    def decode(self, ids: TokenIds) -> str:
        """The prompt with its exact spacing."""
        text = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
