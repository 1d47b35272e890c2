"""What all tests share: no network, no W&B, one thread, and no trace in the user's caches.

Nor do files wait for the disk: no test cuts the power, which is all that `fsync` is for. What must
be synced before what is tested by watching the calls; processes of their own really sync.
"""

import gc
import os
import sys

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
    gc.freeze()
    gc.enable()
