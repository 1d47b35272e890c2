"""A finished run to damage, and what a call says of it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from pgtg.cli.reporting import reporting
from pgtg.config import RunConfig
from pgtg.ops import objectives  # noqa: F401 (so that methods are loaded before they are changed)
from tests.support.finished import finished_run
from tests.support.tiny import SHORT, _quiet, results, tiny  # noqa: F401 (a fixture)

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def cfg() -> RunConfig:
    return tiny(*SHORT)


@pytest.fixture(scope="module")
def finished(cfg: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(cfg, tmp_path_factory)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def said(capsys: pytest.CaptureFixture[str], call: Callable[[], Any]) -> tuple[int, str]:
    """Exit code and stderr of a call, as on the command line."""
    code = 0
    capsys.readouterr()
    try:
        with reporting():
            call()
    except typer.Exit as end:
        code = end.exit_code
    return code, capsys.readouterr().err
