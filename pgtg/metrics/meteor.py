"""METEOR, by NLTK's own functions with its stemmer and WordNet look-ups cached.

Two metrics: `meteor` has all three matching stages (exact, Porter stem, WordNet synonym) and needs
WordNet; `meteor_stem` has the exact and stem stages only and needs no download, so its numbers are
its own and never stand under the name METEOR. Words are NLTK's word tokens of each sentence,
lower-cased, and the best reference counts: what HF evaluate's `meteor` does with NLTK >= 3.6.5,
except for the named sentence splitter (it uses punkt).

The caches change nothing but the time: scores are equal to plain NLTK's in every bit. That includes
NLTK's habit of handing *stems* from the second stage to the third, so that WordNet is asked for
"automobil" and a synonym counts only where both words are their own stems.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pgtg.config import MetricsConfig
from pgtg.errors import MissingResourceError
from pgtg.metrics.sentences import build_splitter, describe_splitter
from pgtg.metrics.words import METEOR_READS, build_words, share_unread

OWN = "NLTKWordTokenizer"
ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5  # NLTK's and HF's defaults: recall weight, penalty shape, size

# What NLTK's reader opens; a hand-copied WordNet often lacks one of them.
_WORDNET_FILES = (
    "lexnames",
    "index.sense",
    *(f"{kind}.{part}" for kind in ("index", "data") for part in ("adj", "adv", "noun", "verb")),
    *(f"{part}.exc" for part in ("adj", "adv", "noun", "verb")),
)
_FIX = "run `python -m nltk.downloader wordnet` or set NLTK_DATA to a folder with corpora/wordnet"


@dataclass(frozen=True)
class Meteor:
    """METEOR of a text against its best reference, in [0, 100]. Build it by `build_meteor…`."""

    name: str
    splitter: str
    stages: tuple[str, ...]
    tokenize: Callable[[str], tuple[str, ...]]
    stemmer: Any  # has NLTK's stem(word)
    wordnet: Any  # has NLTK's synsets(word)
    scale: str = "[0, 100]"
    words: str = "default"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,)

    def describe(self) -> Mapping[str, Any]:
        return {
            "implementation": f"nltk {version('nltk')}",
            "stages": list(self.stages),
            "alpha": ALPHA,
            "beta": BETA,
            "gamma": GAMMA,
            "tokenizer": f"{OWN if self.words == 'default' else self.words}, lower case",
            **describe_splitter(self.splitter),
            "several_references": "the best one",
            "scale": self.scale,
        }

    def pair(self, text: str, references: Sequence[str]) -> float:
        """Score of one text, in [0, 100]; an empty text scores 0."""
        from nltk.translate.meteor_score import meteor_score

        return 100.0 * meteor_score(
            [self.tokenize(reference) for reference in references],
            self.tokenize(text),
            stemmer=self.stemmer,
            wordnet=self.wordnet,
            alpha=ALPHA,
            beta=BETA,
            gamma=GAMMA,
        )

    def score(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, list[float]]:
        scores = [self.pair(text, refs) for text, refs in zip(texts, references, strict=True)]
        return {self.name: scores}

    def unread(self, texts: Iterable[str]) -> float:
        """Share of the letters of texts in scripts that are not cut into words, in [0, 1]."""
        return share_unread(texts, METEOR_READS) if self.words == "default" else 0.0


class CachedStemmer:
    """NLTK's Porter stemmer that stems each word once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=2**17)(PorterStemmer().stem)


@dataclass(frozen=True)
class _Word:
    text: str

    def name(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Synonyms:
    words: tuple[_Word, ...]

    def lemmas(self) -> tuple[_Word, ...]:
        return self.words


class CachedSynonyms:
    """WordNet as NLTK's METEOR asks it, each word once: one set of single-word synonyms."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.synsets = lru_cache(maxsize=2**17)(self._look_up)

    def _look_up(self, word: str) -> list[_Synonyms]:
        names = (lemma.name() for synset in self._reader.synsets(word) for lemma in synset.lemmas())
        words = dict.fromkeys(name for name in names if "_" not in name)
        return [_Synonyms(tuple(_Word(name) for name in words))]


class NoSynonyms:
    """Stands where NLTK expects WordNet and knows no synonym: the third stage adds no match.

    (The stage still matches a stem with itself, but the stem stage has taken those.)
    """

    def synsets(self, word: str) -> list[_Synonyms]:
        return []


def build_meteor(splitter: str, tokenizer: str = "default") -> Meteor:
    """METEOR with all three stages; what is a word: see `words`.

    Raises:
        ConfigError: Unknown splitter or tokenizer.
        MissingResourceError: WordNet, or the splitter's model, is not on this machine.
    """
    require_wordnet()
    from nltk.corpus import wordnet  # a lazy reader: its files are read at the first look-up

    stages = ("exact", "stem", "wordnet")
    return _build("meteor", splitter, stages, CachedSynonyms(wordnet), tokenizer)


def build_meteor_stem(splitter: str, tokenizer: str = "default") -> Meteor:
    """METEOR's exact and stem stages; raises as `build_meteor` does for the splitter."""
    return _build("meteor_stem", splitter, ("exact", "stem"), NoSynonyms(), tokenizer)


def _build(
    name: str, splitter: str, stages: tuple[str, ...], synonyms: Any, tokenizer: str
) -> Meteor:
    tokenize = word_tokenizer(splitter)  # also checks the splitter
    own = build_words(tokenizer)
    if own is not None:
        tokenize = lru_cache(maxsize=4096)(lambda text: tuple(own(text)))
    return Meteor(name, splitter, stages, tokenize, CachedStemmer(), synonyms, words=tokenizer)


def word_tokenizer(splitter: str) -> Callable[[str], tuple[str, ...]]:
    """NLTK's `word_tokenize` over the named splitter's sentences; the last texts are remembered.

    A source's K generations share their references, hence the memory.
    """
    split = build_splitter(splitter)
    from nltk.tokenize import NLTKWordTokenizer

    words = NLTKWordTokenizer()

    @lru_cache(maxsize=4096)
    def tokenize(text: str) -> tuple[str, ...]:
        return tuple(word for sentence in split(text) for word in words.tokenize(sentence))

    return tokenize


def require_wordnet() -> None:
    """Checks that WordNet is where NLTK looks (folder or zip), with all files that are read.

    Raises:
        MissingResourceError: It is not, with the command that fixes it.
    """
    import nltk

    root = None
    for place in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            root = nltk.data.find(place)
            break
        except LookupError:
            continue
    if root is None:
        raise MissingResourceError(f"METEOR needs WordNet, which NLTK does not find: {_FIX}")
    missing = [name for name in _WORDNET_FILES if not _has(root, name)]
    if missing:
        raise MissingResourceError(f"WordNet at {root} lacks {', '.join(missing)}: {_FIX}")


def _has(root: Any, name: str) -> bool:
    try:
        root.join(name)
    except (OSError, KeyError):
        return False
    return True


def make(cfg: MetricsConfig, device: str | None) -> Meteor:
    return build_meteor(cfg.sentence_splitter, cfg.tokenizer)


def make_stem(cfg: MetricsConfig, device: str | None) -> Meteor:
    return build_meteor_stem(cfg.sentence_splitter, cfg.tokenizer)
