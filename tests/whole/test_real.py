"""A real pretrained model on real text, at a tiny budget.

Needs the folder named by PGTG_ASSETS (smollm2-135m, minilm, nltk_data) and SciTLDR next to the
checkout, in ../shared/data/scitldr.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pgtg.config import classifier_of
from pgtg.config.compose import run_config
from pgtg.data.fewshot import load_fewshot
from pgtg.judges.classifier import Classifier, load_classifier
from pgtg.judges.template import Prompt, Template

ASSETS = Path(os.environ.get("PGTG_ASSETS", ""))
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "scitldr"
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


FEWSHOT = Path(__file__).resolve().parents[3] / "shared" / "data" / "fewshot"


@pytest.mark.skipif(not FEWSHOT.is_dir(), reason=f"no 16-shot folders at {FEWSHOT}")
@pytest.mark.parametrize(("dataset", "folder"), [("sst2", "sst-2"), ("agnews", "agnews")])
def test_a_real_classifiers_cached_prefixes_change_no_more_than_rounding(dataset: str, folder: str):
    """In float64 the two ways agree; in float32 neither is further from that than the other."""
    model_path = str(ASSETS / "smollm2-135m")
    options = [f"dataset={dataset}", f"data.path={FEWSHOT / folder}", "judge=classifier"]
    cfg = run_config("prompt", [*options, f"judge.classifier.path={model_path}"])
    classifier = classifier_of(cfg)
    assert cfg.data.fewshot is not None and classifier is not None
    loaded = load_fewshot(cfg.data, "train", 0)
    assert loaded is not None
    spec = cfg.data.fewshot.causal[classifier.template]
    template = Template.parse(spec.template)
    prompts = [Prompt(" an excellent example of how"), Prompt(" this is about"), Prompt("")]

    def answers(dtype: str, cached: bool) -> torch.Tensor:
        model, tokenizer = load_classifier(model_path, dtype=dtype)
        classifier = Classifier(
            model,
            tokenizer,
            template,
            spec.words,
            rendering=spec.rendering,
            max_tokens=256,
            prefix_cache=cached,
        )
        values = [classifier.log_probs(prompt, loaded[0][:8]) for prompt in prompts]
        return torch.from_numpy(np.stack(values)).double()

    exact, cached = answers("float64", False), answers("float64", True)
    torch.testing.assert_close(cached, exact, rtol=0, atol=1e-6)  # answers are given in float32
    for way in (False, True):
        torch.testing.assert_close(answers("float32", way), exact, rtol=0, atol=3e-5)
