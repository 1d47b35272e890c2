"""Sentence splitters, by name: METEOR's words and ROUGE-Lsum's numbers depend on them.

`regex` is ours and needs no download; `punkt` is NLTK's trained English model (`punkt_tab`), which
HF's METEOR and most published ROUGE-Lsum figures use. They cut differently, so the name stands in
every result, and a missing punkt is never replaced by the other.

Nothing is imported from NLTK before a splitter is built: the command line stays fast.
"""

import re
from collections.abc import Callable
from importlib.metadata import version

from pgtg.config.registry import look_up
from pgtg.errors import MissingResourceError

Splitter = Callable[[str], list[str]]

REGEX_VERSION = "1"  # raise it when the rules below change: they move ROUGE-Lsum and METEOR

# Words whose full stop does not end a sentence (single letters are handled by the rule itself).
_WORDS = """
    mr mrs ms dr prof sr jr st gen sen rep gov lt col capt sgt rev hon vs etc al e.g i.e cf fig figs
    eq eqs sec ch no nos vol pp ed eds inc ltd co corp dept jan feb mar apr jun jul aug sep sept oct
    nov dec approx u.s u.k u.n a.m p.m
"""
_ABBREVIATIONS = frozenset(_WORDS.split())
_CANDIDATE = re.compile(r"""([.!?]+)(["'”’)\]]*)\s+(?=(\S))|\s*\n\s*""")


def split_regex(text: str) -> list[str]:
    """Sentences of `text` by rules: line breaks, and `.`, `!` or `?` before white space.

    A mark ends a sentence when the next character is not a lower-case letter, or when the mark
    stands alone between spaces (tokenised text). A full stop after a known abbreviation or a
    single letter ("J. Smith") does not end one.
    """
    sentences, start = [], 0
    for found in _CANDIDATE.finditer(text):
        if found.group(1) is None or _ends_sentence(text, start, found):
            sentences.append(text[start : found.end()].strip())
            start = found.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(text: str, start: int, found: re.Match[str]) -> bool:
    before = text[start : found.start()]
    if not before or before[-1].isspace():
        return True  # " . " in tokenised text: the mark is a word of its own
    if "\n" in text[found.start() : found.end()]:
        return True
    if found.group(3).islower():
        return False
    word = before.split()[-1].lstrip("([\"'“‘").lower()
    abbreviated = word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha())
    return not (found.group(1) == "." and abbreviated)


def _build_regex() -> Splitter:
    return split_regex


def _build_punkt() -> Splitter:
    from nltk.tokenize import punkt_model_available, sent_tokenize

    if not punkt_model_available("english"):
        raise MissingResourceError(
            "the sentence splitter 'punkt' needs NLTK's punkt_tab: run `python -m nltk.downloader "
            "punkt_tab`, set NLTK_DATA to a folder with tokenizers/punkt_tab, or split otherwise, "
            "with other figures, by metrics.sentence_splitter=regex"
        )
    return sent_tokenize


SPLITTERS: dict[str, Callable[[], Splitter]] = {"regex": _build_regex, "punkt": _build_punkt}


def build_splitter(name: str) -> Splitter:
    """The splitter `name`.

    Raises:
        ConfigError: Unknown name.
        MissingResourceError: punkt's model is not on this machine.
    """
    return look_up(SPLITTERS, name, "metrics.sentence_splitter")()


def describe_splitter(name: str) -> dict[str, str]:
    """Name and version of a splitter, for the results file."""
    release = REGEX_VERSION if name == "regex" else f"nltk {version('nltk')} punkt_tab"
    return {"sentence_splitter": name, "sentence_splitter_version": release}
