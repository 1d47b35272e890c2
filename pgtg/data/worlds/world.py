"""What a world with planted flaws is asked, and the labels that its tokens have.

A flaw stands in the *target*, which supervised training learns from; judge and metrics read the
references, which are clean.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pgtg.models.codec import Codec
from pgtg.types import Example, TokenIds

CONTENT, FACT, WRONG, BOILERPLATE, END = "content", "fact", "wrong", "boilerplate", "end"
FLAWS = frozenset({WRONG, BOILERPLATE})  # labels of what a text should not say


class World(Protocol):
    """Where the flaws of a run's targets are known."""

    def target_labels(self, example: Example, tokens: TokenIds, codec: Codec) -> list[str] | None:
        """A label for each token of the example's target, its end token "end".

        Args:
            tokens: The target as the codec encodes it.

        Returns:
            None where the truth of these tokens is not known.
        """
        ...

    def reference_labels(
        self, example: Example, tokens: TokenIds, codec: Codec
    ) -> list[str] | None:
        """The same for its first reference, which has no flaw."""
        ...

    def check_texts(
        self, texts: Sequence[str], examples: Sequence[Example]
    ) -> Mapping[str, list[float]]:
        """What texts are worth against the truth, per example, in [0, 100]; NaN: says nothing."""
        ...
