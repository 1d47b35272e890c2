"""A whole run with W&B offline: what its own files hold is the run's story."""

import json
import struct
from pathlib import Path

import pytest

from pgtg.cli.jobs import credit_page
from pgtg.pipeline.run import train
from pgtg.runs.folder import read_jsonl
from tests.support.tiny import tiny


def payload(written: Path) -> bytes:
    """The records of W&B's file, put together again: blocks of 32 KiB hold a header and a part."""
    content, place, parts = written.read_bytes(), 7, []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:  # the rest of a block is padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts.append(content[place + 7 : place + 7 + length])
        assert 1 <= kind <= 4
        place += 7 + length
    return b"".join(parts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_wandb_gets_the_same_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "run"
    final = train(
        tiny("logger=wandb", "logger.mode=offline", "logger.group=sweep7"), run, page=credit_page
    )
    (part,) = (run / "wandb").glob("offline-run-*")
    media = [*(part / "files" / "media").rglob("*.*")]
    (page,) = [path for path in media if path.suffix == ".html"]
    assert page.read_text() == (run / "token_credit.html").read_text()
    tables = [json.loads(path.read_text()) for path in media if path.suffix == ".json"]
    shown = [row for table in tables for row in table["data"] if "evaluation" in table["columns"]]
    assert len(shown) == 2 * 18  # both rounds' held-out generations
    (written,) = part.glob("*.wandb")
    content = payload(written)
    for line in read_jsonl(run / "metrics.jsonl"):
        assert f"{line['stage']}/step".encode() in content  # each stage on its own axis
    for key in (*final, "sweep7", "schedule", "token_credit"):
        assert key.encode() in content, key
