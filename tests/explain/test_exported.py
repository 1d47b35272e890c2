"""Reading with an exported reward model: explain, the Python API, conversations, notebooks."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer
from typer.testing import CliRunner

import pgtg
from pgtg.cli.api import AllRewards, TextRewards
from pgtg.cli.main import app
from pgtg.errors import DataError
from pgtg.explain.runs import as_source
from pgtg.models import pieces
from pgtg.models.batch import token_batch
from pgtg.models.chat import ChatCodec
from pgtg.models.token_classifier import REWARD_JSON, TokenClassifier
from pgtg.ops.bounds import BOUNDS
from tests.support.explain_codecs import HOSTILE, bytes_tokenizer
from tests.support.finished import finished_run
from tests.support.strangers import edit
from tests.support.tiny import _quiet  # noqa: F401 (a fixture)
from tests.support.tiny_exports import llama, tiny_causal

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny_causal(llama(tmp_path_factory)), tmp_path_factory)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reward"
    assert called("export", "reward", run, "--out", out).exit_code == 0
    return out


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": "the plot was neat but", "completion": "script was solid ."}]
    rows += [{"prompt": "the plot was neat but", "completion": "superb"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def called(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def test_explain_reads_own_texts_as_the_run_does(
    run: Path, exported: Path, mine: Path, tmp_path: Path
):
    """The same rows from the run and from the folder; a page of the folder alone."""
    for name, where in {"a": (run,), "b": ("--reward", exported)}.items():
        out = tmp_path / f"{name}.jsonl"
        assert called("explain", *where, "--text", mine, "--out", out).exit_code == 0
    ours, its = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in "ab"
    )
    for a, b in zip(ours, its, strict=True):
        assert (a["tokens"], a["aggregator"], a["rank"]) == (
            b["tokens"],
            b["aggregator"],
            b["rank"],
        )
        np.testing.assert_allclose(a["rewards"], b["rewards"], rtol=1e-4)
        assert a["evaluation"] == pytest.approx(b["evaluation"], rel=1e-4)
    page = tmp_path / "page.html"
    found = called("explain", "--reward", exported, "--text", mine, "--html", page)
    assert found.exit_code == 0
    assert "Token credit: preferences, example, seed 0" in page.read_text()
    both = called("explain", run, "--with", exported, "--text", mine)
    assert both.exit_code == 0 and "avg (reward)" in both.stdout


def test_an_exported_folder_needs_texts(run: Path, exported: Path, mine: Path):
    for words, said in (
        (["--reward", exported], "an exported reward model has no texts: give --text FILE"),
        ([run, "--reward", exported], "give a run folder, or --reward FOLDER"),
        ([], "give a run folder, or --reward FOLDER"),
        (["--reward", mine.parent, "--text", mine], "no run folder"),
    ):
        found = called("explain", *words)
        assert found.exit_code == 2 and len(found.stderr.splitlines()) == 1, found.stderr
        assert said in found.stderr or "has no config.yaml" in found.stderr


def test_python_reads_a_folder_as_it_reads_a_run(run: Path, exported: Path):
    model = pgtg.load_reward_model(exported)
    assert isinstance(model, TokenClassifier) and not model.training
    batch = token_batch([[5, 6]], [[7, 8, 2]], [0])
    with torch.no_grad():
        ours = pgtg.load_reward_model(run)(batch)
    torch.testing.assert_close(model(batch).detach(), ours, rtol=1e-4, atol=1e-5)
    texts = [["the plot was"], ["superb ."]]
    (a,), (b,) = pgtg.token_rewards(run, *texts), pgtg.token_rewards(exported, *texts)
    assert a.tokens == b.tokens and a.ids == b.ids
    np.testing.assert_allclose(a.rewards, b.rewards, rtol=1e-4)


def test_a_chat_models_prompts_may_be_texts_or_messages(exported: Path, tmp_path: Path):
    """Against the template's own text, by the plain class."""
    chat = Path(shutil.copytree(exported, tmp_path / "chat"))
    spaced = (
        TEMPLATE.replace("'<'", "'plot '").replace("'>'", "' was '").replace("'</s>'", "' </s>'")
    )
    spaced = spaced.replace("'<assistant>'", "'plot assistant was '")
    edit(chat / "tokenizer_config.json", chat_template=spaced)
    reading = json.loads((chat / REWARD_JSON).read_text())["reading"]
    edit(chat / REWARD_JSON, reading=reading | {"kind": "chat"})
    turns = [{"role": "user", "content": "the ending"}]
    (text,), (messages,) = (
        pgtg.token_rewards(chat, [prompt], ["superb ."]) for prompt in ("the ending", turns)
    )
    assert text.ids == messages.ids and (text.rewards == messages.rewards).all()
    tokenizer = AutoTokenizer.from_pretrained(chat)
    written = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    source = tokenizer(written, add_special_tokens=False)["input_ids"]
    plain = AutoModelForTokenClassification.from_pretrained(chat).eval()
    with torch.no_grad():
        z = plain(input_ids=torch.tensor([source + text.ids])).logits[0, len(source) :, 0]
    np.testing.assert_allclose(text.rewards, BOUNDS["softplus"](z), rtol=1e-4)


def chat_codec(lead: str) -> ChatCodec:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("+ '>' + m", f"+ '>{lead}' + m")
    return ChatCodec(tokenizer, False, "", "", "", 200, 200)


@pytest.mark.parametrize("lead", ["", " ", "\n"])
@pytest.mark.parametrize("text", HOSTILE)
def test_pieces_of_an_answer_leave_out_what_the_template_writes_before_it(lead: str, text: str):
    codec = chat_codec(lead)
    found, tokens, cut = pieces.of_text(codec, text)
    assert found == text and not cut
    assert "".join(text[piece.start : piece.end] for piece in tokens) == text
    assert [piece.id for piece in tokens] == codec.encode_target(text)[0]


def test_messages_that_are_none():
    codec = chat_codec("")
    assert as_source(codec, "") == "" and as_source(codec, 3) == 3
    for wrong in ([{"content": "a"}], ["a"]):
        with pytest.raises(DataError, match=r"no \{role, content\}"):
            as_source(codec, wrong)
    with pytest.raises(DataError, match="without text"):
        as_source(codec, [{"role": "user", "content": None}])


def test_a_notebook_shows_texts_escaped_with_their_numbers():
    tokens = ["<script>", "alert('x')", "</script>", " ", "\u202eevil", ""]
    rewards = np.array([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0], np.float32)
    one = TextRewards(tokens, [1, 2, 3, 4, 5, 6], rewards, True)
    page = AllRewards([one, one])._repr_html_()
    assert "<script" not in page and "\u202e" not in page and "&lt;script&gt;" in page
    assert "http" not in page and "cut to fit" in page and "⟨6⟩" in page
    shown = [float(n.replace("\u2212", "-")) for n in re.findall(r'title="([^"]+)"', page)]
    assert shown == [*rewards, *rewards]
    inks = re.findall(r"background:(#\w+);color", page)
    assert inks[0] != inks[5] and inks[:6] == inks[6:]
    text = html.unescape(re.sub(r"<[^>]+>", "", one._repr_html_()))
    assert "<script>alert('x')</script>␣U+202Eevil⟨6⟩" in text
    assert AllRewards()._repr_html_() == "<p>no text</p>"
