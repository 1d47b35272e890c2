"""Composition and checks: each mistake is named with its key, what was found and what fixes it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from pgtg.cli.jobs import show
from pgtg.config import (
    RunConfig,
    checks,
    compose,
    composition,
    expected_type,
    is_open,
    known_keys,
    sources,
)
from pgtg.config.compose import composed, run_config
from pgtg.config.groups import CONF
from pgtg.config.overrides import as_hydra, folder_name
from pgtg.config.sweep import sweep, swept_keys
from pgtg.errors import ConfigError
from tests.support.cases import some


def problems(*overrides: str, **more) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        run_config("summarize", overrides, **more)
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


def one_problem(*overrides: str) -> str:
    (line,) = problems(*overrides)
    return line


def test_the_command_line_wins_over_the_experiment_and_that_over_the_base():
    base = run_config("summarize", ["experiment=null"])
    quick = run_config("summarize")
    mine = run_config("summarize", ["sample.sources=7"])
    assert [c.sample.sources for c in (base, quick, mine)] == [1024, quick.sample.sources, 7]
    assert quick.sample.sources not in (1024, 7)
    assert (base.experiment, quick.experiment) == (None, "quickstart")


def test_what_was_composed_before_is_in_no_later_config():
    """The files of `conf/` are parsed once, and no config takes what another made of them."""

    def composed_again() -> RunConfig:
        composition._shipped.cache_clear()
        return run_config("summarize", ["experiment=null", "policy=pretrained", "policy.path=x"])

    sources._parsed.cache_clear()
    fresh = composed_again()
    run_config("summarize", ["experiment=xsum_t5_base", "method=mle"])
    assert composed_again() == fresh


def test_inner_code_gets_plain_dataclasses_and_a_real_cache_path():
    cfg = run_config("summarize", ["cache=~/x"])
    assert type(cfg) is RunConfig and type(cfg.method.controls) is list
    assert cfg.cache == str(Path.home() / "x")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sampel.k=3", ["sampel.k", "no such key", "'sample.k'"]),
        ("sample.kk=3", ["sample.kk", "'sample.k'"]),
        ("aggregatr=max", ["aggregatr", "'aggregator'"]),
        ("+new.key=1", ["new.key", "no such key"]),
        ("aggregator=mox", ["no aggregator 'mox'", "'max'", "known: avg, max, min, sum"]),
        ("experiment=quikstart", ["no experiment 'quikstart'", "'quickstart'"]),
        ("sample.k=three", ["sample.k=three", "expected a whole number", "found 'three'"]),
        ("sample.k=null", ["sample.k=null", "expected a whole number"]),
        ("improve.lr=fast", ["expected a number"]),
        ("evaluate.start_policy=maybe", ["expected true or false"]),
        ("metrics.names=rouge", ["expected a list [a,b]"]),
        ("sample=3", ["expected a section of keys"]),
        ("data.limit.train=many", ["data.limit.train", "expected a whole number or null"]),
        ("seed=0,1", ["a sweep needs -m", "[a,b]"]),
        ("nonsense", ["'nonsense'", "key=value"]),
        ("sample.k=1", ["sample.k: found 1, expected at least 2"]),
        ("sample.temperature=0", ["sample.temperature: found 0", "above 0"]),
        ("aggregator.temperature=-1", ["aggregator.temperature: found -1"]),
        ("aggregator.name=mex", ["aggregator.name: there is no 'mex'", "'max'"]),
        ("metrics.names=[rouge,rogue]", ["metrics.names: there is no 'rogue'", "'rouge'"]),
        ("metrics.names=[[rouge]]", ["metrics.names: found ['rouge'] in the list", "[a,b]"]),
        ("reward.head=papr", ["reward.head", "'paper'"]),
        ("reward.compare_heads=[logprobs]", ["reward.compare_heads", "'logprob'"]),
        ("reward.layers=0", ["reward.layers: found 0, expected at least 1"]),
        ("reward.fit.keep=first", ["reward.fit.keep: there is no 'first'", "best, last"]),
        ("improve.precision=fp8", ["improve.precision: there is no 'fp8'", "no, bf16, fp16"]),
        (
            "reward.fit.precision=fp16 policy=t5_small policy.dtype=bfloat16 reward=same",
            ["reward.fit.precision: found fp16, but policy.dtype=bfloat16", "float32"],
        ),
        ("reward.fit.gradient_checkpointing=often", ["expected true or false"]),
        ("reward.fit.lr=-1", ["reward.fit.lr: found -1"]),
        ("reward.fit.validate_every=0", ["patience", "need validations"]),
        ("improve.updates=5", ["improve.updates: found 5", "schedule.total"]),
        ("improve.schedule=cosine", ["improve.schedule", "constant, plateau"]),
        ("schedule.retrain_every=0", ["schedule.retrain_every: found 0", "above 0"]),
        ("schedule.total=2.5", ["schedule.total", "whole number of updates"]),
        ("schedule.retrain_until=1000", ["schedule.retrain_until", "at most schedule.total"]),
        (
            "method=mle method.controls=[uniform]",
            ["method.controls", "mle is itself the control"],
        ),
        ("data.newswire.noise=1.5", ["data.newswire.noise: found 1.5", "[0, 1]"]),
        ("data.limit.train=0", ["data.limit.train: found 0"]),
        ("device=GPU", ["device: found 'GPU'", "cuda"]),
        ("reward=pretrained", ["reward.path: no value"]),
        ("policy=t5_small policy.path=./none", ["policy.path: there is no folder './none'"]),
        ("evaluate.splits=[tset]", ["evaluate.splits: there is no 'tset'", "'test'"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_and_how(override: str, parts: list[str]):
    overrides = override.split()
    if override.startswith("schedule.total"):
        overrides += ["schedule.retrain_until=0"]
    line = one_problem(*overrides)
    assert all(part in line for part in parts), line


def test_an_adaptor_is_trained_in_plain_float32():
    for key, value in (("precision", "bf16"), ("gradient_checkpointing", "true")):
        with pytest.raises(ConfigError) as caught:
            run_config("prompt", [f"improve.{key}={value}"])
        (line,) = caught.value.problems
        assert line.startswith(f"improve.{key}: found {value}, but policy.adaptor")
    assert run_config("prompt", ["reward.fit.precision=bf16"]).improve.precision == "no"


def test_several_problems_are_reported_together():
    lines = problems(
        "aggregator=mox", "sample.k=1", "foo.bar=2", "improve.lr=x", "judge.workers=-1"
    )
    assert len(lines) == 5
    for key in ("aggregator", "sample.k", "foo.bar", "improve.lr", "judge.workers"):
        assert any(line.startswith(key) for line in lines), key


def test_missing_values_do_not_hide_other_problems():
    lines = problems("reward=pretrained", "sample.k=1")
    assert [line.split(":")[0] for line in lines] == ["reward.path", "sample.k"]


def test_tiny_policy_refuses_own_data(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    line = one_problem("data=files", f"data.path={tmp_path}")
    assert "tiny_t5" in line and "policy=t5_small" in line


def test_missing_files_are_named(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("{}\n")
    mine = ["data=files", "policy=t5_small"]
    assert "data.path: no value" in one_problem(*mine)
    assert "there is no file or folder" in one_problem(*mine, f"data.path={tmp_path / 'x'}")
    line = one_problem(*mine, f"data.path={tmp_path}", "data.splits.train=trian.jsonl")
    assert "data.splits.train" in line and "'train.jsonl'" in line


def test_a_local_bertscore_model_needs_its_layer(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    line = one_problem("metrics=full", f"metrics.bertscore_model={tmp_path}")
    assert line.startswith("metrics.bertscore_layers: no value")


def test_what_fills_a_section_may_be_a_file_of_ones_own(tmp_path: Path):
    (tmp_path / "policy").mkdir()
    shipped = (CONF / "policy" / "tiny_lm.yaml").read_text()
    (tmp_path / "policy" / "mine.yaml").write_text(shipped)
    (line,) = problems("policy.tiny_lm.layers=2", config_dir=tmp_path)
    assert "tiny_lm is null here" in line and "policy=mine or policy=tiny_lm" in line


def test_own_config_files_come_first(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    own = tmp_path / "experiment" / "mine.yaml"
    own.write_text("# @package _global_\nname: mine\nsample: {k: 5}\n")
    cfg = run_config("summarize", ["experiment=mine"], config_dir=tmp_path)
    assert (cfg.name, cfg.sample.k) == ("mine", 5)
    own.write_text("# @package _global_\nsample: {kk: 5}\n")
    (line,) = problems("experiment=mine", config_dir=tmp_path)
    assert "kk" in line and "mine" in line
    assert "no folder" in problems(config_dir=tmp_path / "none")[0]
    own.write_text("# @package _global_\nname: [mine\n")
    (line,) = problems("experiment=mine", config_dir=tmp_path)
    assert "mine.yaml" in line and "line 2" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sample: {kk: 5}", "in 'experiment/mine': Key 'kk' not in 'SampleConfig'"),
        ("method: {zz: 1}", "in 'experiment/mine': Key 'zz' not in 'WeightedMLE'"),
        ("sample: {k: x}", "in 'experiment/mine': Value 'x' of type 'str' could not be converted"),
        ("sample: 3", "in 'experiment/mine': Merge error"),
        ("- sample", "experiment=mine: expected key: value lines"),
        ("3", "experiment=mine: Invalid loaded object type: int"),
    ],
)
def test_what_a_file_of_ones_own_has_wrong_is_said_with_its_name(
    text: str, said: str, tmp_path: Path
):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert problems("experiment=mine", config_dir=tmp_path)[0].startswith(said)


def test_shipped_files_are_read_as_omegaconf_reads_them():
    """By another parser of yaml, and that one refuses no key that is there twice."""
    for file in CONF.rglob("*.yaml"):
        plain = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert sources._parsed(str(file.relative_to(CONF)))[0] == plain, file
    odd = "a: 1e-4\nb: 2020-01-01\nc: .5\nd: no"
    assert yaml.load(odd, Loader=sources.Fast) == OmegaConf.create(odd)


def test_hydra_itself_knows_keys_that_no_file_sets(capsys: pytest.CaptureFixture[str]):
    """A run is handed to Hydra, which composes it once more."""
    show("all", "summarize", ["data_seed=3", "policy.start_text=x"], None)
    shown = capsys.readouterr().out
    assert "\ndata_seed: 3\n" in shown and "start_text: x" in shown
    assert sources.ConfigStore.instance().repo[sources.SCHEMA].node == {}  # for it alone


@pytest.mark.parametrize("names", [["1", "0.5"], ["true", "false"]])
def test_keys_of_an_open_mapping_are_texts(names: list[str]):
    typed = ",".join(f"{name}: {name}.tsv" for name in names)
    mapped = composed("summarize", [f"data.splits={{{typed}}}"])
    assert mapped.cfg.data.splits == {name: f"{name}.tsv" for name in names}
    assert not mapped.problems


def test_a_saved_config_is_the_base_of_later_calls():
    saved = asdict(run_config("summarize", ["sample.k=5", "aggregator=max", "seed=3"]))
    same = run_config("summarize", [], saved=saved)
    assert asdict(same) == saved
    other = run_config("summarize", ["aggregator=min", "sample.k=4"], saved=saved)
    assert (other.aggregator.name, other.sample.k, other.seed) == ("min", 4, 3)
    fresh = run_config("summarize", ["experiment=quickstart"], saved=saved)
    assert (fresh.sample.k, fresh.seed) == (run_config("summarize", []).sample.k, 0)
    with pytest.raises(ConfigError, match="another version"):
        run_config("summarize", [], saved={**saved, "old_key": 1})


@pytest.mark.parametrize("key", ["limit", "splits"])
@pytest.mark.parametrize("value", [[], ["a"], {"a": 1}])
def test_a_saved_list_in_a_numbers_or_names_place_is_refused(key: str, value: object):
    """OmegaConf lets them pass there."""
    saved = asdict(run_config("summarize"))
    saved["data"][key] = {"test": value}
    (line,) = problems(saved=saved)
    kind = {"limit": "a whole number", "splits": "a text"}[key]
    assert line == f"data.{key}.test: found {value}, expected {kind} or null"


def test_a_saved_config_belongs_to_its_task():
    saved = {**asdict(run_config("summarize")), "task": "prompt"}
    with pytest.raises(ConfigError, match="belongs to the task 'prompt'"):
        run_config("summarize", [], saved=saved)


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'summarize'"):
        run_config("sumarize")


def test_new_keys_of_open_mappings_need_no_plus():
    cfg = run_config("summarize", ["data.splits.train=a.csv"])
    assert cfg.data.splits == {"train": "a.csv"}
    assert is_open("data.splits.x") and not is_open("data.path") and not is_open("sample.k")


def test_a_sweep_is_all_combinations_without_hydras_own_keys():
    jobs = sweep(
        "summarize", ["aggregator=avg,max", "seed=0,1", "sample.k=2", "hydra.verbose=true"]
    )
    assert jobs[1] == ["aggregator=avg", "seed=1", "sample.k=2"] and len(jobs) == 4
    assert swept_keys(["aggregator=avg,max", "sample.k=2"]) == ({"aggregator"}, {"sample.k"})


def test_expected_types_and_known_keys():
    assert expected_type("sample.k") == "a whole number"
    assert expected_type("policy.path") == "a text or null"
    assert expected_type("policy.tiny_t5.warm_start.lr") == "a number"
    assert expected_type("nothing") is None
    assert {"sample", "sample.k", "policy.tiny_t5.warm_start.lr"} <= set(known_keys())


def test_folder_names_are_safe():
    assert folder_name("aggregator=max,seed=1") == "aggregator=max,seed=1"
    assert folder_name("data.path=/a b/c,seed=1").startswith("data.path=_a_b_c,seed=1-")
    texts = [
        "x" * 999,
        "总结" * 99,
        "\U0001f408" * 60,
        "sum: ",
        "sum; ",
        "sum_",
        "sum__",
        "a\udc80",
    ]
    names = [folder_name(f"policy.prefix={text}") for text in texts]
    assert len(set(names)) == len(texts)  # never the same folder for two jobs
    assert all(len(name.encode()) <= 200 for name in names)  # file systems count bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (r'"\nTL;DR:"', "\nTL;DR:"),
        (r"\nTL;DR:\t", "\nTL;DR:\t"),
        ("<|im_start|>user", "<|im_start|>user"),
        ("it's a, b {c} [d] (e) # $x ${y} %", "it's a, b {c} [d] (e) # $x ${y} %"),
        ("'sum; '", "sum; "),
        ('"', '"'),
        ("a\\", "a\\"),
        ('"x" and "y"', '"x" and "y"'),
        ("原文: ", "原文: "),
        ("true", "true"),
        ("12", "12"),
        ("choice(a,b)", "choice(a,b)"),
        ("~x=y", "~x=y"),
        ("\\${seed}", "\\${seed}"),
    ],
)
def test_free_texts_are_literal_but_for_two_escapes(value: str, text: str):
    once = as_hydra(f"policy.prefix={value}")
    assert as_hydra(once) == once  # a sweep's job and a resumed run read it again
    assert run_config("summarize", [f"policy.prefix={value}"]).policy.prefix == text


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("policy.revision=7e10234", "7e10234"),
        ("policy.revision=0012345", "0012345"),
        ("data.subset=1_000", "1_000"),
        ("data.subset=1.10", "1.10"),
        ("name=true", "true"),
        ("name=3", "3"),
        ("data.splits.train=2e3", "2e3"),
        ("data.columns.references=[1e3, true,b]", ["1e3", "true", "b"]),
    ],
)
def test_texts_that_look_like_numbers_stay_as_they_are_typed(override: str, found: Any):
    once = as_hydra(override)
    assert as_hydra(once) == once
    cfg = composed("summarize", [override]).cfg
    key = override.partition("=")[0]
    assert OmegaConf.select(cfg, key) == found
    jobs = sweep("summarize", [as_hydra("name=1e3,true,x", sweep=True)])
    assert [composed("summarize", job).cfg.name for job in jobs] == ["1e3", "true", "x"]


def test_other_texts_that_the_grammar_cannot_read_are_quoted():
    typed = ["data.columns.source=原文", "data.columns.references=[参考,b c]", "name=a#b"]
    cfg = run_config("summarize", [*typed, "data.splits={train: 训练 (1).jsonl}"])
    assert (cfg.data.columns.source, cfg.data.columns.references) == ("原文", ["参考", "b c"])
    assert (cfg.name, cfg.data.splits["train"]) == ("a#b", "训练 (1).jsonl")
    (job,) = sweep("summarize", [as_hydra('policy.prefix="a, b"', sweep=True)])
    assert run_config("summarize", job).policy.prefix == "a, b"
    two = sweep("summarize", [as_hydra('policy.prefix="a, b",c', sweep=True)])
    assert [run_config("summarize", job).policy.prefix for job in two] == ["a, b", "c"]


def test_a_group_of_the_call_beats_the_experiment(tmp_path: Path):
    def composed_of(*overrides: str):
        return composed("summarize", [*overrides, "data.path=x"])

    cfg, problems, notes = composed_of("experiment=scitldr_smollm2", "policy=t5_small")
    assert (cfg.policy.suffix, cfg.policy.trainable_layers) == ("", None) and not problems
    assert "experiment=scitldr_smollm2: policy of the command line replaces" in notes[0]
    assert cfg.sample.sources == 96  # the experiment's
    same, _, notes = composed_of("experiment=scitldr_smollm2", "policy=pretrained")
    assert same.policy.trainable_layers == 4 and not notes  # what it has chosen itself
    mle = composed_of("experiment=scitldr_smollm2", "method=mle").cfg
    assert list(mle.method.controls) == []
    value = composed_of("experiment=scitldr_smollm2", "policy=t5_small", "policy.suffix=x").cfg
    assert value.policy.suffix == "x"
    fit = composed_of("experiment=scitldr_smollm2", "reward=t5_small").cfg.reward
    assert (fit.fit.updates, fit.layers) == (40, None)  # training is fitted to the data


def test_own_data_never_runs_with_the_default_experiment():
    cfg, _, notes = composed("summarize", ["data=files", "data.path=x", "policy=t5_small"])
    assert (cfg.name, cfg.experiment, cfg.threads) == ("run", None, None)
    assert notes and "experiment=none" in notes[0]
    named = composed("summarize", ["data=files", "experiment=quickstart"]).cfg
    assert named.name == "quickstart"
    assert composed("summarize", ["data=newswire", "aggregator=max"]).cfg.name == "quickstart"
    assert composed("prompt", ["dataset=sst2"]).cfg.name == "run"


def test_no_experiment_is_left_out_where_none_is_the_default():
    cfg, problems, notes = composed("preferences", ["data=qa_feedback", "data.path=x"])
    assert cfg.data.format == "qa_feedback" and not problems and not notes


@pytest.mark.slow
def test_own_experiments_of_any_name_and_depth(tmp_path: Path):
    (tmp_path / "experiment/sub").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /judge: rougeL\nsample:\n  k: 7\n"
    for name in ("reviews", "sub/deep", "zz1"):  # `reviews` is shipped too, for the other task
        (tmp_path / f"experiment/{name}.yaml").write_text(text)
        cfg = run_config("summarize", [f"experiment={name}"], config_dir=tmp_path)
        assert (cfg.sample.k, cfg.judge.name) == (7, "rougeL")
    assert len(sweep("summarize", ["experiment=glob(zz*)"], tmp_path)) == 1
    saved = asdict(cfg) | {"experiment": "zz1"}  # its folder is not named again
    assert run_config("summarize", ["seed=1"], saved=saved).sample.k == 7


def test_names_of_open_mappings_are_checked():
    for key, near in (("limit.val", "validation"), ("limit.trian", "train"), ("splits.dev", "")):
        (line,) = problems(f"data.{key}=2")
        assert "no such split" in line and near in line
    with pytest.raises(ConfigError, match=r"data\.limit\.valid: no such split; did you mean 'dev'"):
        run_config("prompt", ["data.limit.valid=2"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule.total=inf", "finite"),
        ("schedule.retrain_every=nan", "finite"),
        ("schedule.retrain_every=1e-9", "reward trainings"),
        ("~sample", "cannot be left out"),
        ("~sample.k", "cannot be left out"),
        ("name=../../x", "folder"),
        ("cache=OFF", "cache=off"),
        ("policy.adaptor={width:8}", "policy=distilgpt2"),
        ("policy.adaptor.width=8", "policy=tiny_lm"),
        ("data.path=my", "data=files"),
    ],
)
def test_odd_values_are_one_line(override: str, said: str):
    given = ("schedule.unit=updates", "schedule.retrain_until=60", override)
    assert any(said in line for line in problems(*given))


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_numbers_that_are_not_finite_are_refused_once(value: str):
    with pytest.raises(ConfigError) as caught:
        run_config("summarize", [f"improve.lr={value}", f"method.kl={value}"])
    expected = [
        f"{key}: found {value}, expected a finite number" for key in ("method.kl", "improve.lr")
    ]
    assert sorted(caught.value.problems) == sorted(expected)


@pytest.mark.parametrize("text", ["name=a\0b", "name=\udcff", "aggregator=\ud800"])
def test_what_is_no_utf8_text_is_refused(text: str):
    with pytest.raises(ConfigError, match="UTF-8 text without the character NUL"):
        run_config("summarize", [text])


def test_an_interpolation_that_does_not_end_is_no_mapping():
    with pytest.raises(ConfigError, match=r"data\.empty: expected a mapping .* found '\$\{'"):
        run_config("summarize", ["data.empty=${"])


def test_every_rule_is_of_a_key_that_there_is():
    assert {key for key, _, _ in checks.RULES} <= set(known_keys())
    assert set(checks.choices()) <= set(known_keys())


def test_a_fault_of_ours_is_not_taken_for_the_users(monkeypatch: pytest.MonkeyPatch):
    """Hydra and OmegaConf stumble over odd input; what stumbles in our own code is a bug."""

    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(compose, "_replace", broken)
    with pytest.raises(KeyError, match="ours"):
        run_config("summarize", ["policy=t5_small", "data=files", "experiment=quickstart"])
    monkeypatch.setattr(compose.OmegaConf, "to_object", broken)
    with pytest.raises(ConfigError, match="ours"):
        run_config("summarize", [])


@pytest.mark.parametrize(
    "name", some(["grips", "autoprompt", "rlprompt", "soft_prompt", "finetune"], "grips")
)
@pytest.mark.parametrize(
    "data", ["sst2", *(pytest.param(d, marks=pytest.mark.slow) for d in ("agnews", "yelp2"))]
)
def test_a_papers_experiment_has_a_methods_published_settings(name: str, data: str, tmp_path: Path):
    given = [f"data.path={tmp_path}", f"method={name}"]
    paper = run_config("prompt", [f"experiment={data}_paper", *given]).method
    assert (
        paper
        == run_config(
            "prompt", [f"experiment={data}_paper", *given[:1], f"method=paper/{name}"]
        ).method
    )
    own = [f"dataset={data}", "experiment=none", "policy=distilgpt2", "judge=classifier"]
    own += ["judge.classifier.path=a/b"]
    assert paper != run_config("prompt", [*own, *given]).method
    assert paper.controls == []
