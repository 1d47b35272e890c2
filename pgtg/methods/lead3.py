"""The first three sentences of a source as its summary: what no policy has to be trained for.

Sentences are cut by metrics.sentence_splitter, as ROUGE-Lsum's are.
"""

from collections.abc import Callable

from pgtg.methods.method import Method

SENTENCES = 3


def lead(source: str, split: Callable[[str], list[str]]) -> str:
    """The first sentences, separated by spaces."""
    return " ".join(split(source)[:SENTENCES])


METHOD = Method("lead3", (), None, needs_reward=False, write=lead)
