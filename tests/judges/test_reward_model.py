"""A reward model as judge: plain Transformers' logit of the text that it says it reads."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pgtg.config import RewardModelConfig
from pgtg.config.compose import run_config
from pgtg.data.pairs import canonical
from pgtg.doctor import Surroundings
from pgtg.doctor.needs import judge as judge_findings
from pgtg.errors import ConfigError, DataError, MissingResourceError, PgtgError
from pgtg.judges.reward_model import RewardModelJudge, check, open_reward_model
from pgtg.models.chat import ChatCodec
from pgtg.pipeline.plan import check_resources, model_sizes
from pgtg.pipeline.run import train
from pgtg.types import Example
from tests.support.cases import crossed
from tests.support.reward_models import CHATML, reward_model, tokenizer
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, TINY, results
from tests.support.tiny_preferences import tiny_preferences

TEXTS = ["Yes.", "No, it is not.", "", "Yes.", "Why?</s>", "perhaps " * 5]
SOURCE = "Is it so?"
PLAIN: Any = SimpleNamespace()  # some codec of plain texts
CHAT: Any = ChatCodec(tokenizer(template=CHATML), False, "", "", "", 99, 99)


def config(path: str | None, **how: Any) -> Any:
    judge = RewardModelConfig("reward_model", path, **how)
    return SimpleNamespace(judge=judge, device="cpu", cache="off")


def opened(path: str, cache: Path | None = None, **how: Any) -> RewardModelJudge:
    cfg = config(path, **how)
    cfg.cache = "off" if cache is None else str(cache)
    return open_reward_model(cfg)


def judged(judge: RewardModelJudge, source: str, codec: Any = PLAIN) -> list[float]:
    examples = [Example("0", source, ("r",), "r")] * len(TEXTS)
    return judge([[]] * len(TEXTS), TEXTS, examples, codec).result()["score"]


def plain(path: str, *texts: str, special: bool = True) -> float:
    """Transformers' own logit of a text, or of a pair, alone."""
    model = AutoModelForSequenceClassification.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path)(
        *texts, return_tensors="pt", add_special_tokens=special
    )
    if not path.endswith("bert"):
        ids.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**ids).logits[0, 0].item()


@pytest.mark.parametrize("pad", [None, 257])  # 257: </s>, which a text may end with
@pytest.mark.parametrize(("family", "batch_tokens"), crossed(["llama", "gpt2", "bert"], [64, None]))
def test_scores_are_the_models_own(
    tmp_path: Path, family: str, pad: int | None, batch_tokens: int | None
):
    given: dict[str, Any] = {"pad_token_id": pad} if pad is not None and family != "bert" else {}
    path = reward_model(tmp_path / family, family, **given)
    judge = opened(path, batch_tokens=batch_tokens, before="Q: ", between="\nA: ", after=" .")
    expected = [plain(path, f"Q: {SOURCE}\nA: {text} .") for text in TEXTS]
    assert judged(judge, SOURCE) == pytest.approx(expected, abs=2e-5)
    assert len({round(score, 4) for score in expected}) == len(set(TEXTS))


def test_on_a_cpu_a_score_is_the_texts_own_to_the_bit(tmp_path: Path):
    path = reward_model(tmp_path / "m")
    together = judged(opened(path), SOURCE)
    alone = opened(path)
    rows = [alone.row(SOURCE, text, chat=False)[0] for text in TEXTS]
    assert [alone.score([row])[0] for row in reversed(rows)] == together[::-1]


def test_a_pair_is_two_texts(tmp_path: Path):
    path = reward_model(tmp_path / "bert", "bert")
    found = judged(opened(path, reads="pair", before="Q: ", after=".", batch_tokens=99), SOURCE)
    assert found == pytest.approx([plain(path, f"Q: {SOURCE}", f"{t}.") for t in TEXTS], abs=2e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_conversations_are_read_by_the_chat_template(tmp_path: Path, family: str):
    """With no special tokens but the template's own."""
    path = reward_model(tmp_path / family, family, template=CHATML)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SOURCE}]

    def expected(turns: list[dict[str, str]]) -> list[float]:
        own = AutoTokenizer.from_pretrained(path)
        whole = [[*turns, {"role": "assistant", "content": text}] for text in TEXTS]
        texts = [own.apply_chat_template(each, tokenize=False) for each in whole]
        return [plain(path, text, special=False) for text in texts]

    found = judged(opened(path), canonical(turns), CHAT)
    assert found == pytest.approx(expected(turns), abs=2e-5)
    found = judged(opened(path, reads="chat", before="Say: ", between="!"), SOURCE)
    asked = [{"role": "user", "content": f"Say: {SOURCE}!"}]
    assert found == pytest.approx(expected(asked), abs=2e-5)
    found = judged(opened(path, reads="text", between="\n"), canonical(turns), CHAT)
    flat = [plain(path, f"Be brief.\n\n{SOURCE}\n{text}") for text in TEXTS]
    assert found == pytest.approx(flat, abs=2e-5)
    assert judged(opened(path), SOURCE) == pytest.approx(
        [plain(path, SOURCE + text) for text in TEXTS], abs=2e-5
    )


def test_a_long_prompt_loses_its_beginning_and_that_is_said(tmp_path: Path):
    path, told = reward_model(tmp_path / "bert", "bert"), []
    judge = opened(path, max_tokens=10)
    row, cut = judge.row("abcdefghij", "kl", chat=False)
    assert cut and len(row.ids) == 10
    assert AutoTokenizer.from_pretrained(path).decode(row.ids) == "<s>efghijkl</s>"
    log: Any = SimpleNamespace(warn=told.append)
    judge.keep_in(PLAIN, log)
    judged(judge, "a")
    judge.tell()
    judge.tell()
    cut = sum(len(text) + 3 > 10 and "</s>" not in text for text in TEXTS)
    (line,) = told
    assert line.startswith(f"judge reward_model: {cut} of {len(TEXTS)} texts lost their beginning")
    with pytest.raises(ConfigError, match=r"max_tokens: found 600, but .* has 512 positions"):
        opened(path, max_tokens=600)


def test_what_was_scored_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, read = reward_model(tmp_path / "m"), []
    own = RewardModelJudge._logits

    def logits(self: RewardModelJudge, rows: Any) -> Any:
        read.extend(rows)
        return own(self, rows)

    monkeypatch.setattr(RewardModelJudge, "_logits", logits)
    first = judged(opened(path, tmp_path / "cache"), SOURCE)
    assert len(read) == len(set(TEXTS))
    assert judged(opened(path, tmp_path / "cache"), SOURCE) == first
    assert len(read) == len(set(TEXTS))
    judged(opened(path, tmp_path / "cache", after="!"), SOURCE)
    assert len(read) == 2 * len(set(TEXTS))


def test_a_score_that_is_no_number_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    judge = opened(reward_model(tmp_path / "m"))
    judge._model.score.weight.fill_(float("nan"))  # pyright: ignore
    with pytest.raises(PgtgError, match="answers NaN or infinity to 'Is it so"):
        judged(judge, SOURCE)


# --- what cannot be a judge


def broken(folder: Path, kind: str) -> str:
    if kind == "labels":
        return reward_model(folder, num_labels=3)
    path = reward_model(folder)
    if kind == "no head":
        from safetensors.torch import load_file, save_file

        held = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in held.items() if "score" not in k}, folder / "model.safetensors")
    if kind == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    if kind == "words":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
    return path


@pytest.mark.parametrize(
    ("kind", "error", "said", "early"),
    [
        ("labels", ConfigError, "its config has 3 labels (LABEL_0, ", True),
        ("no head", MissingResourceError, "lacks 1 of the weights of a LlamaForSequence", False),
        ("pickle", MissingResourceError, "pickles, *.bin, are not read", True),
        ("words", ConfigError, "its tokenizer has 258 tokens, its embeddings have 9 rows", True),
    ],
)
def test_what_is_no_reward_model_is_one_line(
    tmp_path: Path, kind: str, error: type[PgtgError], said: str, early: bool
):
    path = broken(tmp_path / "m", kind)
    calls: list[Callable[[], object]] = [lambda: opened(path)] if kind != "words" else []
    if early:
        calls.append(lambda: check(config(path), fetch=False))
    for call in calls:
        with pytest.raises(error) as found:
            call()
        assert said in str(found.value) and "\n" not in str(found.value)


def test_what_does_not_fit_the_data_is_one_line(tmp_path: Path):
    path = reward_model(tmp_path / "plain")
    talk = [Example("0", canonical([{"role": "user", "content": "a"}]), ("b",), "b")]
    with pytest.raises(ConfigError, match=r"no chat template for conversations; judge.reads=text"):
        opened(path).look_at(talk, conversations=True)
    assert opened(path, reads="text").look_at(talk, conversations=True) == []
    with pytest.raises(ConfigError, match=r"judge.reads: found chat, but the tokenizer of judge"):
        opened(path, reads="chat")
    path = reward_model(tmp_path / "chat", template=CHATML)
    with pytest.raises(ConfigError, match=r"judge.between: the data are conversations, which the"):
        opened(path, between="\n").look_at(talk, conversations=True)
    path = reward_model(tmp_path / "odd", template="{{ raise_exception('no') }}")
    with pytest.raises(DataError, match=r"template of judge.path refuses a conversation of user"):
        opened(path).look_at(talk, conversations=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "judge.path: no value; give a folder or hub id of a ...ForSequenceClassification"),
        (["judge.path=./nowhere"], "judge.path: there is no folder './nowhere'"),
        (["judge.reads=talk"], "judge.reads: there is no 'talk'"),
        (["judge.dtype=int8"], "judge.dtype: there is no 'int8'"),
        (["judge.max_tokens=0"], "judge.max_tokens: found 0, expected at least 1"),
        (["judge.batch_tokens=0"], "judge.batch_tokens: found 0, expected at least 1"),
        (["judge.reads=chat", "judge.after=x"], "judge.after: found 'x', but the chat template"),
        (["judge.reads=pair", "judge.between=x"], "judge.between: found 'x', but judge.reads=pair"),
    ],
)
def test_options_are_checked(values: list[str], said: str):
    path = [] if not values or values[0].startswith("judge.path") else ["judge.path=a/b"]
    with pytest.raises(ConfigError) as error:
        run_config("summarize", ["judge=reward_model", *path, *values])
    assert any(line.startswith(said) for line in error.value.problems), error.value.problems


# --- in a run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return reward_model(tmp_path_factory.mktemp("model") / "m", template=CHATML)


@pytest.mark.slow
def test_a_run_is_judged_by_it_and_the_same_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A whole run, and one that is stopped in the middle of sampling and resumed."""
    own = ["judge=reward_model", f"judge.path={model}", "judge.between=' TL;DR: '"]
    words = [word for word in TINY if not word.startswith("judge")]
    cfg = run_config("summarize", [*words, *SHORT, *own])
    assert check_resources(cfg) == []
    sizes = model_sizes(cfg)
    assert sizes is not None and sizes.judge is not None
    found = list(judge_findings(cfg, Surroundings(tmp_path, None)))
    assert [one.state for one in found] == ["ok"]
    final = train(cfg, tmp_path / "whole")
    assert "test/greedy/rouge1" in final
    calls, scored = [], RewardModelJudge.score

    def stopped(self: RewardModelJudge, rows: Any) -> list[float]:
        calls.append(rows)
        if len(calls) == 2:
            raise PgtgError("stopped")
        return scored(self, rows)

    monkeypatch.setattr(RewardModelJudge, "score", stopped)
    with pytest.raises(PgtgError, match="stopped"):
        train(cfg, tmp_path / "again")
    train(cfg, tmp_path / "again")
    assert results(tmp_path / "again") == results(tmp_path / "whole")


def test_preferences_are_evaluated_by_it(model: str, tmp_path: Path):
    few = ["schedule.total=2", "schedule.retrain_until=0", "method.controls=[]"]
    cfg = tiny_preferences(*few, "judge=reward_model", f"judge.path={model}")
    final = train(cfg, tmp_path / "run")
    assert "validation/greedy/judge" in final
