"""Methods that propose prompts instead of training a policy: ask, judge, tell.

The stage `improve` asks a `Search` for candidates, has them judged, tells it the answers, and saves
its state after every one of these turns, so a search that is killed and run again ends with the
same bits. A search holds no model and draws from the run's seed and its own step alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from pgtg.judges.candidate import Candidate
from pgtg.methods.setting import Setting


@dataclass(frozen=True)
class Question:
    """Candidates that a search wants answers about, on all examples of a split.

    Args:
        split: "train", or "dev" to choose by; what a method asks of both is counted apart.
        candidates: One or more, all of one kind and in one template.
    """

    split: str
    candidates: Sequence[Candidate]


class Search(Protocol):
    """A search over prompts."""

    total: int | None  # candidates that it asks about at most, for the progress bar

    def ask(self) -> Question | None:
        """What to judge next, the same until `tell`; None when the search is over."""
        ...

    def tell(self, answers: Float[np.ndarray, "P E C"]) -> None:
        """Log-probabilities [nats] of the label words, for what `ask` returned."""
        ...

    def state(self) -> Mapping[str, Any]:
        """All that the rest of the search depends on, as JSON takes it."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring a fresh search to where `state` was taken."""
        ...

    def best(self) -> Sequence[Candidate]:
        """What the search ends with, its first choice first."""
        ...

    def measured(self) -> Mapping[str, float]:
        """What there is to know of it besides, as metrics; called at its end.

        `improve/gradient_sequences`: texts that it read with gradients.
        """
        ...


MakeSearch = Callable[[Setting], Search]
