"""The journeys of docs/journeys.md, run as a newcomer would: a fresh clone, what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "journeys.md"
MODEL = Path(os.environ.get("PGTG_ASSETS", "")) / "smollm2-135m"
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


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not MODEL.is_dir(), reason="PGTG_ASSETS names no folder with smollm2-135m")
@pytest.mark.parametrize("title", JOURNEYS)
def test_a_journey_arrives(title: str, tmp_path: Path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    env = {**os.environ, "MODEL": str(MODEL), "PYTHONPATH": str(clone), "PGTG_CACHE": "off"}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        ["bash", "-c", script(title)], cwd=clone, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "warning" not in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
    for name in JOURNEYS[title]:
        assert (clone / "mine" / name).exists(), name
    pages = [*clone.glob("mine/*.html"), *clone.glob("mine/re*/*.html")]
    assert pages and not any(str(tmp_path) in page.read_text() for page in pages)
