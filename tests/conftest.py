"""What all tests share: no network, no W&B, one thread, and no trace in the user's caches.

A model that is loaded again from the same files is copied in memory: a tiny run loads dozens, of
some hundred weights each.

Nor do files wait for the disk: no test cuts the power, which is all that `fsync` is for. What must
be synced before what is tested by watching the calls; processes of their own really sync.
"""

import copy
import gc
import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest

os.fsync = lambda descriptor: None
sys.dont_write_bytecode = False  # pytest rewrites a hundred modules: once, not in every session
gc.disable()  # nothing that collecting tests makes is garbage


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a test share a cache with nobody."""
    monkeypatch.setenv("PGTG_CACHE", str(tmp_path_factory.mktemp("cache")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: they take longest, and no worker is left alone with one at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/whole/"))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks at it again."""
    if "transformers.modeling_utils" in sys.modules:
        _load_once()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # of a run's thousands of small objects hardly any is garbage
    gc.enable()


def _load_once() -> None:
    """`from_pretrained` copies what it loaded before, where files, config and options are equal."""
    from transformers import PreTrainedModel

    load, kept = PreTrainedModel.from_pretrained.__func__, dict[str, Mould]()

    def loaded(cls: type, path: str, *args: Any, **options: Any) -> Any:
        if args or not Path(path).is_dir():
            return load(cls, path, *args, **options)
        stats = [(file.name, file.stat()) for file in sorted(Path(path).iterdir())]
        files = [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        config = options.get("config")
        told = {**options, "config": config and config.to_dict()}
        key = repr((cls, path, files, sorted(told.items())))
        if key not in kept:
            model = load(cls, path, **options)
            try:
                kept[key] = Mould(model)  # the model itself holds its file open
            except Exception:  # some cannot be copied
                return model
            while len(kept) > 16:
                del kept[next(iter(kept))]
        # a copy from the first: sums may round otherwise where weights lie otherwise in memory
        return kept[key].cast()

    setattr(PreTrainedModel, "from_pretrained", classmethod(loaded))  # noqa: B010


class Mould:
    """Makes copies of a model as `copy.deepcopy` does, in a sixth of its time."""

    def __init__(self, model: Any):
        from torch import Tensor

        self.tensors: list[Tensor] = []
        places: dict[int, int] = {}

        def place(part: Any) -> int | None:
            if not isinstance(part, Tensor):
                return None
            if id(part) not in places:  # tied weights stay one
                places[id(part)] = len(self.tensors)
                self.tensors.append(part)
            return places[id(part)]

        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = place
        pickler.dump(model)
        self.rest = buffer.getvalue()
        self.tensors = copy.deepcopy(self.tensors)

    def cast(self) -> Any:
        unpickler = pickle.Unpickler(io.BytesIO(self.rest))
        unpickler.persistent_load = copy.deepcopy(self.tensors).__getitem__
        return unpickler.load()
