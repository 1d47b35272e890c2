"""The commands that help and messages name are run as they stand, where their folders are."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pgtg.cli.main import app
from tests.benchmark.test_credit import FAST, planted
from tests.support.tiny import TINY
from tests.support.tiny_exports import llama
from tests.support.tiny_preferences import TINY_PREFERENCES
from tests.support.tiny_prompt import TINY_PROMPT
from tests.whole.test_commands import PROSE, named, words_of

SETTINGS = {"summarize": TINY, "preferences": TINY_PREFERENCES, "prompt": TINY_PROMPT}
GROUPS = ("export", "benchmark", "cache")  # commands of two words
ALONE = ("doctor", "cache prune", "cache prune --all")  # whole without an argument
MORE = {"benchmark": FAST, "export": ["--force"]}  # two examples write the same folder
TO_FETCH = ("cnn_dm_t5_small", "t5_small", "sst2", "qa-feedback")  # models and data of a hub
CAUSAL = [  # what a tiny Llama needs to be read as the encoder-decoder is
    "policy=pretrained",
    "policy.path=SmolLM2-135M",
    "policy.max_source_tokens=64",
    "policy.max_target_tokens=24",
    "judge=chrf",  # tells any two texts apart
    "reward.head=linear",
]
# X, where a message puts a name in
MEANT = {
    "train X": "train summarize",
    "train TASK": "train preferences",
    "explain X": "explain outputs/mine",
    "report X": "report outputs/mine",
    "ls XX": "ls outputs/sweep",
    "ls GROUP": "ls heads",
    "credit X": "credit own data.path=my.jsonl policy.path=SmolLM2-135M",
    "experiment=X": "experiment=quickstart",
    "run_dir=X": "run_dir=outputs/again",
    "summarize run_dir=outputs/mine": "summarize run_dir=outputs/own",
    "policy outputs/mine --out X": "policy outputs/mine --out policy",
    "preferences outputs/mine --out X": "preferences outputs/mine --out judged",
    "run_dir=": "run_dir=outputs/begun",
    "--config X": "--config my.yaml",
    "--dry-run X": "--dry-run seed=1",
    "data.path=X": "data.path=pairs",
    "summarize X": "summarize",
}


def ran(*words: str) -> Result:
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code == 0, f"pgtg {' '.join(words)}: {result.output}"
    return result


def trained(task: str, *words: str, run_dir: str | None = None) -> Result:
    """`pgtg train` with a tiny world, where the words do not say otherwise."""
    given = {word.split("=")[0] for word in words}
    own = [word for word in SETTINGS[task] if word.split("=")[0] not in given]
    if "policy" in given:  # not the tiny world's
        own = [word for word in own if not word.startswith("policy.")]
    at = [f"run_dir={run_dir}"] if run_dir else []
    return ran("train", task, *own, *words, *at)


@pytest.fixture
def place(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with all that the commands speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGTG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("SmolLM2-135M", "Qwen3-0.6B"):
        Path(name).symlink_to(llama(tmp_path_factory))
    rows = [{"source": f"It opens {n} doors.", "target": f"{n} doors."} for n in range(9)]
    for split in ("train", "validation", "test"):
        Path("my").mkdir(exist_ok=True)
        Path("my", f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("my.yaml").write_text("seed: 1\n")
    for name in ("outputs/mine", "outputs/max", "outputs/sum"):
        trained("summarize", *CAUSAL, run_dir=name)
    trained("summarize", "method=mle", "method.controls=[]", run_dir="sweep/mle")
    trained("summarize", run_dir="sweep/pgtg")
    for name, target in (("a", "sweep/mle"), ("b", "sweep/pgtg"), ("sweeps", "sweep")):
        Path(name).symlink_to(target)
    Path("outputs/sweep").symlink_to("../sweep")
    Path("outputs/summarize/multirun").mkdir(parents=True)
    Path("outputs/summarize/multirun/mine").symlink_to("../../../sweep")
    ran("export", "reward", "outputs/mine", "--out", "exported")
    ran("export", "policy", "outputs/mine", "--out", "path/to/transformers-folder")
    ran("export", "preferences", "outputs/mine", "--out", "pairs")
    planted(Path("my.jsonl"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_help_and_messages_work(place: Path):
    said = {
        " ".join(words_of(text))
        for where, text in named()
        if where.startswith(("pgtg", "conf")) and words_of(text)[0] not in PROSE
    }
    done, left = [], []
    for text in sorted(said, key=lambda text: (text.startswith("cache"), text)):  # it takes away
        for given, meant in MEANT.items():
            text = re.sub(rf"{re.escape(given)}(?= |$)", meant, text)
        words = shlex.split(re.split(r" (?:says|reads) ", text)[0])  # and a sentence's end
        called, given = words[: 1 + (words[0] in GROUPS)], words[1 + (words[0] in GROUPS) :]
        if not given and text not in ALONE:  # a command's name, which -h is tried with
            continue
        print(f"pgtg {text}")
        if any(name in word for word in words for name in TO_FETCH):
            left.append(text)
            continue
        if called == ["train"]:
            trained(*given)
        else:
            ran(*words, *MORE.get(called[0], []))
        done.append(text)
    print("\n".join(["left, for want of a hub:", *left]))
    assert len(done) > 5 * len(left)
