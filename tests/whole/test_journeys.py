"""The journeys of docs/journeys.md, run as a newcomer would: a fresh clone, what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pgtg.models.language import LanguageModel
from pgtg.models.loading import save_language_model
from pgtg.models.tiny.lm import build_tokenizer
from tests.support.tiny_exports import SIZES, words

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "journeys.md"
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)
JOURNEYS = {
    "Own pairs to an exported reward": ("run/summary.json", "credit.html", "reward/config.json"),
    "Own articles to better summaries": ("summaries/summary.json", "report/report.html", "policy"),
}


def script(title: str) -> str:
    """A section's blocks as one script of the shell."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    parts = ["set -eux"]
    for kind, text in BLOCK.findall(section):
        parts.append(text if kind == "bash" else f"python - <<'END'\n{text}END")
    return "\n".join(parts)


@pytest.mark.parametrize("title", JOURNEYS)
def test_the_blocks_are_a_script(title: str):
    text = script(title)
    assert text.count("pgtg ") >= 4 and "…" not in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("tiny", marks=pytest.mark.slow),
        pytest.param("smollm2-135m", marks=pytest.mark.real),
    ],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's model, which a hub has, or a tiny Llama in its place."""
    if request.param != "tiny":
        assets = os.environ.get("PGTG_ASSETS")
        if assets is None:
            pytest.skip(f"PGTG_ASSETS names no folder with {request.param}")
        return Path(assets) / request.param
    end = [f"{word}." for word in ("May", "June", "questions", "million")]
    tokenizer = build_tokenizer(sorted({*words(), *PAGE.read_text().split(), *end}), masked=False)
    sizes = {**SIZES, "num_hidden_layers": 4, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=2, bos_token_id=2, pad_token_id=1))
    folder = tmp_path_factory.mktemp("model") / "llama"
    save_language_model(LanguageModel(lm.eval()), tokenizer, folder)
    return folder


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("title", JOURNEYS)
def test_a_journey_arrives(title: str, model: Path, tmp_path: Path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    env = {**os.environ, "MODEL": str(model), "PYTHONPATH": str(clone), "PGTG_CACHE": "off"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        ["bash", "-c", script(title)], cwd=clone, env=env, capture_output=True, text=True
    )
    print(ran.stdout + ran.stderr)  # to be read
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
    for name in JOURNEYS[title]:
        assert (clone / "mine" / name).exists(), name
    pages = [*clone.glob("mine/*.html"), *clone.glob("mine/re*/*.html")]
    exported = [clone / "mine" / name for name in ("reward", "policy")]
    given = [file for at in exported for end in ("md", "json") for file in at.glob(f"*.{end}")]
    assert pages and given
    for file in (*pages, *given):  # a folder says what it is to others, not where it was made
        text = file.read_text()
        assert str(tmp_path) not in text and str(model) not in text, file.name
