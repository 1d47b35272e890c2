"""The counts of --dry-run, against hand arithmetic."""

from pathlib import Path

import pytest

from pgtg.config.compose import run_config
from pgtg.errors import MissingResourceError
from pgtg.pipeline import plan
from pgtg.pipeline.plan import prompt, summarize

SPLITS = {"train": 640, "validation": 50, "test": None}


def counts(*overrides: str) -> summarize.Counts:
    mine = ["experiment=none", "policy=t5_small", "reward=t5_small", "evaluate.splits=[validation]"]
    return summarize.count(run_config("summarize", [*mine, *overrides]), SPLITS)


def test_counts_of_a_small_run():
    """640 examples at 8 x 4: 20 updates an epoch; 5 rounds at 0, 0.5, ..., 2 of 5 epochs."""
    found = counts("sample.sources=10", "sample.heldout_sources=2", "sample.k=3")
    assert found.rounds == 5 and found.policy_updates == [10, 10, 10, 10, 60]
    assert found.generations == (10 + 2) * 3
    assert found.reward_updates == 898 and found.compared_heads == 0
    assert found.gradient_generations == 0
    assert found.controls == 4 and found.evaluated == 50 * 6  # start policy, main line, controls


def test_counts_of_the_policy_gradient_term():
    found = counts("method.reinforce=0.1", "method.samples=4")
    assert found.gradient_generations == 100 * 32 * 4


def test_counts_of_plain_mle():
    found = counts("method=mle", "evaluate.decodings=[greedy,sample]", "evaluate.examples=20")
    assert found.rounds == found.generations == found.reward_updates == 0
    assert found.policy_updates == [100] and found.evaluated == 20 * 2 * 2


def test_methods_that_read_judged_texts_sample_in_every_round_without_a_reward_model():
    """As a control such a method has samples of its own; others take the main line's."""
    few = ["sample.sources=10", "sample.heldout_sources=2", "sample.k=3", "schedule.total=6"]
    few += ["schedule.retrain_every=2", "schedule.retrain_until=4", "schedule.unit=updates"]
    own = counts(*few, "method=dpo")
    assert (own.rounds, own.trainings, own.generations) == (3, 0, 12 * 3)
    assert own.reward_updates == 0 and own.policy_updates == [2, 2, 2]
    controls = {"uniform,shuffled": 1, "dpo": 2, "dpo,grpo,uniform": 3}
    for names, lines in controls.items():
        found = counts(*few, f"method.controls=[{names}]")
        assert (found.rounds, found.trainings, found.generations) == (3, 3, lines * 12 * 3)
    plain = counts(*few, "method=mle", "method.controls=[]")
    assert plain.rounds == plain.generations == 0 and plain.policy_updates == [6]


def test_what_is_not_on_this_machine_is_unknown():
    cfg = run_config("summarize", ["experiment=cnn_dm_t5_small"])
    found = summarize.count(cfg, plan.split_sizes(cfg))
    assert found.rounds == 5 and found.generations == (28736 + 512) * 3
    assert found.policy_updates is None and found.evaluated is None
    assert "unknown" in plan.describe([cfg])


def test_parameters_come_from_the_config_alone(tmp_path: Path):
    """A GPT-2 of 2 layers, width 8, 16 words and 4 places; weights are not on disk."""
    from transformers import GPT2Config

    GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=4).save_pretrained(
        tmp_path
    )
    layer = 4 * 8 + 8 * 24 + 24 + 8 * 8 + 8 + 8 * 32 + 32 + 32 * 8 + 8
    rest = 16 * 8 + 4 * 8 + 2 * 8
    mine = [f"policy.path={tmp_path}", "policy.trainable_layers=1", "reward.layers=1"]
    cfg = run_config("summarize", ["experiment=none", "policy=pretrained", *mine])
    found = plan.model_sizes(cfg)
    assert found is not None
    assert (found.policy.parameters, found.policy.trained) == (2 * layer + rest, layer)
    assert found.reward.parameters == found.reward.trained == layer + rest


def test_the_tiny_policy_is_counted_as_built():
    text = plan.describe([run_config("summarize")])
    assert "copy" in text and "unknown" not in text


def test_a_missing_judge_is_refused(monkeypatch: pytest.MonkeyPatch):
    def build(*args: object) -> None:
        raise MissingResourceError("no WordNet")

    monkeypatch.setattr("pgtg.judges.text.build_judge", build)
    with pytest.raises(MissingResourceError, match="no WordNet"):
        plan.check_resources(run_config("summarize"))
    with pytest.raises(MissingResourceError, match="WordNet"):  # MLE keeps its best by the judge
        plan.check_resources(run_config("summarize", ["method=mle"]))


def test_counts_of_a_prompt_search():
    """Two rounds of 64 + 16 prompts for each of four lines; at most 8 + 8 + 1 ranked, 4 tested, and
    4 more of each of three policies."""
    mine = ["schedule.total=20", "schedule.retrain_every=10", "schedule.retrain_until=10"]
    mine += ["prompt.candidates=8", "prompt.tested=4", "prompt.first=64", "sample.sources=16"]
    cfg = run_config("prompt", [*mine, "improve.micro_batch=32", "reward.fit.updates=5"])
    found = prompt.count(cfg, {"train": 32, "dev": 32, "test": 100})
    assert (found.rounds, found.lines, found.judged_prompts) == (2, 4, 80)
    of_line = (80 + 17) * 32 + 17 * 32
    others = (4 + 3) * 4 * 100 + 4 * (32 + 100)
    assert found.judged_sequences == 4 * of_line + others
    assert (found.policy_updates, found.sampled_prompts, found.reward_updates) == (20, 640, 10)
    assert prompt.count(cfg, {"train": 32, "dev": 32, "test": None}).judged_sequences is None
    fresh = ["prompt.fresh=true", "prompt.fresh_checks=3", "reward.replay=0"]
    cfg = run_config("prompt", [*mine, *fresh, "reward.fit.updates=5"])
    found = prompt.count(cfg, {"train": 32, "dev": 32, "test": 100})
    assert found.judged_prompts == 80 + 2 * 5 * 16
    of_line += 2 * 5 * 16 * 32 + 2 * 3 * 16 * 32  # for updates, and for one check at the end
    assert found.judged_sequences == 4 * of_line + others
    assert "at most 240" in plan.describe([cfg])


def test_a_sweep_says_once_what_its_runs_share_and_sums_their_work():
    runs = [run_config("summarize", [f"seed={n}", f"sample.sources={8 * n}"]) for n in (1, 2)]
    one = dict(line.split(maxsplit=1) for line in plan.describe(runs[:1]).splitlines())
    lines = plan.describe(runs).splitlines()
    names = [line[:14].strip() for line in lines]
    assert names.count("evaluation") == 1 and names.count("run") == 2
    assert names[0] == "sweep" and names.count("generations") == 2
    assert any(line.endswith(f"{one['evaluation']}") for line in lines)
    works = [summarize.work(run) for run in runs]
    assert f"{sum(w.policy_updates for w in works):,} policy updates" in lines[-1]
    generations = sum(run.sample.k * w.sampled for run, w in zip(runs, works, strict=True))
    assert lines[-1].startswith("in all") and f"{generations:,} generations" in lines[-1]


def test_no_more_sources_are_counted_than_there_are():
    values = ["sample.sources=100", "sample.heldout_sources=30", "sample.k=3"]
    found = summarize.count(
        run_config("summarize", ["experiment=none", "policy=t5_small", "reward=t5_small", *values]),
        {"train": 40, "validation": 20, "test": 10},
    )
    assert found.generations == (40 + 20) * 3
    assert counts(*values).generations == (100 + 30) * 3  # 640 and 50 are there


def test_rows_that_only_some_runs_have_are_said_with_their_number():
    runs = [run_config("summarize", [f"method={name}"]) for name in ("mle", "pgtg", "pgtg")]
    lines = plan.describe(runs).splitlines()
    (generations,) = (line for line in lines if line.startswith("generations"))
    assert generations.endswith("in all (2 runs)")
    assert "sample.sources" in lines[-3] and "schedule.total" in lines[-3]
    alone = plan.describe(runs[:1]).splitlines()
    assert "sample.sources" not in alone[-2] and "schedule.total" in alone[-2]


def test_what_a_search_does_not_do_is_not_said():
    lines = plan.describe([run_config("prompt", ["method=grips"])]).splitlines()
    assert not any(line.startswith(("reward updates", "policy updates")) for line in lines)
    assert lines[-2].endswith("  the method's options; disk: keep_rounds")
    assert lines[-1].startswith("time") and "--probe" in lines[-1]
    assert "--probe" not in plan.describe([run_config("prompt", [])], probed=True)
