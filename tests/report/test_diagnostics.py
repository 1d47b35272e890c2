"""What a report says of cost and of token rewards: against hand arithmetic and autograd."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgtg.ops import credit
from pgtg.report.build import Report, build, load
from pgtg.report.cost import Cost
from pgtg.report.tables import tables
from pgtg.runs.folder import Artifact
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
    assert [(q.round, q.values["pair_accuracy"]) for q in made.quality] == [(0, 0.6), (1, 0.65)]
    curve = made.reward_curves["pgtg"]
    assert curve.x == (15, 30, 45, 60) and curve.rounds == (30,)
    assert curve.mean == pytest.approx((0.55, 0.6, 0.55, 0.6))
    assert made.policy_curves["uniform"].mean == pytest.approx((96, 111, 96, 111))
    assert made.sampled_curves["pgtg"].mean == pytest.approx((70, 71))


def test_a_row_over_the_budget_is_marked(tmp_path: Path):
    """Forward equivalents are judged generations and three for each trained text; the row is held
    against the one that it is compared with."""
    run = make_run(tmp_path / "run", {"pgtg": SCORES, "uniform": SCORES})
    add_round(run, 0)
    counts = {
        "rounds/00/align": {"align/updates": 30.0, "align/trained_texts": 90.0},
        "rounds/00/improve": {"improve/updates": 20.0, "improve/trained_texts": 160.0},
        "controls/uniform/00/improve": {"improve/updates": 20.0, "improve/trained_texts": 160.0},
    }
    for place, metrics in counts.items():
        artifact = Artifact(run / place)
        artifact.remove()
        artifact.working("y")
        artifact.commit(inputs="y", metrics=metrics)
    built = build(*load([run], None), baseline="uniform")
    costs = next(table for table in tables(built) if table.name == "costs")
    cells = {row[0]: dict(zip(costs.columns, row, strict=True)) for row in costs.rows}
    assert cells["uniform"]["trained texts"] == "160"
    assert cells["uniform"]["forward equivalents"] == str(3 * 160)
    assert cells["pgtg"]["trained texts"] == "250"  # is no budget
    assert cells["pgtg"]["judged generations"] == "64 †"
    assert cells["pgtg"]["forward equivalents"] == f"{64 + 3 * 250} †"
    assert "gradient sequences" not in costs.columns


SECONDS = {"sample": 3.5, "align": 65.0, "score": 99.0, "improve": 10.0, "uniform": 7.0}


def costs_of(path: Path, extra: Mapping[str, Mapping[str, Any]]) -> tuple[Cost, Cost, Report]:
    """Costs of the method and of the control in a run of one round with such manifests."""
    run = make_run(path, {"pgtg": SCORES, "uniform": SCORES})
    add_round(run, 0, extra=extra)
    made = build(*load([run], None))
    return made.costs["pgtg"]["0"], made.costs["uniform"]["0"], made


def test_seconds_are_sums_over_manifests(tmp_path: Path):
    ours, control, made = costs_of(tmp_path, {k: {"seconds": v} for k, v in SECONDS.items()})
    assert ours.seconds == pytest.approx(3.5 + 65 + 10) and ours.cached_seconds == 0
    assert control.seconds == pytest.approx(7)
    assert not any("seconds" in note for note in made.notes)


def test_what_was_taken_from_the_cache_is_counted_apart(tmp_path: Path):
    extra: dict[str, Any] = {name: {"seconds": value} for name, value in SECONDS.items()}
    extra["sample"] = {"seconds": 0.0, "cached_seconds": 3.5}
    ours, _, _ = costs_of(tmp_path, extra)
    assert (ours.seconds, ours.cached_seconds) == (75.0, 3.5)


@pytest.mark.parametrize("value", [None, "9", -1.0, 10**400])
def test_a_stage_without_honest_seconds_leaves_the_row_without(tmp_path: Path, value: Any):
    """None: resumed, or of a pgtg that kept none; the rest: what a stranger's folder may hold."""
    extra: dict[str, Any] = {name: {"seconds": value} for name, value in SECONDS.items()}
    extra["align"] = {"seconds": value}
    ours, control, made = costs_of(tmp_path, {**extra, "uniform": {"seconds": 7.0}})
    assert ours.seconds is None and control.seconds == 7.0
    assert any("seconds unknown in 1 run " in note for note in made.notes)


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


@pytest.mark.parametrize(("control", "trained"), [("sequence", 7), ("untrained", 0)])
def test_a_control_that_reads_the_runs_rewards_costs_their_training(
    control: str, trained: int, tmp_path: Path
):
    changed = {"method__controls": [control], "method__released": True}
    run = make_run(tmp_path / "run", {"pgtg": SCORES, control: SCORES}, **changed)
    made = {"align/updates": 7.0}, {"improve/updates": 3.0, "improve/judged_texts": 5.0}
    for place, metrics in zip(
        ("rounds/00/align", f"controls/{control}/00/improve"), made, strict=True
    ):
        artifact = Artifact(run / place)
        artifact.working("y")
        artifact.commit(inputs="y", metrics=metrics)
    built = build(*load([run], None))
    found = built.costs[control]["0"]
    assert (found.policy_updates, found.reward_updates, found.judged) == (3, trained, 5)
    assert any("method.released=true" in note for note in built.notes)
