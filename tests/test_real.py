"""A real pretrained model on real text, at a tiny budget.

Needs the folder named by PGTG_ASSETS (smollm2-135m, minilm, nltk_data) and SciTLDR beside the
checkout, in ../shared/data/scitldr.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ASSETS = Path(os.environ.get("PGTG_ASSETS", ""))
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "scitldr"
BUDGET = [
    "sample.sources=4",
    "sample.heldout_sources=3",
    "reward.fit.updates=2",
    "schedule.total=2",
    "schedule.retrain_every=1",
    "schedule.retrain_until=1",
    "improve.micro_batch=2",
    "evaluate.examples=4",
    "sample.max_new_tokens=16",
    "policy.max_source_tokens=160",
]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        "PGTG_ASSETS" not in os.environ or not (ASSETS / "smollm2-135m").is_dir(),
        reason="PGTG_ASSETS names no folder with smollm2-135m, minilm and nltk_data",
    ),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no SciTLDR at {DATA}"),
]


def test_the_whole_alternation_with_a_real_causal_model(tmp_path: Path):
    """Sampling to evaluation, real METEOR and BERTScore; both folders load with Transformers."""
    run = tmp_path / "run"
    call = [sys.executable, "-m", "pgtg", "train", "summarize", "experiment=scitldr_smollm2"]
    call += [f"policy.path={ASSETS / 'smollm2-135m'}", f"data.path={DATA}", f"run_dir={run}"]
    call += [f"metrics.bertscore_model={ASSETS / 'minilm'}", "metrics.bertscore_layers=6", *BUDGET]
    environment = os.environ | {"NLTK_DATA": str(ASSETS / "nltk_data"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "eval" / "results_validation.json").read_text())
    assert set(results) == {"start", "pgtg", "uniform"}
    for found in results.values():
        mean = found["decodings"]["greedy"]["mean"]
        assert {"rouge1", "rougeLsum", "meteor", "bertscore_f1"} <= set(mean)
        assert found["absent"] == {} and found["examples"] == 4
    from transformers import AutoModelForCausalLM

    for name in ("policy", "reward"):
        AutoModelForCausalLM.from_pretrained(run / name)
    assert (run / "reward" / "reward_head.safetensors").is_file()
