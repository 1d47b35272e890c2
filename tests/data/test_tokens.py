"""Token ids of a split: as the codec says, made once a run, kept for a resume; rewards of targets
once a round."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pgtg.data import rows, tokens
from pgtg.data.examples import Examples
from pgtg.data.tokens import Tokens, tokenized
from pgtg.errors import ArtifactError
from pgtg.models.codec import Codec
from pgtg.pipeline.context import Context
from pgtg.pipeline.run import train
from pgtg.runs.artifacts import Artifact
from pgtg.runs.log import RunLog
from pgtg.tasks.summarize import SummarizeTask
from pgtg.types import Example
from tests.models.test_codec import codec
from tests.support.tiny import results, tiny

WORDS = ["one", "two", "three", "four", "five"]
CUT = {"max_source_tokens": 6, "max_target_tokens": 4}


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 9, 2 * count)]
    return [
        Example(str(i), texts[2 * i], (texts[2 * i + 1],), texts[2 * i + 1]) for i in range(count)
    ]


def check(found: Tokens, data: list[Example], by: Codec) -> None:
    """Against the codec, one text at a time."""
    sources = [by.encode_source(example.source) for example in data]
    targets = [by.encode_target(example.target) for example in data]
    everything = np.arange(len(data))
    assert list(found.sources(everything)) == [ids for ids, _ in sources]
    assert list(found.targets(everything)) == [ids for ids, _ in targets]
    assert found.source_lengths.tolist() == [len(ids) for ids, _ in sources]
    assert found.target_lengths.tolist() == [len(ids) for ids, _ in targets]
    assert found.source_cut.tolist() == [cut for _, cut in sources]
    assert found.target_cut.tolist() == [cut for _, cut in targets]
    some = found.encoded(np.array([3, 1, 2]))
    assert list(some.ids) == [sources[i][0] for i in (3, 1, 2)]
    assert list(some.ids[1:]) == [sources[i][0] for i in (1, 2)]
    assert some.cut == sum(sources[i][1] for i in (3, 1, 2))


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "llama"])
@pytest.mark.parametrize("spill", [0, rows.SPILL])
def test_tokens_are_the_codecs(family, spill, monkeypatch):
    """In memory and on the disk, over more than one batch of rows."""
    monkeypatch.setattr(rows, "SPILL", spill)
    monkeypatch.setattr(tokens, "BATCH", 7)
    data, made = examples(30), codec(family, **CUT)
    found = tokenized(data, made, contents="")
    assert {*found.source_cut, *found.target_cut} == {True, False}
    check(found, data, made)


def test_ids_of_a_large_vocabulary(monkeypatch):
    made = codec("t5", **CUT)
    monkeypatch.setattr(type(made.tokenizer), "get_vocab", lambda _: {"a": 2**16})
    check(tokenized(examples(9), made, contents=""), examples(9), made)
    assert tokens.schema(made).field("source").type.value_type == "int32"


def test_kept_tokens_are_made_again_for_other_texts_or_another_codec_only(monkeypatch, tmp_path):
    monkeypatch.setattr(tokens, "KEPT_FROM", 5)
    calls = Counter()
    for name in ("encode_sources", "encode_targets"):
        inner = getattr(Codec, name)
        monkeypatch.setattr(
            Codec,
            name,
            lambda self, texts, inner=inner, name=name: (
                calls.update({name: len(texts)}) or inner(self, texts)
            ),
        )
    data, made, place = examples(9), codec("t5", **CUT), Artifact(tmp_path / "train")
    log = RunLog(None, mute=True)

    def tokenise(by: Codec, contents: str) -> int:
        calls.clear()
        found = tokenized(data, by, contents=contents, kept=place, log=log)
        spent = calls["encode_sources"]
        check(found, data, by)
        return spent

    assert tokenise(made, "a") == 10  # one more to tell the codec by
    assert tokenise(made, "a") == 1
    assert tokenise(codec("t5", **CUT), "a") == 1
    assert tokenise(made, "b") == 10
    others = [
        replace(made, prefix="sum "),
        replace(made, max_target_tokens=3),
        codec("bart", **CUT),
    ]
    assert [tokenise(other, "b") for other in others] == [10, 10, 10]
    file = place.file(tokens.FILE)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Exception, match="bytes instead of"):
        tokenise(others[-1], "b")
    tokenized(data[:4], made, contents="a", kept=Artifact(tmp_path / "few"), log=log)
    assert not (tmp_path / "few").exists()


def test_lengths_and_sources_of_the_task():
    task = SummarizeTask(tiny())
    made = task.codec(codec("t5").tokenizer, True)
    source, target = task.lengths("train")
    data = task.examples("train")
    assert source.tolist() == [len(made.encode_source(e.source)[0]) for e in data]
    assert target.tolist() == [len(made.encode_target(e.target)[0]) for e in data]
    for chosen in (data.chosen([4, 2]), list(data.chosen([4, 2]))):
        found = task.sources(chosen, made)
        assert list(found.ids) == [made.encode_source(data[i].source)[0] for i in (4, 2)]


RUN = tiny(
    "method.controls=[shuffled,random_reward_model]",
    "evaluate.diagnose=0",
    "evaluate.decodings=[greedy]",
    "evaluate.start_policy=false",
)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A finished run, the texts that it tokenised, and how many targets it had rewarded when."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PGTG_QUIET", "1")
    patch.setattr(tokens, "KEPT_FROM", 1)
    run = tmp_path_factory.mktemp("counted") / "run"
    made: list[tuple[str, int]] = []
    rewarded: list[int] = []
    batches, per_token = tokens._batches, Context.per_token

    def tokenising(of: Examples, by: Codec):
        made.append((of.split, len(of)))
        return batches(of, by)

    def rewarding(self, value, sources, targets, origin, **how):
        if isinstance(targets, tokens.Ids):
            rewarded.append(len(targets))
        return per_token(self, value, sources, targets, origin, **how)

    patch.setattr(tokens, "_batches", tokenising)
    patch.setattr(Context, "per_token", rewarding)
    train(RUN, run)
    patch.undo()
    return run, made, rewarded


def test_a_run_tokenises_each_split_once(counted):
    _, made, _ = counted
    assert Counter(made) == {("train", 40): 1, ("validation", 12): 1, ("test", 8): 1}


def test_target_rewards_are_computed_once_for_each_reward_model(counted):
    """Two rounds; `pgtg` and `shuffled` share one reward model, the random one is another."""
    run, _, rewarded = counted
    assert rewarded == [8, 8] * 2  # 2 updates of 4 examples
    found = {str(path.relative_to(run)) for path in run.rglob("rewards.arrow")}
    lines = ("rounds", "controls/random_reward_model")
    assert found == {f"{line}/0{i}/targets/rewards.arrow" for line in lines for i in (0, 1)}
    contents = {(run / name).read_bytes() for name in found}
    assert len(contents) == 4


def test_a_resumed_run_makes_neither_again(counted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(counted[0], run)
    shutil.rmtree(run / "controls" / "random_reward_model" / "01" / "improve")
    monkeypatch.setattr(tokens, "KEPT_FROM", 1)
    monkeypatch.setattr(tokens, "write_rows", None)
    monkeypatch.setattr("pgtg.methods.supervised.write_rows", None)
    train(RUN, run)
    assert results(run) == results(counted[0])


def test_rewards_of_another_reward_model_are_not_taken(counted, tmp_path: Path):
    """Rewards that rest on other inputs are made again, though they lie in their place."""
    run = tmp_path / "run"
    shutil.copytree(counted[0], run)
    target, other = (run / "rounds" / round / "targets" for round in ("01", "00"))
    before = (target / "rewards.arrow").read_bytes()
    shutil.rmtree(target)
    shutil.copytree(other, target)
    shutil.rmtree(run / "rounds" / "01" / "improve")
    train(RUN, run)
    assert (target / "rewards.arrow").read_bytes() == before
    assert results(run) == results(counted[0])


def test_damaged_rewards_of_targets_are_named_when_they_are_read(counted, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(counted[0], run)
    shutil.rmtree(run / "rounds" / "01" / "improve")
    file = run / "rounds" / "01" / "targets" / "rewards.arrow"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        train(RUN, run)
    assert str(file) in str(caught.value)
    assert f"delete the folder {file.parent}" in str(caught.value)
    shutil.rmtree(file.parent)
    train(RUN, run)
    assert results(run) == results(counted[0])
