"""A run's time from a short run: what is measured, how it is added up, that nothing is left."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgtg.cli.main import app
from pgtg.config.compose import run_config
from pgtg.errors import DataError
from pgtg.pipeline.plan import prompt, summarize
from pgtg.pipeline.plan.probe import Part, Stopwatch, probe, shortened, text_of
from tests.support.tiny import _quiet, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_preferences import tiny_preferences
from tests.support.tiny_prompt import tiny_prompt


def test_the_work_of_a_run_by_hand():
    """Two rounds of 8 + 6 sources; two lines of 4 updates, validated at 2 and 4 on 6 sources."""
    cfg = tiny()
    work = summarize.work(cfg)
    assert work.sampled == 2 * (8 + 6)
    assert (work.reward_updates, work.reward_checks) == (2 * 4, 2 * 2 * 6)
    assert (work.policy_updates, work.policy_checks) == (2 * 4, 2 * (1 + 1) * 6)
    assert work.evaluated == 8 * 3 * len(cfg.evaluate.decodings)  # start, method, control
    cfg.reward.compare_heads = ["paper", "logprob"]
    heads = summarize.work(cfg)
    assert heads.reward_updates == (2 + 2) * 4


def test_time_is_units_times_seconds(tmp_path: Path):
    """Every part of a tiny run, with its units; the folder of the short run is gone."""
    cfg = tiny()
    parts = {part.name: part for part in probe(cfg, updates=3, folder=tmp_path)}
    work = summarize.work(cfg)
    assert parts["sample"].units == work.sampled and parts["align"].units == work.reward_updates
    assert parts["improve"].units == work.policy_updates
    # the short run makes one validation of each kind on as many of the held-out sources as fit
    held = shortened(cfg, 3).sample.heldout_sources
    assert parts["improve validations"].units == work.policy_checks / held
    assert all(part.seconds > 0 for part in parts.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_prompt_search_is_timed():
    parts = {part.name: part for part in probe(tiny_prompt(), updates=2)}
    assert {"sample", "align", "improve", "evaluation"} <= set(parts)
    assert parts["improve"].units == prompt.work(tiny_prompt()).policy_updates


def test_fresh_prompts_are_part_of_an_update(tmp_path: Path):
    """16 a step for 10,000 updates of 7 rounds and 25 x 16 at their checks: sampled by the controls
    that train no reward model, judged within the updates of those that do."""
    cfg = run_config("prompt", ["experiment=sst2_paper", f"data.path={tmp_path}"])
    sizes: dict[str, int | None] = {"train": 32, "dev": 32, "test": 1821}
    fresh, checked = prompt.fresh_prompts(cfg, 7)
    assert fresh == 7 * 10_000 * cfg.prompt.pool  # type: ignore[union-attr]
    work, judged = prompt.work(cfg, sizes), prompt.count(cfg, sizes).judged_prompts
    without = [line for line in ("random", "sparse") if line in cfg.method.alongside]
    with_align = 1 + len(cfg.method.alongside) - len(without)
    expected = len(without) * (judged + checked) + with_align * (judged - fresh)
    assert work.sampled == expected


def test_the_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch):
    """Steps of 9 s (warm-up), 2, 4 and 3 s: the median of the last three."""
    times = iter([0.0, 9.0, 11.0, 15.0, 18.0, 25.0])
    monkeypatch.setattr("pgtg.pipeline.plan.probe.time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for step in range(5):
        watch.metrics("improve", 0, step, {"improve/loss": 1.0})
    assert watch.step("improve") == 3.0
    watch.metrics("improve", 0, 4, {"improve/negative_heldout_score": 1.0})
    assert watch.validation("improve") == 7.0 and watch.validation("align") == 0.0


def test_the_sum_is_said_in_words():
    parts = [Part("sample", 100, 2.0), Part("improve", 10, 3600.0)]
    assert text_of(parts) == "about 10.1 h: sample 3 min, improve 10.0 h"


def test_what_is_not_here_cannot_be_timed():
    cfg = run_config("summarize", ["experiment=cnn_dm_t5_small"])
    with pytest.raises(DataError, match="not on this machine"):
        summarize.work(cfg)


def test_probe_goes_with_dry_run():
    done = CliRunner().invoke(app, ["train", "summarize", "--probe"])
    assert done.exit_code == 2 and "--dry-run" in done.stderr


def test_stored_preferences_are_timed_without_samples(tmp_path: Path):
    parts = {part.name: part for part in probe(tiny_preferences(), updates=3, folder=tmp_path)}
    assert parts["read preferences"].units == 1 and "sample" not in parts
    assert parts["align"].units == 8 and parts["improve"].units > 0
