"""A large model as the judge: scores by its answers, what is kept and said, runs it judges."""

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgtg.config import LLMJudgeConfig, RunConfig, endpoints
from pgtg.config.compose import run_config
from pgtg.data.generations import read_generations
from pgtg.errors import ConfigError, DataError, MissingResourceError
from pgtg.explain.gather import Options, gather
from pgtg.judges import endpoint as module
from pgtg.judges.endpoint import GoneError
from pgtg.judges.judge import judged
from pgtg.judges.llm import LLMJudge, check, open_llm
from pgtg.models.chat import ChatCodec
from pgtg.pipeline.run import train
from pgtg.runs.files import read_json
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.types import Example
from tests.support.chat_server import chat_server
from tests.support.forking import Forked
from tests.support.llm_server import KEY, Server, serving, worth
from tests.support.reward_models import CHATML, tokenizer
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, TINY, _quiet, results  # noqa: F401 (a fixture)
from tests.support.tiny_preferences import tiny_preferences

PLAIN: Any = SimpleNamespace()  # some codec of plain texts
CHAT: Any = ChatCodec(tokenizer(template=CHATML), False, "", "", "", 99, 99)
TEXTS = ["abc", "aaa", "abcdef", "ab"]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a key, nobody has named a server, and nobody waits long."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv(endpoints.NAMED, "")
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(module, "MOST_WAIT_S", 0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as own:
        yield own


def config(server: Server, cache: Path | None = None, k: int = 4, **how: Any) -> Any:
    """As much of a run's config as the judge reads."""
    endpoints.allow(server.url)
    given: dict[str, Any] = {"base_url": server.url, "model": "m", "criteria": "letters"} | how
    judge = LLMJudgeConfig("llm", **given)
    cached = "off" if cache is None else str(cache)
    return SimpleNamespace(judge=judge, cache=cached, sample=SimpleNamespace(k=k))


def opened(server: Server, cache: Path | None = None, **how: Any) -> LLMJudge:
    return open_llm(config(server, cache, **how))


def asked(
    judge: LLMJudge,
    texts: Sequence[str] = TEXTS,
    ids: str | None = None,
    source: str = "question",
    codec: Any = PLAIN,
) -> dict[str, list[Any]]:
    """What the judge says of texts, all of one source unless ids name others."""
    examples = [Example(i, source, ("abcd",), "") for i in ids or "0" * len(texts)]
    return judge([[]] * len(texts), texts, examples, codec).result(30)


@pytest.mark.parametrize("swap", [True, False])
def test_a_score_is_the_share_of_the_others_that_are_worse(server: Server, swap: bool):
    found = asked(opened(server, swap=swap))
    assert found == {
        "score": [100.0 * sum(worth(other) < worth(text) for other in TEXTS) / 3 for text in TEXTS],
        "unjudged": [""] * 4,
    }
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    places = [[prompt.index(f"\n{text}\n") for text in TEXTS] for prompt in prompts]
    orders = {tuple(sorted(range(4), key=own.__getitem__)) for own in places}
    assert orders == ({(0, 1, 2, 3), (3, 2, 1, 0)} if swap else {(0, 1, 2, 3)})
    assert all("question" in prompt and "letters" in prompt for prompt in prompts)
    form = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert form["properties"]["ranking"]["items"]["enum"] == ["A", "B", "C", "D"]


def test_a_love_of_the_first_place_cancels_out(server: Server):
    server.biased = True
    assert asked(opened(server))["score"] == [50.0] * 4
    assert asked(opened(server, swap=False))["score"][0] == 100.0


def test_equal_texts_have_one_score_and_a_lone_text_is_ranked_against_the_reference(server: Server):
    found = asked(opened(server), ["abc", "a", "abc", "abcde", "ab", "x", "x"], "0001233")["score"]
    assert found == [100.0, 0.0, 100.0, 100.0, 0.0, 50.0, 50.0]
    assert len(server.bodies) == 6  # nothing is asked of the texts that are one


def test_scores_one_by_one(server: Server):
    judge = opened(server, mode="score")
    assert judge.alone and not opened(server).alone
    assert asked(judge, ["abc", "a", "abc"])["score"] == pytest.approx([3.003, 1.001, 3.003])
    assert len(server.bodies) == 2
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"] == {"type": "number", "minimum": 1.0, "maximum": 10.0}


def test_requests_are_as_the_config_says(server: Server):
    asked(opened(server, json_schema=False, request={"temperature": 0.5, "seed": None}))
    assert {*server.bodies[0]} == {"model", "messages", "temperature"}
    source = json.dumps({"messages": [{"role": "system", "content": "sys"}] * 2, "tools": None})
    asked(opened(server), source=source, codec=CHAT)
    assert server.bodies[-1]["messages"][0]["content"].count("system:\nsys") == 2


def test_no_more_questions_at_once_than_asked_for(server: Server):
    server.mishaps, server.always = ["nap"] * 8, "ok"
    asked(opened(server, mode="score", concurrency=3), list("abcdefgh"))
    assert server.most_at_once == 3


def kept_in(folder: Path) -> tuple[Any, Any, list[str]]:
    """What a judge sees of a run folder and its log, and the log's lines."""
    folder.mkdir(exist_ok=True)
    lines: list[str] = []
    return SimpleNamespace(path=folder), SimpleNamespace(warn=lines.append, say=lines.append), lines


def spoken(server: Server, tmp_path: Path, *mishaps: str, **how: Any) -> tuple[list[Any], str]:
    """The scores of two sources' texts in a run folder, and the log."""
    server.mishaps = list(mishaps)
    folder, log, lines = kept_in(tmp_path / "run")
    judge = opened(server, concurrency=1, swap=False, **how)
    judge.keep_in(folder, log)
    found = asked(judge, ["abc", "a", "xyz", "x"], "0011")
    judge.tell()
    return found["score"], "\n".join(lines)


@pytest.mark.parametrize(
    ("mishaps", "why"),
    [
        (["refusal"], "refused"),
        (["filter"], "refused"),
        (["words"], "refused"),
        (["long"], "too long for the model"),
        (["prose"] * 3, "without an answer that can be used"),
        (["missing", "schema", "empty"], "without an answer that can be used"),
    ],
)
def test_what_is_not_judged_is_counted_and_said(
    server: Server, tmp_path: Path, mishaps: list[str], why: str
):
    scores, log = spoken(server, tmp_path, *mishaps, price_input=10.0, price_output=100.0)
    assert [math.isnan(score) for score in scores] == [True, True, False, False]
    assert f"2 of 4 texts are not judged (2 {why})" in log
    sums = read_json(tmp_path / "run" / "judge.json")
    assert sums["requests"] == len(mishaps) + 1
    assert sums["cost"] == pytest.approx(
        (sums["prompt_tokens"] * 10 + sums["completion_tokens"] * 100) / 1e6
    )


def test_an_answer_that_cannot_be_used_is_asked_for_again(server: Server, tmp_path: Path):
    scores, log = spoken(server, tmp_path, "prose", "missing", "fenced")
    assert scores == [100.0, 0.0, 100.0, 0.0] and "not judged" not in log
    assert "4 requests to m in this run, 400 tokens read and 28 written" in log


def test_answers_are_kept_and_the_key_is_not(server: Server, tmp_path: Path):
    server.always = "echo"  # the server tells the key back
    first = asked(opened(server, tmp_path / "cache"))
    count = len(server.bodies)
    again = opened(server, tmp_path / "cache", retries=1, concurrency=1)
    assert asked(again) == first and len(server.bodies) == count == 2
    asked(opened(server, tmp_path / "cache", criteria="others"))
    assert len(server.bodies) == 4
    assert not holding(tmp_path, KEY)
    assert KEY not in json.dumps(dict(again.describe()))


def holding(folder: Path, text: str) -> list[Path]:
    """The files that hold a text."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    return [path for path in found if text.encode() in path.read_bytes()]


def test_after_a_failure_nothing_else_is_asked(server: Server):
    server.always = "401"
    judge = opened(server, mode="score", concurrency=1)
    with pytest.raises(ConfigError, match="answers 401"):
        asked(judge, list("abcdefgh"))
    assert len(server.bodies) == 1


def test_closing_waits_for_nobody(server: Server):
    server.always = "slow"
    judge = opened(server, mode="score", concurrency=1)
    found = judge([[]] * 2, ["a", "b"], [Example("0", "s", ("r",), "")] * 2, PLAIN)
    began = time.monotonic()
    judge.close()
    assert time.monotonic() - began < 5 and not found.done()


# --- the template


def test_a_template_of_ones_own(server: Server, tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{{ source }}|{{ criteria }}|{{ references[0] }}|{{ labels | length }}"
        '{% for t in texts %}<answer label="{{ t.label }}">\n{{ t.text }}\n</answer>{% endfor %}'
        '"ranking"'
    )
    judge = opened(server, template=str(path))
    assert asked(judge, ["{{ a }}", "b"])["score"] == [100.0, 0.0]
    assert server.bodies[0]["messages"][0]["content"].startswith("question|letters|abcd|2<answer")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for t in texts %}{{ t.label }}{% endfor %}", "leaves out the first text of 2"),
        ("{{ texts[0].text }}", "leaves out the second text of 2"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{% for %}", "line 1: "),
        ("{{ texts.__class__.__mro__ }}", "unsafe"),
        (None, "there is no file"),
    ],
)
def test_a_template_that_cannot_be_used(
    server: Server, tmp_path: Path, text: str | None, said: str
):
    path = tmp_path / "own.jinja"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        opened(server, template=str(path))
    assert str(error.value).startswith("judge.template: ") and "\n" not in str(error.value)


def test_a_run_is_not_resumed_with_another_template(server: Server, tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text("{% for t in texts %}{{ t.text }}{% endfor %}")
    folder, log, _ = kept_in(tmp_path / "run")
    opened(server, template=str(path)).keep_in(folder, log)
    path.write_text("{% for t in texts %}{{ t.text }}!{% endfor %}")
    with pytest.raises(ConfigError, match="is not the text that the run in"):
        opened(server, template=str(path)).keep_in(folder, log)


# --- before a run


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["judge.base_url=null"], "judge.base_url: no value; give the server's address"),
        (["judge.base_url=localhost:1"], "judge.base_url: found 'localhost:1', expected an addr"),
        (["judge.base_url='http://me:sk-1@x/v1'"], "judge.base_url: it holds a name or password"),
        (["judge.base_url='http://x/v1?key=1'"], "judge.base_url: an address ends with its path"),
        (["judge.model=null"], "judge.model: no value"),
        (["judge.key_env=sk-1234"], "judge.key_env: expected the name of a variable"),
        (["judge.mode=pairs"], "judge.mode: "),
        (["judge.lowest=10"], "judge.highest: found 10.0, expected above judge.lowest=10.0"),
        (["+judge.request.stream=true"], "judge.request.stream: the judge sets it itself"),
        (["+judge.request.api_key=sk-1"], "judge.request.api_key: secrets stand in no config"),
        (["judge.concurrency=0"], "judge.concurrency: "),
    ],
)
def test_options_are_checked(values: list[str], said: str):
    own = ["judge=llm", "judge.base_url=http://localhost:1/v1", "judge.model=m"]
    with pytest.raises(ConfigError) as error:
        run_config("summarize", [*own, *values])
    assert any(line.startswith(said) for line in error.value.problems), error.value.problems
    assert "sk-1" not in str(error.value)


def test_what_is_missing_is_one_line(server: Server, monkeypatch: pytest.MonkeyPatch):
    assert check(config(server), fetch=True) == []
    with pytest.raises(ConfigError, match=r"sample\.k: found 27, but judge\.mode=rank"):
        check(config(server, k=27), fetch=False)
    remote = SimpleNamespace(url="http://judge.example/v1")
    assert "without encryption" in check(config(remote), fetch=False)[0]  # pyright: ignore
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(MissingResourceError, match=r"judge\.key_env: \$OPENAI_API_KEY is not set"):
        check(config(server), fetch=False)
    assert check(config(server, key_env=None), fetch=True) == []
    with serving() as gone:
        pass
    with pytest.raises(GoneError, match="no answer after 1 try"):
        check(config(gone, key_env=None), fetch=True)


def test_nothing_is_sent_to_a_server_that_a_run_folder_names(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Only to one that this user has named."""
    cfg = config(server)
    monkeypatch.setenv(endpoints.NAMED, "http://another/v1")
    with pytest.raises(ConfigError, match=f"the run folder names {server.url}"):
        open_llm(cfg)
    assert server.keys == []


# --- in a run


def run_of(server: Server, cache: Path, *more: str) -> RunConfig:
    own = [
        "judge=llm",
        f"judge.base_url={server.url}",
        "judge.model=m",
        f"cache={cache}",
        "judge.concurrency=1",
    ]
    words = [word for word in TINY if not word.startswith(("judge", "cache"))]
    return run_config("summarize", [*words, *SHORT, *own, "judge.retries=6", *more])


MISHAPS = ["429", "500", "cut", "drop", "garbage", "prose", "echo", "fenced", "refusal"]


@pytest.mark.slow
def test_a_run_is_judged_by_it_and_resumes_when_the_server_is_back(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Among mishaps that pass; the same where it goes in the middle of sampling and comes back."""
    server.mishaps = [*MISHAPS]
    final = train(run_of(server, tmp_path / "first"), tmp_path / "whole")
    assert "test/greedy/rouge1" in final
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "3 of 24 texts are not judged (3 refused)" in log
    asked = len(server.bodies)

    server.bodies.clear()
    server.mishaps, server.always = [*MISHAPS, "ok", "ok"], "500"
    cfg = run_of(server, tmp_path / "second")
    with pytest.raises(GoneError, match=r"no answer after 7 tries .* to resume once it is there"):
        train(cfg, tmp_path / "stopped")
    server.always = "ok"
    train(cfg, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    assert len(server.bodies) == asked + 7  # tries in vain; no answer was asked for again
    sums = [read_json(tmp_path / run / "judge.json") for run in ("stopped", "whole")]
    assert sums[0] == sums[1]
    gather(tmp_path / "stopped", Options(), RunLog(None, quiet=True))
    assert not holding(tmp_path, KEY) and KEY not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_process_that_is_killed_among_its_questions_resumes_with_the_answers(
    server: Server, tmp_path: Path
):
    """By SIGKILL, with answers under way; then its server is gone: one line, exit code 2."""
    server.always = "nap"
    words = [word for word in TINY if not word.startswith(("judge", "cache"))]
    words += ["judge=llm", f"judge.base_url={server.url}", "judge.model=m", "judge.retries=0"]

    def child(name: str) -> Forked:
        own = [*words, f"cache={tmp_path / name / 'cache'}", f"run_dir={tmp_path / name / 'run'}"]
        (tmp_path / name).mkdir(exist_ok=True)
        stderr = tmp_path / name / "stderr"
        return Forked(["train", "summarize", *own], stderr, {"OPENAI_API_KEY": KEY})

    whole = child("whole")
    assert whole.communicate(90)[1].count("requests to m in this run") and not whole.returncode
    asked = len(server.bodies)
    for most in (9, 25):
        server.bodies.clear()
        killed, end = child("killed"), time.monotonic() + 90
        while len(server.bodies) < most and time.monotonic() < end:
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        killed.communicate(90)
        assert killed.returncode == -signal.SIGKILL
    server.always = "500"
    gone = child("killed")
    lines = gone.communicate(90)[1].strip().splitlines()
    assert gone.returncode == 2 and "no answer after 1 try (the last: 500" in lines[-1]
    server.always = "ok"
    assert child("killed").communicate(90)[1]
    assert results(tmp_path / "killed" / "run") == results(tmp_path / "whole" / "run")
    requests = read_json(tmp_path / "killed" / "run" / "judge.json")["requests"]
    assert asked <= requests <= asked + 16  # two kills, up to 8 answers under way at each
    assert not holding(tmp_path, KEY)


@pytest.mark.slow
def test_preferences_are_evaluated_by_it(server: Server, tmp_path: Path):
    few = ["schedule.total=2", "schedule.retrain_until=0", "method.controls=[]"]
    own = ["judge=llm", f"judge.base_url={server.url}", "judge.model=m"]
    final = train(tiny_preferences(*few, *own), tmp_path / "run")
    assert "validation/greedy/judge" in final


def test_a_judge_that_judges_nothing_stops():
    assert judged([1.0, math.nan], "texts") == [1.0]
    with pytest.raises(DataError, match="the judge has judged none of the 2 texts"):
        judged([math.nan] * 2, "texts")


# --- a real model

ASSETS = Path(os.environ.get("PGTG_ASSETS", "/nonexistent"))


@pytest.mark.real
@pytest.mark.skipif(
    not (ASSETS / "smollm2-135m").is_dir(), reason="PGTG_ASSETS names no folder with smollm2-135m"
)
def test_a_run_is_judged_by_a_real_model(tmp_path: Path):
    """Every question of a run answered over HTTP by SmolLM2; its tokens are those it has read.

    It is so small that it ranks by place alone: asked in two orders, all texts of a source tie.
    """
    with chat_server(ASSETS / "smollm2-135m") as (url, model):
        real: Any = SimpleNamespace(url=url)
        few = ["sample.sources=4", "sample.heldout_sources=2", "judge.swap=false"]
        cfg = run_of(real, tmp_path / "cache", *few)
        assert check(cfg, fetch=True) == []
        train(cfg, tmp_path / "run")
        given = [one["usage"] for one in model.given]
        sums = read_json(tmp_path / "run" / "judge.json")
        assert sums["requests"] == sums["used"] == len(given) >= 6
        for name in ("prompt_tokens", "completion_tokens"):
            assert sums[name] == sum(one[name] for one in given)
        ranked = read_generations(
            RunFolder(tmp_path / "run").artifact("rounds", "00", "sample"), "train"
        )
        assert {*ranked.scores} <= {0.0, 50.0, 100.0} and len({*ranked.scores}) > 1

        texts = ["The capital of France is Paris.", "Bananas are yellow.", "Who knows?"]
        found = asked(opened(real, concurrency=1), texts, source="Where is Paris?")["score"]
        orders = [
            json.loads(one["choices"][0]["message"]["content"])["ranking"]
            for one in model.given[-2:]
        ]
        for n, score in enumerate(found):
            places = [orders[0].index("ABC"[n]), orders[1].index("CBA"[n])]
            assert score == sum(100.0 * (2 - place) / 2 for place in places) / 2
        found = asked(opened(real, mode="score"), texts, source="Where is Paris?")["score"]
        assert all(1 <= score <= 10 for score in found)
        free = opened(real, json_schema=False, request={"max_tokens": 8})
        found = asked(free, texts[:2], source="Where is Paris?")
        for score, why in zip(found["score"], found["unjudged"], strict=True):
            assert math.isnan(score) == (why == "unusable")
