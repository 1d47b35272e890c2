"""Templates: what a classifier LM reads around a text and a prompt, and where it answers.

"{sentence} {prompt} {mask} ." for a masked LM; without {mask} for a causal one, which answers with
the next token. {instruction} stands for a text that belongs to the template. "{{" is a brace.
"""

import string
from dataclasses import dataclass
from enum import Enum

from pgtg.config.registry import nearest
from pgtg.errors import ConfigError


class Slot(Enum):
    """What a template leaves open."""

    SENTENCE = "sentence"
    PROMPT = "prompt"
    MASK = "mask"


@dataclass(frozen=True)
class Prompt:
    """A prompt to judge; `ids` only where its tokens are the classifier's own."""

    text: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Template:
    """A text with open slots, in their order; neighbouring literals are one piece."""

    text: str
    pieces: tuple[str | Slot, ...]

    @classmethod
    def parse(
        cls, text: str, *, instruction: str | None = None, needs_prompt: bool = False
    ) -> "Template":
        """A template from a text such as "{sentence} {prompt} {mask} ."; "{{" is a brace.

        Args:
            instruction: What stands for {instruction}.
            needs_prompt: Whether prompts are to be judged, so that {prompt} must be there.

        Raises:
            ConfigError: Unknown or repeated field, {sentence} or a needed one missing.
        """
        pieces: list[str | Slot] = []
        for piece in _fields(text, instruction):
            if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            elif piece != "":
                pieces.append(piece)
        for slot in Slot:
            needed = slot is Slot.SENTENCE or (slot is Slot.PROMPT and needs_prompt)
            if pieces.count(slot) > 1 or (needed and slot not in pieces):
                raise ConfigError(
                    f"template {text!r}: {{{slot.value}}} stands in it {pieces.count(slot)} times, "
                    f"{'it must stand once' if needed else 'once at most'}"
                )
        return cls(text, tuple(pieces))

    @property
    def tight(self) -> "Template":
        """Without the white space in front of slots: what stands there brings its own.

        For prompts that are put in as tokens, between which a space would be a token of its own.
        """
        pieces: list[str | Slot] = []
        for number, piece in enumerate(self.pieces):
            followed = any(
                isinstance(other, Slot) for other in self.pieces[number + 1 : number + 2]
            )
            own = piece.rstrip() if isinstance(piece, str) and followed else piece
            pieces += [own] if own else []
        return Template(self.text, tuple(pieces))

    @property
    def masked(self) -> bool:
        """Whether the answer has a place of its own; else it is the next token."""
        return Slot.MASK in self.pieces

    @property
    def takes_prompt(self) -> bool:
        return Slot.PROMPT in self.pieces

    def before(self, first: Slot, second: Slot) -> bool:
        """Whether a slot stands before another one; both must be there."""
        return self.pieces.index(first) < self.pieces.index(second)


def _fields(text: str, instruction: str | None) -> list[str | Slot]:
    """Literals and slots of a template, with the instruction put in."""
    names = [slot.value for slot in Slot]
    found: list[str | Slot] = []
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"template {text!r}: {error}; write {{{{ for a brace") from error
    if (instruction is None) == any(name == "instruction" for _, name, _, _ in parsed):
        have, lack = ("no instruction", "has") if instruction is None else ("one", "has no")
        raise ConfigError(f"template {text!r}: {have} is given, and it {lack} {{instruction}}")
    for literal, name, form, conversion in parsed:
        found.append(literal)
        if name == "instruction":
            found.append(str(instruction))
        elif name in names and not form and not conversion:
            found.append(Slot(name))
        elif name is not None:
            hint = nearest(name, [*names, "instruction"])
            raise ConfigError(f"template {text!r}: unknown field {{{name}}}{hint}")
    return found
