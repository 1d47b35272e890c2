"""PPO and what is PPO but for its policy or its rewards: iterations, gradients, what is kept."""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError, DataError
from pgtg.judges.judge import Judge
from pgtg.methods import method_of, nlpo
from pgtg.methods.method import Improving
from pgtg.methods.ppo import PPOTrainer
from pgtg.models.language import training_passes
from pgtg.ops.sampling import log_probability, restrict
from pgtg.pipeline.context import Context
from pgtg.pipeline.run import session, train
from pgtg.pipeline.stages.start import start
from pgtg.runs.files import load_tensors, read_jsonl, read_table
from pgtg.runs.folder import Artifact
from pgtg.types import Window
from tests.support.finished import finished_run
from tests.support.interrupting import stopped_and_resumed
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import SHORT, TINY, _quiet, results, tiny  # noqa: F401 (a fixture)
from tests.support.tiny_preferences import tiny_preferences

FEW = ("method.rollouts=8", "method.epochs=2")  # 2 updates an epoch
NLPO = ("method=nlpo", "method.top_p=0.3", "method.least=1", "method.mask_every=1")
NOTHING_ELSE = ("method.controls=[]", "evaluate.splits=[]", "evaluate.start_policy=false")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its start policy; it samples as PPO does not, in a stage of its own."""
    return finished_run(tiny(*SHORT, "method=dpo"), tmp_path_factory, "sample")


@pytest.fixture
def ctx(begun: Path) -> Iterator[Context]:
    with session(tiny(*SHORT, "method=dpo"), begun, True) as ctx:
        start(ctx)
        yield ctx


def trainer(
    ctx: Context, folder: Path, *words: str, before: Artifact | None = None, **more: Any
) -> PPOTrainer:
    """A method's, as the stage makes it."""
    words = words or ("method=ppo",)
    cfg = tiny(*SHORT, *words, *FEW)
    cfg = replace(ctx.cfg, method=replace(cfg.method, **more))
    ctx = replace(ctx, cfg=cfg)
    lm, codec = ctx.load_start()
    method = method_of(cfg)
    assert method.trainer is not None
    given = Improving(ctx, lm, codec, None, [], folder, 0, 20, before=before)
    made: Any = method.trainer(method, given)
    return made


def output_weight(lm: Any) -> Any:
    return lm.model.get_output_embeddings().weight


def first(made: PPOTrainer) -> tuple[Any, Window]:
    made.begin(0)
    (make,) = made.window(0)
    batch = make()
    return batch, made.objective.count(batch)


@pytest.mark.parametrize("words", [("method=ppo",), NLPO], ids=["ppo", "nlpo"])
def test_the_first_minibatch_is_on_the_policy_that_sampled(
    ctx: Context, tmp_path: Path, words: tuple[str, ...]
):
    """Ratio 1, nothing clipped, no divergence from what sampled or from the start policy."""
    made = trainer(ctx, tmp_path, *words)
    batch, window = first(made)
    found = made.objective(batch, window)
    assert found.metrics["clipped"] == 0
    assert abs(float(found.metrics["kl_to_sampled"])) < 1e-9
    assert abs(float(found.metrics["surrogate"])) < 1e-6  # minus the mean advantage, which is 0
    assert float(found.metrics["kl_to_start"]) == 0
    assert not made.window(0)[0]().batch.tokens.equal(made.window(2)[0]().batch.tokens)


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_its_gradient_is_that_of_reinforce_and_of_the_critics_error(
    ctx: Context, tmp_path: Path, critic: str
):
    made = trainer(ctx, tmp_path, entropy=0.1, critic=critic)
    batch, window = first(made)
    made.objective(batch, window).value.backward()
    own = {name: p.grad for name, p in made.both.named_parameters() if p.grad is not None}
    made.both.zero_grad()
    tokens, mask, decoding = batch.batch.tokens, batch.batch.mask, ctx.sampling()
    logits = restrict(made.lm.logits(batch.batch), top_k=decoding.top_k)
    log_probs = log_probability(logits, tokens)
    shares = logits.softmax(-1)
    entropies = -(shares * shares.clamp(min=1e-30).log()).sum(-1)
    states = (made.critic.backbone or made.lm).states(batch.batch)[:, :-1]
    errors = (batch.returns - (states @ made.critic.head.weight[0])) ** 2
    terms = -batch.advantage * log_probs + 0.5 * errors - 0.1 * entropies
    terms[mask].mean().backward()
    others = {name: p.grad for name, p in made.both.named_parameters() if p.grad is not None}
    assert own.keys() == others.keys()
    assert any("critic" in name for name in own) and any("policy" in name for name in own)
    for name in own:
        assert_close(own[name], others[name], rtol=1e-3, atol=1e-6)


def test_what_an_iteration_keeps_by_hand(ctx: Context, tmp_path: Path):
    """Rewards are the score at the last token; lambda 1 makes returns their sums."""
    made = trainer(ctx, tmp_path, gae_lambda=1.0, gamma=0.9)
    made.begin(0)
    found = made.rollouts
    assert found is not None
    table = read_table(tmp_path / "rollouts/000000.parquet")
    examples = made.targets.examples("train")
    those = [examples[row] for row in table["row"]]
    assert len({*table["row"]}) == 8  # each another source
    assert made.task.judge is not None
    judged = made.task.judge(table["tokens"], table["text"], those, made.codec).result()
    assert judged["score"] == table["score"] and any(table["score"])
    for n, tokens in enumerate(found.tokens):
        assert tokens == table["tokens"][n]
        for t in range(len(tokens)):
            expected = 0.9 ** (len(tokens) - 1 - t) * table["score"][n] / 100
            assert found.returns[n][t] == pytest.approx(expected, abs=1e-5)
            expected -= table["value"][n][t]
            assert found.advantages[n][t] == pytest.approx(expected, abs=1e-5)
    assert found.figures["rollout_score"] == pytest.approx(sum(table["score"]) / 8)


def test_a_minibatchs_advantages_are_standardised(ctx: Context, tmp_path: Path):
    made = trainer(ctx, tmp_path)
    batch, _ = first(made)
    own = batch.advantage[batch.batch.mask]
    assert own.mean().item() == pytest.approx(0, abs=1e-6)
    assert own.std().item() == pytest.approx(1, rel=1e-5)


def test_each_epoch_has_every_generation_once(ctx: Context, tmp_path: Path):
    made = trainer(ctx, tmp_path, rollouts=10)  # 3 updates an epoch, the last of two
    made.begin(0)
    assert made.rollouts is not None
    every = sorted(map(tuple, made.rollouts.tokens))
    for epoch in range(2):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            made.begin(step)
            for make in made.window(step):
                batch = make().batch
                lengths = batch.mask.sum(-1).tolist()
                rows = zip(batch.tokens.tolist(), lengths, strict=True)
                seen += [tuple(row[:length]) for row, length in rows]
        assert sorted(seen) == every
    made.begin(6)
    assert made.rollouts.first == 6 and made.rollouts.number == 2


def test_a_divergence_from_what_was_sampled_begins_an_iteration(ctx: Context, tmp_path: Path):
    """It is looked at where an epoch ends."""
    made = trainer(ctx, tmp_path, stop_kl=0.01, epochs=4)
    made.begin(0)
    with torch.no_grad():
        output_weight(made.lm).mul_(1.5)
    made.begin(1)
    assert made.rollouts is not None and made.rollouts.first == 0
    made.begin(2)
    assert made.rollouts.first == 2
    again = trainer(ctx, tmp_path, stop_kl=0.01, epochs=4)
    again.begin(3)  # resumed
    assert again.rollouts is not None and again.rollouts.first == 2
    patient = trainer(ctx, tmp_path / "patient", stop_kl=0.01, epochs=4)
    for step in range(8):
        patient.begin(step)
        assert patient.rollouts is not None and patient.rollouts.first == 0


def test_the_coefficient_follows_the_divergence(ctx: Context, tmp_path: Path):
    """Twice the target: 2 % more for the next iteration; and a round continues with it."""
    made = trainer(ctx, tmp_path, kl=0.5, kl_target=0.01)
    made.begin(0)
    assert made.rollouts is not None
    assert made.rollouts.following == pytest.approx(0.49)  # the policies are equal
    with torch.no_grad():
        output_weight(made.lm).mul_(1.5)
        made.critic.head.weight.fill_(0.25)
    made.begin(4)
    assert made.rollouts.figures["kl_coefficient"] == pytest.approx(0.49)
    assert made.rollouts.figures["kl_to_start"] > 0.02
    assert made.rollouts.following == pytest.approx(0.49 * 1.02)
    made.keep(tmp_path)
    later = trainer(ctx, tmp_path / "later", kl=0.5, before=Artifact(tmp_path))
    assert (later.critic.head.weight == 0.25).all()
    later.begin(0)
    assert later.rollouts is not None and later.rollouts.number == 3
    assert later.rollouts.figures["kl_coefficient"] == pytest.approx(0.49 * 1.02)


def test_nlpo_with_all_tokens_open_is_ppo(ctx: Context, tmp_path: Path):
    both = [
        trainer(ctx, tmp_path / "ppo"),
        trainer(ctx, tmp_path / "nlpo", "method=nlpo", "method.top_p=1", "method.mask_every=1"),
    ]
    for step in range(4):
        losses = []
        for made in both:
            made.begin(step)
            (make,) = made.window(step)
            batch = make()
            losses.append(made.objective(batch, made.objective.count(batch)).value)
        assert losses[0].item() == losses[1].item()
    one, other = (
        read_table(tmp_path / name / "rollouts/000000.parquet") for name in ("ppo", "nlpo")
    )
    assert one == other


def test_nlpo_samples_what_its_mask_leaves_open(ctx: Context, tmp_path: Path):
    """A closed token has probability 0, a sampled one is in its set; released ratios are PPO's."""
    made: Any = trainer(ctx, tmp_path, *NLPO)
    with torch.no_grad():  # so that the mask is not the policy's own nucleus
        output_weight(made.mask).add_(torch.randn(output_weight(made.mask).shape) * 0.1)
    batch, _ = first(made)
    with torch.no_grad():
        logits, others = made.lm.logits(batch.batch), made.mask.logits(batch.batch)
    shares = others.softmax(-1)
    real = batch.batch.mask
    for n, t in real.nonzero().tolist():
        token = int(batch.batch.tokens[n, t])
        likelier = shares[n, t][shares[n, t] > shares[n, t, token]].sum()
        assert likelier <= 0.3 + 1e-5 or token in made.special.tolist()
        order = shares[n, t].argsort(descending=True)
        kept = int((shares[n, t][order].cumsum(0) - shares[n, t][order] <= 0.3).sum())
        open_ids = {*order[:kept].tolist(), *made.special.tolist()}
        inside = logits[n, t][sorted(open_ids)].sort(descending=True).values[:50].logsumexp(0)
        expected = (logits[n, t, token] - inside).item()
        assert batch.sampled[n, t].item() == pytest.approx(expected, abs=1e-4)
    released: Any = trainer(ctx, tmp_path / "released", *NLPO, "method.released=true")
    batch, _ = first(released)
    full = log_probability(released.lm.logits(batch.batch), batch.batch.tokens)
    assert_close(batch.sampled[batch.batch.mask], full[batch.batch.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_nlpos_mask_is_a_copy_of_the_policy_that_sampled(ctx: Context, tmp_path: Path):
    made: Any = trainer(ctx, tmp_path, *NLPO, mask_every=2)
    for step in range(8):
        made.begin(step)
        with torch.no_grad():
            output_weight(made.lm).add_(1.0)
    weight = output_weight(made.mask)
    assert_close(weight, output_weight(made.lm) - 8.0)  # the start's
    made.begin(8)  # the third: the mask is the policy that sampled the second, from update 4 on
    assert_close(weight, output_weight(made.lm) - 4.0)
    again: Any = trainer(ctx, tmp_path, *NLPO, mask_every=2)
    again.begin(9)  # resumed
    assert_close(output_weight(again.mask), weight)
    made.keep(tmp_path)
    later: Any = trainer(ctx, tmp_path / "later", *NLPO, before=Artifact(tmp_path))
    later.begin(0)
    assert_close(output_weight(later.mask), weight)


class Likes(Judge):
    """100 for a text that holds a token before its end."""

    token: int

    def __call__(self, tokens: Any, texts: Any, examples: Any, codec: Any) -> Future:
        found: Future = Future()
        found.set_result({"score": [100.0 * (self.token in row) for row in tokens]})
        return found

    def describe(self) -> dict[str, Any]:
        return {"likes": self.token}


def test_a_text_that_was_not_judged_is_left_out(ctx: Context, tmp_path: Path):
    class Absent(Likes):
        def __call__(self, tokens: Any, *others: Any) -> Future:
            found: Future = Future()
            found.set_result({"score": [float("nan"), 1.0] * (len(tokens) // 2)})
            return found

    made = trainer(ctx, tmp_path)
    made.task._judge = Absent()  # type: ignore[attr-defined]
    made.begin(0)
    assert made.rollouts is not None and len(made.rollouts.tokens) == 4
    figures = made.judged_prompts(1)
    assert figures["improve/judged_texts"] == 8 and figures["improve/unjudged_texts"] == 4
    nobody = trainer(ctx, tmp_path / "nobody")
    nobody.task._judge = type(  # type: ignore[attr-defined]
        "Nobody",
        (Likes,),
        {"__call__": lambda self, tokens, *_: done([float("nan")] * len(tokens))},
    )()
    with pytest.raises(DataError, match="none of the 8 sampled texts"):
        nobody.begin(0)


def done(scores: list[float]) -> Future:
    found: Future = Future()
    found.set_result({"score": scores})
    return found


@pytest.mark.parametrize("words", [("method=ppo",), NLPO[:1]], ids=["ppo", "nlpo"])
@pytest.mark.slow
def test_a_tiny_t5_learns_to_write_a_rewarded_token(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judge = Likes()
    judge.token = 88
    monkeypatch.setattr("pgtg.tasks.texts.open_judge", lambda cfg: judge)
    cfg = tiny(
        *SHORT,
        *words,
        "method.rollouts=32",
        "method.epochs=3",
        "method.kl=0.0",
        "method.lr_share=1",
        "improve.micro_batch=16",
        "improve.lr=0.01",
        "improve.validate_every=0",
        "improve.checkpoint_every=0",
        "sample.max_new_tokens=6",
        "sample.heldout_sources=2",
        "schedule.total=60",
        "schedule.retrain_until=0",
        "evaluate.splits=[]",
    )
    train(cfg, tmp_path / "run")
    lines = read_jsonl(tmp_path / "run/metrics.jsonl")
    scores = [line["improve/rollout_score"] for line in lines if "improve/rollout_score" in line]
    assert scores[0] < 20
    assert scores[-1] > 80


def of_the_policy(states: Any, inputs: Any, training: Any, *more: Any) -> bool:
    """Whether a state that is saved is of policy training."""
    return training.where.stage == "improve"


@pytest.mark.parametrize(
    "words",
    [
        ("method=ppo",),
        NLPO,
        ("method=ppo", "method.critic=shared"),
        ("method=ppo", "method.reward=learned"),
    ],
    ids=["ppo", "nlpo", "shared", "dense"],
)
@pytest.mark.parametrize("at", [3, 4, 7])
@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_has_the_same_bits(
    words: tuple[str, ...], at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Within an iteration, between two, and in the second round."""
    cfg = tiny(
        *words, *FEW, *NOTHING_ELSE, "schedule.total=12", "schedule.retrain_every=6",
        "schedule.retrain_until=6",
    )  # fmt: skip
    stopped_and_resumed(cfg, tmp_path, monkeypatch, at, counts=of_the_policy)


@pytest.mark.slow
def test_rewards_are_learned_with_one_key(tmp_path: Path):
    """The stages of a reward model run; a token's reward is centred, a text's sum comparable."""
    cfg = tiny(*SHORT, "method=ppo", "method.reward=learned", *FEW, "evaluate.splits=[]")
    train(cfg, tmp_path / "run")
    assert (tmp_path / "run/rounds/00/align").is_dir()
    table = read_table(tmp_path / "run/rounds/00/improve/rollouts/000000.parquet")
    assert not any(table["score"])
    rewards = table["token_reward"]
    every = torch.tensor([value for row in rewards for value in row])
    assert every.min() > 0 and every.max() < 1  # as the reward model says
    lines = read_jsonl(tmp_path / "run/metrics.jsonl")
    line = next(line for line in lines if "improve/rollout_token_reward" in line)
    assert line["improve/rollout_token_reward"] == pytest.approx(every.mean().item(), rel=1e-5)
    assert line["improve/rollout_reward"] == pytest.approx(0, abs=1e-5)
    summary = json.loads((tmp_path / "run/rounds/00/improve/manifest.json").read_text())
    assert "improve/judged_texts" not in summary["metrics"]


@pytest.mark.slow
def test_rto_adds_what_dpo_has_learned(tmp_path: Path):
    """The folder of a finished run of DPO; its log-ratio is in the file, clipped."""
    quick = [*SHORT, "evaluate.splits=[]"]
    train(tiny(*quick, "method=dpo", "method.lr_share=1"), tmp_path / "dpo")
    words = ("method=rto", f"method.dpo={tmp_path / 'dpo'}", "method.dpo_clip=0.02")
    cfg = tiny(*quick, *words, *FEW)
    train(cfg, tmp_path / "rto")
    folder = tmp_path / "rto/rounds/00/improve"
    table = read_table(folder / "rollouts/000000.parquet")
    every = [value for row in table["token_reward"] for value in row]
    assert max(map(abs, every)) == pytest.approx(0.02, rel=1e-6) and any(table["score"])
    with session(cfg, tmp_path / "rto", True) as ctx:
        lm, codec = ctx.load_start()
        method = method_of(cfg)
        assert method.trainer is not None
        given = Improving(ctx, lm, codec, None, [], tmp_path / "new", 0, 2)
        made: Any = method.trainer(method, given)
        made.begin(0)
        batch = made.window(0)[0]().batch
        with torch.no_grad():
            own, start = (
                log_probability(
                    restrict(model.logits(batch), top_k=ctx.sampling().top_k), batch.tokens
                )
                for model in (made.dpo, made.start)
            )
        expected = (0.05 * (own - start)).clamp(-0.02, 0.02)
        lengths = batch.mask.sum(-1).tolist()
        rows = {tuple(t[:n]): r for t, n, r in zip(
            batch.tokens.tolist(), lengths, expected, strict=True
        )}  # fmt: skip
        for tokens, rewards in zip(table["tokens"], table["token_reward"], strict=True):
            if tuple(tokens) in rows and all(abs(x) < 10 for x in rewards):
                own_row = rows[tuple(tokens)][: len(tokens)]
                finite = own_row.isfinite()
                assert_close(torch.tensor(rewards)[finite], own_row[finite], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_supervised_run_is_what_ppo_starts_from(tmp_path: Path):
    """policy.path=<run>: actor, critic and start policy; what the commands of docs/rivals.md do."""
    quick = [*SHORT, "method.controls=[]", "evaluate.splits=[]", "evaluate.diagnose=0"]
    train(tiny(*quick, "method=mle"), tmp_path / "mle")
    own = [word for word in (*TINY, *quick) if not word.startswith("policy.tiny_t5")]
    words = ["policy=pretrained", f"policy.path={tmp_path / 'mle'}", *FEW, "method.kl=0.1"]
    cfg = run_config("summarize", [*own, *words, "method=ppo"])
    assert cfg.policy.path == str(tmp_path / "mle/policy")
    train(cfg, tmp_path / "ppo")
    table = read_table(tmp_path / "ppo/rounds/00/improve/rollouts/000000.parquet")
    assert not any(value for row in table["log_ratio"] for value in row)
    with session(cfg, tmp_path / "ppo", True) as ctx:
        lm = ctx.load_start()[0]
        expected = load_tensors(tmp_path / "mle/policy/model.safetensors")["shared.weight"]
        table_of: Any = lm.model.get_input_embeddings()
        assert torch.equal(table_of.weight.detach(), expected)
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        run_config("summarize", ["policy=pretrained", f"policy.path={tmp_path}", "method=ppo"])


@pytest.mark.slow
def test_as_a_control_and_with_controls(tmp_path: Path):
    quick = ["schedule.total=2", "evaluate.start_policy=false", "evaluate.diagnose=0"]
    cfg = tiny(
        *quick, "evaluate.decodings=[greedy]", "method=ppo", *FEW, "method.controls=[uniform,nlpo]"
    )
    final = train(cfg, tmp_path / "run")
    assert {*(name.split("/")[0] for name in final)} == {"test"}
    assert (tmp_path / "run/controls/nlpo/00/improve/rollouts/000000.parquet").is_file()
    assert (tmp_path / "run/controls/uniform/00/improve").is_dir()


@pytest.mark.slow
def test_stored_preferences_are_for_a_learned_reward(tmp_path: Path):
    """Nothing judges own texts there: the judge's reward is refused, the learned one runs."""
    with pytest.raises(ConfigError, match=r"'ppo' with method.reward=judge needs judge"):
        tiny_preferences("method=ppo")
    cfg = tiny_preferences(
        "method=ppo", "method.reward=learned", *FEW, "method.controls=[]", "schedule.total=2",
        "schedule.retrain_until=0", "evaluate.decodings=[greedy]",
    )  # fmt: skip
    assert any("chosen_log_prob" in name for name in train(cfg, tmp_path / "run"))
    assert (tmp_path / "run/rounds/00/improve/rollouts/000000.parquet").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=ppo", "method.reward=both"], "method.reward: found 'both'"),
        (["method=ppo", "method.clip=0"], "method.clip: found 0"),
        (["method=ppo", "method.epochs=0"], "method.epochs: found 0, expected at least 1"),
        (["method=ppo", "method.gamma=2"], r"method.gamma: found 2.0, expected in \[0, 1\]"),
        (["method=ppo", "method.kl_target=0"], "method.kl_target: found 0.0, expected above 0"),
        (["method=nlpo", "method.top_p=0"], "method.top_p: found 0"),
        (["method=rto"], "method.dpo: no value"),
        (["method=rto", "method.dpo=./nowhere"], "method.dpo: there is no folder './nowhere'"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        run_config("summarize", words)


@pytest.mark.parametrize("name", ["ppo", "nlpo"])
def test_as_a_control_a_method_has_the_options_of_its_yaml(name: str):
    own = run_config("summarize", [f"method={name}"]).method
    kind: Any = type(own)
    of_another = kind.of(run_config("summarize", ["method=mle"]).method)
    values = {key: value for key, value in vars(own).items() if key in kind.NEUTRAL}
    assert values == {key: getattr(of_another, key) for key in values} == dict(kind.NEUTRAL)


def test_precision_and_checkpointing_hold_for_both_models(ctx: Context, tmp_path: Path):
    made = trainer(ctx, tmp_path)
    with training_passes(made.both, precision="bf16"):
        backbone = made.critic.backbone
        assert backbone is not None and made.lm.autocast == backbone.autocast == torch.bfloat16


def test_the_mask_policy_that_is_kept_is_the_newest_however_often_it_is_kept(tmp_path: Path):
    """Keeping may be cut off anywhere, and is then done again; a round without a copy of its own
    keeps the former round's."""
    before = tmp_path / "before"
    before.mkdir()
    (before / nlpo.MASK).write_text("former")
    given: Any = SimpleNamespace(before=SimpleNamespace(file=lambda name: before / name))
    folder, kept = tmp_path / "rollouts", tmp_path / "kept"
    for path in (folder, kept):
        path.mkdir()
    trainer = object.__new__(nlpo.NLPOTrainer)
    trainer.given, trainer.folder = given, folder
    trainer._keep_mask(kept)
    assert (kept / nlpo.MASK).read_text() == "former"
    for number in (4, 12):
        (folder / f"{number:06d}.{nlpo.MASK}").write_text(f"of update {number}")
    trainer._keep_mask(kept)
    trainer._keep_mask(kept)
    assert (kept / nlpo.MASK).read_text() == "of update 12" and not [*folder.iterdir()]
