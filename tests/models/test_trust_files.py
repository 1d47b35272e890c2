"""A stranger's files that reach outside their folder, or into the environment, or are huge."""

import contextlib
import copy
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from transformers import AutoModelForSeq2SeqLM

from pgtg.config.compose import run_config
from pgtg.data.tables import READERS
from pgtg.errors import ArtifactError, ConfigError, DataError, MissingResourceError, PgtgError
from pgtg.models import trust
from pgtg.models.adaptor import adapt, load_adaptor, save_adaptor
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model
from pgtg.models.reward import HeadSpec, RewardModel, build_reward_model, load_reward_model
from pgtg.runs import artifacts, files
from pgtg.runs import folder as store
from pgtg.runs.folder import Artifact, RunFolder, load_tensors, read_json, read_table, write_json
from pgtg.runs.log import RunLog
from tests.support.strangers import Payload, edit, model, plain, refused  # noqa: F401 (fixtures)

# --- writing elsewhere


def sealed(artifact: Artifact, **changes: Any) -> None:
    """A manifest with a right checksum, as a stranger would write it."""
    path = artifact.path / "manifest.json"
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"} | changes
    write_json(path, {**manifest, "checksum": store.content_hash(manifest)})


def committed(path: Path) -> Artifact:
    artifact = Artifact(path)
    (artifact.working("i") / "a.txt").write_text("a")
    return artifact.commit(inputs="i")


def test_a_manifest_that_names_files_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tidying up deletes what a manifest names."""
    outside, name = tmp_path / "precious", "../precious"
    artifact = committed(tmp_path / "a")
    sealed(artifact, files={name: {"bytes": 1, "sha256": "0"}})
    outside.touch()
    with monkeypatch.context() as weakened:
        weakened.setattr(artifacts, "safe_name", lambda name: name)
        artifact.drop([name])
    assert not outside.exists(), "the attack works"
    outside.touch()
    for read in (artifact.manifest, artifact.verify, lambda: artifact.drop([name])):
        with pytest.raises(ArtifactError, match="leads outside"):
            read()
    assert outside.exists()


@pytest.mark.parametrize("name", ["eval", "policy"])
def test_a_link_in_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    run = RunFolder(tmp_path / "run").create({"task": "summarize"}, {})
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (run.path / name).symlink_to(outside)
    with monkeypatch.context() as weakened:
        weakened.setattr(store, "_refuse_links", lambda folder: None)
        (run.open().path / name / "results.json").touch()
    assert (outside / "results.json").exists(), "the attack works"
    with pytest.raises(ArtifactError, match="is a link"):
        run.open()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "run.lock"])
def test_a_log_that_is_a_link(tmp_path: Path, name: str):
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(precious)
    with (tmp_path / "run" / name).open("a") as file:
        file.write("stranger's\n")
    assert precious.read_text() == "mine\nstranger's\n", "the attack works"
    write = RunFolder(tmp_path / "run").lock().__enter__
    if name != "run.lock":
        write = partial(RunLog, tmp_path / "run")
    with pytest.raises(PgtgError, match=r"cannot write .*(run\.lock|metrics\.jsonl)"):
        write()
    assert precious.read_text() == "mine\nstranger's\n"


@cache
def honest_config() -> dict[str, Any]:
    from tests.support.tiny import tiny

    return asdict(tiny("cache=/nowhere")) | {"run_dir": None}


def saved_config(**changes: Any) -> dict[str, Any]:
    """A tiny run's config as a stranger may have changed it."""
    saved = copy.deepcopy(honest_config())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            saved[section][name] = value
        else:
            saved[section] = value
    return saved


def test_a_saved_config_does_not_choose_the_cache(tmp_path: Path):
    """Judged prompts, warm starts and samples are written there."""
    saved = saved_config(cache=str(tmp_path / "victim"))
    assert OmegaConf.create(saved).cache == str(tmp_path / "victim"), "the attack works"
    assert run_config("summarize", saved=saved).cache == os.environ["PGTG_CACHE"]
    assert run_config("summarize", ["cache=/mine"], saved=saved).cache == "/mine"
    assert run_config("summarize", saved=saved | {"cache": "off"}).cache == "off"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"evaluate__splits": ["../../x"]}, r"evaluate\.splits"),
        ({"experiment": "../../stranger"}, "experiment"),
        ({"experiment": "x y=["}, "experiment"),
        ({"method__controls": ["../x"]}, r"method\.controls"),
        ({"improve__lr": "${oc.env:HOME}"}, "oc.env|lr"),
        ({"evil": 1}, "evil"),
    ],
)
def test_a_saved_config_is_checked_like_any_other(change: dict[str, Any], match: str):
    with pytest.raises(ConfigError, match=match):
        run_config("summarize", saved=saved_config(**change))


# --- yaml


def test_yaml_tags_and_interpolations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunFolder(tmp_path / "run").create({"task": "summarize"}, {})
    marker, config = tmp_path / "ran", run.path / "config.yaml"
    monkeypatch.setenv("SECRET", "hush")
    tagged = f"a: !!python/object/apply:os.mkdir [{marker}]"
    yaml.unsafe_load(tagged)
    assert marker.exists(), "the attack works"
    marker.rmdir()
    asking = "a: ${oc.env:SECRET}"
    assert OmegaConf.create(asking).a == "hush", "the attack works"
    laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))
    laughs = f"a0: &a0 [1]\n{laughs}"
    assert len(yaml.safe_load(laughs)["a8"]) == 9  # 9**8 items once each is written out
    for text in (tagged, asking, laughs):
        config.write_text(text)
        with pytest.raises(ArtifactError, match=r"config\.yaml line \d"):
            run.open()
    assert not marker.exists()


# --- memory


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_check_claims", lambda *_: None)


@pytest.mark.parametrize(
    "claim", [{"d_ff": 400_000}, {"vocab_size": 800_000}, {"num_layers": 10**9}]
)
def test_a_config_that_claims_more_than_the_files_hold(model: Path, claim: dict[str, int]):
    """Weights that no file holds are made: memory for whatever the config says."""
    files_hold = (model / "model.safetensors").stat().st_size
    edit(model / "config.json", **claim)
    if "num_layers" not in claim:  # that one would not end
        made = AutoModelForSeq2SeqLM.from_pretrained(model, ignore_mismatched_sizes=True)
        assert sum(p.numel() for p in made.parameters()) * 4 > 1000 * files_hold, "it works"
    refused(model, "claims")


def test_weights_that_are_missing_are_not_made_up(model: Path):
    tensors = load_tensors(model / "model.safetensors")
    gone = next(name for name in tensors if "wi" in name)
    store.save_tensors(model / "model.safetensors", {k: v for k, v in tensors.items() if k != gone})
    AutoModelForSeq2SeqLM.from_pretrained(model)  # random, and nobody is told
    refused(model, "lacks 1 of the weights", MissingResourceError)


def test_shards_elsewhere(model: Path, plain: Path):
    (model / "model.safetensors").unlink()
    names = load_tensors(plain / "model.safetensors")
    away = os.path.relpath(plain / "model.safetensors", model)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, away)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    AutoModelForSeq2SeqLM.from_pretrained(model)  # reads it there
    refused(model, "only safetensors next to it")


def safetensors_of(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("end", [16, 2**60])
def test_tensors_that_claim_more_than_the_file_has(tmp_path: Path, model: Path, end: int):
    """A naive reader makes room for the shape in the header."""
    shape = [2**58]
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    bomb = safetensors_of({"x": tensor}, b"\0" * 16)
    with pytest.raises(MemoryError):
        np.empty(shape, np.float32)
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(bomb)
    with pytest.raises(ArtifactError, match="not readable safetensors"):
        load_tensors(path)
    (model / "model.safetensors").write_bytes(bomb)
    refused(model, "not readable safetensors")
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(ArtifactError, match="not readable safetensors"):
        load_tensors(path)


@pytest.mark.parametrize(
    "change",
    [
        {"mlp_width": 10**12},
        {"mlp_width": 10**6},
        {"mlp_width": 10**30},
        {"mlp_width": "8"},
        {"mlp_width": True},
        {"head": "os.system"},
        {"head": ["paper"]},
        {"bound": None},
        {"more": 1},
    ],
)
def test_a_reward_head_that_claims_more_than_its_file(model: Path, change: dict[str, Any]):
    lm, _ = load_language_model(str(model))
    built = build_reward_model(lm, HeadSpec("paper", "softplus", 4), 0)
    store.save_tensors(model / "reward_head.safetensors", dict(built.head.state_dict()))
    write_json(model / "reward_head.json", {"head": "paper", "bound": "softplus", "mlp_width": 4})
    load_reward_model(model)
    edit(model / "reward_head.json", **change)
    if change == {"mlp_width": 10**12}:
        with pytest.raises((RuntimeError, MemoryError), match="alloc"):
            RewardModel(lm, HeadSpec("paper", "softplus", 10**12))  # 32 TB
    with pytest.raises(ArtifactError, match=r"reward_head\.json describes no reward head"):
        load_reward_model(model)


def test_head_weights_of_other_sizes(model: Path):
    lm, _ = load_language_model(str(model))
    built = build_reward_model(lm, HeadSpec("paper", "softplus", 4), 0)
    own = dict(built.head.state_dict())
    write_json(model / "reward_head.json", {"head": "paper", "bound": "softplus", "mlp_width": 4})
    path = model / "reward_head.safetensors"
    for tensors, match in (
        ({**own, "more": torch.zeros(2)}, "other weights"),
        ({k: v[:1] for k, v in own.items()}, "other weights"),
        ({**own, "bomb": torch.zeros(2**17)}, "bytes, more than"),
    ):
        store.save_tensors(path, tensors)
        with pytest.raises(ArtifactError, match=match):
            load_reward_model(model)


def test_an_adaptor_of_a_stranger(tmp_path: Path):
    from tests.support.tiny_models import build as causal

    lm = adapt(causal("gpt2"), 4, 0)
    save_adaptor(lm, tmp_path)
    load_adaptor(lm, tmp_path)
    for text in ("[]", "{}", "3", '{"language_model": {}}'):
        (tmp_path / "adaptor.json").write_text(text)
        with pytest.raises(ArtifactError, match="another language model"):
            load_adaptor(lm, tmp_path)
    save_adaptor(lm, tmp_path)
    assert isinstance(lm, LanguageModel)
    bomb = {name: torch.zeros(2**16) for name in lm.state_dict()}
    store.save_tensors(tmp_path / "adaptor.safetensors", bomb)
    with pytest.raises(ArtifactError, match="more than"):
        load_adaptor(lm, tmp_path)


@pytest.mark.parametrize("kind", ["one number", "one text", "one text, in a list"])
def test_a_table_that_grows_when_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Some kilobytes that stand for many megabytes; the limit is lowered for the test."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Any] = {
        "one number": [7] * 2_000_000,
        "one text": ["x" * 100_000] * 200,
        "one text, in a list": [["x" * 100_000]] * 200,
    }[kind]
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": rows}), path, compression="zstd")
    assert pq.read_table(path).nbytes > 100 * path.stat().st_size, "the attack works"
    monkeypatch.setattr(files, "MAX_TABLE_BYTES", 2**20)
    with pytest.raises(ArtifactError, match="allowed"):
        read_table(path)


def test_a_table_that_lies_about_its_rows(tmp_path: Path):
    """The footer says 1,048,575 rows, the pages hold 300,000."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def varint(number: int) -> bytes:
        number, out = 2 * number, b""
        while number:
            out += bytes([number % 128 + (128 if number >= 128 else 0)])
            number //= 128
        return out

    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"a": range(300_000)}), path)
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:].replace(varint(300_000), varint(1_048_575), 1)
    path.write_bytes(data[:start] + footer)
    assert pq.ParquetFile(path).metadata.num_rows == 1_048_575, "the attack works"
    with pytest.raises(DataError, match=r"1048575 rows, and has 300000"):
        list(READERS[".parquet"](path).rows)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_that_is_nested_too_deep(model: Path, name: str, tmp_path: Path):
    deep = "[" * 200_000 + "]" * 200_000
    with pytest.raises(RecursionError):
        json.loads(deep)
    (model / name).write_text(deep)
    with pytest.raises(PgtgError, match=r"nested|recursion"):
        load_language_model(str(model))
    (tmp_path / "x.json").write_text(deep)
    with pytest.raises(ArtifactError, match="recursion"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("read", [read_json, store.read_jsonl, read_table])
def test_giant_files_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
):
    """A file with holes is small on the disk and takes the memory of its size."""
    path = tmp_path / "giant"
    path.touch()
    os.truncate(path, 2**40)
    opened: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self) or b"")
    with monkeypatch.context() as weakened:
        for limit in ("MAX_JSON_BYTES", "MAX_LINES_BYTES", "MAX_TABLE_BYTES"):
            weakened.setattr(files, limit, 2**50)
        weakened.setattr(files, "plain_file", lambda *_: None)
        with contextlib.suppress(ArtifactError):
            read(path)
    assert opened == [path], "the attack works"
    with pytest.raises(ArtifactError, match="1099511627776 bytes, more than"):
        read(path)
    assert opened == [path]


def test_pickle_is_nowhere_imported():
    """No reader of the package knows it."""
    package = Path(files.__file__).parent
    assert pickle.loads(pickle.dumps(1)) == 1
    users = [p.name for p in package.rglob("*.py") if "import pickle" in p.read_text()]
    loads = [p.name for p in package.rglob("*.py") if "torch.load(" in p.read_text()]
    assert (users, loads) == ([], [])
