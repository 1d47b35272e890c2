"""The preferences task: rankings that exist already, through a whole run."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pgtg.cli.api import load_policy
from pgtg.cli.main import app
from pgtg.config import RunConfig
from pgtg.config.compose import run_config
from pgtg.data.generations import of_tables, read_generations
from pgtg.errors import ConfigError, DataError
from pgtg.methods import method_of
from pgtg.methods.method import Improving, Shared
from pgtg.models.batch import per_token, token_batch
from pgtg.models.codec import Codec
from pgtg.models.loading import load_language_model
from pgtg.models.lora import has_lora
from pgtg.models.reward import build_reward_model, load_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.ops.normalizing import ByPlace
from pgtg.ops.sampling import derive_seed, log_probability
from pgtg.pipeline.evaluation.preferences import heldout_reward
from pgtg.pipeline.plan import describe, needs
from pgtg.pipeline.run import run_stage, session, train
from pgtg.report.write import report
from pgtg.runs.files import read_jsonl
from pgtg.runs.folder import RunFolder
from pgtg.tasks.preferences import PreferencesTask
from pgtg.training import loop
from tests.support.finished import finished_run
from tests.support.interrupting import stopped
from tests.support.tiny import results
from tests.support.tiny_preferences import TINY_PREFERENCES, tiny_preferences

ONE_ROUND = ["schedule.total=2", "schedule.retrain_until=0", "method.controls=[]"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny_preferences(), tmp_path_factory)


def written(folder: Path, rows: list[dict[str, Any]], name: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Letters:
    """A codec of one token a letter; 0 ends."""

    def encode_sources(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        return [([ord(c) for c in text], False) for text in texts]

    def encode_targets(self, texts: list[str]) -> list[tuple[list[int], bool]]:
        whole = [[*(ord(c) for c in text), 0] for text in texts]
        return [(ids[:6], len(ids) > 6) for ids in whole]


def task_of(path: Path, *overrides: str) -> PreferencesTask:
    own = [f"data.path={path}", "policy=pretrained", "policy.path=someone/model"]
    return PreferencesTask(run_config("preferences", [*own, *overrides]))


def test_the_rankings_are_the_generations_of_the_sample_stage(tmp_path: Path):
    rows = [
        {"prompt": "a", "completions": ["one", "twelve", "three"], "ranks": [2, 1, None]},
        {"prompt": "b", "completions": ["x", "y", "z"], "ranks": [1, 2, 2]},
    ]
    task = task_of(written(tmp_path / "d", rows), "data.validation_share=null")
    codec: Any = Letters()
    columns, cut = task.preferences.columns(task.examples("train"), codec)
    assert cut == ["0"] and "margin" not in columns and "beats" not in columns
    found = of_tables([columns])
    assert found.texts == ["one", "twelve", "x", "y", "z"]
    assert found.tokens[1] == [ord(c) for c in "twelve"]
    compared = task.all_comparisons(found)
    assert compared.groups.tolist() == [[0, 1, -1], [2, 3, 4]]
    expected = [[-2.0, -1.0, 9.0], [-1.0, -2.0, -2.0]]
    assert (
        compared.preference.nan_to_num(9).tolist() == torch.tensor(expected).nan_to_num(9).tolist()
    )
    assert [e.target for e in task.examples("train")] == ["twelve", "x"]


def test_comparisons_and_margins_reach_the_loss(tmp_path: Path):
    rows = [{"prompt": "a", "completions": ["p", "q", "r"], "pairs": [[0, 1, -2], [2, 1, -1]]}]
    task = task_of(written(tmp_path / "d", rows), "data.validation_share=null")
    codec: Any = Letters()
    found = of_tables([task.preferences.columns(task.examples("train"), codec)[0]])
    assert found.pairs is not None and found.pairs.tolist() == [[1, 0], [1, 2]]
    rows = [{"prompt": "a", "chosen": "p", "rejected": "q", "margin": 1.5}]
    rows += [{"prompt": "b", "chosen": "p", "rejected": "q"}]
    task = task_of(written(tmp_path / "e", rows), "data.validation_share=null")
    found = of_tables([task.preferences.columns(task.examples("train"), codec)[0]])
    compared = task.all_comparisons(found)
    assert compared.margin is not None and compared.margin.tolist() == [1.5, 0.0]


def test_contents_are_those_of_all_completions(tmp_path: Path):
    def contents(name: str, **changed: Any) -> str:
        row = {"prompt": "a", "completions": ["p", "q"], "scores": [1.0, 0.0]} | changed
        task = task_of(written(tmp_path / name, [row]), "data.validation_share=null")
        return task.contents("train")

    first = contents("first")
    assert first == contents("same")
    changes: list[dict[str, Any]] = [
        {"prompt": "b"},
        {"completions": ["p", "r"]},
        {"scores": [2.0, 0.0]},
    ]
    assert len({first, *(contents(f"x{i}", **c) for i, c in enumerate(changes))}) == 4


def test_a_share_of_the_prompts_validates_where_there_is_only_train(tmp_path: Path):
    rows = [
        {"prompt": f"p{i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)
    ]
    file = written(tmp_path / "d", rows) / "train.jsonl"
    task = task_of(file, "data.validation_share=0.25")
    train, held = ({e.source for e in task.examples(s)} for s in ("train", "validation"))
    assert not train & held and len(train | held) == 200
    assert 30 < len(held) < 70
    assert task.has("validation") and not task.has("test")
    assert not task_of(file, "data.validation_share=null").has("validation")


def test_a_whole_run_and_the_same_again(finished: Path, tmp_path: Path):
    """Two rounds; what a second process makes is the same to the bit, and nothing is redone."""
    again = tmp_path / "again"
    train(tiny_preferences(), again)
    assert results(again) == results(finished)
    before = (again / "metrics.jsonl").read_bytes()
    final = train(tiny_preferences(), again)
    assert (again / "metrics.jsonl").read_bytes() == before
    assert {"validation/greedy/win_rate", "validation/sample/kl_to_start"} <= final.keys()
    assert 0 <= final["reward/heldout_calibration_error"] <= 1


def test_figures_are_what_they_say(finished: Path):
    """Log-probabilities and wins from the run's own models, one text at a time."""
    with session(tiny_preferences(), finished, False) as ctx:
        rows = read_jsonl(finished / "eval" / "validation" / "pgtg" / "samples_sample.jsonl")
        task = ctx.task
        assert isinstance(task, PreferencesTask)
        model = heldout_reward(ctx)
        assert model is not None
        lm, codec = ctx.load(finished / "policy")
        start, _ = ctx.load_start()
        aggregator = Aggregator.of(ctx.cfg.aggregator)
        for row, one in zip(rows, task.rankings("validation"), strict=True):
            best, worst = one.completions[0], one.completions[1]

            def log_prob(model: Any, ids: list[int], prompt: str = one.prompt) -> np.ndarray:
                read = codec.encode_source(prompt)[0]
                whole = torch.tensor([read + ids])
                logits = model.model(whole).logits[:, len(read) - 1 : -1]
                return log_probability(logits, torch.tensor([ids])).detach().numpy()[0]

            chosen, other = (codec.encode_target(text)[0] for text in (best, worst))
            scores = row["scores"]
            assert scores["chosen_log_prob"] == pytest.approx(log_prob(lm, chosen).mean(), abs=1e-4)
            prefers = log_prob(lm, chosen).mean() > log_prob(lm, other).mean()
            assert scores["prefers_chosen"] == 100.0 * prefers
            ours = row["tokens"]
            assert scores["kl_to_start"] == pytest.approx(
                log_prob(lm, ours).sum() - log_prob(start, ours).sum(), abs=1e-4
            )
            values = ctx.per_token(
                model, [codec.encode_source(one.prompt)[0]], [ours, chosen], [0, 0]
            )
            rewards = torch.zeros(2, max(map(len, values)))
            mask = torch.zeros_like(rewards, dtype=torch.bool)
            for i, value in enumerate(values):
                rewards[i, : len(value)], mask[i, : len(value)] = torch.from_numpy(value), True
            mine, its = aggregator.groups(rewards, mask, torch.tensor([[0, 1]]))[0].tolist()
            assert scores["win_rate"] == (100.0 if mine > its else 50.0 if mine == its else 0.0)


def test_marked_errors_are_held_against_the_rest_of_their_texts(finished: Path, tmp_path: Path):
    """Mean log-probabilities of a prompt's tokens, those under an error apart from the others, one
    token at a time; texts in which nobody looked, and an end token, are in neither."""
    data = Path(str(tiny_preferences().data.path))
    rows = read_jsonl(data / "validation.jsonl")
    ranked = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "ranks": [1, 2]}
        for row in rows
    ]
    both = ranked[0]["completions"]
    words = [text.lstrip().split(" ") for text in both]
    begins = [len(text) - len(text.lstrip()) for text in both]
    last = [len(text) - len(own[-1]) for text, own in zip(both, words, strict=True)]
    wrong = [[[begins[0], begins[0] + len(words[0][0]), "x"]], [[last[1], len(both[1]), "y"]]]
    ranked[0]["spans"] = wrong
    ranked[1]["spans"] = [[], None]
    trained = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "ranks": [1, 2]}
        for row in read_jsonl(data / "train.jsonl")
    ]
    written(written(tmp_path / "d", trained), ranked, "validation")
    cfg = tiny_preferences(f"data.path={tmp_path / 'd'}", *ONE_ROUND, "evaluate.decodings=[greedy]")
    means = train(cfg, tmp_path / "run")
    with session(cfg, tmp_path / "run", False) as ctx:
        lm, codec = ctx.load(tmp_path / "run" / "policy")
        source = codec.encode_source(ranked[0]["prompt"])[0]
        parts: dict[str, list[float]] = {"errors": [], "rest": []}
        for text, spans in zip(both, wrong, strict=True):
            ids = codec.encode_target(text)[0]
            logits = lm.model(torch.tensor([source + ids])).logits[:, len(source) - 1 : -1]
            values = log_probability(logits, torch.tensor([ids]))[0].tolist()
            end = 0
            for place, value in enumerate(values):
                start, end = end, len(codec.decode(ids[: place + 1]).strip()) + begins[0]
                if text[start:end].strip():
                    under = spans[0][0] <= start + text[start:end].count(" ") < spans[0][1]
                    parts["errors" if under else "rest"].append(value)
    found = {row["id"]: row["scores"] for row in read_jsonl(
        tmp_path / "run" / "eval" / "validation" / "pgtg" / "samples_greedy.jsonl"
    )}  # fmt: skip
    ours, *others = found.values()
    assert all(row["rest_over_errors"] is None for row in others)
    assert parts["errors"] and parts["rest"]
    for name, values in parts.items():
        assert ours[f"{name}_log_prob"] == pytest.approx(np.mean(values), abs=1e-4)
    over = ours["rest_log_prob"] - ours["errors_log_prob"]
    assert ours["rest_over_errors"] == pytest.approx(over, abs=1e-6)
    assert means["validation/greedy/rest_over_errors"] == pytest.approx(over, abs=1e-6)
    plain = read_jsonl(finished / "eval" / "validation" / "pgtg" / "samples_greedy.jsonl")
    assert "rest_over_errors" not in plain[0]["scores"]


def test_the_heldout_reward_model_has_seen_validation_alone(finished: Path):
    guided = load_reward_model(finished / "rounds" / "00" / "align" / "reward")
    held = load_reward_model(finished / "eval" / "heldout_reward" / "reward")
    pairs = zip(guided.parameters(), held.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    samples = finished / "rounds" / "00" / "sample"
    with session(tiny_preferences(), finished, False) as ctx:
        own = read_generations(ctx.artifact(0, "sample"), "heldout")
        task = ctx.task
        assert isinstance(task, PreferencesTask)
        kept = {one.completions[0] for one in task.rankings("validation")}
    assert kept <= set(own.texts) and (samples / "heldout").is_dir()


@pytest.mark.slow
def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path: Path):
    """A whole run and its report; no figure of held-out rankings."""
    own = ["reward.fit.keep=last", "reward.fit.patience=0", "reward.fit.schedule=constant"]
    own += ["reward.fit.validate_every=0", "evaluate.diagnose=0", "improve.keep=last"]
    own += ["reward.score=[heldout,targets]"]
    own += ["data.targets=all", "sample.heldout_sources=0", "method.controls=[uniform,sequence]"]
    cfg = tiny_preferences(*own)
    train(cfg, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not any("heldout_pair" in name for name in summary)
    with session(cfg, tmp_path / "run", False) as ctx:
        found = ctx.artifact(0, "aggregate").manifest()["metrics"]
    assert found["aggregate/heldout_groups"] == 0
    report([tmp_path / "run"], tmp_path / "report")
    assert (tmp_path / "report" / "report.csv").is_file()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["judge=classifier"], "judge: classifier judges prompts"),
        (["data.format=trl"], "data.format: there is no 'trl'"),
        (
            ["data.validation_share=0.2", "data.validation_fold=5"],
            "data.validation_fold: found 5, expected 0 to 4 with data.validation_share=0.2",
        ),
        (["data.validation_fold=-1"], "data.validation_fold: found -1, expected >= 0"),
        (["data.validation_share=1.5"], "data.validation_share: found 1.5, expected in (0, 1)"),
        (["sample.heldout_sources=0"], "sample.heldout_sources: found 0, but keep=best"),
        (["data=newswire"], "data: newswire holds no preferences"),
        (["data.targets=rejected"], "data.targets: there is no 'rejected'"),
        (["method.weights=signs"], "method.weights: there is no 'signs'; did you mean 'sign'?"),
        (["method.threshold=0.5"], "method.threshold: found 0.5, which weights=share does not"),
        (["method.weights=sign", "method.transform=exp"], "method.weights: sign goes with tran"),
        (["method.weights=sign", "method.negative=-1"], "method.negative: found -1.0, expected 0"),
        (["reward.granularity=word"], "reward.granularity: there is no 'word'"),
        (["reward.segment_tokens=0"], "reward.segment_tokens: found 0, expected at least 1"),
        (["reward.segment_entropy=-1"], "reward.segment_entropy: found -1"),
        (["reward.normalize=position"], "reward.normalize: there is no 'position'"),
        (
            ["reward.normalize=place", "method.weights=share"],
            "reward.normalize: place gives rewards of either sign, which are no shares",
        ),
        (
            ["reward.normalize=place", "method.weights=sign", "sample.heldout_sources=0"],
            "reward.normalize: place is fitted on held-out samples",
        ),
        (["reward.bound=none"], "reward.bound: none gives rewards of either sign, which are no"),
        (["reward.head=log_ratio", "reward.trained=head"], "reward.trained: head leaves log_ratio"),
        (["method=sparse"], "method.name: 'sparse' needs classifier, judge, which the task"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], said: str):
    with pytest.raises(ConfigError) as error:
        run_config("preferences", [*TINY_PREFERENCES, *overrides])
    assert any(line.startswith(said) for line in error.value.problems), error.value.problems


def test_preferences_are_for_their_task():
    with pytest.raises(ConfigError, match=r"data.format: preferences are for `pgtg train pref"):
        run_config("summarize", ["data=pairs", "data.path=x", "policy=t5_small"])
    with pytest.raises(ConfigError, match=r"data\.targets: found all; a text here has one"):
        run_config("summarize", ["data.targets=all"])
    with pytest.raises(ConfigError, match="judge: none judges nothing"):
        run_config("summarize", ["judge=none"])


def test_unpaired_feedback_is_refused(tmp_path: Path):
    rows = [{"prompt": "a", "completion": "b", "label": True}]
    task = task_of(written(tmp_path / "d", rows), "data.validation_share=null")
    with pytest.raises(DataError, match="unpaired feedback"):
        task.examples("train")


def test_the_plan_counts_rows_and_nothing_judged():
    text = describe([tiny_preferences()])
    assert "24 of 24 rows per round" in text and "judged" not in text
    assert needs(tiny_preferences()) is not None


def test_long_prompts_lose_their_beginning(finished: Path):
    with session(tiny_preferences(), finished, False) as ctx:
        codec = ctx.load_start()[1]
        assert isinstance(codec, Codec) and codec.cut_start
        whole = codec.encode_source("the plot was neat but")[0]
        short = Codec(codec.tokenizer, False, "", "", "", 3, 9, cut_start=True)
        assert short.encode_source("the plot was neat but") == (whole[-3:], True)


@pytest.fixture(scope="module")
def lora(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the finished run's policy with adapters of policy and reward model."""
    return finished_run(lora_config(finished), tmp_path_factory, name="lora")


def lora_config(base: Path) -> RunConfig:
    kept = [word for word in TINY_PREFERENCES if not word.startswith("policy.tiny_lm")]
    own = ["policy=pretrained_lora", f"policy.path={base / 'policy'}", "reward=lora"]
    own += ["policy.lora.rank=2", "reward.lora.rank=2", "reward.mlp_width=8", "reward.head=paper"]
    return run_config("preferences", [*kept, *own])


@pytest.mark.slow
def test_adapters_are_trained_saved_alone_and_merged(finished: Path, lora: Path):
    """Two rounds; policies are adapters on the start, the reward model is a plain folder."""
    policy = lora / "policy"
    assert (policy / "adapter_model.safetensors").is_file()
    assert not (policy / "model.safetensors").exists()
    lm, tokenizer = load_policy(lora)
    start, _ = load_policy(finished)
    assert not has_lora(lm) and len(tokenizer)
    pairs = zip(lm.model.parameters(), start.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    with session(lora_config(finished), lora, False) as ctx:
        adapted, codec = ctx.load(policy)
        ids = torch.tensor([codec.encode_source("the plot was neat but")[0]])
        assert torch.allclose(adapted.model(ids).logits, lm.model(ids).logits, atol=1e-5)
    reward = load_reward_model(lora / "rounds" / "01" / "align" / "reward")
    first = load_reward_model(lora / "rounds" / "00" / "align" / "reward")
    pairs = zip(reward.backbone.parameters(), first.backbone.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


EVERY = ["data.targets=all", "method.weights=sign", "method.negative=0.2"]


def test_every_completion_is_a_target_where_asked_for(finished: Path, tmp_path: Path):
    """The loss of an update from its definition, with the policy and the reward model of the run;
    an epoch is as long as there are completions, and the plan knows that."""
    cfg = tiny_preferences(*EVERY, "improve.accumulate=1", "reward.head=linear")
    shutil.copytree(finished, tmp_path / "run")
    with session(cfg, tmp_path / "run", True) as ctx:
        assert ctx.task.targets is not None
        texts = ctx.task.targets.examples("train-all")
        rankings = ctx.task.rankings("train")  # type: ignore[attr-defined]
        every = [(one.prompt, text) for one in rankings for text in one.completions]
        assert [(one.source, one.target) for one in texts] == every and len(every) == 48
        assert texts[5].target == texts[-43].target == every[5][1] and len({*texts.ids()}) == 48
        method, (lm, codec) = method_of(cfg), ctx.load_start()
        model = load_reward_model(finished / "rounds/00/align/reward").eval()
        artifact, working = ctx.artifact(0, "targets"), tmp_path / "working"
        given = Improving(ctx, lm.eval(), codec, model, [], working, 0, 2, Shared(artifact, "x"))
        assert method.trainer is not None
        trainer = method.trainer(method, given)
        batch = trainer.window(0)[0]()
        loss = trainer.objective(batch, trainer.objective.count(batch)).value
        windows = [ctx.task.targets.window(step)[0].rows.tolist() for step in (0, 1)]
        rewards, terms, alone = {}, [], {}
        with torch.no_grad():
            for row in {*windows[0], *windows[1]}:
                source = codec.encode_source(texts[row].source)[0]
                alone[row] = token_batch([source], [codec.encode_target(texts[row].target)[0]], [0])
                rewards[row] = model(alone[row])[0].tolist()
            level = float(np.mean([r for own in rewards.values() for r in own]))
            for row in windows[0]:
                ids = alone[row].tokens[0].tolist()
                p = lm.logits(alone[row])[0].softmax(-1)[range(len(ids)), ids].tolist()
                pairs = zip(p, rewards[row], strict=True)
                own = [-np.log(x) if r >= level else -0.2 * np.log(1 - x) for x, r in pairs]
                terms.append(sum(own) / len(ids))
        assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
        assert trainer.measured()["improve/threshold"] == pytest.approx(level, rel=1e-6)
    epochs = ["schedule.unit=epochs", "schedule.total=1", "schedule.retrain_until=0"]
    assert "policy updates  12" in describe([tiny_preferences(*EVERY, *epochs)])
    assert "policy updates  6" in describe([tiny_preferences(*epochs)])


LOG_RATIOS = ["reward.head=log_ratio", "reward.bound=none", "reward.beta=0.5", "method.controls=[]"]
LOG_RATIOS += ["reward.granularity=segment", "reward.segments=tokens", "reward.segment_tokens=2"]


@pytest.mark.slow
def test_segments_of_log_ratios_on_every_completion(tmp_path: Path):
    """The reference is the start policy, in both rounds; the second continues from the first."""
    train(tiny_preferences(*EVERY, *LOG_RATIOS, "evaluate.splits=[]"), tmp_path / "whole")
    start, _ = load_language_model(str(tmp_path / "whole" / "start" / "policy"))
    models = [load_reward_model(tmp_path / f"whole/rounds/0{n}/align/reward") for n in (0, 1)]
    for model in models:
        assert model.reference is not None and model.spec.beta == 0.5
        both = zip(model.reference.parameters(), start.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)
    apart = zip(models[0].backbone.parameters(), models[1].backbone.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in apart)


@pytest.mark.slow
def test_segments_of_log_ratios_resume_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ended in the second round's reward training."""
    cfg = tiny_preferences(*EVERY, *LOG_RATIOS)
    train(cfg, tmp_path / "whole")
    run = lambda: train(cfg, tmp_path / "again")  # noqa: E731
    assert stopped(monkeypatch, loop, "save_state", run, at=7)
    assert not (tmp_path / "again" / "rounds" / "01" / "improve").is_dir()
    run()
    assert results(tmp_path / "again") == results(tmp_path / "whole")


@pytest.mark.slow
def test_normalised_rewards_of_segments_by_entropy_resume_to_the_bit(tmp_path: Path, monkeypatch):
    """Ended in the second round's policy training. The normaliser is the fit to what the round's
    reward model gives for held-out texts, and the policy learns from what it makes of it."""
    own = ["reward.granularity=segment", "reward.segments=entropy", "reward.segment_entropy=3.5"]
    own += ["reward.normalize=place", "method.controls=[untrained]", "sample.heldout_sources=8"]
    own += ["method.transform=exp"]
    cfg = tiny_preferences(*own)
    train(cfg, tmp_path / "whole")
    start, _ = load_language_model(str(tmp_path / "whole" / "start" / "policy"))
    for number in (0, 1):
        room = tmp_path / "whole" / "rounds" / f"0{number}"
        model = load_reward_model(room / "align" / "reward").eval()
        assert model.start is not None and model.normalizer is not None
        both = zip(model.start.parameters(), start.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)
        held = read_generations(
            RunFolder(tmp_path / "whole").artifact("rounds", room.name, "sample"), "heldout"
        )
        given = held.sources, held.tokens, held.origin
        found = per_token(model.unit_rewards, *given, batch_tokens=10**6)
        rows = [(r, t + 1) for row in found for t, r in enumerate(row) if not np.isnan(r)]
        assert len(held.tokens) < len(rows) < sum(map(len, held.tokens))
        again = ByPlace.fit(*map(np.array, zip(*rows, strict=True)))
        assert model.normalizer.mean == pytest.approx(again.mean, rel=1e-4, abs=1e-6)
        assert model.normalizer.sd == pytest.approx(again.sd, rel=1e-4, abs=1e-6)
    run = lambda: train(cfg, tmp_path / "again")  # noqa: E731
    assert stopped(monkeypatch, loop, "save_state", run, at=11)
    run()
    assert results(tmp_path / "again") == results(tmp_path / "whole")
    raw = tiny_preferences(*[word for word in own if "normalize" not in word])
    shutil.copytree(tmp_path / "whole", tmp_path / "raw")
    for stage in ("align", "improve"):
        run_stage(raw, tmp_path / "raw", stage, round=0, force=True)
    made = [tmp_path / name / "rounds" / "00" / "improve" / "policy" for name in ("whole", "raw")]
    policies = [load_language_model(str(folder))[0].parameters() for folder in made]
    assert any(not torch.equal(a, b) for a, b in zip(*policies, strict=True))


@pytest.mark.slow
def test_adapters_resume_to_the_bit(finished: Path, lora: Path, tmp_path: Path, monkeypatch):
    """Ended in the middle of a training of the second round, and resumed."""
    run = lambda: train(lora_config(finished), tmp_path / "again")  # noqa: E731
    assert stopped(monkeypatch, loop, "save_state", run, at=7)
    run()
    assert results(tmp_path / "again") == results(lora)


def test_the_head_alone_is_trained_where_asked_for(finished: Path, tmp_path: Path):
    """On the backbone as it is, to the bit; the head moves, and starts as it would."""
    shutil.copytree(finished, tmp_path / "run")
    cfg = tiny_preferences("reward.trained=head")
    run_stage(cfg, tmp_path / "run", "align", round=0, force=True)
    found = load_reward_model(tmp_path / "run" / "rounds" / "00" / "align" / "reward")
    whole = load_reward_model(finished / "rounds" / "00" / "align" / "reward")
    start, _ = load_language_model(str(finished / "start" / "policy"))
    same = [
        torch.equal(a, b)
        for a, b in zip(found.backbone.parameters(), start.parameters(), strict=True)
    ]
    assert all(same)
    pairs = zip(whole.backbone.parameters(), start.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    fresh = build_reward_model(start, found.spec, derive_seed(cfg.seed, "head", "state_action"))
    pairs = zip(found.head.parameters(), fresh.head.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)
    both = [f"policy.path={finished / 'policy'}", "reward.trained=head"]
    kept = [word for word in TINY_PREFERENCES if not word.startswith("policy.tiny_lm")]
    with pytest.raises(ConfigError, match=r"reward\.trained: head leaves nothing to reward\.lora"):
        run_config("preferences", [*kept, "policy=pretrained", "reward=lora", *both])


def test_reinforce_learns_from_own_samples_alone(finished: Path, tmp_path: Path):
    """No target is read: other chosen texts of the same rewards would change nothing."""
    shutil.copytree(finished, tmp_path / "run")
    own = ["method=reinforce", "method.samples=2", "method.controls=[]"]
    run_stage(tiny_preferences(*own), tmp_path / "run", "improve", round=0, force=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    seen = {key for line in lines for key in json.loads(line)}
    assert any("reinforce" in key for key in seen)
    with pytest.raises(ConfigError, match="mle: found 0, and reinforce=0"):
        tiny_preferences("method=reinforce", "method.reinforce=0")


@pytest.mark.slow
def test_a_sweep_shares_what_is_common_and_is_reported_and_explained(tmp_path: Path):
    """Two jobs, of which the second takes the start policy from the first."""
    kept = [word for word in TINY_PREFERENCES if not word.startswith("cache=")]
    own = [*kept, *ONE_ROUND, f"cache={tmp_path / 'cache'}"]
    sweep, said = tmp_path / "sweep", CliRunner()
    call = ["train", "preferences", "-m", *own, "aggregator=avg,max"]
    assert said.invoke(app, [*call, f"sweep_dir={sweep}"]).exit_code == 0
    runs = [str(sweep / f"aggregator={name}") for name in ("avg", "max")]
    assert [(Path(run) / "log.txt").read_text().count(" taken from the cache") for run in runs] == [
        0,
        1,
    ]
    assert "2 done" in said.invoke(app, ["ls", str(sweep)]).stdout

    out = ["--out", str(tmp_path / "report")]
    assert said.invoke(app, ["report", str(sweep), *out]).exit_code == 0
    with (tmp_path / "report" / "report.csv").open() as file:
        told = {(row["row"], row["metric"]) for row in csv.DictReader(file)}
    assert {("aggregator=max", "win_rate"), ("start (aggregator=avg)", "prefers_chosen")} <= told
    html = tmp_path / "credit.html"
    explained = said.invoke(app, ["explain", runs[0], "--with", runs[1], "--html", str(html)])
    assert explained.exit_code == 0 and "Token credit" in html.read_text()


def test_doctor_knows_what_a_run_needs(tmp_path: Path):
    """Its data and sizes; and that the data are not there."""
    said = CliRunner()
    found = said.invoke(app, ["doctor", "preferences", *TINY_PREFERENCES, f"run_dir={tmp_path}/a"])
    assert found.exit_code == 0 and "train 24" in found.stdout
    gone = [word for word in TINY_PREFERENCES if not word.startswith("data.path")]
    found = said.invoke(app, ["doctor", "preferences", *gone, f"data.path={tmp_path / 'gone'}"])
    assert found.exit_code == 1 and "gone" in found.stdout and "Traceback" not in found.output
