"""What ROUGE and METEOR count as words, by name, and what of a text they cannot read.

`default` is each metric's own: ROUGE knows a-z and 0-9 only; METEOR cuts at white space and signs,
so that a text in a script without spaces is one word. `char` takes each letter, digit or sign (with
its marks) as a word, `word_boundaries` cuts by Unicode's rules (UAX 29, by the package `regex`),
which make words of scripts with spaces, and characters of Chinese, Japanese or Thai.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

import regex

from pgtg.config.registry import look_up

Words = Callable[[str], list[str]]

LETTER = regex.compile(r"[\p{L}\p{N}]")
ROUGE_READS = re.compile(r"[A-Za-z0-9]")
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
METEOR_READS = regex.compile(rf"[[\p{{L}}\p{{N}}]--[{SPACELESS}]]", regex.V1)


def _chars(text: str) -> list[str]:
    return [part for part in regex.findall(r"\X", text.lower()) if not part.isspace()]


def _between_boundaries(text: str) -> list[str]:
    parts = regex.split(r"(?w)\b", text.lower())
    return [part.strip() for part in parts if part.strip()]


def _own(text: str) -> list[str]:
    raise ValueError("`default` is each metric's own")


TOKENIZERS: dict[str, Words] = {
    "default": _own,
    "char": _chars,
    "word_boundaries": _between_boundaries,
}


def build_words(name: str) -> Words | None:
    """The tokenizer `name`; None for `default`.

    Raises:
        ConfigError: Unknown name.
    """
    found = look_up(TOKENIZERS, name, "metrics.tokenizer")
    return None if found is _own else found


def without_signs(words: Words) -> Words:
    """The same words without those that hold no letter and no digit; the last texts are kept."""
    return lru_cache(maxsize=8192)(lambda text: [w for w in words(text) if LETTER.search(w)])


def share_unread(texts: Iterable[str], reads: "re.Pattern[str] | regex.Pattern[str]") -> float:
    """Share of the letters and digits of texts that a pattern does not match, in [0, 1]."""
    letters = read = 0
    for text in texts:
        found = LETTER.findall(text)
        letters += len(found)
        read += sum(reads.match(letter) is not None for letter in found)
    return 1 - read / letters if letters else 0.0
