"""The planted preferences hold what their script says is planted."""

import json
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from pgtg.config.compose import run_config
from pgtg.data.worlds import reviews

FOLDER = Path(__file__).parents[2] / "examples/preferences"


@pytest.fixture(scope="module")
def make() -> Any:
    spec = spec_from_file_location("make_preferences", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> list[dict[str, str]]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rank(make: Any, word: str) -> int:
    return (word in make.LIKED) - (word in make.DISLIKED)


def test_the_files_are_what_the_script_writes(make: Any, tmp_path: Path):
    make.write(tmp_path)
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    assert sum(file.stat().st_size for file in FOLDER.glob("*.jsonl")) < 60_000


def test_sizes_and_prompts(make: Any):
    train, validation = read("train"), read("validation")
    assert (len(train), len(validation)) == (160, 40)
    assert len({row["prompt"] for row in [*train, *validation]}) == 200
    assert make.rows(0, 3) == train[:3] and make.rows(1, 3) != train[:3]


def test_texts_differ_at_planted_words_only(make: Any):
    places: Counter[int] = Counter()
    for row in [*read("train"), *read("validation")]:
        assert set(row) == {"prompt", "chosen", "rejected"}
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        assert len(chosen) == len(rejected) == 8
        differ = [i for i in range(8) if chosen[i] != rejected[i]]
        assert differ and set(differ) <= {2, 6}
        for i in differ:
            assert rank(make, chosen[i]) == rank(make, rejected[i]) + 1
        places.update(differ)
    assert min(places.values()) > 100 and abs(places[2] - places[6]) < 30  # 133 each on average


def test_the_tiny_lm_has_every_word():
    cfg = run_config("prompt", [])
    assert cfg.data.reviews is not None
    words = set(reviews.vocabulary(cfg.data.reviews))
    for row in [*read("train"), *read("validation")]:
        for completion in (row["chosen"], row["rejected"]):
            assert completion.startswith(" ")
            assert set((row["prompt"] + completion).split()) <= words
