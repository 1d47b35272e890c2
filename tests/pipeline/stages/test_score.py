"""Token rewards of held-out targets: what the right token would get where a flaw stands."""

import pytest

from pgtg.models.reward import load_reward_model
from pgtg.pipeline.run import session
from pgtg.pipeline.stages.aggregate import token_truth
from pgtg.runs.folder import read_table
from tests.support.finished import finished_run
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, _quiet, tiny  # noqa: F401 (a fixture)

# wrong words as well: after the right one a text goes on, after the right end it does not
FLAWED = tiny(*SHORT, "data.newswire.noise=0.9", "data.newswire.wrong_fact_share=0.6")


def test_the_right_token_is_scored_at_the_flaws_state(tmp_path_factory: pytest.TempPathFactory):
    run = finished_run(FLAWED, tmp_path_factory, "sample", "align", "score")
    with session(FLAWED, run, True) as ctx:
        table = read_table(ctx.artifact(0, "score").file("targets.parquet"))
        model = load_reward_model(ctx.artifact(0, "align").file("reward")).eval()
        codec = ctx.load_start()[1]
        held = ctx.task.heldout()
        clean = [codec.encode_target(e.references[0])[0] for e in held]
        sources = ctx.task.sources(held, codec).ids
        rewards = ctx.per_token(model, sources, clean, range(len(clean)))
    kinds = set()
    for i, labels in enumerate(table["label"]):
        bad = [t for t, label in enumerate(labels) if label in ("wrong", "boilerplate")]
        assert table["flaw_at"][i] == (bad[0] if bad else -1)
        if bad:
            kinds.add(labels[bad[0]])
            assert table["right_reward"][i] == pytest.approx(rewards[i][bad[0]], abs=1e-6)
    assert kinds == {"wrong", "boilerplate"}


def test_same_states_count_right_tokens_above_flaws():
    """Two tails, one of which the end is above; a wrong word that is above the right one."""
    table = {
        "label": [["content", "boilerplate", "end"]] * 2 + [["wrong", "end"], ["content", "end"]],
        "reward": [[0.5, 0.9, 0.1], [0.5, 0.2, 0.9], [0.7, 0.5], [0.1, 0.1]],
        "start_log_prob": [[-1.0, -1.0, -2.0], [-1.0, -1.0, -1.0], [-3.0, 0.0], [-1.0, -1.0]],
        "flaw_at": [1, 1, 0, -1],
        "right_reward": [0.4, 0.4, 0.6, 9.0],
        "right_start_log_prob": [-2.0, -2.0, -1.0, 9.0],
    }
    found = token_truth(table)
    assert (found["end_over_tail"], found["log_prob_end_over_tail"]) == (0.5, 0)
    assert (found["right_over_wrong"], found["log_prob_right_over_wrong"]) == (0, 1)
    # right: .5 .1 .5 .9 | .5 | .1 .1; harmful: .9 .2 .7: pairs won / 21
    right, harmful = [0.5, 0.1, 0.5, 0.9, 0.5, 0.1, 0.1], [0.9, 0.2, 0.7]
    won = sum((r > h) + (r == h) / 2 for r in right for h in harmful)
    assert found["auc_flaws"] == pytest.approx(won / 21)
