"""The generated newswire: hand-labelled texts, and what holds in every split."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from pgtg.config import NewswireConfig
from pgtg.data.worlds import newswire
from pgtg.data.worlds.newswire import DOMAINS, KINDS, SLOT_WORDS, TAILS, Truth, check, label_words
from pgtg.errors import ConfigError
from pgtg.types import Example

CONFIG = NewswireConfig(
    train=400,
    validation=120,
    test=120,
    seed=0,
    distractors=1,
    fillers=1,
    details=0.5,
    noise=0.7,
    wrong_fact_share=0.3,
    tails=16,
)
WEATHER = Truth(
    domain="weather",
    facts={"sky": "rain", "place": "oslo", "day": "friday", "degrees": "ten"},
    target_labels=(),
)


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Example]]:
    return newswire.generate(CONFIG)


def examples(splits: dict[str, list[Example]]) -> list[Example]:
    return [example for split in splits.values() for example in split]


def combination(example: Example) -> frozenset[str]:
    """Domain and entity words, found without the module's own helper."""
    truth = example.truth
    entities = DOMAINS[truth.domain].entities
    return frozenset([truth.domain, *(truth.facts[slot] for slot in entities)])


def test_splits_have_their_sizes_and_different_sources(splits: dict[str, list[Example]]):
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 400,
        "validation": 120,
        "test": 120,
    }
    assert len({example.source for example in examples(splits)}) == 640
    assert len({example.id for example in examples(splits)}) == 640


def test_a_world_with_few_different_bulletins_repeats_none():
    """Without distractors and fillers, some hundred of 3000 draws for one split come twice."""
    bare = replace(CONFIG, test=3000, details=0.0, distractors=0, fillers=0)
    rows = newswire.generate(bare)["test"]
    assert len(rows) == len({row.source for row in rows}) == 3000


def test_splits_share_no_entity_combination(splits: dict[str, list[Example]]):
    found = {name: {combination(row) for row in rows} for name, rows in splits.items()}
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]


def test_another_seed_moves_no_combination_to_another_split(splits: dict[str, list[Example]]):
    other = newswire.generate(replace(CONFIG, seed=1))
    mine = {combination(row) for row in splits["test"]}
    assert not mine & {combination(row) for row in [*other["train"], *other["validation"]]}
    assert [row.source for row in other["test"]] != [row.source for row in splits["test"]]


def test_a_split_depends_on_its_own_size_only_and_grows_at_its_end(
    splits: dict[str, list[Example]],
):
    small = newswire.generate(replace(CONFIG, train=10, validation=7))
    assert small["test"] == splits["test"]
    assert small["train"] == splits["train"][:10]


def test_every_fact_stands_in_source_and_clean_summary(splits: dict[str, list[Example]]):
    for example in examples(splits):
        source, summary = example.source.split(), example.references[0].split()
        for word in example.truth.facts.values():
            assert word in source and word in summary
        assert summary == newswire.summarize(example.truth.domain, example.truth.facts).split()


def test_text_is_lower_case_words_of_the_vocabulary(splits: dict[str, list[Example]]):
    vocabulary = newswire.vocabulary(CONFIG)
    assert vocabulary == sorted(set(vocabulary)) and 300 <= len(vocabulary) <= 400
    for example in examples(splits):
        for text in (example.source, example.target, *example.references):
            assert text == text.lower() and text == " ".join(text.split())
            assert text.endswith(" .") and re.fullmatch(r"[a-z. ]+", text)
            assert set(text.split()) <= set(vocabulary)


def test_clean_summaries_pass_and_labels_of_targets_agree(splits: dict[str, list[Example]]):
    """The planted labels and those found in the bare text are made in two ways."""
    for example in examples(splits):
        assert check(example.references[0], example.truth) == newswire.Checked(1.0, True, False)
        words = example.target.split()
        assert label_words(example.truth, words) == list(example.truth.target_labels)
        assert len(words) == len(example.truth.target_labels)


def test_noise_is_a_tail_or_one_wrong_fact_in_the_shares_asked_for(
    splits: dict[str, list[Example]],
):
    kinds = Counter()
    for example in examples(splits):
        clean, labels = example.references[0], example.truth.target_labels
        if "boilerplate" in labels:
            kinds["tail"] += 1
            assert example.target.removeprefix(clean + " ") in TAILS and "wrong" not in labels
        elif "wrong" in labels:
            kinds["wrong"] += 1
            pairs = zip(example.target.split(), clean.split(), labels, strict=True)
            assert [label for told, right, label in pairs if told != right] == ["wrong"]
        else:
            kinds["clean"] += 1
            assert example.target == clean
    # binomial, n = 640: three standard deviations are below 0.06
    assert kinds["clean"] / 640 == pytest.approx(0.3, abs=0.06)
    assert kinds["wrong"] / 640 == pytest.approx(0.7 * 0.3, abs=0.06)


def test_without_noise_targets_are_clean():
    splits = newswire.generate(replace(CONFIG, noise=0.0))
    assert all(example.target == example.references[0] for example in examples(splits))


@pytest.mark.parametrize(("details", "longer"), [(0.0, 0), (1.0, 640)])
def test_details_lengthen_the_summary(details: float, longer: int):
    rows = examples(newswire.generate(replace(CONFIG, details=details)))
    found = [row for row in rows if DOMAINS[row.truth.domain].detail in row.truth.facts]
    assert len(found) == longer
    assert all(len(row.truth.facts) == 4 + (longer > 0) for row in rows)


def test_distractors_and_fillers_count_the_other_sentences():
    rows = newswire.generate(replace(CONFIG, details=0.0, distractors=2, fillers=3))["train"]
    assert {row.source.split().count(".") for row in rows} == {6}
    bare = newswire.generate(replace(CONFIG, details=0.0, distractors=0, fillers=0))["train"]
    assert {row.source.split().count(".") for row in bare} == {1}


@pytest.mark.parametrize("key", ["fillers", "tails"])
def test_more_fillers_or_tails_than_there_are_are_refused(key: str):
    with pytest.raises(ConfigError, match=rf"data\.newswire\.{key}=99"):
        newswire.generate(replace(CONFIG, **{key: 99}))


@pytest.mark.parametrize(("tails", "noise", "wrong"), [(1, 0.9, "wrong"), (16, 0.7, "right")])
def test_the_likeliest_ending_is_the_one_that_is_said(tails: int, noise: float, wrong: str):
    cfg = replace(CONFIG, tails=tails, noise=noise)
    rows = newswire.generate(cfg)["train"]
    summaries = [(row, newswire.summarize(row.truth.domain, row.truth.facts)) for row in rows]
    told = [len(clean.split()) for _, clean in summaries]
    endings = Counter(
        " ".join(row.target.split()[n:]) for (row, _), n in zip(summaries, told, strict=True)
    )
    assert {*endings} == {"", *TAILS[:tails]}
    likeliest = endings.most_common(1)[0][0]
    assert (likeliest == "") == (wrong == "right")
    kinds = "one kind" if tails == 1 else f"{tails} kinds"
    assert f"({kinds}: the likeliest ending is {wrong})" in newswire.describe(cfg)


def test_the_world_is_unambiguous():
    """Each slot word has one kind, none is in a tail or a pattern, and tails begin differently."""
    kinds = Counter(word for words in KINDS.values() for word in words)
    assert set(kinds.values()) == {1}
    fixed = [*TAILS, *newswire.FILLERS]
    for domain in DOMAINS.values():
        fixed += [domain.summary, domain.clause, *domain.sources, *domain.details, *domain.old]
        assert set(domain.entities) < set(domain.slots)
        assert set(re.findall(r"{(\w+)}", domain.summary + domain.clause)) == set(domain.slots)
    assert not SLOT_WORDS & {word for text in fixed for word in text.split()}
    assert len({tail.split()[0] for tail in TAILS}) == len(TAILS)


@pytest.mark.parametrize(
    ("text", "accuracy", "well_formed", "boilerplate"),
    [
        ("rain will reach oslo on friday with ten degrees .", 1.0, True, False),
        ("snow will reach oslo on monday with ten degrees .", 0.5, True, False),
        # a made-up detail adds a wrong slot: 4 of 5
        (
            "rain will reach oslo on friday with ten degrees and stay for two hours .",
            0.8,
            True,
            False,
        ),
        # a tail corrupts the form, not the facts
        ("rain will reach oslo on friday with ten degrees . see the next page .", 1.0, False, True),
        # not the domain's pattern: facts found anywhere
        ("shares of acme rose ten percent on friday .", 0.5, True, False),
        ("rain oslo", 0.5, False, False),
        # a slot takes words of its own kind only
        ("oslo will reach rain on friday with ten degrees .", 1.0, False, False),
        ("", 0.0, False, False),
    ],
)
def test_check_by_hand(text: str, accuracy: float, well_formed: bool, boilerplate: bool):
    assert check(text, WEATHER) == newswire.Checked(accuracy, well_formed, boilerplate)


def test_swapped_roles_are_wrong_in_place():
    truth = Truth(
        domain="sport",
        facts={"winner": "lions", "loser": "bears", "margin": "two", "place": "rome"},
        target_labels=(),
    )
    text = "the bears beat the lions by two goals in rome ."
    assert check(text, truth).fact_accuracy == 0.5
    assert check(text + " see the next page .", truth).fact_accuracy == 0.5
    assert [label for label in label_words(truth, text.split()) if label != "content"] == [
        "wrong",
        "wrong",
        "fact",
        "fact",
    ]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("rain will reach rome on friday with ten degrees .", "f c c w c f c f c c"),
        (
            "rain will reach oslo on friday with ten degrees . see here .",
            "f c c f c f c f c c b b b",
        ),
        ("rain oslo rome", "f f w"),  # no pattern: any fact counts, wherever it stands
        ("rain . in rome", "f c b w"),
    ],
)
def test_labels_by_hand(text: str, labels: str):
    names = {"f": "fact", "c": "content", "w": "wrong", "b": "boilerplate"}
    assert label_words(WEATHER, text.split()) == [names[letter] for letter in labels.split()]
