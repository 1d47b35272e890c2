"""What a report says of cost and of token rewards: against hand arithmetic and autograd."""

from pathlib import Path

import numpy as np
import pytest

from pgtg.ops import credit
from pgtg.report.build import build, load
from tests.support.report_runs import add_round, make_run

SCORES = {"rougeLsum": [50.0, 60.0, 40.0]}


def test_cost_quality_and_curves(tmp_path: Path):
    run = make_run(tmp_path / "run", {"pgtg": SCORES, "uniform": SCORES})
    for number in (0, 1):
        add_round(run, number)
    made = build(*load([run], None))
    ours, control = made.costs["pgtg"]["0"], made.costs["uniform"]["0"]
    assert (ours.policy_updates, ours.reward_updates, ours.judged) == (40, 60, 128)
    assert (control.policy_updates, control.reward_updates, control.judged) == (40, 0, 0)
    assert ours.seconds is None
    assert [(q.round, q.values["pair_accuracy"]) for q in made.quality] == [(0, 0.6), (1, 0.65)]
    curve = made.reward_curves["pgtg"]
    assert curve.x == (15, 30, 45, 60) and curve.rounds == (30,)
    assert curve.mean == pytest.approx((0.55, 0.6, 0.55, 0.6))
    assert made.policy_curves["uniform"].mean == pytest.approx((96, 111, 96, 111))
    assert made.sampled_curves["pgtg"].mean == pytest.approx((70, 71))


LOG = """2026-01-01T00:00:00+00:00 run folder /x
2026-01-01T00:00:01+00:00 sample train round 0: 20/40, 3.0 s left
2026-01-01T00:00:01+00:00 sample train round 0: 40/40 in 2.0 s
2026-01-01T00:00:01+00:00 sample heldout round 0: 24/24 in 1.5 s
2026-01-01T00:00:01+00:00 align round 0: 30/30 in 1 min 05 s, loss 2.1
2026-01-01T00:00:01+00:00 align.paper round 0: 30/30 in 9.0 s, loss 2.1
2026-01-01T00:00:01+00:00 improve round 0: 20/20 in 10.0 s, loss 0.2
2026-01-01T00:00:01+00:00 improve.uniform round 0: 20/20 in 7.0 s, loss 0.2
2026-01-01T00:00:01+00:00 run folder /x
"""


def test_seconds_by_hand_and_not_where_a_run_was_resumed(tmp_path: Path):
    run = make_run(tmp_path / "run", {"pgtg": SCORES, "uniform": SCORES})
    add_round(run, 0)
    (run / "log.txt").write_text(LOG)
    costs = build(*load([run], None)).costs
    assert costs["pgtg"]["0"].seconds == pytest.approx(2 + 1.5 + 65 + 10)
    assert costs["uniform"]["0"].seconds == pytest.approx(7)
    (run / "log.txt").write_text(LOG.splitlines(keepends=True)[0] + LOG)  # killed once, resumed
    assert build(*load([run], None)).costs["pgtg"]["0"].seconds is None


def test_effective_tokens_and_top_share_by_hand():
    even, peak = np.full(4, 0.25), np.array([0.25, 0.75])
    assert credit.effective_tokens(even) == pytest.approx(4)
    expected = np.exp(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    assert credit.effective_tokens(peak) == pytest.approx(expected)
    found = credit.spread([even, peak, np.array([])])
    assert found["effective_tokens"] == pytest.approx((4 + expected) / 2)
    assert found["top_token_share"] == pytest.approx(0.5)


def test_calibration_by_hand():
    """Two sources, one ordered pair each, both with p = 0.75; one is right: |1 - 1.5| / 2."""
    gap = float(np.log(3))
    found = credit.calibration_error(["a", "a", "b", "b"], [gap, 0, gap, 0], [2, 1, 1, 2])
    assert found == pytest.approx(0.25)
    assert np.isnan(credit.calibration_error(["a", "a"], [1, 0], [1, 1]))


def test_correlation_within_sources_ignores_their_levels():
    sources = ["a"] * 3 + ["b"] * 3
    assert credit.within_correlation(sources, [1, 2, 3, 9, 8, 7], [5, 6, 7, 1, 0, -1]) == 1.0
    assert np.isnan(credit.within_correlation(sources, [1] * 6, [1, 2, 3, 4, 5, 6]))
