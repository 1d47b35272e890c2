"""Bytes that are put into a file at a place, against the file's whole content."""

import os
from pathlib import Path

import pytest

from pgtg.errors import PgtgError
from pgtg.runs.files import put_at


def test_bytes_stand_where_they_were_put(tmp_path: Path):
    path = tmp_path / "new" / "file"
    assert put_at(path, 0, b"abcdef", cut=False) == 6
    assert put_at(path, 2, b"XY", cut=False) == 4 and path.read_bytes() == b"abXYef"
    assert put_at(path, 3, b"Z", cut=True) == 4 and path.read_bytes() == b"abXZ"
    assert put_at(path, 0, b"", cut=True) == 0 and path.read_bytes() == b""


def test_a_full_disk_is_one_line_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    put_at(path, 0, b"kept", cut=False)

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PgtgError, match=r"cannot write .*file: No space left on device"):
        put_at(path, 4, b"more", cut=True)
    assert path.read_bytes()[:4] == b"kept"
