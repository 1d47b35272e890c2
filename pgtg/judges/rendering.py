"""How a classifier LM reads a text, a prompt and the place of its answer: template to token ids.

Published numbers mix two renderings, so both are here:

- `string`: the template is filled in as one string, which is tokenised once (the reference);
- `piecewise`: literals, sentence and prompt are tokenised alone, their ids concatenated (LM-BFF).
  Prompt ids are used as they are, so a policy with the classifier's own vocabulary is judged on
  exactly what it sampled. Tokenisers that put a space before every text put it before every piece.

Either way the tokeniser's own start and end tokens stand around the whole. The place of the answer
is recorded while rendering (in a string by the mask's characters), never searched for: a text that
holds the mask token is only a text. A template without {mask} is for a causal LM, which answers
with the next token; nothing is ever put after it.

If a row is too long, only the sentence is cut, from the side away from the mask (causal: from its
start), and counted; what a whole template and prompt leave no room for is an error. Demonstrations,
where there are any, go first, whole, the one farthest from the sentence before the others.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pgtg.config.registry import nearest
from pgtg.errors import ConfigError
from pgtg.judges.template import Prompt, Slot, Template
from pgtg.models.special_tokens import frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pgtg.types import Labelled

__all__ = ["RENDERINGS", "Prompt", "Rendered", "Renderer", "Slot", "Template"]

RENDERINGS = ("string", "piecewise")
SEPARATOR = "\n\n"  # between demonstrations, for tokenisers without a separator token


class Rendered(NamedTuple):
    """One row for the classifier."""

    ids: list[int]
    position: int  # of the token whose output is the answer
    cut: bool  # whether the sentence was cut
    dropped: int = 0  # demonstrations left out
    prompt: int = -1  # of the prompt's first token; -1 where that is not known


class _Part(NamedTuple):
    text: str
    slot: Slot | None = None
    ids: tuple[int, ...] | None = None  # known already; counts in piecewise rendering only


class Renderer:
    """Renders prompts and texts for one tokeniser, template and list of label words.

    Args:
        tokenizer: A fast one for string rendering, which needs places of characters.
        words: Label words as they are given, of which demonstrations show theirs.
        mode: "string" or "piecewise".
        max_tokens: Longest row, start and end tokens included.

    Raises:
        ConfigError: Unknown mode, or a tokeniser that cannot do what is asked of it.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        words: Sequence[str],
        *,
        mode: str,
        max_tokens: int,
    ):
        if mode not in RENDERINGS:
            raise ConfigError(f"rendering: there is no {mode!r}{nearest(mode, RENDERINGS)}")
        if template.masked and tokenizer.mask_token_id is None:
            raise ConfigError(f"template {template.text!r}: this model's tokenizer has no mask")
        if mode == "string" and not tokenizer.is_fast:
            raise ConfigError(
                "rendering=string needs a fast tokenizer, which knows the places of characters: "
                "use rendering=piecewise"
            )
        self.tokenizer, self.template, self.words = tokenizer, template, list(words)
        self.mode, self.max_tokens = mode, max_tokens
        self._ids = lru_cache(maxsize=65536)(self._tokenize)
        self._start, self._end = self._around()
        self._room = max_tokens - len(self._start) - len(self._end)
        # away from the mask; a causal LM's answer stands at the end
        self._cut_end = template.masked and template.before(Slot.MASK, Slot.SENTENCE)

    def identity(self, prompt: Prompt) -> Prompt:
        """What of a prompt its scores depend on: in piecewise rendering its ids, else its text."""
        if self.mode == "piecewise" and prompt.ids is not None:
            return Prompt("", prompt.ids)
        return Prompt(prompt.text)

    def render(
        self,
        prompt: Prompt,
        texts: Sequence[str],
        demos: Sequence[Sequence["Labelled"]] | None = None,
    ) -> list[Rendered]:
        """A row per text.

        Args:
            demos: Demonstrations for each text, in the order in which they are shown: after the
                text for a masked LM, before it for a causal one.

        Raises:
            ConfigError: Template and prompt alone are longer than `max_tokens`.
        """
        if demos is None and self.mode == "string":
            found = self._plain_strings(prompt, texts)
            return [row or self._row(prompt, t, []) for row, t in zip(found, texts, strict=True)]
        shown = demos or [()] * len(texts)
        return [self._row(prompt, t, list(d)) for t, d in zip(texts, shown, strict=True)]

    def _plain_strings(self, prompt: Prompt, texts: Sequence[str]) -> list[Rendered | None]:
        """Rows that fit and whose mask token is the only one, tokenised in one call; None: others.

        Without the mask token's text in sentence and prompt, its one id is the place of the answer,
        and the places of characters, most of the tokeniser's work, are not asked for.
        """
        if not texts:
            return []
        strings = ["".join(p.text for p in self._filled(prompt, text)) for text in texts]
        # the library below, which neither finds places nor holds Python's lock, so that several
        # threads may render; `_around` has left it without truncation and padding
        backend: Any = self.tokenizer.backend_tokenizer
        found = backend.encode_batch_fast(strings, add_special_tokens=False)
        return [
            self._plain(row.ids, f"{prompt.text}\n{text}")
            for row, text in zip(found, texts, strict=True)
        ]

    def _plain(self, ids: list[int], given: str) -> Rendered | None:
        if len(ids) > self._room or not ids:
            return None
        row = [*self._start, *ids, *self._end]
        if not self.template.masked:
            return Rendered(row, len(row) - 1, False)
        mask: Any = self.tokenizer.mask_token_id
        if str(self.tokenizer.mask_token) in given or ids.count(mask) != 1:
            return None
        return Rendered(row, len(self._start) + ids.index(mask), False)

    def lead(
        self, slot: Slot, prompt: Prompt | None, text: str, demos: Sequence["Labelled"] = ()
    ) -> list[int]:
        """Start of a causal row: all that stands before a slot, with the start token.

        Space at the end is left to what follows in string rendering, where it usually goes into the
        following token. A row may yet begin in another way, since tokens merge: compare.
        """
        parts = self._parts(prompt or Prompt(""), text, demos)
        parts = parts[: next(i for i, part in enumerate(parts) if part.slot is slot)]
        if self.mode == "piecewise":
            return [*self._start, *(i for part in parts for i in self._part_ids(part))]
        return [*self._start, *self._ids("".join(part.text for part in parts).rstrip())]

    def _row(self, prompt: Prompt, text: str, demos: list["Labelled"]) -> Rendered:
        """Renders, and while it is too long leaves out a demonstration or cuts the sentence."""
        dropped, cut = 0, False
        locate = self._in_string if self.mode == "string" else self._in_pieces
        parts = self._parts(prompt, text, demos)
        while True:
            ids, mask, sentence, prompted = locate(parts)
            excess = len(ids) - self._room
            if excess <= 0:
                break
            if demos:
                demos.pop(-1 if self.template.masked else 0)
                parts, dropped = self._parts(prompt, text, demos), dropped + 1
            elif sentence:
                parts, cut = self._shorter(parts, sentence, excess), True
            else:
                raise ConfigError(
                    f"template {self.template.text!r} and prompt {prompt.text[:80]!r} take "
                    f"{self.max_tokens + excess} tokens without any sentence, more than "
                    f"max_tokens={self.max_tokens}"
                )
        ids = [*self._start, *ids, *self._end]
        if not ids:  # a causal LM must have read something before it answers
            ids = [self._first_token()]
        position = len(self._start) + mask if self.template.masked else len(ids) - 1
        prompted += len(self._start) if prompted >= 0 else 0
        return Rendered(ids, position, cut, dropped, prompted)

    # --- parts of a row

    def _parts(self, prompt: Prompt, text: str, demos: Sequence["Labelled"]) -> list[_Part]:
        query = self._filled(prompt, text)
        separator = self._separator()
        for demo in demos if self.template.masked else ():
            query += [separator, *self._demo(prompt, demo)]
        shown = [] if self.template.masked else demos
        return [p for demo in shown for p in (*self._demo(prompt, demo), separator)] + query

    def _filled(self, prompt: Prompt, text: str) -> list[_Part]:
        mask_ids = self._special("mask")
        fill = {
            Slot.SENTENCE: _Part(text, Slot.SENTENCE),
            Slot.PROMPT: _Part(prompt.text, Slot.PROMPT, prompt.ids),
            Slot.MASK: _Part(str(self.tokenizer.mask_token), Slot.MASK, mask_ids),
        }
        return [fill[p] if isinstance(p, Slot) else _Part(p) for p in self.template.pieces]

    def _demo(self, prompt: Prompt, demo: "Labelled") -> list[_Part]:
        """A text with its label word in the place of the answer; none of it is a slot any more."""
        word = self.words[demo.label]
        parts: list[_Part] = []
        for part in self._filled(prompt, demo.text):
            if part.slot is Slot.MASK:
                part = self._answer(word, "".join(p.text for p in parts))
            parts.append(_Part(part.text, None, part.ids))
        if not self.template.masked:
            parts.append(self._answer(word, "".join(p.text for p in parts)))
        return parts

    def _answer(self, word: str, before: str) -> _Part:
        """A label word; in a string, its own leading space is not put after another one."""
        ids = self._ids(word)
        return _Part(word.lstrip() if before[-1:].isspace() or not before else word, None, ids)

    def _separator(self) -> _Part:
        ids = self._special("sep")
        return _Part(SEPARATOR) if ids is None else _Part(str(self.tokenizer.sep_token), None, ids)

    def _special(self, name: str) -> tuple[int, ...] | None:
        number = getattr(self.tokenizer, f"{name}_token_id")
        return None if number is None else (number,)

    # --- ids of the parts, the mask's place, those of the sentence, and the prompt's first

    def _in_pieces(self, parts: list[_Part]) -> tuple[list[int], int, range, int]:
        ids: list[int] = []
        mask, sentence, prompted = -1, range(0), -1
        for part in parts:
            own = self._part_ids(part)
            if part.slot is Slot.MASK:
                mask = len(ids)
            elif part.slot is Slot.SENTENCE:
                sentence = range(len(ids), len(ids) + len(own))
            elif part.slot is Slot.PROMPT:
                prompted = len(ids)
            ids += own
        return ids, mask, sentence, prompted

    def _in_string(self, parts: list[_Part]) -> tuple[list[int], int, range, int]:
        """`sentence` is of characters here, and tokens of the prompt are not told apart."""
        at, mask_end, sentence = 0, -1, range(0)
        for part in parts:
            end = at + len(part.text)
            if part.slot is Slot.MASK:
                mask_end = end
            elif part.slot is Slot.SENTENCE:
                sentence = range(at, end)
            at = end
        ids, offsets = self._encode("".join(part.text for part in parts))
        if mask_end < 0:
            return ids, -1, sentence, -1
        # a mask token may take in the space before it, so its end tells which one it is
        mask_id = self.tokenizer.mask_token_id
        found = [i for i, (_, end) in enumerate(offsets) if end == mask_end and ids[i] == mask_id]
        if len(found) != 1:
            raise ConfigError(
                f"template {self.template.text!r}: the tokenizer does not keep its mask token "
                f"{self.tokenizer.mask_token!r} whole there; use rendering=piecewise"
            )
        return ids, found[0], sentence, -1

    def _shorter(self, parts: list[_Part], sentence: range, excess: int) -> list[_Part]:
        """The parts with `excess` tokens, and at least one character, less of the sentence."""
        where = next(i for i, part in enumerate(parts) if part.slot is Slot.SENTENCE)
        part, cut_end = parts[where], self._cut_end
        if self.mode == "piecewise":
            own = self._part_ids(part)
            less = own[: max(len(own) - excess, 0)] if cut_end else own[excess:]
            new = _Part(part.text, Slot.SENTENCE, tuple(less))
        else:
            _, offsets = self._encode("".join(p.text for p in parts))
            spans = [(a, b) for a, b in offsets if b > sentence.start and a < sentence.stop]
            if not spans:
                cut = len(sentence)
            elif cut_end:
                cut = sentence.stop - spans[-min(excess, len(spans))][0]
            else:
                cut = spans[min(excess, len(spans)) - 1][1] - sentence.start
            cut = min(cut, len(sentence))  # at least 1: each span reaches into the sentence
            new = _Part(part.text[: len(sentence) - cut] if cut_end else part.text[cut:], part.slot)
        return [*parts[:where], new, *parts[where + 1 :]]

    # --- the tokeniser

    def _part_ids(self, part: _Part) -> tuple[int, ...]:
        return self._ids(part.text) if part.ids is None else part.ids

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return found["input_ids"], found["offset_mapping"]

    def _around(self) -> tuple[list[int], list[int]]:
        """Tokens that the tokeniser puts before and after a text; causal: nothing after it."""
        try:
            before, after = frame(self.tokenizer)
        except ConfigError as error:
            raise ConfigError(f"judge.classifier: {error}") from error
        return before, after if self.template.masked else []

    def _first_token(self) -> int:
        for name in ("bos", "eos"):
            if (ids := self._special(name)) is not None:
                return ids[0]
        raise ConfigError(
            f"template {self.template.text!r} of an empty text is empty, and the tokenizer has no "
            "start token: add a literal to the template"
        )
