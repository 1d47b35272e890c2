"""Locks: alone, shared, waited for, deleted by who holds them, and freed whatever happens."""

import os
import threading
from pathlib import Path

import pytest

from pgtg.runs.locks import acquire, is_held, locked


@pytest.mark.parametrize("mine", [True, False], ids=["shared", "alone"])
@pytest.mark.parametrize("theirs", [True, False], ids=["shared", "alone"])
def test_only_those_who_share_hold_it_together(tmp_path: Path, mine: bool, theirs: bool):
    path = tmp_path / "lock"
    with locked(path, shared=theirs):
        assert is_held(path) is not theirs
        if mine and theirs:
            os.close(acquire(path, shared=True, wait=False))
        else:
            with pytest.raises(BlockingIOError):
                acquire(path, shared=mine, wait=False)
    os.close(acquire(path, shared=mine, wait=False))


def test_who_waits_says_so_once_and_gets_it(tmp_path: Path):
    path, told, asked = tmp_path / "lock", list[str](), threading.Event()
    first = acquire(path)

    def waiting() -> None:
        told.append("waiting")
        asked.set()

    def wait() -> None:
        with locked(path, waiting=waiting):
            told.append("got")

    other = threading.Thread(target=wait)
    other.start()
    assert asked.wait(60) and told == ["waiting"]
    path.unlink()  # as who holds it may do: the other must not take what nobody else will find
    replaced = acquire(path)
    os.close(first)
    other.join(0.05)
    assert told == ["waiting"]
    os.close(replaced)
    other.join(60)
    assert told == ["waiting", "got"] and not is_held(path)


def test_looking_makes_no_file_and_an_error_frees_the_lock(tmp_path: Path):
    path = tmp_path / "lock"
    assert not is_held(path) and not path.exists()
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError(is_held(path))
    assert path.exists() and not is_held(path)


def test_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        acquire(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()
