"""Text metrics against hand arithmetic and direct calls of the libraries."""

import math
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import nltk
import pytest
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from safetensors.torch import load_file, save_file

from pgtg.config import MetricsConfig
from pgtg.errors import ConfigError, MissingResourceError, PgtgError
from pgtg.metrics import METRICS, build_metrics, compute, unread
from pgtg.metrics.bertscore import build_bertscore
from pgtg.metrics.chrf import build_chrf
from pgtg.metrics.meteor import (
    _WORDNET_FILES,
    CachedStemmer,
    CachedSynonyms,
    NoSynonyms,
    build_meteor,
    build_meteor_stem,
    require_wordnet,
)
from pgtg.metrics.rouge import TYPES, build_rouge
from pgtg.metrics.sentences import SPLITTERS, build_splitter, split_regex
from pgtg.metrics.words import build_words, without_signs

ASSETS = Path(os.environ.get("PGTG_ASSETS", "/nonexistent"))
TEXTS = [
    "The storm closed the harbour. Boats were waiting outside!",
    "storms close harbours",
    "A U.S. judge, Dr. Smith, ruled on Monday that the firms' merger can go on.",
    "",
    "  \n ",
    "Nothing in common",
    "the the the the",
]
REFERENCES = [
    ["The harbour was closed by a storm. Boats waited outside."],
    ["Storms closed the harbour", "the storm is closing all harbours today"],
    ["Judge Smith ruled that the firms may merge.", "A merger goes on."],
    ["Some reference."],
    ["Some reference."],
    ["Entirely other words."],
    ["the cat and the dog"],
]


def config(*names: str, **more) -> MetricsConfig:
    return MetricsConfig(names=list(names), **{"sentence_splitter": "regex", **more})


class ToyReader:
    """A WordNet of two synonym sets, with a compound that must not match."""

    class _Set(list):
        def lemmas(self):
            return [type("Lemma", (), {"name": lambda _, word=word: word})() for word in self]

    def __init__(self):
        self.calls = 0

    def synsets(self, word):
        self.calls += 1
        sets = [["boat", "ship", "water_craft"], ["close", "shut"], ["ship", "vessel"]]
        return [self._Set(group) for group in sets if word in group]


# --- sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It cost 3.5 million. It sold.", ["It cost 3.5 million.", "It sold."]),
        ("Dr. Smith of the U.S. Navy met J. Doe. He left.", None),
        ("prices rose . more details follow .", ["prices rose .", "more details follow ."]),
        ("He said e.g. this and so on... and went.", None),
        ('"Go!" he said. "Now."', ['"Go!" he said.', '"Now."']),
        ("first line\nsecond line\r\n\nthird", ["first line", "second line", "third"]),
        ("no end", ["no end"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_regex_splitter(text, sentences):
    if sentences is None:  # one sentence, or two where a new one begins with a capital
        parts = split_regex(text)
        assert " ".join(parts) == text
        assert len(parts) == text.count(". He left.") + 1
    else:
        assert split_regex(text) == sentences


def test_splitter_keeps_every_character_but_white_space():
    for text in [t for refs in REFERENCES for t in refs] + TEXTS:
        assert "".join("".join(split_regex(text)).split()) == "".join(text.split())


def test_unknown_splitter_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'punkt'"):
        build_splitter("punk")


@pytest.fixture
def own_punkt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """NLTK's data folder with a punkt_tab that knows one abbreviation."""
    from nltk.tokenize import _get_punkt_tokenizer
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    params = PunktParameters()
    params.abbrev_types = {"approx"}
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    save_punkt_params(params, str(folder))
    _get_punkt_tokenizer.cache_clear()
    yield params
    _get_punkt_tokenizer.cache_clear()


def test_punkt_splits_as_the_installed_model_says(own_punkt):
    """Its sentences go into ROUGE-Lsum and METEOR; ours know another abbreviation."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    text = "It makes approx. Forty tons. Nobody knows why. Mr. Smith does."
    split = SPLITTERS["punkt"]()
    assert split(text) == PunktSentenceTokenizer(own_punkt).tokenize(text)
    assert split(text)[0] == "It makes approx. Forty tons." and "Mr." in split(text)
    assert SPLITTERS["regex"]()(text)[-1] == "Mr. Smith does."
    references = [["Nobody knows why. It makes approx. Forty tons."]]
    found = {}
    for splitter in ("punkt", "regex"):
        metrics, absent = build_metrics(config("rouge", "meteor_stem", sentence_splitter=splitter))
        assert absent == {}
        assert {m.describe()["sentence_splitter"] for m in metrics} == {splitter}
        found[splitter] = compute(metrics, [text], references)
    assert found["punkt"]["rougeL"] == found["regex"]["rougeL"]
    other = "Mr. Smith knows why. Nobody does."
    lines = {name: build_rouge(name).lines(other) for name in found}
    assert lines["punkt"].count("\n") == 2 and lines["regex"].count("\n") == 1


def test_missing_punkt_is_never_replaced(monkeypatch):
    from nltk.tokenize import _get_punkt_tokenizer

    monkeypatch.setattr(nltk.data, "path", [])
    _get_punkt_tokenizer.cache_clear()
    with pytest.raises(MissingResourceError, match=r"nltk.downloader punkt_tab"):
        SPLITTERS["punkt"]()
    metrics, absent = build_metrics(config("rouge", "meteor_stem", sentence_splitter="punkt"))
    assert metrics == []
    assert set(absent) == {"rouge", "meteor_stem"}


# --- METEOR


def test_meteor_stem_by_hand():
    """3 of 3 words match 3 of 4 (one by its stem) in one chunk."""
    precision, recall = 3 / 3, 3 / 4
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    expected = 100 * mean * (1 - 0.5 * (1 / 3) ** 3)
    metric = build_meteor_stem("regex")
    assert metric.pair("The cats sat", ["the cat sat down"]) == pytest.approx(expected, rel=1e-12)


def test_meteor_stem_by_hand_in_two_chunks():
    """ "b c" and "a": 3 matches, 2 chunks; and an empty text has none."""
    expected = 100 * (1 - 0.5 * (2 / 3) ** 3)
    metric = build_meteor_stem("regex")
    assert metric.pair("b c a", ["a b c"]) == pytest.approx(expected, rel=1e-12)
    assert metric.pair("", ["a b c"]) == 0.0
    assert metric.pair("a", ["x", "a"]) == pytest.approx(50.0)  # one word is one whole chunk


def plain_words(text: str) -> list[str]:
    words = NLTKWordTokenizer()
    return [word for sentence in split_regex(text) for word in words.tokenize(sentence)]


def plain_meteor(text: str, references: list[str], wordnet) -> float:
    return 100.0 * meteor_score(
        [plain_words(ref) for ref in references], plain_words(text), wordnet=wordnet
    )


def test_meteor_stem_is_nltk_without_synonyms_in_every_bit():
    metric = build_meteor_stem("regex")
    expected = [plain_meteor(t, r, NoSynonyms()) for t, r in zip(TEXTS, REFERENCES, strict=True)]
    for _ in range(2):  # the second time from the caches
        assert metric.score(TEXTS, REFERENCES)["meteor_stem"] == expected


def test_cached_synonyms_match_as_the_reader_does():
    reader = cast(Any, ToyReader())
    pairs = [
        ("the ship will shut", "a boat will close"),
        ("vessel", "boat"),  # not in one set
        ("vessel ship", "ship vessel"),
        ("water_craft", "boat"),  # a compound is no synonym
    ]
    cached: Any = CachedSynonyms(ToyReader())
    stemmer: Any = CachedStemmer()
    for text, reference in pairs * 2:
        words, other = text.split(), reference.split()
        plain = meteor_score([other], words, wordnet=reader)
        ours = meteor_score([other], words, stemmer=stemmer, wordnet=cached)
        assert ours == plain
    assert meteor_score([["boat"]], ["ship"], wordnet=cached) > 0
    assert cached._reader.calls < reader.calls


def test_missing_wordnet_is_named_with_its_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(MissingResourceError, match=r"nltk.downloader wordnet"):
        build_meteor("regex")
    metrics, absent = build_metrics(config("rouge", "meteor"))
    assert [metric.name for metric in metrics] == ["rouge"]
    assert "NLTK_DATA" in absent["meteor"]


def test_incomplete_wordnet_names_the_file(monkeypatch, tmp_path):
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for name in _WORDNET_FILES:
        (folder / name).touch()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    require_wordnet()
    (folder / "index.sense").unlink()
    with pytest.raises(MissingResourceError, match=r"lacks index.sense"):
        require_wordnet()


def test_zipped_wordnet_is_found(monkeypatch, tmp_path):
    """What `nltk.downloader` leaves on some machines."""
    (tmp_path / "corpora").mkdir()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    for names, complete in ((_WORDNET_FILES, True), (_WORDNET_FILES[1:], False)):
        with zipfile.ZipFile(tmp_path / "corpora" / "wordnet.zip", "w") as file:
            file.writestr("wordnet/", "")
            for name in names:
                file.writestr(f"wordnet/{name}", "")
        if complete:
            require_wordnet()
        else:
            with pytest.raises(MissingResourceError, match="lacks lexnames"):
                require_wordnet()


@pytest.mark.real
@pytest.mark.skipif(not (ASSETS / "nltk_data").is_dir(), reason="set PGTG_ASSETS to try WordNet")
def test_meteor_is_plain_nltk_with_wordnet_in_every_bit(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(ASSETS / "nltk_data")])
    from nltk.corpus import wordnet

    metric = build_meteor("regex")
    expected = [plain_meteor(t, r, wordnet) for t, r in zip(TEXTS, REFERENCES, strict=True)]
    assert metric.score(TEXTS, REFERENCES)["meteor"] == expected
    assert metric.pair("the auto", ["the car"]) > build_meteor_stem("regex").pair(
        "the auto", ["the car"]
    )


# --- ROUGE


def test_rouge_by_hand():
    """Text: 3 words, 2 in the reference of 4; bigrams: 1 of 2 and 3."""
    scores = build_rouge("regex").pair("storms hit Rome", ["a storm hit town"])
    assert scores["rouge1"] == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert scores["rouge2"] == pytest.approx(100 * 2 * 1 / (2 + 3))
    assert scores["rougeL"] == pytest.approx(100 * 2 * 2 / (3 + 4))


def test_rouge_is_rouge_score_in_every_bit():
    plain = RougeScorer(list(TYPES), use_stemmer=True)
    rouge = build_rouge("regex")
    for _ in range(2):  # the second time from the caches
        columns = rouge.score(TEXTS, REFERENCES)
        for row, (text, references) in enumerate(zip(TEXTS, REFERENCES, strict=True)):
            lines = ["\n".join(split_regex(reference)) for reference in references]
            best = plain.score_multi(lines, "\n".join(split_regex(text)))
            assert {c: columns[c][row] for c in TYPES} == {
                c: 100.0 * best[c].fmeasure for c in TYPES
            }


def test_rouge_l_and_lsum_differ_when_sentences_change_places():
    """One sequence keeps one sentence only; sentence by sentence, everything is found."""
    scores = build_rouge("regex").pair("Bees sting. Ants bite.", ["Ants bite. Bees sting."])
    assert scores["rougeLsum"] == pytest.approx(100.0)
    assert scores["rougeL"] == pytest.approx(50.0)


def test_rouge_lsum_splits_the_text_as_well_as_the_reference():
    """One sentence of the reference is found in two of the text, whatever their order."""
    scores = build_rouge("regex").pair("Bees sting. Ants bite.", ["Ants bite bees sting."])
    assert scores["rougeLsum"] == pytest.approx(100.0)


def test_each_rouge_column_takes_its_own_best_reference():
    references = ["d c b a", "a b"]
    scores = build_rouge("regex").pair("a b c d", references)
    assert scores["rouge1"] == pytest.approx(100.0)  # by the first
    assert scores["rouge2"] == pytest.approx(100 * 2 * 1 / (3 + 1))  # by the second


# --- BERTScore


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A BERT of two layers and 16 positions with random weights, saved as Transformers does."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz."]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # with no limit: 1e30
    return folder


WORDY = ["a cat sat", "b d e f g", "same text", "", "x y z"]
WORDY_REFERENCES = [["a cat sat there", "dog"], ["g f e"], ["same text"], ["a b"], ["z", "x y"]]


@pytest.mark.parametrize("layers", [1, 2])
def test_bertscore_is_that_of_the_package(tiny_bert, layers: int):
    """Against BERTScorer.score; float32 sums in another batch shape differ by about 1e-7."""
    from bert_score import BERTScorer

    ours = build_bertscore(str(tiny_bert), layers, "cpu").score(WORDY, WORDY_REFERENCES)
    scorer: Any = BERTScorer(
        str(tiny_bert), num_layers=layers, device="cpu", use_fast_tokenizer=True
    )
    scorer._tokenizer.model_max_length = 16  # without a limit bert-score overflows
    full = [row for row in range(len(WORDY)) if WORDY[row]]
    f1 = scorer.score([WORDY[row] for row in full], [WORDY_REFERENCES[row] for row in full])[2]
    expected = dict(zip(full, (100 * f1).tolist(), strict=True))
    assert ours["bertscore_f1"] == pytest.approx(
        [expected.get(row, 0.0) for row in range(len(WORDY))], abs=1e-4
    )
    assert ours["bertscore_f1"][2] == pytest.approx(100.0, abs=1e-4)


def test_bertscore_counts_the_texts_it_cuts(tiny_bert):
    metric = build_bertscore(str(tiny_bert), 1, "cpu")
    assert metric.describe()["truncated_texts"] == 0
    long, kept = "a " * 30, "a " * 14  # 14 words and two frame tokens just fit 16 positions
    scores = metric.score([long, kept, long], [["a b"], ["a b"], ["b"]])["bertscore_f1"]
    assert metric.describe()["truncated_texts"] == 1
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)  # what is over the limit is not read


def test_bertscore_does_not_depend_on_what_it_is_scored_with(tiny_bert):
    """One at a time, in any order: to the bit where a text pads nobody, else by float32 sums."""
    metric = build_bertscore(str(tiny_bert), 2, "cpu")
    together = metric.score(WORDY, WORDY_REFERENCES)["bertscore_f1"]
    pairs = list(zip(WORDY, WORDY_REFERENCES, strict=True))[::-1]
    alone = [metric.score([text], [others])["bertscore_f1"][0] for text, others in pairs]
    assert alone[::-1] == pytest.approx(together, abs=1e-4)


def test_bertscore_needs_the_models_own_tokenizer(tiny_bert, tmp_path):
    """Transformers makes up an empty one, by which all texts are alike and score 100."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny_bert / name).read_bytes())
    with pytest.raises(ConfigError, match=r"bertscore_model=.*no tokens but special ones"):
        build_metrics(config("bertscore", bertscore_model=str(bare), bertscore_layers=2))


def test_bertscore_options_and_absence(tiny_bert, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="go together"):
        build_metrics(config("bertscore", bertscore_model=str(tiny_bert)))
    with pytest.raises(ConfigError, match="layers 1 to 2"):
        build_metrics(config("bertscore", bertscore_model=str(tiny_bert), bertscore_layers=3))
    missing = config("bertscore", bertscore_model=str(tmp_path / "no"), bertscore_layers=2)
    assert "no folder" in build_metrics(missing)[1]["bertscore"]
    empty = config("bertscore", bertscore_model=str(tmp_path), bertscore_layers=2)
    assert "no config.json" in build_metrics(empty)[1]["bertscore"]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    reason = build_metrics(config("bertscore"))[1]["bertscore"]
    assert "metrics.bertscore_layers=n" in reason
    assert "hf download roberta-large" in reason


def test_bertscore_refuses_missing_weights_but_not_a_missing_pooler(tiny_bert, tmp_path):
    for name in ("pooler.", "encoder.layer.1."):
        folder = Path(shutil.copytree(tiny_bert, tmp_path / name))
        weights = load_file(folder / "model.safetensors")
        kept = {key: value for key, value in weights.items() if not key.startswith(name)}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    whole = build_bertscore(str(tiny_bert), 2, "cpu").score(WORDY, WORDY_REFERENCES)
    bare = build_bertscore(str(tmp_path / "pooler."), 2, "cpu")
    assert bare.score(WORDY, WORDY_REFERENCES) == whole
    lacking = build_bertscore(str(tmp_path / "encoder.layer.1."), 2, "cpu")
    with pytest.raises(MissingResourceError, match="which would be random"):
        lacking.score(WORDY, WORDY_REFERENCES)


@pytest.mark.real
@pytest.mark.skipif(not (ASSETS / "minilm").is_dir(), reason="set PGTG_ASSETS to try MiniLM")
def test_bertscore_with_minilm():
    metric = build_bertscore(str(ASSETS / "minilm"), 6, "cpu")
    texts = ["The harbour was shut by a storm.", "Prices of wheat rose.", ""]
    references = [["A storm closed the port."], ["A storm closed the port."], ["A storm."]]
    near, far, empty = metric.score(texts, references)["bertscore_f1"]
    assert 100 > near > far > 0
    assert empty == 0.0


# --- the table


def test_every_metric_in_the_table_says_what_its_numbers_depend_on():
    metrics, absent = build_metrics(config(*METRICS))
    assert {metric.name for metric in metrics} | set(absent) == set(METRICS)
    for metric in metrics:
        description = metric.describe()
        assert description["scale"] == "[0, 100]"
        assert "implementation" in description
        whole = metric.name in ("bertscore", "chrf")  # they read a text as it is
        assert whole or description["sentence_splitter"] == "regex"


def test_unknown_metrics_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        build_metrics(config("rogue", "meteor_stems", "rouge"))
    assert len(caught.value.problems) == 2
    assert "did you mean 'rouge'" in caught.value.problems[0]
    assert "did you mean 'meteor_stem'" in caught.value.problems[1]


def test_compute_gives_columns_per_example():
    metrics, _ = build_metrics(config("rouge", "meteor_stem", "rouge"))
    columns = compute(metrics, TEXTS, REFERENCES)
    assert list(columns) == [*TYPES, "meteor_stem"]
    for scores in columns.values():
        assert len(scores) == len(TEXTS)
        assert all(0 <= score <= 100 for score in scores)
        assert scores[3] == scores[4] == 0.0  # the empty texts


def test_compute_refuses_a_score_that_is_not_finite(monkeypatch):
    metrics, _ = build_metrics(config("meteor_stem"))
    monkeypatch.setattr(type(metrics[0]), "pair", lambda *_: float("nan"))
    with pytest.raises(PgtgError, match=r"meteor_stem.*example 0 is nan"):
        compute(metrics, ["a"], [["a"]])


ZH, RU, TH = "今天天气很好，我们去公园", "Сегодня хорошая погода", "วันนี้อากาศดี"


@pytest.mark.parametrize("text", [ZH, RU, TH])
def test_rouge_of_a_script_that_it_does_not_read_is_no_number(text: str):
    rouge = build_rouge("regex")
    assert all(math.isnan(value) for value in rouge.pair(text, [text]).values())
    assert rouge.score([text], [[text]])["rouge1"] == [0.0]  # in a table: counted, see `unread`
    assert rouge.unread([text]) == 1.0
    assert rouge.pair("", ["..."])["rouge1"] == 0.0  # nothing to read is no such script
    for name in ("char", "word_boundaries"):
        other = build_rouge("regex", tokenizer=name)
        assert other.pair(text, [text])["rougeLsum"] == pytest.approx(100.0)
        assert other.unread([text]) == 0.0
        assert other.describe()["tokenizer"] == name


def test_share_of_letters_that_are_not_read_by_hand():
    rouge, meteor = build_rouge("regex"), build_meteor_stem("regex")
    assert rouge.unread(["ab 12, é!"]) == pytest.approx(1 / 5)  # 5 letters and digits
    assert rouge.unread(["..."]) == 0.0
    assert meteor.unread([RU, "café"]) == 0.0  # it cuts at spaces
    assert meteor.unread(["今天 ab"]) == pytest.approx(1 / 2)
    assert unread([rouge, meteor], [["今天 ab"], ["cd ef"]]) == pytest.approx(
        {"rouge": 2 / 8, "meteor_stem": 2 / 8}
    )


def test_tokenizers_by_hand():
    char, words = build_words("char"), build_words("word_boundaries")
    assert char and words and build_words("default") is None
    assert char("今天, Ab") == ["今", "天", ",", "a", "b"]
    assert char("วั") == ["วั"]  # a letter with its mark
    assert words("Don't stop 3.14 今天") == ["don't", "stop", "3.14", "今", "天"]
    assert without_signs(words)("Hi, there!") == ["hi", "there"]
    with pytest.raises(ConfigError, match="word_boundaries"):
        build_words("word_boundary")


def test_rouge_of_characters_against_the_definition():
    """今天好 against 今天很好: 3 of 3 and 3 of 4 unigrams, 1 of 2 and 1 of 3 bigrams."""
    scores = build_rouge("regex", tokenizer="char").pair("今天好", ["今天很好"])
    assert scores["rouge1"] == pytest.approx(100 * 2 * 3 / (3 + 4))
    assert scores["rouge2"] == pytest.approx(100 * 2 * 1 / (2 + 3))
    assert scores["rougeL"] == pytest.approx(100 * 2 * 3 / (3 + 4))


def test_meteor_of_characters_sees_a_common_part():
    whole = build_meteor_stem("regex").pair("今天好", ["今天很好"])
    chars = build_meteor_stem("regex", "char").pair("今天好", ["今天很好"])
    assert whole == 0.0  # each text is one word
    precision, recall, chunks, matches = 1.0, 3 / 4, 2, 3
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert chars == pytest.approx(100 * mean * (1 - 0.5 * (chunks / matches) ** 3))


def chrf_by_definition(text: str, reference: str) -> float:
    """chrF2, Popović 2015: mean over the orders 1 to 6 that both have of precision and recall."""
    pairs = []
    text, reference = ("".join(t.split()) for t in (text, reference))
    for n in range(1, 7):
        ours, theirs = (
            Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (text, reference)
        )
        if ours and theirs:
            common = (ours & theirs).total()
            pairs.append((common / ours.total(), common / theirs.total()))
    precision, recall = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("pair", [("the cat sat", "a cat sat down"), ("今天好天气", ZH), (RU, RU)])
def test_chrf_against_the_definition(pair: tuple[str, str]):
    chrf = build_chrf()
    assert chrf.pair(pair[0], [pair[1]]) == pytest.approx(chrf_by_definition(*pair), abs=1e-9)
    assert chrf.score([pair[0]], [["x", pair[1]]])["chrf"][0] == chrf.pair(pair[0], [pair[1]])
    assert chrf.pair("", [pair[1]]) == 0.0 and chrf.unread([ZH]) == 0.0
