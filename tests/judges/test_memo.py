"""The memo: the classifier's bits, each prompt asked once, whatever happens to the file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtg.judges.classifier import Classifier
from pgtg.judges.memo import Counts, Memo, PromptScores, key_of
from pgtg.judges.rendering import Prompt, Template
from tests.support.classifiers import MAX_TOKENS, labelled, model, tokenizer, words

TOKENIZER = tokenizer("llama")
MODEL = model("llama", len(TOKENIZER))
EXAMPLES = labelled("the film", "it was good", "")
A, B, C = Prompt("It was"), Prompt("Grade"), Prompt("x", ids=(5, 9))
SHAPE = (2, 3)


def classifier(mode: str = "piecewise", **how: Any) -> Classifier:
    template = Template.parse("{sentence} {prompt}")
    how = {"rendering": mode, "max_tokens": MAX_TOKENS, **how}
    return Classifier(MODEL, TOKENIZER, template, words("llama"), **how)


def array(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


class Told(list[str]):
    """Warnings given."""

    def __call__(self, text: str) -> None:
        self.append(text)


# --- scores and counts


@pytest.mark.parametrize("stored", [True, False])
def test_memoised_scores_are_the_classifiers_bits(tmp_path: Path, stored: bool):
    folder = tmp_path if stored else None
    first = PromptScores(classifier(), folder)
    direct = np.stack([classifier().log_probs(p, EXAMPLES) for p in (A, B, C)])
    for scores in (first, first, PromptScores(classifier(), folder)):
        found = scores([A, B, C], "train", EXAMPLES)
        assert found.dtype == np.float32 and (found == direct).all()
        assert scores.counts("train").judged_prompts == 3
        assert scores.counts("train").judged_sequences == 9
    assert first.counts() == Counts(3, 9, 3, 9)
    again = PromptScores(classifier(), folder)
    again([A, B], "train", EXAMPLES)
    assert again.counts() == (Counts(2, 6, 0, 0) if stored else Counts(2, 6, 2, 6))


@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([A, B, C]), max_size=5), min_size=1, max_size=4),
    st.booleans(),
)
@pytest.mark.slow
def test_counts_do_not_depend_on_the_memo_nor_scores_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Prompt]], known: bool
):
    folder = tmp_path_factory.mktemp("memo")
    direct = {prompt: classifier().log_probs(prompt, EXAMPLES) for prompt in (A, B, C)}
    if known:
        PromptScores(classifier(), folder)([A, B, C], "any", EXAMPLES)
    scores = PromptScores(classifier(), folder)
    for batch in batches:
        found = scores(batch, "train", EXAMPLES)
        assert all((row == direct[p]).all() for row, p in zip(found, batch, strict=True))
    distinct = len({prompt for batch in batches for prompt in batch})
    assert (scores.judged_prompts, scores.judged_sequences) == (distinct, 3 * distinct)
    assert scores.computed_sequences == (0 if known else 3 * distinct)


def test_each_split_counts_its_own_and_totals_add_up(tmp_path: Path):
    scores = PromptScores(classifier(), tmp_path)
    scores([A, B], "train", EXAMPLES)
    scores([A], "dev", EXAMPLES[:2])
    assert scores.counts("train") == Counts(2, 6, 2, 6)
    assert scores.counts("dev") == Counts(1, 2, 1, 2)
    assert scores.counts() == Counts(3, 8, 3, 8) and scores.counts("test") == Counts(0, 0, 0, 0)


def test_prompts_are_one_where_the_classifier_reads_the_same():
    """By ids where they are read, by text where it is."""
    twins = [Prompt("x", (5, 9)), Prompt("y", (5, 9))]
    pieces, whole = PromptScores(classifier(), None), PromptScores(classifier("string"), None)
    pieces(twins, "train", EXAMPLES)
    whole(twins, "train", EXAMPLES)
    assert (pieces.judged_prompts, whole.judged_prompts) == (1, 2)


def test_other_texts_demonstrations_or_classifiers_are_other_memos(tmp_path: Path):
    demos = [labelled("bad"), labelled("good"), labelled("film")]
    for judge, examples, shown in [
        (classifier(), EXAMPLES, None),
        (classifier(), EXAMPLES[:2], None),
        (classifier(), EXAMPLES, demos),
        (classifier("string"), EXAMPLES, None),
        (classifier(readout="calibrated"), EXAMPLES, None),
    ]:
        scores = PromptScores(judge, tmp_path)
        found = scores([A], "train", examples, shown)
        assert (found[0] == judge.log_probs(A, examples, shown)).all()
        assert scores.counts().computed_prompts == 1
    assert len(list(tmp_path.glob("*.sqlite"))) == 5


# --- the file


def test_what_was_put_comes_back_to_the_bit_also_odd_prompts(tmp_path: Path):
    odd = [Prompt(""), Prompt("\ud800 \0 'é"), Prompt("1", (1,)), Prompt("1"), Prompt("1", ())]
    for path in (tmp_path / "deep" / "m.sqlite", None):
        memo = Memo(path, SHAPE)
        for seed, prompt in enumerate(odd):
            assert memo.get(key_of(prompt)) is None
            memo.put(key_of(prompt), array(seed))
        for again in (memo, Memo(path, SHAPE)) if path else (memo,):
            for seed, prompt in enumerate(odd):
                found = again.get(key_of(prompt))
                assert found is not None and found.tobytes() == array(seed).tobytes()
    with pytest.raises(ValueError, match="not float32"):
        memo.put(key_of(A), array().astype(np.float64))


def test_what_was_put_is_the_memos_own():
    memo, values = Memo(None, SHAPE), array()
    memo.put(key_of(A), values)
    values[:] = 0
    found = memo.get(key_of(A))
    assert found is not None and (found == array()).all()


def test_a_memo_of_another_shape_knows_nothing(tmp_path: Path):
    Memo(tmp_path / "m.sqlite", SHAPE).put(key_of(A), array())
    assert Memo(tmp_path / "m.sqlite", (3, 3)).get(key_of(A)) is None
    assert Memo(tmp_path / "m.sqlite", (1, 3)).get(key_of(A)) is None


@pytest.mark.parametrize("damage", ["garbage", "header", "middle", "value"])
def test_a_damaged_file_is_set_aside_with_one_line(tmp_path: Path, damage: str):
    path, told = tmp_path / "m.sqlite", Told()
    memo = Memo(path, SHAPE)
    for i in range(200):
        memo.put(key_of(Prompt(str(i))), array(i))
    memo.close()
    content = path.read_bytes()
    at = content.index(array(7).tobytes())
    path.write_bytes(
        {
            "garbage": b"no database at all\n" * 500,
            "header": b"x" * 100 + content[100:],
            "middle": content[:4096] + b"\xff" * (len(content) - 4096),
            "value": content[:at] + b"?" + content[at + 1 :],
        }[damage]
    )
    memo = Memo(path, SHAPE, told)
    assert memo.get(key_of(Prompt("7"))) is None
    memo.put(key_of(Prompt("7")), array(7))
    found = memo.get(key_of(Prompt("7")))
    assert found is not None and (found == array(7)).all()
    aside = list(tmp_path.glob("m.sqlite.damaged-*"))
    if damage == "value":  # that one answer is computed again
        assert told == [] and aside == [] and memo.get(key_of(Prompt("8"))) is not None
    else:
        assert len(told) == 1 and "set aside as m.sqlite.damaged-" in told[0]
        assert "\n" not in told[0] and len(aside) == 1


def test_a_file_damaged_under_two_users_is_set_aside_once(tmp_path: Path):
    """The second one meets the damage in its own open file, and finds the new one in its place."""
    path, told = tmp_path / "m.sqlite", Told()
    memo = Memo(path, SHAPE)
    for i in range(200):
        memo.put(key_of(Prompt(str(i))), array(i))
    memo.close()
    one, other = Memo(path, SHAPE, told), Memo(path, SHAPE, told)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    assert one.get(key_of(Prompt("7"))) is None and len(told) == 1
    one.put(key_of(Prompt("7")), array(7))
    assert other.get(key_of(Prompt("150"))) is None
    found = other.get(key_of(Prompt("7")))
    assert found is not None and (found == array(7)).all()
    assert len(told) == 1 and len(list(tmp_path.glob("m.sqlite.damaged-????????"))) == 1


def test_where_no_file_can_be_the_memo_goes_on_in_memory(tmp_path: Path):
    (tmp_path / "file").write_text("")
    told = Told()
    memo = Memo(tmp_path / "file" / "m.sqlite", SHAPE, told)
    memo.put(key_of(A), array())
    found = memo.get(key_of(A))
    assert found is not None and (found == array()).all()
    assert len(told) == 1 and "stay in memory" in told[0] and "\n" not in told[0]


# --- several processes, and kills

WRITER = """
import sys, numpy as np
from pathlib import Path
from pgtg.judges.memo import Memo, Prompt, key_of
def fail(text): raise SystemExit(text)
memo = Memo(Path(sys.argv[1]), (2, 3), fail)
print("ready", flush=True)
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    values = np.random.default_rng(i).standard_normal((2, 3)).astype(np.float32)
    memo.put(key_of(Prompt(str(i))), values)
    found = memo.get(key_of(Prompt(str(i))))
    assert found is not None and (found == values).all()
"""


def writers(path: Path, ranges: Sequence[tuple[int, int]]) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(a), str(b)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for a, b in ranges
    ]


@pytest.mark.slow
def test_several_processes_share_one_file(tmp_path: Path):
    """Made by all at once, with overlapping prompts; nobody waits in vain and nothing is lost."""
    path = tmp_path / "m.sqlite"
    for process in writers(path, [(0, 150), (100, 250), (200, 300), (0, 300)]):
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    memo = Memo(path, SHAPE, Told())
    for i in range(300):
        found = memo.get(key_of(Prompt(str(i))))
        assert found is not None and (found == array(i)).all()


def test_a_kill_leaves_a_sound_file(tmp_path: Path):
    path, told = tmp_path / "m.sqlite", Told()
    for delay in (0.0, 0.1):
        (process,) = writers(path, [(0, 10**6)])
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        memo = Memo(path, SHAPE, told)
        there = [memo.get(key_of(Prompt(str(i)))) for i in range(50)]
        assert all((f == array(i)).all() for i, f in enumerate(there) if f is not None)
        memo.put(key_of(A), array())
        memo.close()
    assert told == [] and there[0] is not None
