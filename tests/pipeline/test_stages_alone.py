"""The stages: alone as in the whole, in their options, and against what can be computed again."""

import itertools
import math
import shutil
from collections import defaultdict
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pgtg.config import RunConfig
from pgtg.data.generations import read_part
from pgtg.data.worlds import newswire
from pgtg.errors import ArtifactError, ConfigError, DataError
from pgtg.judges.pool import JudgePool
from pgtg.methods import method_of
from pgtg.methods.method import Improving, Shared
from pgtg.pipeline.run import run_stage, session, train
from pgtg.pipeline.stages.align import random_reward_model
from pgtg.runs.folder import RunFolder, load_tensors, read_table, write_table
from tests.support.finished import finished_run
from tests.support.precisions import products
from tests.support.starts import _shared_starts  # noqa: F401 (a fixture)
from tests.support.tiny import RESULTS, SHORT, _quiet, contents, results, tiny  # noqa: F401 (a fixture)

ORDER = ("sample", "align", "score", "aggregate", "improve")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tiny(), tmp_path_factory)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its start policy and the samples of its first round."""
    return finished_run(tiny(*SHORT), tmp_path_factory, "sample")


def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def policy(run: Path, *parts: str) -> dict[str, torch.Tensor]:
    return load_tensors(run.joinpath(*(parts or ("policy",)), "model.safetensors"))


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


def test_stages_one_by_one_are_the_whole(finished: Path, tmp_path: Path):
    """Ten calls, each with its own session, then `train`, which only has to evaluate."""
    cfg, run = tiny(), tmp_path / "run"
    for number, stage in itertools.product((0, 1), ORDER):
        run_stage(cfg, run, stage, round=number if stage == "score" else None)
        assert RunFolder(run).artifact("rounds", f"{number:02d}", stage).exists()
    parts = [part for part in RESULTS if part not in ("eval", "metrics.jsonl")]
    assert contents(run, *parts) == contents(finished, *parts)
    train(cfg, run)
    assert results(run) == results(finished)


def test_a_stage_without_its_parent_names_the_command(tmp_path: Path):
    for stage, before in (("align", "sample"), ("score", "sample"), ("improve", "align")):
        with pytest.raises(ArtifactError, match=f"pgtg {before} summarize run_dir="):
            run_stage(tiny(), tmp_path / "run", stage)


def test_rounds_that_are_not_there_are_refused(sampled: Path, tmp_path: Path):
    run = copy(sampled, tmp_path)
    with pytest.raises(ConfigError, match="rounds 0 to 0"):
        run_stage(tiny(*SHORT), run, "sample", round=1)
    with pytest.raises(ConfigError, match="method=mle has nothing to align"):
        run_stage(tiny(*SHORT, "method=mle"), tmp_path / "mle", "align")


def test_sampling_goes_on_where_it_stopped(
    sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Chunks that lie there are kept; the others come out the same whoever samples them."""
    from pgtg.pipeline.stages import sample as stage

    original, made = stage._generate, []

    def counted(*arguments):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(None)
        return original(*arguments)

    cfg, run = tiny(*SHORT), tmp_path / "run"
    monkeypatch.setattr(stage, "_generate", counted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(cfg, run, "sample")
    left = sorted(p.name for p in run.glob("rounds/00/.sample.*/train/*.parquet"))
    assert left == ["00000.parquet", "00001.parquet"]
    made[:] = [None] * -10
    monkeypatch.setattr(stage, "_generate", lambda *a: made.append(None) or original(*a))
    run_stage(cfg, run, "sample")
    assert len(made) == 1  # 8 + 6 sources in chunks of 4: four chunks, three of them were kept
    assert contents(run, "rounds") == contents(sampled, "rounds")


@pytest.mark.slow
def test_samples_do_not_depend_on_chunks_or_batches(sampled: Path, tmp_path: Path):
    """The same texts and scores; only the files are cut elsewhere."""

    def rows(run: Path) -> list[tuple]:
        tables = [read_table(p) for p in sorted(run.glob("rounds/00/sample/train/*.parquet"))]
        names = ("source_id", "tokens", "text", "score")
        return [row for t in tables for row in zip(*(t[n] for n in names), strict=True)]

    expected = rows(sampled)
    assert len(expected) == 24
    for i, change in enumerate(("sample.chunk=3", "sample.batch_tokens=150")):
        run_stage(tiny(*SHORT, change), tmp_path / str(i), "sample")
        assert rows(tmp_path / str(i)) == expected


def test_scores_are_the_judges_of_the_clean_reference(sampled: Path):
    """Each text judged again, alone, against the world's own references."""
    cfg = tiny(*SHORT)
    assert cfg.data.newswire is not None
    world = newswire.generate(cfg.data.newswire)
    by_id = {example.id: example for split in world.values() for example in split}
    with JudgePool(cfg.judge) as judge:
        for path in sampled.glob("rounds/00/sample/*/*.parquet"):
            table = read_table(path)
            for source, text, score in zip(
                table["source_id"], table["text"], table["score"], strict=True
            ):
                assert judge.score([text], [by_id[source].references]) == [score]


def test_equal_scores_everywhere_are_no_preference(
    sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One line that names judge and way out, and nothing is committed."""
    monkeypatch.setattr(JudgePool, "submit", lambda self, texts, refs: _done([1.0] * len(texts)))
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"judge rouge1 gave equal scores.*sample\.temperature"):
        train(tiny(*SHORT), run)
    assert not RunFolder(run).artifact("rounds", "00", "align").exists()


def _done(scores: list[float]) -> Future[list[float]]:
    future: Future[list[float]] = Future()
    future.set_result(scores)
    return future


@pytest.mark.parametrize("k", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_other_numbers_of_candidates(tmp_path: Path, k: int):
    run_stage(tiny(*SHORT, f"sample.k={k}"), tmp_path, "sample")
    run_stage(tiny(*SHORT, f"sample.k={k}"), tmp_path, "align")
    table = read_table(tmp_path / "rounds/00/sample/train/00000.parquet")
    assert [table["source_id"].count(i) for i in dict.fromkeys(table["source_id"])] == [k] * 4
    assert RunFolder(tmp_path).artifact("rounds", "00", "align").exists()


AGGREGATORS = [
    pytest.param(("aggregator=avg",), marks=pytest.mark.slow),
    pytest.param(("aggregator=sum",), marks=pytest.mark.slow),
    pytest.param(("aggregator=max",), marks=pytest.mark.slow),
    pytest.param(("aggregator=min",), marks=pytest.mark.slow),
    ("aggregator=min", "aggregator.length_normalized=true"),
]


def by_hand(name: str, rows: list[list[float]], beta: float, normalized: bool) -> list[float]:
    """e of the K candidates of one group, from the formulas of the paper in float64."""
    mean_length = sum(len(row) for row in rows) / len(rows)
    found = []
    for row in rows:
        r = torch.tensor(row, dtype=torch.float64)
        n = len(row) if normalized else 1
        found.append(
            {
                "sum": lambda r=r: r.sum(),
                "avg": lambda r=r: mean_length * r.mean(),
                "max": lambda r=r, n=n: mean_length * beta * ((r / beta).exp().sum() / n).log(),
                "min": lambda r=r, n=n: -mean_length * beta * ((-r / beta).exp().sum() / n).log(),
            }[name]().item()
        )
    return found


def tied_nll(evaluations: list[float], scores: list[float]) -> float:
    """-log of the mean likelihood over all orders that the scores allow [nats], by hand."""
    likelihoods = []
    for order in itertools.permutations(range(len(scores))):
        ranked = [scores[i] for i in order]
        if ranked == sorted(ranked, reverse=True):
            weights = [math.exp(evaluations[i]) for i in order]
            parts = [w / sum(weights[n:]) for n, w in enumerate(weights)]
            likelihoods.append(math.prod(parts))
    return -math.log(sum(likelihoods) / len(likelihoods))


@pytest.mark.parametrize("choice", AGGREGATORS, ids=" ".join)
def test_heldout_findings_are_those_of_the_files(
    sampled: Path, tmp_path: Path, choice: tuple[str, ...]
):
    """Evaluations, pair accuracy, NLL and baselines, recomputed from the parquet files by hand."""
    run = tmp_path / "run"
    cfg = tiny(*SHORT, *choice)
    shutil.copytree(sampled, run)
    for stage in ("align", "score", "aggregate"):
        run_stage(cfg, run, stage, force=True)
    folder = run / "rounds/00"
    sample = [read_table(p) for p in sorted((folder / "sample/heldout").glob("*.parquet"))]
    scored, evaluated = (read_table(folder / s / "heldout.parquet") for s in ("score", "aggregate"))
    judged = [score for table in sample for score in table["score"]]
    assert evaluated["score"] == judged
    groups = defaultdict(list)
    for row, source in enumerate(scored["source_id"]):
        groups[source].append(row)
    pairs, nll, longer, likely = [], [], [], []
    for rows in groups.values():
        aggregator = cfg.aggregator
        rewards = [scored["reward"][row] for row in rows]
        e = by_hand(aggregator.name, rewards, aggregator.temperature, aggregator.length_normalized)
        found = [evaluated["evaluation"][row] for row in rows]
        assert found == pytest.approx(e, rel=1e-5, abs=1e-6)
        y = [judged[row] for row in rows]
        if len(set(y)) == 1:
            continue
        nll.append(tied_nll(e, y))
        lengths = [len(scored["tokens"][row]) for row in rows]
        confidence = [sum(r) / len(r) for r in (scored["start_log_prob"][row] for row in rows)]
        for i, j in itertools.permutations(range(len(y)), 2):
            if y[i] > y[j]:
                for values, kept in ((e, pairs), (lengths, longer), (confidence, likely)):
                    kept.append((values[i] > values[j]) + 0.5 * (values[i] == values[j]))
    metrics = RunFolder(run).artifact("rounds", "00", "aggregate").manifest()["metrics"]
    assert metrics["aggregate/heldout_groups"] == len(nll) > 1
    for name, values in (
        ("pair_accuracy", pairs),
        ("longer_wins", longer),
        ("log_prob_wins", likely),
        ("nll", nll),
    ):
        expected = sum(values) / len(values)
        assert metrics[f"aggregate/heldout_{name}"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    # what the reward training said of its kept weights is what the stage finds in the files
    aligned = RunFolder(run).artifact("rounds", "00", "align").manifest()["metrics"]
    assert aligned["align/heldout_nll"] == pytest.approx(sum(nll) / len(nll), rel=1e-4)
    assert aligned["align/heldout_pair_accuracy"] == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(
    "head",
    [
        "state_action",
        *(pytest.param(h, marks=pytest.mark.slow) for h in ("paper", "linear", "logprob")),
    ],
)
def test_every_head_learns_the_judges_order(sampled: Path, tmp_path: Path, head: str):
    """Over-fitted to the few groups there are: the training loss falls well below its start."""
    import json

    run = copy(sampled, tmp_path)
    options = ("reward.fit.updates=25", "reward.fit.validate_every=25", "reward.mlp_width=32")
    cfg = tiny(*SHORT, f"reward.head={head}", "reward.fit.checkpoint_every=0", *options)
    run_stage(cfg, run, "align", force=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = [row["align/loss"] for row in rows if "align/loss" in row]
    assert len(loss) == 25
    assert sum(loss[-4:]) / 4 < 0.8 * loss[0]


@pytest.mark.slow
def test_compared_heads_stand_beside_the_one_that_guides(finished: Path, tmp_path: Path):
    """They are trained in round 0, change nothing else, and have findings of their own."""
    train(tiny("reward.compare_heads=[paper,logprob]"), tmp_path)
    for head in ("paper", "logprob"):
        artifact = RunFolder(tmp_path).artifact("rounds", "00", "heads", head, "aggregate")
        assert 0 <= artifact.manifest()["metrics"]["aggregate/heldout_pair_accuracy"] <= 1
    assert not (tmp_path / "rounds/01/heads").exists()
    assert not differ(policy(finished), policy(tmp_path))


def improved(run: Path, *options: str) -> dict[str, torch.Tensor]:
    """The policy of round 0 improved under other options, on a run that has its reward model."""
    copied = Path(shutil.copytree(run, run.parent / ("with " + " ".join(options))[:120]))
    run_stage(tiny(*SHORT, *options), copied, "improve", force=True)
    return policy(copied, "rounds", "00", "improve", "policy")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a reward that is far from flat, so that what it does to the policy is more than rounding
    return finished_run(tiny(*SHORT), tmp_path_factory, "sample", "align")


OPTIONS = [
    ("method.transform=exp",),
    ("method.reward_to_go=true",),
    ("method.entropy=0.5",),
    ("method.reinforce=0.5",),
    ("method.reinforce=0.5", "method.baseline=batch"),
    ("method.reinforce=0.5", "method.baseline=group", "method.samples=3"),
    ("method.reinforce=0.5", "method.baseline=group", "method.samples=3", "method.token_share=0"),
    ("method.reinforce=0.5", "method.kl=5.0"),
    ("method.reinforce=0.5", "method.reward_to_go=true"),
]


@pytest.mark.slow
def test_every_option_of_improvement_runs_and_changes_the_weights(aligned: Path):
    found = [improved(aligned), *(improved(aligned, *options) for options in OPTIONS)]
    for a, b in itertools.combinations(range(len(found)), 2):
        assert differ(found[a], found[b]), (a, b)


def test_what_a_policy_samples_for_its_update_is_drawn_narrowly_and_learned_from_exactly(
    sampled: Path, tmp_path: Path
):
    """Tokens come from products in bf16; log-probabilities from the learner's own in float32."""
    cfg = tiny(*SHORT, "sample.precision=bf16", "method.reinforce=0.5", "method.kl=0.1")
    with session(cfg, copy(sampled, tmp_path), True) as ctx:
        lm, codec = ctx.load_policy(0)
        reward = random_reward_model(ctx).eval().requires_grad_(False)
        folder = ctx.artifact(0, "improve").working("x")
        targets = Shared(ctx.artifact(0, "targets"), "x")
        given = Improving(ctx, lm, codec, reward, [], folder, 0, 2, targets)
        guide = method_of(ctx.cfg).trainer(method_of(ctx.cfg), given)  # type: ignore[misc]
        dtypes = products(lm)
        batch = guide.window(0)[0]()
        assert dtypes and set(dtypes) == {torch.bfloat16}
        assert {p.dtype for p in lm.parameters()} == {torch.float32}
        guide.validate()
        assert set(dtypes) == {torch.bfloat16}
        dtypes.clear()
        loss = guide.objective(batch, guide.objective.count(batch))
        assert dtypes and set(dtypes) == {torch.float32}
        # the start policy is the policy, so that their log-probabilities are one number
        assert loss.metrics["kl"] == 0 and batch.sampled.start_log_probs.dtype == torch.float32
        assert batch.sampled.advantage.dtype == torch.float32


def test_the_uniform_control_is_plain_mle(finished: Path, tmp_path: Path):
    """`method=mle`, which samples and aligns nothing, ends with the bits of the uniform control."""
    train(tiny("method=mle", "method.controls=[]"), tmp_path)
    assert not list(tmp_path.glob("rounds/*/sample")) and not (tmp_path / "reward").exists()
    for number in ("00", "01"):
        control = policy(finished, "controls", "uniform", number, "improve", "policy")
        assert not differ(control, policy(tmp_path, "rounds", number, "improve", "policy"))
        guided = policy(finished, "rounds", number, "improve", "policy")
        assert differ(control, guided)


def causal(kind: str, folder: Path) -> Path:
    """A causal LM of random weights over the world's words, as a Transformers folder."""
    data = tiny().data.newswire
    assert data is not None
    words = ["</s>", "<unk>", *newswire.vocabulary(data), "TL", ";", "DR", ":"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    size = len(vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=size,
                    n_positions=160,
                    n_embd=16,
                    n_layer=2,
                    n_head=2,
                    bos_token_id=0,
                    eos_token_id=0,
                )
            )
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=size,
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    max_position_embeddings=160,
                    bos_token_id=0,
                    eos_token_id=0,
                    pad_token_id=0,
                )
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def causal_config(folder: Path, *more: str) -> RunConfig:
    """The tiny run on a causal policy of random weights."""
    from pgtg.config.compose import run_config
    from tests.support.tiny import TINY

    choice = ["policy=pretrained", f"policy.path={folder}", "policy.suffix=' TL;DR:'"]
    kept = [text for text in TINY if "tiny_t5" not in text]
    return run_config(
        "summarize",
        [*choice, *kept, *more],
    )


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_causal_policy_goes_the_whole_way(tmp_path: Path, kind: str):
    """Pad is eos here. Only the top layer is trained, and the reward net is the first layer."""
    from transformers import AutoModelForCausalLM

    folder = causal(kind, tmp_path / "lm")
    more = ["policy.trainable_layers=1", "reward.layers=1", *SHORT]
    run = tmp_path / "run"
    train(causal_config(folder, *more), run)
    model = AutoModelForCausalLM.from_pretrained(run / "policy")
    before = AutoModelForCausalLM.from_pretrained(folder)
    old, new = dict(before.named_parameters()), dict(model.named_parameters())
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(".1." in name or "norm" in name or "ln_f" in name for name in moved)
    backbone = AutoModelForCausalLM.from_pretrained(run / "reward")
    assert backbone.config.num_hidden_layers == 1
    assert (run / "eval/results_test.json").is_file()


def test_generations_are_read_back_as_they_were_written(tmp_path: Path):
    """Over chunks, with a source whose rows are not side by side."""
    chunks = [
        [
            ("a", [1, 2], [300, 4], "t0", 1.0),
            ("b", [3], [5], "t1", 2.0),
            ("a", [1, 2], [6], "t2", 3.0),
        ],
        [
            ("c", [300], [7, 8], "t3", 4.0),
            ("b", [3], [], "t4", 5.0),
            ("c", [300], [300], "t5", 6.0),
        ],
    ]
    names = ["source_id", "source", "tokens", "text", "score"]
    (tmp_path / "train").mkdir()
    for number, chunk in enumerate(chunks):
        columns = {name: [row[i] for row in chunk] for i, name in enumerate(names)}
        write_table(tmp_path / "train" / f"{number:05d}.parquet", columns)
    found = read_part(tmp_path, "train")
    rows = [row for chunk in chunks for row in chunk]
    assert [found.source_ids[i] for i in found.origin] == [row[0] for row in rows]
    assert [found.sources[i] for i in found.origin] == [row[1] for row in rows]
    assert found.tokens == [row[2] for row in rows]
    assert found.texts == [row[3] for row in rows] and found.scores == [row[4] for row in rows]
    assert found.groups.tolist() == [[0, 2], [1, 4], [3, 5]]
