"""Prompts that are sampled and judged for each update, and budgets that are equal, end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pgtg.config import AggregatorConfig, RunConfig
from pgtg.errors import ConfigError
from pgtg.judges.classifier import Classifier
from pgtg.judges.record import TABLE, Record, read_judged, write_judged
from pgtg.judges.template import Prompt
from pgtg.methods import method_of
from pgtg.methods.fresh import BLOCK, FreshComparisons, draw, validations
from pgtg.methods.method import Improving
from pgtg.methods.objective import sampled_log_probs
from pgtg.models.adaptor import AdaptedLanguageModel
from pgtg.models.language import evaluating
from pgtg.ops.ranking import plackett_luce_nll
from pgtg.pipeline.run import run_stage, session, train
from pgtg.pipeline.stages.align import GroupBatch, PlackettLuce, random_reward_model
from pgtg.pipeline.stages.match import judged_prompts
from pgtg.runs.files import read_table
from pgtg.runs.folder import RunFolder, read_jsonl
from pgtg.tasks.prompt import PromptTask
from pgtg.types import TokenBatch
from tests.support.finished import finished_run
from tests.support.precisions import products
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import contents
from tests.support.tiny_prompt import tiny_prompt

FRESH = [
    "keep_rounds=all",
    "prompt.fresh=true",
    "prompt.fresh_checks=2",
    "prompt.validation_prompts=5",
    "reward.replay=0",
    "reward.fit.updates=5",
    "reward.fit.validate_every=2",
    "reward.fit.keep=best",
    "improve.validate_every=1",
    "improve.keep=best",
    "evaluate.diagnose=0",
]
LINES = ("pgtg", "random", "sparse", "shuffled")
RESULTS = ("rounds", "controls", "policy", "reward", "eval", "metrics.jsonl", "start")


def fresh(*overrides: str) -> RunConfig:
    return tiny_prompt(*FRESH, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(fresh(), tmp_path_factory)


def results(run: Path) -> dict:
    return json.loads((run / "eval" / "results_test.json").read_text())


def metrics(run: Path, *parts: str) -> dict[str, float]:
    return RunFolder(run).artifact(*parts).manifest()["metrics"]


@pytest.mark.slow
def test_each_update_has_its_own_prompts_and_each_validation_its_own_on_dev(finished: Path):
    """5 updates of 6 prompts; validated after 2, 4 and 5 with two pools of 6."""
    table = read_table(finished / "rounds/00/align" / TABLE)
    found = metrics(finished, "rounds", "00", "align")
    assert found["align/train_judged_prompts"] == table["split"].count("train") == 5 * 6
    assert found["align/dev_judged_prompts"] == table["split"].count("dev") == 3 * 2 * 6
    with session(fresh(), finished, True) as ctx:
        lm, codec = ctx.load_policy(0)
        for split, draws, number in (("train", 5, 6), ("dev", 3, 12)):
            expected = [
                draw(ctx, lm, codec, number, [(0, "align", split, 0, i)])[0] for i in range(draws)
            ]
            rows = [i for i, name in enumerate(table["split"]) if name == split]
            assert [table["tokens"][i] for i in rows] == [ids for own in expected for ids in own]
            assert isinstance(ctx.task, PromptTask)
            texts = [Prompt(codec.decode(table["tokens"][i])) for i in rows]
            scores = ctx.task.gaps(texts, split).mean(-1, dtype=np.float64)
            assert [table["score"][i] for i in rows] == scores.tolist()


@pytest.mark.slow
def test_every_line_spends_the_same_number_of_judged_prompts(finished: Path):
    found = results(finished)
    of_pgtg = found["pgtg"]["search"]
    # round by round: samples, prompts of the reward's updates and checks, the policy's validations
    assert of_pgtg["judged_by_split"] == {"train": 8 + 6 + 2 * 30, "dev": 2 * 36 + 2 * 2 * 5}
    for name in LINES:
        search = found[name]["search"]
        assert search["judged_prompts"] == sum(search["judged_by_split"].values()) == 166
        assert search["judged_sequences"] == 166 * 6  # texts of train, and as many of dev
        rows = read_jsonl(finished / f"eval/test/{name}/samples_candidates.jsonl")
        tested = sum("test_score" in row for row in rows)
        assert found[name]["judged_sequences_in_all"] == 166 * 6 + len(rows) * 12 + tested * 10
        assert search["curve"][-1]["prompts"] == search["judged_by_split"]["train"]
    assert (
        metrics(finished, "controls", "random", "00", "match")["match/train_judged_prompts"] == 76
    )
    assert found["manual"]["judged_sequences_in_all"] == 6 + 10


@pytest.mark.parametrize("control", ["", "sparse"])
@pytest.mark.slow
def test_states_of_prompts_drawn_narrowly_are_not_learned_from(
    finished: Path, tmp_path: Path, control: str
):
    """Prompts come from products in bf16; the states that the adaptor learns on from float32."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    with session(fresh("sample.precision=bf16", "method.kl=0.1"), run, True) as ctx:
        lm, codec = ctx.load_policy(0)
        assert isinstance(lm, AdaptedLanguageModel)
        reward = random_reward_model(ctx).eval().requires_grad_(False)
        method, samples = method_of(ctx.cfg, control), [ctx.artifact(0, "sample")]
        given = Improving(ctx, lm, codec, reward, samples, tmp_path / "working", 0, 2)
        assert method.trainer is not None
        guide = method.trainer(method, given)
        dtypes = products(lm)
        found = guide.window(0)[0]()
        assert set(dtypes) == {torch.bfloat16, torch.float32}
        with evaluating(lm), torch.no_grad():
            expected = lm.states(found.batch)[:, :-1]
            wanted = sampled_log_probs(lm, found.batch, ctx.sampling())
        assert torch.equal(found.drawn.states, expected)  # to the bit
        with torch.no_grad():
            learned = sampled_log_probs(lm, found.batch, ctx.sampling(), found.drawn)
        assert_close(learned, wanted, rtol=0, atol=1e-5)
        loss = guide.objective(found, guide.objective.count(found))
        assert loss.metrics["kl"].abs() < 1e-6
        dtypes.clear()
        guide.validate()
        assert set(dtypes) == {torch.bfloat16}


@pytest.mark.slow
def test_the_sparse_control_learns_from_prompts_judged_for_each_of_its_updates(finished: Path):
    """As many as fit into 30 + 36 + 10 prompts, with 5 for the validation of each."""
    found = metrics(finished, "controls", "sparse", "00", "improve")
    assert found["improve/updates"] == 6  # 6 * (6 + 5) = 66, a seventh does not fit
    assert found["improve/train_judged_prompts"] == 36
    left = metrics(finished, "controls", "sparse", "00", "match")["match/train_judged_prompts"]
    assert left == 76 - 66


@pytest.mark.slow
def test_the_search_ranks_all_prompts_ever_judged_and_the_policy_its_own(finished: Path):
    rows = read_jsonl(finished / "eval/test/pgtg/samples_candidates.jsonl")
    judged: dict[tuple[int, ...], float] = {}
    for i in (0, 1):
        table = read_table(finished / f"rounds/0{i}/sample/train/00000.parquet")
        judged |= dict(zip(map(tuple, table["tokens"]), table["score"], strict=True))
        judged |= read_judged(finished / f"rounds/0{i}/align" / TABLE, "train")
    best = sorted(judged, key=lambda ids: -judged[ids])[:3]
    assert {tuple(r["ids"]) for r in rows if r["from"] == "judged"} == set(best)
    assert any(r["from"] == "judged" and not r["policy"] for r in rows)
    own = [row for row in rows if row["policy"]]
    assert {row["from"] for row in own} >= {"sampled"}
    found = results(finished)["pgtg"]
    assert found["policy_prompt"] == own[0] and found["best_prompt"] == rows[0]
    for kind, leading in (("best", rows), ("policy", own)):
        mean = found["decodings"][kind]["mean"]["accuracy"]
        assert mean == leading[0]["test_accuracy"]
        top = found["decodings"]["top" if kind == "best" else "policy_top"]["mean"]["accuracy"]
        assert top == pytest.approx(np.mean([row["test_accuracy"] for row in leading[:2]]))
        samples = read_jsonl(finished / f"eval/test/pgtg/samples_{kind}.jsonl")
        assert np.mean([row["scores"]["accuracy"] for row in samples]) == pytest.approx(mean)
    assert "policy" not in results(finished)["random"]["decodings"]


class Stop(BaseException):
    """A kill: nothing catches it."""


@pytest.mark.parametrize(
    ("after", "cached"),
    [
        (3, True),
        (8, True),
        (3, False),
        (8, False),
    ],
)
@pytest.mark.slow
def test_a_training_killed_between_two_prompts_judges_none_twice(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, cached: bool
):
    """Stopped within the updates of a block or in a validation; states are kept at each update."""
    more = ["method.controls=[]", "reward.fit.checkpoint_every=1", "evaluate.splits=[]"]
    cfg = fresh(*more, f"cache={tmp_path / 'cache' if cached else 'off'}")
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, run):
        run_stage(cfg, folder, "sample")
    run_stage(fresh(*more), whole, "align", force=True)  # without the cache
    asked, original = [], Classifier.log_probs

    def counting(self: Classifier, prompt: Prompt, examples, demos=None):
        if len(asked) == after:
            raise Stop
        asked.append((prompt, len(examples), examples[0].id))
        return original(self, prompt, examples, demos)

    monkeypatch.setattr(Classifier, "log_probs", counting)
    with pytest.raises(Stop):
        run_stage(cfg, run, "align")
    after = 10**9
    run_stage(cfg, run, "align")
    assert contents(run, "rounds/00/align") == contents(whole, "rounds/00/align")
    assert contents(run, "metrics.jsonl") == contents(whole, "metrics.jsonl")
    if cached:
        assert len(asked) == len(set(asked))


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_is_the_same_to_the_bit(finished: Path, tmp_path: Path):
    """Killed before `match`: what is left of the budget is judged on the way to the end."""
    cfg = fresh()
    run = tmp_path / "run"
    for number in (0, 1):
        for stage in ("sample", "align", "score", "aggregate", "improve"):
            run_stage(cfg, run, stage, round=number)
    train(cfg, run)
    assert contents(run, *RESULTS) == contents(finished, *RESULTS)
    with session(cfg, run, True) as ctx:
        assert sum(judged_prompts(ctx, 0, "random").values()) == 8 + 30 + 36 + 10


@pytest.mark.slow
def test_the_shuffled_control_permutes_the_scores_of_each_update(finished: Path, tmp_path: Path):
    with session(fresh(), finished, True) as ctx:
        plain, shuffled = (
            FreshComparisons(ctx, ctx.load_policy(0), 0, tmp_path / str(i), bool(i))
            for i in range(2)
        )
        differs = 0
        for step in range(5):
            a, b = plain.update(step, 9)[1], shuffled.update(step, 9)[1]
            assert torch.equal(a.groups, b.groups)
            assert set(b.preference.flatten().tolist()) <= set(a.preference.flatten().tolist())
            differs += not torch.equal(a.preference, b.preference)
        assert differs >= 4


@pytest.mark.slow
def test_blocks_of_updates_are_the_same_from_wherever_a_training_is_resumed(finished: Path):
    cfg = fresh("reward.fit.updates=70", "reward.fit.validate_every=30")
    with session(cfg, finished, True) as ctx:
        stream = FreshComparisons(ctx, ctx.load_policy(0), 0, finished, False)
        blocks = [stream._steps(step) for step in range(70)]
    found = sorted({(block.start, block.stop) for block in blocks})
    assert found == [(0, 25), (25, 30), (30, 55), (55, 60), (60, 70)] and BLOCK == 25
    assert all(step in block for step, block in enumerate(blocks))


def test_validations_are_counted_as_the_loop_makes_them():
    fit = fresh("reward.fit.validate_every=2").reward.fit
    assert [validations(steps, fit) for steps in range(6)] == [0, 1, 1, 2, 2, 3]
    fit = fresh("reward.fit.validate_every=0").reward.fit
    assert [validations(steps, fit) for steps in (0, 1, 9)] == [0, 1, 1]


def test_a_tied_group_teaches_nothing():
    """Loss and gradient of the other groups are those without it; alone it gives zeros."""
    evaluations = torch.tensor([[0.1, 0.7, -0.2], [0.3, 0.2, 0.1]], requires_grad=True)
    preference = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    whole = torch.zeros(1, 1, dtype=torch.long)
    batch = TokenBatch(whole, whole.bool(), whole, whole.bool(), whole[0])

    class Given(PlackettLuce):
        def evaluations(self, batch: GroupBatch) -> torch.Tensor:
            return evaluations[batch.groups[:, 0]]

    objective = Given(None, AggregatorConfig())  # type: ignore[arg-type]
    for rows in ([0, 1], [1]):
        groups = GroupBatch(batch, torch.tensor(rows)[:, None], preference[rows])
        loss = objective(groups, objective.count(groups)).value
        (gradient,) = torch.autograd.grad(loss, evaluations)
        expected = torch.zeros(2, 3)
        if 0 in rows:
            nll = plackett_luce_nll(evaluations[:1], preference[:1]).sum() / 2
            (expected,) = torch.autograd.grad(nll, evaluations)
        torch.testing.assert_close(gradient, expected)


def test_a_record_holds_each_draw_once(tmp_path: Path):
    record = Record(tmp_path / "judged.train", 2, 3)
    assert record.made == 0
    tokens = np.arange(12).reshape(4, 3)
    record.put(0, tokens.tolist(), np.arange(4.0))
    record.put(1, tokens[:2].tolist(), np.array([7.0, 8.0]))  # draw 1 again, otherwise
    assert record.made == 2 and len(record.read(1)) == 2
    assert record.read(2)["score"].tolist() == [0.0, 1.0, 7.0, 8.0]
    found = write_judged(tmp_path, {"train": record}, {"train": 2}, "align")
    assert found == {"align/train_judged_prompts": 4.0} and not record.path.exists()
    expected = {(0, 1, 2): 7.0, (3, 4, 5): 8.0}
    assert read_judged(tmp_path / TABLE, "train") == expected
    assert read_judged(tmp_path / TABLE, "dev") == {}
    assert write_judged(tmp_path, {"train": record}, {"train": 2}, "align") == found
    (tmp_path / "none").mkdir()
    write_judged(tmp_path / "none", {"train": record}, {"train": 0}, "align")
    assert read_judged(tmp_path / "none" / TABLE, "train") == {}


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("reward.replay=1", "reward.replay: found 1, but prompt.fresh=true"),
        ("prompt.pool=2", "prompt.pool: found 2; prompt.group=3 needs as many"),
        ("prompt.fresh_checks=0", "prompt.fresh_checks: found 0, but reward.fit.keep=best"),
        ("prompt.fresh_checks=-1", "prompt.fresh_checks"),
        ("prompt.fresh=false", "prompt.fresh_checks: only with prompt.fresh=true"),
        ("reward.compare_heads=[logprob]", "reward.compare_heads: prompt.fresh=true trains one"),
    ],
)
def test_what_fresh_prompts_exclude_is_one_line(override: str, text: str):
    with pytest.raises(ConfigError, match=text):
        fresh(override)
