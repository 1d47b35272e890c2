"""Mutants: faults put into a copy of the package, each of which the default tests must see.

Every mutant is an edit (or a few) that a wrong hand could make and that still runs, with the tests
that have to fail on it. The copy lies in a temporary folder; the checkout is never touched.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("pgtg", "conf", "tests", "pyproject.toml")
WIRING = "tests/whole/test_wiring.py::test_"
ALIGN = "tests/pipeline/stages/test_align.py::test_"
OBJECTIVES = "tests/ops/test_objectives.py::test_"
DROPOUT = "tests/models/test_dropout.py::test_"
LINEAR = "tests/models/backends/test_linear.py::test_"
ROWS = "tests/data/test_rows.py::test_"


@dataclass(frozen=True)
class Edit:
    """`old`, which stands in the file so many times, becomes `new`."""

    file: str  # below pgtg/
    old: str
    new: str
    times: int = 1


@dataclass(frozen=True)
class Mutant:
    """What is wrong, how, and which default tests must fail."""

    name: str
    edits: Sequence[Edit]
    killers: Sequence[str]


MUTANTS = [
    Mutant(
        "the policy is validated on train instead of dev",
        [Edit("methods/prompt.py", 'texts), "dev")', 'texts), "train")')],
        [WIRING + "the_policy_is_validated_on_dev"],
    ),
    Mutant(
        "the mean of the top prompts is that of the first",
        [Edit("pipeline/evaluation/prompt.py", "own[: self.options.top]", "own[:1]")],
        [WIRING + "the_top_figures_are_means_over_as_many_prompts"],
    ),
    Mutant(
        "rougeLsum reads the prediction as one line",
        [
            Edit(
                "metrics/rouge.py",
                "score_multi(lines, own)",
                "score_multi(lines, text)",
            )
        ],
        ["tests/metrics/test_metrics.py"],
    ),
    Mutant(
        "the reward model guides in train mode",
        [Edit("pipeline/stages/improve.py", "model.eval().requires_grad", "model.requires_grad")],
        [WIRING + "the_reward_model_guides_in_eval_mode_and_frozen"],
    ),
    Mutant(
        "held-out checks read the reward model in train mode",
        [Edit("pipeline/stages/align.py", "with evaluating(objective.model):", "if True:")],
        [ALIGN + "held_out_checks_read_the_model_in_eval_mode"],
    ),
    Mutant(
        "the policy is trained in eval mode",
        [Edit("pipeline/stages/improve.py", "module.train()", "module.eval()")],
        [WIRING + "a_later_round_goes_on_with_the_optimiser"],
    ),
    Mutant(
        "each round has a fresh optimiser",
        [
            Edit(
                "pipeline/stages/improve.py",
                'load_tensors(before.file("optimizer.safetensors"))',
                "None",
            )
        ],
        [WIRING + "a_later_round_goes_on_with_the_optimiser"],
    ),
    Mutant(
        "each round has a fresh reward model",
        [
            Edit(
                "pipeline/stages/align.py",
                "_reward_model(ctx, before, ",
                "_reward_model(ctx, None, ",
            )
        ],
        [ALIGN + "a_later_round_goes_on_with_the_reward_model_of_the_round_before"],
    ),
    Mutant(
        "the best reward weights are not put back",
        [Edit("pipeline/stages/align.py", "load_weights(model, result.best)", "pass")],
        [ALIGN + "kept_weights_are_put_into_the_model"],
    ),
    Mutant(
        "the random stream ignores the update",
        [
            Edit(
                "training/update.py",
                "self.stage, self.round, step, *more",
                "self.stage, self.round, *more",
            )
        ],
        ["tests/training/test_loop.py::test_dropout_depends_on_the_update"],
    ),
    Mutant(
        "the KL term is dropped",
        [Edit("methods/objective.py", "term = term + kl * divergence", "pass")],
        [OBJECTIVES + "the_kl_term_is_a_mean_over_sampled_tokens_and_has_a_gradient"],
    ),
    Mutant(
        "the best policy is the last validated",
        [Edit("training/loop.py", "better = value < progress.best_value", "better = True")],
        ["tests/training/test_loop.py::test_plateau_patience_and_best"],
    ),
    Mutant(
        "a sequence is in its own baseline",
        [
            Edit(
                "ops/objectives.py",
                "& ~torch.eye(",
                "| torch.eye(",
            )
        ],
        [OBJECTIVES + "policy_gradient_is_unbiased"],
    ),
    Mutant(
        "padding has a share of the weights",
        [Edit("ops/objectives.py", "value = value.where(mask, 0.0)\n    total", "total")],
        [OBJECTIVES + "weights_by_hand"],
    ),
    Mutant(
        "the tiny T5 keeps the copying weights that suit the news",
        [Edit("pipeline/recipes/tiny_t5.py", 'copies, None, "copy"', 'copies, copies[:8], "copy"')],
        ["tests/pipeline/recipes/test_tiny_t5.py"],
    ),
    Mutant(
        "rates that layers read from the config still drop",
        [Edit("models/dropout.py", 'vars(module)["config"] = quiet[id(config)]', "pass")],
        [DROPOUT + "train_mode_gives_the_same_logits_under_two_seeds"],
    ),
    Mutant(
        "a rate that scales in eval mode is set to 0",
        [Edit("models/dropout.py", ' and name != "moe_token_dropout"', "")],
        [DROPOUT + "a_rate_that_scales_in_eval_mode_stays"],
    ),
    Mutant(
        "attention's gradient forgets what was dropped",
        [Edit("models/backends/dropout.py", "transpose(1, 2)).mul_(kept)", "transpose(1, 2))")],
        ["tests/models/backends/test_dropout.py::test_attention_is_the_definition"],
    ),
    Mutant(
        "an LM head by blocks has no bias",
        [Edit("models/backends/linear.py", "        out += bias\n", "        pass\n")],
        [LINEAR + "torchs_products_by_blocks_are_the_definitions"],
    ),
    Mutant(
        "an LM head by blocks gives no gradients",
        [Edit("models/backends/linear.py", " or torch.is_grad_enabled():", ":")],
        [LINEAR + "torchs_products_by_blocks_are_the_definitions"],
    ),
    Mutant(
        "products under autocast are in float32",
        [Edit("models/backends/linear.py", 'torch.is_autocast_enabled("cpu")', "False")],
        [LINEAR + "autocast_is_torchs_own"],
    ),
    Mutant(
        "rows that wait are written after those that came later",
        [
            Edit(
                "data/rows.py",
                "        self._flush()\n        self._length += batch",
                "        self._length += batch",
            )
        ],
        [ROWS + "single_rows_and_many_keep_their_order"],
    ),
    Mutant(
        "the size of a table is that of its last part",
        [Edit("data/rows.py", "self._bytes += batch.nbytes", "self._bytes = batch.nbytes")],
        [ROWS + "what_is_large_goes_to_the_disk_while_it_is_written"],
    ),
    Mutant(
        "only the first and the last offset of a file are looked at",
        [Edit("data/rows.py", "validate(full=True)", "validate()")],
        [ROWS + "a_damaged_file_is_refused"],
    ),
    Mutant(
        "a lock that its holder deleted counts as held",
        [Edit("runs/locks.py", "if os.path.samestat(os.fstat(lock), path.stat()):", "if True:")],
        ["tests/runs/test_locks.py::test_who_waits_says_so_once_and_gets_it"],
    ),
    Mutant(
        "short cuts through a model are taken unproved",
        [Edit("models/language.py", "if not self._proven():", "if False:")],
        ["tests/models/test_language.py::test_short_cuts_that_do_not_fit_a_model_are_not_taken"],
    ),
    Mutant(
        "tokens that frame a text count in BERTScore",
        [Edit("metrics/bertscore.py", "token not in frame for", "True for")],
        ["tests/metrics/test_metrics.py::test_bertscore_is_that_of_the_package"],
    ),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with its tests, on which the killers of all mutants pass."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    passed = outcome(folder, sorted({name for mutant in MUTANTS for name in mutant.killers}))
    assert passed.returncode == 0, passed.stdout[-3000:]
    return folder


def outcome(folder: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The default tests of these names in the copy."""
    command = [sys.executable, "-B", "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_seen(copy: Path, mutant: Mutant):
    """Each of its killers fails (exit code 1), and not because the copy cannot be imported."""
    before = {edit.file: (copy / "pgtg" / edit.file).read_text() for edit in mutant.edits}
    try:
        for edit in mutant.edits:
            path = copy / "pgtg" / edit.file
            text = path.read_text()
            assert text.count(edit.old) == edit.times, f"{edit.file}: {edit.old}"
            path.write_text(text.replace(edit.old, edit.new))
        for killer in mutant.killers:
            found = outcome(copy, [killer])
            assert found.returncode == 1 and "FAILED " in found.stdout, found.stdout[-3000:]
    finally:
        for name, text in before.items():
            (copy / "pgtg" / name).write_text(text)
