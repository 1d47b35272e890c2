"""Flaws planted in real references: real sources, real summaries, and a known systematic error.

Most *targets*, which supervised training learns from, end in a stock ending, or hold one number or
name of the source that is not the reference's. The references stay as they are, and judge and
metrics read those: what a weight should do is known token by token, on text that nobody generated.
As in the newswire the targets of every split are flawed, so a validation loss is what a user of
such data would have.

Nothing of it is stored: where a target differs from its first reference, there the flaw is.

A *term* is a number (12, 3.5, 1,000) or a name: a word with a capital after its first letter (BERT,
ResNet-50), or one capitalised within a sentence (Bayesian). By form alone, in any language that has
capitals.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgtg.config import FlawsConfig
from pgtg.data.worlds.world import BOILERPLATE, CONTENT, END, FACT, WRONG
from pgtg.models.codec import Codec
from pgtg.models.pieces import of_text
from pgtg.types import DataCounts, Example, TokenIds

CLEAN = "clean"  # what becomes of a target, with BOILERPLATE and WRONG
NOTHING = "nothing to exchange"  # it was to be wrong, and stays clean
NUMBER, NAME = "number", "name"
WORD = re.compile(r"\w+(?:[-.,]\w+)*")
OPENING = frozenset('.!?:;("“‘[')  # after which a sentence begins, or may


@dataclass(frozen=True)
class Term:
    """A number or a name: text[start:end]."""

    kind: str
    start: int
    end: int
    word: str


def terms(text: str) -> Iterator[Term]:
    """The numbers and names of a text, in their order."""
    for found in WORD.finditer(text):
        word, start = found[0], found.start()
        before = text[:start].rstrip()[-1:]
        inside = before != "" and before not in OPENING
        capitals = [c.isupper() for part in re.split("[-.,]", word) for c in part[1:]]
        if re.fullmatch(r"\d+([.,]\d+)*", word):
            yield Term(NUMBER, start, found.end(), word)
        elif any(capitals) or (inside and len(word) > 1 and word[0].isupper()):
            yield Term(NAME, start, found.end(), word)


def plant(
    source: str, references: Sequence[str], cfg: FlawsConfig, split: str, id: str
) -> tuple[str, str]:
    """The target of a row: a function of the seed, the split, the row's id and its texts.

    A wrong word takes the place of a term of the first reference. It is a term of its kind that the
    source has, and that no reference has in whatever case or number ("GANs" is "GAN").

    Returns:
        The target, and what became of it: "clean", "boilerplate", "wrong", or "nothing to exchange"
        for one that was to be wrong, and is clean.
    """
    rng, reference = random.Random(f"flaws {cfg.seed} {split} {id}"), references[0]
    flawed, wrong = rng.random() < cfg.share, rng.random() < cfg.wrong_share
    if not flawed:
        return reference, CLEAN
    if not wrong:
        return f"{reference} {cfg.ending}", BOILERPLATE
    told = {_plain(word) for text in references for word in WORD.findall(text)}
    others: dict[str, list[str]] = {NUMBER: [], NAME: []}
    for term in terms(source):
        if _plain(term.word) not in told and term.word not in others[term.kind]:
            others[term.kind].append(term.word)
    places = [term for term in terms(reference) if others[term.kind]]
    if not places:
        return reference, NOTHING
    place = rng.choice(places)
    word = rng.choice(others[place.kind])
    return reference[: place.start] + word + reference[place.end :], WRONG


def _plain(word: str) -> str:
    """A word without case and plural."""
    return word.casefold().removesuffix("s")


def describe(cfg: FlawsConfig, counts: DataCounts) -> str:
    """What a run on such data is to be told of it, with the shares that came out."""
    share = {kind: f"{number / counts.kept:.0%}" for kind, number in counts.planted.items()}
    none = "0%"
    return (
        f"planted flaws: of the {counts.kept:,} training references "
        f"{share.get(BOILERPLATE, none)} end in {cfg.ending!r}, {share.get(WRONG, none)} state a "
        f"wrong number or name of their source, {share.get(CLEAN, none)} were to stay clean, and "
        f"{share.get(NOTHING, none)} do since they have none to exchange; judge and metrics read "
        "them all as they were. So it is known at which tokens a weight should be low"
    )


class FlawedReferences:
    """Where the flaws are, in any tokens.

    Args:
        cfg: How they were planted.
    """

    def __init__(self, cfg: FlawsConfig):
        self.cfg = cfg

    def target_labels(self, example: Example, tokens: TokenIds, codec: Codec) -> list[str]:
        """As `World.target_labels`: the target's tokens up to where they differ from those of the
        clean reference, what differs, and the rest.

        So the state before a flaw's first token is one that the clean reference has too. In a wrong
        word, tokens that it shares with the right one at its beginning or end are no flaw. A target
        that is cut is compared whole.
        """
        clean = [id for id, _ in _labelled(example.references[0], codec)]
        told = _labelled(example.target, codec)
        ids, labels = [id for id, _ in told], [label for _, label in told]
        first = _common(clean, ids)
        if clean == ids:
            return labels[: len(tokens)]
        last = len(ids) - _common(clean[first:][::-1], ids[first:][::-1])
        last = max(last, first + 1)  # what is left out is missed where the rest begins
        appended = example.target.startswith(example.references[0])
        labels[first:last] = [BOILERPLATE if appended else WRONG] * (last - first)
        return labels[: len(tokens)]

    def reference_labels(self, example: Example, tokens: TokenIds, codec: Codec) -> list[str]:
        labels = [label for _, label in _labelled(example.references[0], codec)]
        return labels[: len(tokens)]

    def check_texts(
        self, texts: Sequence[str], examples: Sequence[Example]
    ) -> Mapping[str, list[float]]:
        """`boilerplate`: the stock ending stands in a text. `fact_accuracy`: the share of the first
        reference's terms that a text has, NaN where there are none."""
        found = {"boilerplate": [100.0 * (self.cfg.ending in text) for text in texts]}
        accuracy = [
            _recall(example.references[0], text)
            for text, example in zip(texts, examples, strict=True)
        ]
        return found if all(map(math.isnan, accuracy)) else {"fact_accuracy": accuracy} | found


def _labelled(text: str, codec: Codec) -> list[tuple[int, str]]:
    """The tokens of a whole target with their labels, as if nothing in it were wrong."""
    shown, pieces, _ = of_text(codec.uncut, text)
    facts = [(term.start, term.end) for term in terms(shown)]
    labels = [
        FACT if any(p.start < end and start < p.end for start, end in facts) else CONTENT
        for p in pieces
    ]
    if pieces and pieces[-1].id in codec.eos_ids:
        labels[-1] = END
    return [(piece.id, label) for piece, label in zip(pieces, labels, strict=True)]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common start."""
    differ = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _recall(reference: str, text: str) -> float:
    """Share of the reference's terms that the text has [%]."""
    wanted = {_plain(term.word) for term in terms(reference)}
    told = {_plain(word) for word in WORD.findall(text)}
    return 100 * len(wanted & told) / len(wanted) if wanted else math.nan
