"""Likelihoods of given texts, against one token at a time."""

import math
from pathlib import Path

import pytest
import torch

from pgtg.models.batch import token_batch
from pgtg.pipeline.evaluation.likelihood import likelihoods
from pgtg.pipeline.run import session
from tests.support.finished import finished_run
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)


def test_each_column_is_its_own_part_of_the_likelihood(tmp_path_factory: pytest.TempPathFactory):
    run = finished_run(tiny(*SHORT), tmp_path_factory, "sample")
    with session(tiny(*SHORT), Path(run), True) as ctx:
        assert ctx.task.targets is not None
        examples = ctx.task.targets.examples("test")
        lm, codec = ctx.load_start()
        found = likelihoods(ctx, lm, codec, examples)
        flawed = 0
        for i, example in enumerate(examples):
            source = codec.encode_source(example.source)[0]

            def step(prefix: list[int], token: int, source: list[int] = source) -> float:
                """log pi(token | prefix), by a pass of its own."""
                batch = token_batch([source], [[*prefix, token]], [0], torch.device("cpu"))
                with torch.no_grad():
                    return float(lm.logits(batch)[0, -1].log_softmax(-1)[token])

            clean = codec.encode_target(example.references[0])[0]
            own = [step(clean[:t], token) for t, token in enumerate(clean)]
            words = example.references[0].split()
            facts = [p for p, word in zip(own, words, strict=False) if word in _facts(example)]
            assert found["nll"][i] == pytest.approx(-sum(own), abs=1e-4)
            assert found["nll_end"][i] == pytest.approx(-own[-1], abs=1e-4)
            assert found["nll_facts"][i] == pytest.approx(-sum(facts), abs=1e-4)
            parts = sum(found[f"nll_{kind}"][i] for kind in ("facts", "end", "content"))
            assert found["nll"][i] == pytest.approx(parts, abs=1e-4)
            told = codec.encode_target(example.target)[0]
            labels = example.truth.target_labels
            bad = [t for t, label in enumerate(labels) if label in ("wrong", "boilerplate")]
            if not bad:
                assert math.isnan(found["nll_flaws"][i] + found["right_over_flaw"][i])
                continue
            flawed += 1
            assert told[: bad[0]] == clean[: bad[0]]  # one state for both
            of_flaws = sum(step(told[:t], told[t]) for t in bad)
            assert found["nll_flaws"][i] == pytest.approx(-of_flaws, abs=1e-4)
            margin = own[bad[0]] - step(told[: bad[0]], told[bad[0]])
            assert found["right_over_flaw"][i] == pytest.approx(margin, abs=1e-4)
        assert 0 < flawed < len(examples)


def _facts(example) -> set[str]:
    return {*example.truth.facts.values()}
