"""Phrases of an instruction, and edits of them: delete, swap, add, substitute (GrIPS).

An exact edit acts on one place of a list of pieces, so deleting and adding again restores the text,
and swapping twice does too. The `..._released` functions are string replacements as GrIPS' code has
them: of every occurrence, within words too, and a swap that writes the first phrase over the second
and leaves the first.

Source: Prasad et al. 2022 (arXiv:2203.07281) and its released code.
"""

import re
from collections.abc import Sequence

LONGEST, SHORTEST = 6, 2  # words of a phrase that is cut by rules
# words that begin a constituent, so that a phrase may be cut before them
_OPENING = (
    "a an the this that these those my your his her its our their and or but nor if unless whether "
    "because while when where who whom whose which what how as than to of in on at by for from "
    "with without about into onto over under between after before during through against is are "
    "was were be been do does did can could will would shall should may might must not please "
    "i you he she it we they there"
)
OPENING = frozenset(_OPENING.split())
_PIECE = re.compile(r"\s*[.,;:!?]+(?=\s|$)|\s*\S+?(?=[.,;:!?]+(?:\s|$)|\s|$)")


def pieces_of(text: str, how: str = "rules") -> list[str]:
    """A text as phrases and the punctuation between them, which keeps the space in front of it.

    Args:
        how: "rules": phrases of up to 6 words, cut before words that begin a constituent once a
            phrase has 2, and at punctuation; "words": each word is one.
    """
    found: list[str] = []
    run: list[str] = []
    for piece in _PIECE.findall(" ".join(text.split())):
        if is_phrase(piece):
            run.append(piece.strip())
        else:
            found += [*_phrases(run, how), piece]
            run = []
    return [*found, *_phrases(run, how)]


def is_phrase(piece: str) -> bool:
    """Whether a piece holds more than punctuation."""
    return any(letter.isalnum() for letter in piece)


def text_of(pieces: Sequence[str]) -> str:
    """The text of pieces: a space before each phrase."""
    text = "".join(f" {piece}" if is_phrase(piece) else piece for piece in pieces)
    return text.strip()


def _phrases(words: Sequence[str], how: str) -> list[str]:
    if how == "words":
        return list(words)
    found: list[list[str]] = []
    for word in words:
        full = not found or len(found[-1]) >= LONGEST
        if full or (len(found[-1]) >= SHORTEST and word.lower() in OPENING):
            found.append([])
        found[-1].append(word)
    if len(found) > 1 and len(found[-1]) < SHORTEST and len(found[-2]) < LONGEST:
        found[-2:] = [found[-2] + found[-1]]
    return [" ".join(phrase) for phrase in found]


# --- one place


def deleted(pieces: Sequence[str], at: int) -> list[str]:
    """Without the piece at a place."""
    return [*pieces[:at], *pieces[at + 1 :]]


def added(pieces: Sequence[str], at: int, phrase: str) -> list[str]:
    """With a phrase before the piece at a place; the number of pieces is the end."""
    return [*pieces[:at], phrase, *pieces[at:]]


def swapped(pieces: Sequence[str], one: int, other: int) -> list[str]:
    """With two pieces exchanged."""
    found = list(pieces)
    found[one], found[other] = found[other], found[one]
    return found


def substituted(pieces: Sequence[str], at: int, phrase: str) -> list[str]:
    """With another phrase at a place."""
    return [*pieces[:at], phrase, *pieces[at + 1 :]]


# --- as released


def delete_released(text: str, phrase: str) -> str:
    return _replaced(text, phrase, before=" ", after=" ", bare="")


def add_released(text: str, phrase: str, after: str) -> str:
    """A phrase behind another, or in front of everything (`after` is "")."""
    if not after:
        return f"{phrase} {text}"
    both = f"{after} {phrase}"
    return _replaced(text, after, before=f" {both}", after=f"{both} ", bare=f"{after}{phrase}")


def swap_released(text: str, first: str, second: str) -> str:
    """The first phrase in the place of the second; the first one stays where it is."""
    if f" {second} " in text:
        return text.replace(f" {second} ", f" {first} ")
    return text.replace(second, first)


def substitute_released(text: str, phrase: str, new: str) -> str:
    new = new.strip(".")
    return _replaced(text, phrase, before=f" {new}", after=f"{new} ", bare=new)


def normalized(text: str) -> str:
    """Tokenised and put together again: single spaces, none before punctuation."""
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    return TreebankWordDetokenizer().detokenize(NLTKWordTokenizer().tokenize(text))


def _replaced(text: str, phrase: str, *, before: str, after: str, bare: str) -> str:
    """Every " phrase" by `before`, else every "phrase " by `after`, else the phrase by `bare`."""
    if text.find(f" {phrase}") > 0:
        return text.replace(f" {phrase}", before)
    if text.find(f"{phrase} ") > 0:
        return text.replace(f"{phrase} ", after)
    return text.replace(phrase, bare)
