"""A generated newswire: short English bulletins whose newsworthy facts are known.

A bulletin is one key sentence (one of several patterns of its domain), perhaps a detail sentence
after it, distractors (older news of the same domain, with slot words of the same kinds) and
fillers. Its clean summary states the facts in the domain's one summary pattern, with a further
clause if there is a detail: how long a summary should be depends on its source. Judge and metrics
know the clean summary. The *target*, which supervised training learns from, is corrupted with
probability `noise`: by a boilerplate tail, or by one wrong fact.

Text is lower case; words and '.' are split by single spaces; every slot takes one word.

Splits share no entity combination: the set of a bulletin's entities (names, days, causes, whatever
their roles; no numbers, no details) is hashed, and each hash belongs to one split. Distractors are
old news and may name anything. Left out: paraphrase in summaries, since with two patterns a domain
a text metric rewards wording more than facts.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgtg.config import NewswireConfig
from pgtg.data.worlds.world import BOILERPLATE, CONTENT, END, FACT, WRONG
from pgtg.errors import ConfigError
from pgtg.models.codec import Codec
from pgtg.types import Example, TokenIds

Facts = Mapping[str, str]  # slot -> word
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}  # tenths of hashes

KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split())
    for kind, words in {
        "team": "tigers lions bears eagles wolves falcons sharks foxes hawks bulls rams ravens "
        "panthers stallions pirates rovers rangers saints titans vikings",
        "city": "oslo rome paris madrid berlin vienna lisbon dublin athens prague warsaw budapest "
        "zurich geneva milan naples turin lyon porto seville hamburg munich bergen krakow",
        "company": "acme vortex nimbus zenith apex orion delta quantum stellar pioneer summit "
        "atlas phoenix horizon beacon cobalt ember granite harbor juniper",
        "person": "smith jones brown taylor wilson davies evans thomas roberts walker wright "
        "green hall wood harris clark lewis baker turner cooper",
        "day": "monday tuesday wednesday thursday friday saturday sunday",
        "number": "two three four five six seven eight nine ten eleven twelve fifteen twenty "
        "thirty forty",
        "move": "rose fell",
        "reason": "profits exports orders layoffs costs taxes lawsuits debts",
        "sky": "rain snow fog hail thunder sunshine frost wind",
        "cause": "strikes flooding repairs landslides fires accidents leaves ice",
    }.items()
}


@dataclass(frozen=True)
class Domain:
    """Slots and patterns of one kind of news. In patterns, {slot} stands for one word.

    slots: Slot -> kind of its words; the last one is the detail's.
    entities: Slots whose words make up the entity combination.
    summary: The summary pattern without its full stop.
    clause: What follows in the summary if there is a detail.
    sources: Patterns of the key sentence.
    details: Patterns of the detail sentence.
    old: Patterns of a distractor.
    """

    slots: Mapping[str, str]
    entities: tuple[str, ...]
    summary: str
    clause: str
    sources: tuple[str, ...]
    details: tuple[str, ...]
    old: tuple[str, ...]

    @property
    def detail(self) -> str:
        return list(self.slots)[-1]


def _slots(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


DOMAINS = {
    "sport": Domain(
        slots=_slots("winner:team loser:team margin:number place:city scorer:person"),
        entities=("winner", "loser", "place"),
        summary="the {winner} beat the {loser} by {margin} goals in {place}",
        clause="as {scorer} scored first",
        sources=(
            "the {winner} won by {margin} goals against the {loser} in {place} .",
            "in {place} the {loser} lost to the {winner} by {margin} goals .",
            "fans in {place} saw the {winner} defeat the {loser} by {margin} goals .",
            "a margin of {margin} goals gave the {winner} victory over the {loser} in {place} .",
        ),
        details=("{scorer} opened the scoring .", "the first goal came from {scorer} ."),
        old=(
            "last month the {winner} defeated the {loser} by {margin} goals in {place} .",
            "a year ago the {loser} lost by {margin} goals to the {winner} in {place} .",
            "earlier {scorer} left the {winner} to join the {loser} .",
        ),
    ),
    "market": Domain(
        slots=_slots("company:company move:move percent:number day:day reason:reason"),
        entities=("company", "move", "day"),
        summary="shares of {company} {move} {percent} percent on {day}",
        clause="on news of its {reason}",
        sources=(
            "the stock of {company} {move} by {percent} percent on {day} .",
            "on {day} investors in {company} saw the price that {move} {percent} percent .",
            "{company} {move} {percent} percent in busy trading on {day} .",
            "{day} trading closed with {company} shares which {move} {percent} percent .",
        ),
        details=("traders pointed to its {reason} .", "the company had announced new {reason} ."),
        old=(
            "last month {company} {move} by {percent} percent on a {day} .",
            "a year ago the stock of {company} {move} {percent} percent in one week .",
            "earlier its rival {company} had warned of {reason} .",
        ),
    ),
    "weather": Domain(
        slots=_slots("sky:sky place:city day:day degrees:number hours:number"),
        entities=("sky", "place", "day"),
        summary="{sky} will reach {place} on {day} with {degrees} degrees",
        clause="and stay for {hours} hours",
        sources=(
            "people in {place} should expect {sky} and {degrees} degrees on {day} .",
            "on {day} {sky} moves into {place} with {degrees} degrees .",
            "{sky} is on its way to {place} for {day} at {degrees} degrees .",
            "forecasters see {degrees} degrees and {sky} over {place} on {day} .",
        ),
        details=("it should last {hours} hours .", "it will be over after {hours} hours ."),
        old=(
            "last month {place} had {sky} on a {day} at {degrees} degrees .",
            "a year ago {sky} hit {place} for {hours} hours .",
            "earlier in the season it was {degrees} degrees in {place} .",
        ),
    ),
    "travel": Domain(
        slots=_slots("origin:city goal:city cause:cause delay:number trains:number"),
        entities=("origin", "goal", "cause"),
        summary="trains from {origin} to {goal} run {delay} minutes late after {cause}",
        clause="and {trains} are cancelled",
        sources=(
            "{cause} on the line from {origin} to {goal} delay trains by {delay} minutes .",
            "passengers to {goal} from {origin} wait {delay} minutes because of {cause} .",
            "because of {cause} the {origin} to {goal} service is {delay} minutes behind .",
            "expect {delay} extra minutes between {origin} and {goal} due to {cause} .",
        ),
        details=(
            "{trains} trains do not run at all .",
            "the operator has dropped {trains} trains .",
        ),
        old=(
            "last month {cause} closed the line from {origin} to {goal} .",
            "a year ago trains from {origin} were {delay} minutes late after {cause} .",
            "earlier {trains} buses to {goal} were late too .",
        ),
    ),
    "vote": Domain(
        slots=_slots("winner:person place:city lead:number day:day rival:person"),
        entities=("winner", "place", "day"),
        summary="{winner} won the {day} vote in {place} by {lead} points",
        clause="ahead of {rival}",
        sources=(
            "voters in {place} chose {winner} as mayor on {day} by {lead} points .",
            "on {day} {winner} became mayor of {place} with a lead of {lead} points .",
            "the new mayor of {place} is {winner} after a {lead} point lead on {day} .",
            "a lead of {lead} points on {day} made {winner} mayor of {place} .",
        ),
        details=("{rival} came second .", "the closest opponent was {rival} ."),
        old=(
            "last month {winner} lost in {place} by {lead} points on a {day} .",
            "a year ago {winner} led in {place} by {lead} points .",
            "earlier {rival} had left the race in {place} .",
        ),
    ),
}

FILLERS = (
    "officials had no further comment .",
    "many people followed the news .",
    "nobody was surprised by this .",
    "the mood was calm all day .",
    "local papers wrote about it at length .",
    "observers had expected as much .",
    "it was a long week for everyone .",
    "some doubts remain about what comes next .",
    "this was widely discussed in the region .",
    "a full review is planned for next year .",
)

# Tails with different first words. Of many, no single one outweighs the plain end of a summary, so
# the likeliest ending is right; with one and much noise, the likeliest ending is wrong.
TAILS = (
    "more details follow .",
    "read the full story in our paper .",
    "this report will be updated .",
    "click here for pictures .",
    "all rights reserved .",
    "subscribe now for more news .",
    "see the next page .",
    "tell us what you think about it .",
    "listen to our radio tonight .",
    "our reporter is there .",
    "photo by our own staff .",
    "sign up here for daily news .",
    "share this with your friends .",
    "you can also watch the video .",
    "for comments please write to us .",
    "advertisement .",
)
TAIL_WORDS = frozenset(" ".join(TAILS).split())
SLOT_WORDS = frozenset(word for words in KINDS.values() for word in words)


@dataclass(frozen=True)
class Truth:
    """What is known of one bulletin.

    Args:
        domain: Key of DOMAINS.
        facts: Slot -> right word; the detail's slot only where the bulletin has a detail.
        target_labels: One label per word of the target: "content" (words of the pattern), "fact"
            (a right slot word), "wrong" (the planted wrong one) or "boilerplate" (the tail).
    """

    domain: str
    facts: Facts
    target_labels: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What a text is worth against the truth: see `check`."""

    fact_accuracy: float
    well_formed: bool
    boilerplate: bool


class Newswire:
    """The world's truth for policies that read a word as a token."""

    def target_labels(self, example: Example, tokens: TokenIds, codec: Codec) -> list[str] | None:
        """As `World.target_labels`; None for a target that is cut, or in other tokens."""
        labels = [*example.truth.target_labels, END]
        return labels if len(labels) == len(tokens) else None

    def reference_labels(
        self, example: Example, tokens: TokenIds, codec: Codec
    ) -> list[str] | None:
        labels = [*label_words(example.truth, example.references[0].split()), END]
        return labels if len(labels) == len(tokens) else None

    def check_texts(
        self, texts: Sequence[str], examples: Sequence[Example]
    ) -> dict[str, list[float]]:
        checked = [check(t, e.truth) for t, e in zip(texts, examples, strict=True)]
        return {
            "fact_accuracy": [100 * c.fact_accuracy for c in checked],
            "well_formed": [100.0 * c.well_formed for c in checked],
            "boilerplate": [100.0 * c.boilerplate for c in checked],
        }


def require(cfg: NewswireConfig) -> None:
    """Raises a ConfigError if more fillers or tails are asked for than there are."""
    for key, asked, there in (("fillers", cfg.fillers, FILLERS), ("tails", cfg.tails, TAILS)):
        if asked > len(there):
            raise ConfigError(f"data.newswire.{key}={asked}: there are {len(there)} to choose")


def generate(cfg: NewswireConfig) -> dict[str, list[Example]]:
    """The three splits. Each depends on the seed, its own size and the world's settings only, and a
    larger split begins with the smaller one's bulletins.

    Raises:
        ConfigError: As `require`.
    """
    require(cfg)
    sizes = {"train": cfg.train, "validation": cfg.validation, "test": cfg.test}
    return {split: list(_bulletins(cfg, split, size)) for split, size in sizes.items()}


def describe(cfg: NewswireConfig) -> str:
    """What a run on this world is to be told of it, and why it is as it is."""
    boilerplate = cfg.noise * (1 - cfg.wrong_fact_share)
    likeliest = "wrong" if boilerplate / cfg.tails > 1 - boilerplate else "right"
    kinds = "one kind" if cfg.tails == 1 else f"{cfg.tails} kinds"
    return (
        f"generated newswire: {cfg.noise:.0%} of the training references are flawed, "
        f"{boilerplate:.0%} end in boilerplate ({kinds}: the likeliest ending is "
        f"{likeliest}), {cfg.noise * cfg.wrong_fact_share:.0%} state a wrong fact; the judge knows "
        "the clean summaries. So it is known at which tokens a weight should be low"
    )


def vocabulary(cfg: NewswireConfig) -> list[str]:
    """Every word that any bulletin, summary or tail can hold, sorted; the same for every config."""
    patterns = [*FILLERS, *TAILS]
    for domain in DOMAINS.values():
        patterns += [domain.summary, domain.clause, *domain.sources, *domain.details, *domain.old]
    words = {word for pattern in patterns for word in pattern.split() if "{" not in word}
    return sorted(words | SLOT_WORDS)


def _bulletins(cfg: NewswireConfig, split: str, size: int) -> Iterator[Example]:
    """`size` bulletins of one split with different sources."""
    rng = random.Random(f"newswire {cfg.seed} {split}")
    seen: set[str] = set()
    while len(seen) < size:
        name = rng.choice(list(DOMAINS))
        facts = _draw_facts(rng, name)
        if split_of(name, facts) != split:
            continue
        if rng.random() >= cfg.details:
            del facts[DOMAINS[name].detail]
        old = [_draw_facts(rng, name) for _ in range(cfg.distractors)]
        source = _source(rng, name, facts, old, cfg.fillers)
        target, labels = _target(rng, cfg, name, facts, old)
        if source not in seen:
            clean, truth = (summarize(name, facts),), Truth(name, facts, labels)
            yield Example(f"{split}-{len(seen)}", source, clean, target, truth)
            seen.add(source)


def _draw_facts(rng: random.Random, name: str) -> dict[str, str]:
    """A word for every slot of the domain; slots of one kind get different words."""
    facts: dict[str, str] = {}
    for slot, kind in DOMAINS[name].slots.items():
        facts[slot] = rng.choice([word for word in KINDS[kind] if word not in facts.values()])
    return facts


def split_of(name: str, facts: Facts) -> str:
    """The one split that may report these entities together, whatever their roles, for any seed."""
    entities = sorted(facts[slot] for slot in DOMAINS[name].entities)
    digest = hashlib.blake2b(" ".join([name, *entities]).encode()).digest()
    return next(split for split, shares in SPLITS.items() if digest[0] % 10 in shares)


def _source(rng: random.Random, name: str, facts: Facts, old: Sequence[Facts], fillers: int) -> str:
    """Key sentence (with its detail), distractors and fillers in random order."""
    domain = DOMAINS[name]
    key = rng.choice(domain.sources).format(**facts)
    if domain.detail in facts:
        key += " " + rng.choice(domain.details).format(**facts)
    sentences = [key, *(rng.choice(domain.old).format(**other) for other in old)]
    sentences += rng.sample(FILLERS, fillers)
    rng.shuffle(sentences)
    return " ".join(sentences)


def summarize(name: str, facts: Facts) -> str:
    """The clean summary, with the detail's clause where the facts have the detail."""
    return " ".join(_pattern(name, DOMAINS[name].detail in facts)).format(**facts)


def _pattern(name: str, with_detail: bool) -> list[str]:
    """The words of the summary pattern, slots as "{slot}"."""
    clause = DOMAINS[name].clause if with_detail else ""
    return f"{DOMAINS[name].summary} {clause} .".split()


def _target(
    rng: random.Random, cfg: NewswireConfig, name: str, facts: Facts, old: Sequence[Facts]
) -> tuple[str, tuple[str, ...]]:
    """The target and the label of each of its words.

    A wrong fact is the old news' word for the same slot (its distractor need not state it); where
    that is no use, any other word of the kind.
    """
    told, tail = dict(facts), ""
    noisy, wrong = rng.random() < cfg.noise, rng.random() < cfg.wrong_fact_share
    slot = rng.choice(list(facts))
    # one draw among all, so that worlds with other tails have the same bulletins
    tail_drawn = TAILS[rng.randrange(len(TAILS)) * cfg.tails // len(TAILS)]
    if noisy and wrong:
        others = [other[slot] for other in old if other[slot] not in facts.values()]
        kind = KINDS[DOMAINS[name].slots[slot]]
        told[slot] = rng.choice(others or [word for word in kind if word not in facts.values()])
    elif noisy:
        tail = tail_drawn
    words = summarize(name, told).split()
    labels = [_label(part, told, facts) for part in _pattern(name, DOMAINS[name].detail in facts)]
    return " ".join([*words, *tail.split()]), (*labels, *([BOILERPLATE] * len(tail.split())))


def _label(part: str, told: Facts, facts: Facts) -> str:
    """Label of one word of the pattern, told as in `told`."""
    if not part.startswith("{"):
        return CONTENT
    slot = part.strip("{}")
    return FACT if told[slot] == facts.get(slot) else WRONG


def parse(name: str, words: Sequence[str]) -> dict[str, str] | None:
    """Slot -> word of a sentence in the summary pattern, each of its slot's kind; else None."""
    domain = DOMAINS[name]
    for with_detail in (False, True):
        pattern = _pattern(name, with_detail)
        if len(pattern) != len(words):
            continue
        pairs = list(zip(pattern, words, strict=True))
        told = {part.strip("{}"): word for part, word in pairs if part.startswith("{")}
        fixed = all(part == word for part, word in pairs if not part.startswith("{"))
        if fixed and all(word in KINDS[domain.slots[slot]] for slot, word in told.items()):
            return told
    return None


def _first_sentence(words: Sequence[str]) -> int:
    """Number of words up to and with the first '.', or all of them."""
    return list(words).index(".") + 1 if "." in words else len(words)


def label_words(truth: Truth, words: Sequence[str]) -> list[str]:
    """A label for each word of any text about the bulletin, e.g. a generation.

    Where the first sentence is in the domain's summary pattern, a slot word is a "fact" if it is
    right in its place, else "wrong". In any other first sentence a slot word is a "fact" if it is
    one of the facts anywhere. After the first '.', words that tails use are "boilerplate". What
    remains is "content".
    """
    end = _first_sentence(words)
    told = parse(truth.domain, words[:end])
    if told is None:
        labels = [_loose_label(truth, word) for word in words[:end]]
    else:
        pattern = _pattern(truth.domain, DOMAINS[truth.domain].detail in told)
        labels = [_label(part, told, truth.facts) for part in pattern]
    return labels + [
        BOILERPLATE if word in TAIL_WORDS else _loose_label(truth, word) for word in words[end:]
    ]


def _loose_label(truth: Truth, word: str) -> str:
    known = FACT if word in truth.facts.values() else WRONG
    return known if word in SLOT_WORDS else CONTENT


def check(text: str, truth: Truth) -> Checked:
    """How a text stands against the truth.

    Args:
        text: Words split by white space, '.' a word of its own.
        truth: Of the bulletin that the text summarises.

    Returns:
        fact_accuracy: In [0, 1]. If the first sentence is in the domain's summary pattern: right
            words in their slots, over all slots that the truth or the text fills (a missing detail
            and a made-up one both count as wrong). Otherwise: the share of the facts that the text
            holds anywhere.
        well_formed: The text is exactly one sentence in the summary pattern of some domain.
        boilerplate: Some of it is labelled so by `label_words`.
    """
    words = text.split()
    told = parse(truth.domain, words[: _first_sentence(words)])
    if told is None:
        accuracy = sum(word in words for word in truth.facts.values()) / len(truth.facts)
    else:
        right = sum(told.get(slot) == word for slot, word in truth.facts.items())
        accuracy = right / len(told.keys() | truth.facts.keys())
    well_formed = any(parse(name, words) is not None for name in DOMAINS)
    return Checked(accuracy, well_formed, BOILERPLATE in label_words(truth, words))
