"""Registries: what a config may name is what the code has, and nobody else knows names."""

import ast
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import pgtg
from pgtg.config import MethodConfig
from pgtg.config.compose import run_config
from pgtg.config.registry import (
    JUDGES,
    METHODS,
    REGISTRIES,
    TASKS,
    MethodSpec,
    Registry,
    Spec,
    controls_of,
    method_spec,
    methods_of,
    resolve,
)
from pgtg.errors import ConfigError
from pgtg.methods.options import Reinforce, Sparse, WeightedMLE

PACKAGE = Path(pgtg.__file__).parent
# what may compare a task, method or control with a name: the tables themselves
OWN = {"tasks/registry.py", "methods/registry.py", "config/registry.py"}


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.key)
def test_every_spec_has_its_code_and_a_line(registry: Registry):
    assert len(registry) > 1 and all(name in registry for name in registry)
    for spec in registry.specs:
        assert getattr(spec, "absent", False) or spec.load() is not None
        assert spec.about and "\n" not in spec.about and len(spec.about) < 100


def test_tasks_name_what_there_is():
    for spec in TASKS.specs:
        assert set(spec.controls) <= set(controls_of(spec.name)) and methods_of(spec.name)
        plan = resolve(spec.plan)
        assert all(callable(getattr(plan, name)) for name in ("split_sizes", "describe", "work"))
        assert callable(resolve(spec.evaluation)) and callable(resolve(spec.check))


def test_the_tables_import_nothing_heavy():
    code = (
        "import sys; from pgtg.config.registry import REGISTRIES\n"
        "assert all(registry.about() for registry in REGISTRIES)\n"
        "assert not {'torch', 'transformers', 'hydra', 'nltk', 'sacrebleu'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_method_runs_where_its_needs_are_met():
    paired, grouped = {"best_of_k", "dpo", "simpo", "tdpo", "self_distill"}, {"grpo", "rloo", "rto"}
    own = {"pgtg", "reinforce", "mle", "ppo", "nlpo"}
    assert set(methods_of("summarize")) == own | paired | grouped | {"lead3"}
    assert set(methods_of("preferences")) == own | paired  # nothing judges own generations
    judged, learned = (
        method_spec("summarize", "ppo", options=run_config("summarize", words).method)
        for words in (["method=ppo"], ["method=ppo", "method.reward=learned"])
    )
    assert not judged.learns_reward and learned.learns_reward
    searching = {"grips", "bbt", "autoprompt", "rlprompt", "soft_prompt", "finetune"}
    assert set(methods_of("prompt")) == {"pgtg", "sparse", "random"} | searching
    assert method_spec("prompt", "pgtg").code != method_spec("summarize", "pgtg").code
    lacking = (
        "'sparse' needs classifier, which the task summarize lacks; it has pgtg, reinforce, mle"
    )
    with pytest.raises(ConfigError, match=lacking):
        method_spec("summarize", "sparse")
    with pytest.raises(ConfigError, match=r"no 'shufled'; did you mean 'shuffled'"):
        run_config("summarize", ["method.controls=[shufled]"])


def test_a_name_stands_once():
    registry = Registry("some.key", MethodSpec, "pgtg.methods.registry:METHODS", "pgtg.none")
    mine = MethodSpec("mine", "of a test", object(), METHODS["mle"].needs)
    registry.add(mine)
    assert registry["mine"].load() is mine.code
    for spec in (mine, MethodSpec("mle", "again", "nowhere")):
        with pytest.raises(ConfigError, match=f"has a '{spec.name}', but there is one"):
            registry.add(spec)
    with pytest.raises(ConfigError, match="is no MethodSpec"):
        registry.add(JUDGES["meteor"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"some\.key: there is no 'mlee'; did you mean 'mle'"):
        registry["mlee"]


def test_nobody_else_compares_names_or_kinds_of_tasks_and_methods():
    """`cfg.task == ...`, `method.name == ...`, `control == ...`, isinstance(task, ...)."""
    names = {spec.name for spec in [*TASKS.specs, *METHODS.specs]}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        where = str(path.relative_to(PACKAGE))
        if where in OWN:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                constants = {s.value for s in sides if isinstance(s, ast.Constant)}
                asked = [ast.unparse(s) for s in sides if not isinstance(s, ast.Constant)]
                about = [a for a in asked if a.endswith((".task", "method.name", "control"))]
                if about and constants & names:
                    found.append(f"{where}:{node.lineno}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                found += [f"{where}:{node.lineno}"] * ("Task" in ast.unparse(node.args[1]))
    assert found == []


def test_a_spec_is_its_own_code_or_where_that_is():
    assert resolve("pgtg.config.registry:Spec") is Spec
    assert resolve("pgtg.errors").ConfigError is ConfigError
    assert resolve(len) is len


@pytest.mark.parametrize(
    ("task", "call", "said"),
    [
        ("summarize", "method=mle method.entropy=0.1", "method.entropy: method=mle has no such"),
        ("summarize", "method.sparse_lr=1", "method.sparse_lr: method=pgtg has no such option"),
        ("prompt", "method.transform=exp", "method.transform: method=pgtg has no such option"),
        ("prompt", "+judge.workers=3", "judge.workers: judge=classifier has no such option"),
        ("prompt", "++judge.workers=", "judge.workers: judge=classifier has no such option"),
        ("prompt", "method.name=sparse", "method.name: write method=sparse"),
        ("summarize", "method.entrop=1", "there is no such key; did you mean 'method.entropy'"),
        ("summarize", "method.entropy=abc", "method.entropy=abc: expected a number, found 'abc'"),
        (
            "summarize",
            "method.reinforce=1 method.baseline=group",
            "method.samples: found 1, but baseline=group needs at least 2",
        ),
    ],
)
def test_a_method_has_its_own_options_only(task: str, call: str, said: str):
    with pytest.raises(ConfigError, match=said):
        run_config(task, call.split())


def test_options_of_a_method_are_those_of_its_class():
    """What an experiment sets for another method is not read; a task may have its own file."""
    sparse = run_config("prompt", ["method=sparse"])  # the experiment sets entropy, controls too
    assert isinstance(sparse.method, Sparse) and not isinstance(sparse.method, Reinforce)
    assert (sparse.method.entropy, sparse.method.sparse_updates) == (0.3, 4)
    assert run_config("prompt", ["method=random"]).method == MethodConfig("random", [])
    assert isinstance(run_config("prompt", ["method=pgtg"]).method, Reinforce)
    assert isinstance(run_config("summarize", ["method=pgtg"]).method, WeightedMLE)


def test_a_saved_run_keeps_its_options_and_may_hold_those_of_an_older_schema():
    saved = asdict(run_config("summarize", ["method=mle"]))
    saved["method"] |= {"transform": "none", "sparse_lr": 0.1}  # every method once had these
    assert run_config("summarize", saved=saved).method == MethodConfig("mle", [])
    changed = run_config("summarize", ["method=pgtg", "method.entropy=0.5"], saved=saved).method
    assert isinstance(changed, WeightedMLE) and changed.entropy == 0.5
    with pytest.raises(ConfigError, match="of another version"):
        run_config("summarize", saved=saved | {"method": {"name": "mle", "odd": 1}})


def test_what_a_method_lacks_changes_nothing():
    found = WeightedMLE.of(MethodConfig("mle", []))
    assert (found.reinforce, found.entropy, found.kl, found.own_samples) == (0, 0, 0, 0)
    assert not found.keeps_start and not MethodConfig("mle", []).keeps_start
    assert replace(found, reinforce=0.5, samples=3).own_samples == 3
    assert replace(found, reinforce=0.5, kl=0.1).keeps_start
    assert Reinforce.of(replace(Sparse.of(MethodConfig("sparse")), kl=0.2)).keeps_start


def test_a_control_that_is_asked_for_as_a_method_is_told_where_it_goes():
    said = r"method=oracle: it is a control, run by method\.controls=\[oracle\]"
    with pytest.raises(ConfigError, match=said):
        run_config("summarize", ["method=oracle"])
