"""Flaws planted in real references, against the bare texts."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pgtg.config import ColumnsConfig, DataConfig, FlawsConfig
from pgtg.data.splits import load_split
from pgtg.data.worlds.flaws import FlawedReferences, describe, plant, terms
from pgtg.models import pieces
from pgtg.models.codec import Codec
from pgtg.types import DataCounts, Example
from tests.support.explain_codecs import CODECS, codec

CFG = FlawsConfig(share=0.9, wrong_share=0.3, ending="Read more on our site.", seed=0)
WRONG, ENDING = replace(CFG, share=1.0, wrong_share=1.0), replace(CFG, share=1.0, wrong_share=0.0)
SOURCE = (
    "We train BERT and ResNet-50 on 1,000 texts, BERT alone on 1,000, and BERT twice. Adam needs "
    "3.5 hours (Bayesian GANs: 12)."
)
CLEAN = "We show that BART needs 12 steps."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("We train BERT with Adam.", ["BERT", "Adam"]),
        ("Adam is a name within a sentence: Not after a colon, nor (At a bracket.", []),
        (
            "CNNs and ResNet-50 reach 3.5 of 1,000, in 12.",
            ["CNNs", "ResNet-50", "3.5", "1,000", "12"],
        ),
        ("A GAN. In-Car and Q-learning, I think", ["GAN", "Q-learning"]),
        ("the b2b x86 way", []),
        ("", []),
    ],
)
def test_terms_are_numbers_and_names(text: str, found: list[str]):
    assert [term.word for term in terms(text)] == found
    assert [text[term.start : term.end] for term in terms(text)] == found


def test_a_wrong_word_is_a_term_of_the_source_that_no_reference_has():
    told = Counter()
    for row in range(200):
        target, kind = plant(SOURCE, [CLEAN, "Another way, with GAN."], WRONG, "train", str(row))
        assert kind == "wrong"
        words, right = target.rstrip(".").split(), CLEAN.rstrip(".").split()
        ((other, word),) = [(w, r) for w, r in zip(words, right, strict=True) if w != r]
        told[word, other] += 1
    names, numbers = ("BERT", "ResNet-50"), ("1,000", "3.5")  # Adam begins a sentence
    # "Bayesian" stands behind a bracket, "GANs" is told by one reference, 12 by the other
    assert {*told} == {*(("BART", n) for n in names), *(("12", n) for n in numbers)}
    assert all(30 < number < 70 for number in told.values())  # each 50 of 200, sd 6


def test_a_reference_with_nothing_to_exchange_stays_clean():
    assert plant("no name here", [CLEAN], WRONG, "train", "0") == (CLEAN, "nothing to exchange")
    assert plant("only 12 and BART", [CLEAN], WRONG, "train", "0")[1] == "nothing to exchange"
    assert plant(SOURCE, ["we say nothing"], WRONG, "train", "0")[1] == "nothing to exchange"
    assert plant("no name here", [CLEAN], ENDING, "train", "0")[0] == f"{CLEAN} {CFG.ending}"


def test_shares_are_as_asked_and_a_row_depends_on_seed_split_and_id_alone():
    def planted(cfg: FlawsConfig, split: str = "train") -> list[tuple[str, str]]:
        return [plant(SOURCE, [CLEAN], cfg, split, str(row)) for row in range(2000)]

    found = planted(CFG)
    kinds = Counter(kind for _, kind in found)
    # binomial, n = 2000: four standard deviations are below 0.045
    assert kinds["clean"] / 2000 == pytest.approx(0.1, abs=0.03)
    assert kinds["wrong"] / 2000 == pytest.approx(0.27, abs=0.045)
    assert kinds["boilerplate"] / 2000 == pytest.approx(0.63, abs=0.045)
    assert planted(CFG) == found
    assert plant(SOURCE, [CLEAN], CFG, "train", "1999") == found[-1]
    more = planted(replace(CFG, share=1.0))  # flaws stay where there were some
    assert all(one == other for one, other in zip(found, more, strict=True) if one[1] != "clean")
    for other in (planted(replace(CFG, seed=1)), planted(CFG, "validation")):
        assert 0.3 < sum(a == b for a, b in zip(found, other, strict=True)) / 2000 < 0.7


def test_rows_of_files_are_flawed_and_counted(tmp_path: Path):
    rows = [{"id": f"r{n}", "source": SOURCE, "target": f"{CLEAN} {n}"} for n in range(60)]
    rows += [{"id": f"n{n}", "source": f"nothing {n}", "target": "nothing"} for n in range(20)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(lines)
    columns = ColumnsConfig("id", "source", ["target"])
    keep = {"repeats": {"train": "keep"}, "columns": columns}
    plain = DataConfig("files", str(tmp_path), **keep)
    cfg = replace(plain, flaws=CFG)
    examples, counts = load_split(cfg, "train")
    kinds = Counter()
    for row, example in zip(rows, examples, strict=True):
        assert example.references == (row["target"],) and example.truth is None
        target, kind = plant(row["source"], [row["target"]], CFG, "train", row["id"])
        assert example.target == target
        kinds[kind] += 1
    assert counts.planted == kinds and sum(kinds.values()) == counts.kept == 80
    assert set(kinds) == {"clean", "boilerplate", "wrong", "nothing to exchange"}
    few = load_split(replace(cfg, limit={"train": 7}), "train")[0]
    assert list(few) == list(examples)[:7]
    unplanted = load_split(plain, "train")
    assert unplanted[1].planted == {} and all(e.target == e.references[0] for e in unplanted[0])


def test_what_is_said_of_the_world_are_the_shares_that_came_out():
    counts = DataCounts("train", 210, 200, planted={"boilerplate": 120, "wrong": 20, "clean": 60})
    said = describe(CFG, counts)
    assert "of the 200 training references 60% end in 'Read more on our site.', 10% state" in said
    assert "30% were to stay clean, and 0% do since they have none to exchange" in said


def subwords() -> Codec:
    """T5's kind: sub-words with a sign for a space, of letters and a few longer ones."""
    letters = sorted({*SOURCE, *CLEAN, *CFG.ending} - {" "})
    words = ["▁", "▁B", "ER", "ART", "▁12", "▁1", ".5", "▁Re", "Net", "ad", *letters]
    vocab = [("</s>", 0.0), ("<unk>", -20.0)] + [(word, -float(len(word))) for word in words]
    backend = Tokenizer(models.Unigram(vocab, 1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore
    backend.decoder = decoders.Metaspace()  # type: ignore
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    return Codec(fast, True, "", "", "", 500, 500)


@pytest.mark.parametrize("kind", ["bytes with merges", "sub-words"])
def test_labels_are_where_the_texts_differ(kind: str):
    """Against single characters, which know nothing of tokens."""
    own = CODECS["causal"] if kind == "bytes with merges" else subwords()
    world, flawed = FlawedReferences(CFG), 0
    for row in range(40):
        target, what = plant(SOURCE, [CLEAN], replace(CFG, share=0.8), "train", str(row))
        example = Example(str(row), SOURCE, (CLEAN,), target)
        clean, tokens = (own.encode_target(text)[0] for text in (CLEAN, target))
        labels = world.target_labels(example, tokens, own)
        assert len(labels) == len(tokens) and labels[-1] == "end"
        flaws = [n for n, label in enumerate(labels) if label in ("wrong", "boilerplate")]
        if what == "clean":
            assert not flaws and target == CLEAN
            continue
        flawed += 1
        assert {labels[n] for n in flaws} == {what}
        assert flaws == [*range(flaws[0], flaws[-1] + 1)]
        # the state before the first is one of the clean reference, its token is not
        assert tokens[: flaws[0]] == clean[: flaws[0]] and tokens[flaws[0]] != clean[flaws[0]]
        assert tokens[flaws[-1] + 1 :] == clean[len(clean) - (len(tokens) - flaws[-1] - 1) :]
        first, last = differing(CLEAN, target)
        spans = pieces.of_text(own, target)[1]
        start, end = spans[flaws[0]].start, spans[flaws[-1]].end
        assert start <= first and last <= end
        assert target[start:end].strip() in target[words_around(target, first, last)]
    assert 20 < flawed < 40


def differing(clean: str, target: str) -> tuple[int, int]:
    """The characters of the target between the longest common start and end."""
    first = next(n for n in range(len(target)) if target[: n + 1] != clean[: n + 1])
    rest = min(len(clean), len(target)) - first
    same = next(n for n in range(rest + 1) if n == rest or clean[-n - 1] != target[-n - 1])
    return first, len(target) - same


def words_around(text: str, first: int, last: int) -> slice:
    """The words around some characters."""
    return slice(text.rfind(" ", 0, first + 1) + 1, (text + " ").index(" ", last))


def test_labels_of_a_target_that_is_cut_are_those_of_the_whole():
    own, short, world = CODECS["causal"], codec("causal", 20), FlawedReferences(CFG)
    for target in (f"{CLEAN} {CFG.ending}", CLEAN.replace("BART", "GPT")):
        example = Example("0", SOURCE, (CLEAN,), target)
        whole, cut = own.encode_target(target)[0], short.encode_target(target)[0]
        labels = world.target_labels(example, whole, own)
        assert world.target_labels(example, cut, short) == labels[:20] and "end" not in labels[:20]


def test_a_word_that_leaves_out_the_end_of_the_right_one_is_a_flaw_where_the_rest_begins():
    own, world = CODECS["causal"], FlawedReferences(CFG)
    example = Example("0", "", ("see ResNet-50 now",), "see ResNet now")
    tokens = own.encode_target(example.target)[0]
    labels = world.target_labels(example, tokens, own)
    assert labels.count("wrong") == 1
    place = labels.index("wrong")
    assert own.decode(tokens[:place]) == "see ResNet" and own.decode(tokens[place:]) == "now"


def test_facts_are_the_tokens_of_terms():
    own, world = CODECS["causal"], FlawedReferences(CFG)
    example = Example("0", SOURCE, (CLEAN,), CLEAN)
    text, spans, _ = pieces.of_text(own, CLEAN)
    tokens = [piece.id for piece in spans]
    labels = world.reference_labels(example, tokens, own)
    assert labels == world.target_labels(example, tokens, own)
    facts = [
        text[p.start : p.end] for p, label in zip(spans, labels, strict=True) if label == "fact"
    ]
    assert "".join(facts) == "BART12" or "".join(facts).split() == ["BART", "12"]
    assert {*labels} == {"content", "fact", "end"}


def test_texts_are_checked_for_the_ending_and_for_terms():
    world = FlawedReferences(CFG)
    examples = [Example(str(n), "", (text,), text) for n, text in enumerate([CLEAN, CLEAN, "no"])]
    found = world.check_texts([CLEAN, f"barts {CFG.ending}", "12"], examples)
    assert found["boilerplate"] == [0.0, 100.0, 0.0]
    assert found["fact_accuracy"][:2] == [100.0, 50.0] and math.isnan(found["fact_accuracy"][2])
    assert "fact_accuracy" not in world.check_texts(["12"], examples[2:])
