"""Generated reviews, and candidate prompt words of which some help to tell good from bad.

The embedded world of `pgtg train prompt`. A review names two or three aspects with an opinion each
("the plot was dull but music lovely"); its *evidence* e is the mean of the opinions' weights, and
its class the sign of e. A prompt is a few of the candidate words. The *ground truth* says how well
a reader who sees the review and then the prompt knows the answer:

    P(good | review, prompt) = sigmoid(strength(prompt) * e + lean)

    strength(prompt) = scale * ( sum of the weights of its different words
                                 + bonus for each pair of words that both are in it )

`lean` > 0 is the reader's inclination to say good whatever the review. Strength beyond 0 first
overcomes it on clear reviews, then on doubtful ones, so accuracy rises step by step. A repeated
word counts once and order does not matter. A few words are strong, more are weak, some do harm
(negative weight), most do nothing; a pair joins a weak word with one that does nothing alone, so
the best single words are not the best prompt. `scale` makes the best prompt of `length`
words worth `sharpness`.

Which words do what is drawn from the world's seed and has nothing to do with their meaning. The
judge is not the ground truth itself but a tiny masked LM that was taught it (`recipes.teaching`),
so the judge's own optimum is found by `optimum`, and differs a little from the ground truth's.
"""

import itertools
import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pgtg.config import ReviewsConfig
from pgtg.errors import ConfigError
from pgtg.types import Labelled

Words = tuple[str, ...]
Judge = Callable[[list[Words]], list[float]]  # score of each prompt, higher is better

BAD, GOOD = 0, 1  # classes
ANSWERS = ("bad", "good")  # label words
OPINIONS: dict[str, float] = {  # opinion -> weight, good is positive
    word: weight
    for weight, words in {
        1.0: "superb lovely brilliant stunning wonderful perfect",
        0.5: "pleasant decent solid fresh neat charming",
        -0.5: "slow bland uneven tired thin clumsy",
        -1.0: "awful dreadful horrible dull broken hopeless",
    }.items()
    for word in words.split()
}
OPINION_WORDS = tuple(OPINIONS)
ASPECTS = ("plot", "cast", "music", "script", "pace", "ending", "staging", "humor", "camera")
JOINTS = (",", "and", "but")
_CANDIDATES = (
    "overall verdict rating honestly summary frankly conclusion grade opinion judgment result "
    "answer final total score mark stars review critic viewer audience people everyone nobody "
    "friends family monday evening ticket seat theater cinema screen popcorn street city river "
    "mountain paper window table garden bottle train simply really truly rather quite perhaps "
    "maybe always never again still today therefore indeed thus clearly surely certainly "
    "absolutely hence"
)
CANDIDATES = tuple(_CANDIDATES.split())

LEAN = 1.0  # [nats]
STRONG, WEAK, HARMFUL = (1.0, 0.6), (0.4, 0.2), (-0.8, -0.3)  # weights, first to last of the kind
BONUS = 0.8  # of a pair: a weak word and one that does nothing alone
LEAST_EVIDENCE = 0.25  # of a review, in size


@dataclass(frozen=True)
class GroundTruth:
    """What each candidate word and pair of words is worth.

    Args:
        weights: Word -> weight before scaling; candidates that are not here do nothing.
        pairs: Two words, in alphabetical order -> bonus before scaling if both are in a prompt.
        scale: Factor that brings the best prompt to the config's sharpness.
    """

    weights: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float]
    scale: float

    @cached_property
    def active(self) -> list[str]:
        """All words that do something, alone or in a pair, sorted."""
        return sorted({*self.weights, *itertools.chain.from_iterable(self.pairs)})

    @cached_property
    def helpful(self) -> list[str]:
        """The active words that do no harm."""
        return [word for word in self.active if self.weights.get(word, 0.0) >= 0]

    def strength(self, prompt: Sequence[str]) -> float:
        """Strength of a prompt [nats per unit of evidence], see the module's formula."""
        words = sorted(set(prompt))
        pairs = sum(self.pairs.get(pair, 0.0) for pair in itertools.combinations(words, 2))
        return self.scale * (sum(self.weights.get(word, 0.0) for word in words) + pairs)

    def strengths(self, prompts: Sequence[Sequence[str]]) -> list[float]:
        """Strength of each prompt: the ground truth as a judge."""
        return [self.strength(prompt) for prompt in prompts]

    def probability(self, prompt: Sequence[str], text: str) -> float:
        """P(good | review, prompt), in (0, 1)."""
        return 1 / (1 + math.exp(-self.strength(prompt) * evidence(text) - LEAN))


def candidates(cfg: ReviewsConfig) -> list[str]:
    """The prompt words, which are all that the policy may write.

    Raises:
        ConfigError: There are not so many words, or too few for those that the ground truth needs.
    """
    needed = cfg.strong + cfg.weak + cfg.harmful + min(cfg.pairs, cfg.weak)
    if not max(needed, 1) <= cfg.words <= len(CANDIDATES):
        raise ConfigError(
            f"data.reviews.words={cfg.words}: give {needed} (strong, weak, harmful and paired "
            f"words) to {len(CANDIDATES)}"
        )
    if cfg.strong < 1 or cfg.length < 1:
        raise ConfigError("data.reviews: strong and length must be at least 1")
    return list(CANDIDATES[: cfg.words])


def vocabulary(cfg: ReviewsConfig) -> list[str]:
    """Every word of reviews, prompts and answers, sorted."""
    return sorted({*candidates(cfg), *OPINIONS, *ASPECTS, *JOINTS, *ANSWERS, "the", "was", "."})


def make_truth(cfg: ReviewsConfig) -> GroundTruth:
    """The world's ground truth, a function of the config's seed and sizes alone."""
    words = candidates(cfg)
    random.Random(f"law {cfg.seed}").shuffle(words)
    rest, weights = iter(words), dict[str, float]()
    for count, (first, last) in (
        (cfg.strong, STRONG),
        (cfg.weak, WEAK),
        (cfg.harmful, HARMFUL),
    ):
        for i, word in enumerate(itertools.islice(rest, count)):
            weights[word] = first + (last - first) * i / max(count - 1, 1)
    weak = words[cfg.strong : cfg.strong + min(cfg.pairs, cfg.weak)]
    pairs = {(min(pair), max(pair)): BONUS for pair in zip(weak, rest, strict=False)}
    best = optimum(
        GroundTruth(weights, pairs, 1.0).strengths, words, cfg.length, cfg.seed, restarts=20
    )
    return GroundTruth(weights, pairs, cfg.sharpness / best[1])


# --- reviews


def evidence(text: str) -> float:
    """Mean weight of a review's opinions, in [-1, 1]; positive is good."""
    weights = [OPINIONS[word] for word in text.split() if word in OPINIONS]
    return sum(weights) / len(weights)


def review(rng: random.Random, label: int) -> str:
    """A review of the class: two or three aspects, its evidence at least 0.25 in size."""
    while True:
        aspects = rng.sample(ASPECTS, rng.choice((2, 3)))
        clauses = [f"{aspect} was {rng.choice(OPINION_WORDS)}" for aspect in aspects]
        text = "the " + clauses[0]
        for clause in clauses[1:]:
            text += f" {rng.choice(JOINTS)} {clause}"
        value = evidence(text)
        if abs(value) >= LEAST_EVIDENCE and (value > 0) == (label == GOOD):
            return text


def any_text(cfg: ReviewsConfig, rng: random.Random) -> str:
    """Text to learn the world's words from: a review, or a remark of uniform candidate words."""
    if rng.random() < 0.5:
        return review(rng, rng.randrange(2)) + " ."
    return " ".join(rng.choices(candidates(cfg), k=cfg.length)) + " ."


def generate(cfg: ReviewsConfig, data_seed: int = 0) -> dict[str, list[Labelled]]:
    """Splits train and dev with `shots` reviews per class, and test with `test` in all.

    Classes take turns and no text comes twice. The test split does not depend on `data_seed`.
    """
    seen: set[str] = set()

    def split(name: str, size: int) -> list[Labelled]:
        rng, rows = random.Random(f"reviews {cfg.seed} {name}"), []
        while len(rows) < size:
            label = len(rows) % 2
            text = review(rng, label)
            if text not in seen:
                seen.add(text)
                rows.append(Labelled(str(len(rows)), text, label))
        return rows

    test = split("test", cfg.test)  # first, so that the others keep clear of it
    few = {name: split(f"{name} {data_seed}", 2 * cfg.shots) for name in ("train", "dev")}
    return {**few, "test": test}


# --- the best prompt


def random_prompts(words: Sequence[str], length: int, n: int, seed: int) -> list[Words]:
    """Prompts of uniformly drawn words."""
    rng = random.Random(f"prompts {seed}")
    return [tuple(rng.choices(words, k=length)) for _ in range(n)]


def optimum(
    judge: Judge,
    words: Sequence[str],
    length: int,
    seed: int,
    restarts: int,
    starts: Sequence[Words] = (),
) -> tuple[Words, float]:
    """The best prompt that coordinate ascent finds, and its score.

    From each start, the word at one place after the other is replaced by the best one there, until
    no place changes. That is no proof of the optimum, but the ends of many starts tell how sure.

    Args:
        judge: Score of each prompt.
        words: The candidates; a prompt may hold one several times.
        length: Of a prompt [words].
        seed: Of the random starts.
        restarts: Number of random starts.
        starts: Prompts to start from as well, e.g. the ground truth's own best.
    """
    begin = [*starts, *random_prompts(words, length, restarts, seed)]
    ascents = [_ascend(words, start) for start in begin]
    asks = {n: next(ascent) for n, ascent in enumerate(ascents)}
    ends: dict[int, tuple[Words, float]] = {}
    while asks:  # what all of them ask at a time is judged together
        scores = iter(judge([prompt for tried in asks.values() for prompt in tried]))
        for n, tried in list(asks.items()):
            try:
                asks[n] = ascents[n].send([next(scores) for _ in tried])
            except StopIteration as end:
                ends[n] = end.value
                del asks[n]
    return max((ends[n] for n in range(len(begin))), key=lambda found: found[1])


def _ascend(
    words: Sequence[str], prompt: Words
) -> Generator[list[Words], list[float], tuple[Words, float]]:
    """Yields prompts and is sent their scores; returns the last prompt and its own."""
    score = (yield [prompt])[0]
    unchanged, place = 0, 0
    while unchanged < len(prompt):
        tried = [(*prompt[:place], word, *prompt[place + 1 :]) for word in words]
        scores = yield tried
        top = max(range(len(words)), key=scores.__getitem__)
        unchanged += 1
        if scores[top] > score:
            prompt, score, unchanged = tried[top], scores[top], 1
        place = (place + 1) % len(prompt)
    return prompt, score
