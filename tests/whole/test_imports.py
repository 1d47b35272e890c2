"""Imports point down only, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pgtg

PACKAGE = Path(pgtg.__file__).parent
FLOORS = (  # the lowest first: a room imports from its own floor and from those below
    {"errors", "types"},
    {"config"},
    {"ops", "runtime"},
    {"runs"},
    {"models"},
    {"metrics"},
    {"judges"},
    {"data"},
    {"training"},
    {"tasks"},
    {"methods"},
    {"pipeline"},
    {"report"},
    {"explain"},
    {"export"},
    {"benchmark"},
    {"doctor"},
    {"cli", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HYDRA = {"config", "cli"}  # all that may know Hydra or OmegaConf


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "pgtg":
                found |= {f"pgtg.{alias.name}" for alias in node.names}
    return found


def rooms() -> dict[Path, str]:
    """Each file of the package with the room that it stands in."""
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files}


def test_every_room_has_a_floor():
    assert set(rooms().values()) == set(FLOOR)


def test_imports_point_down_only():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, own in rooms().items()
        for name in imports(path)
        if name.startswith("pgtg.") and FLOOR.get(name.split(".")[1], 0) > FLOOR[own]
    ]
    assert wrong == []


def test_only_config_and_command_line_know_hydra():
    knowing = {own for path, own in rooms().items() if _hydra(imports(path))}
    assert knowing <= HYDRA


def _hydra(names: set[str]) -> bool:
    return any(name.split(".")[0] in ("hydra", "omegaconf") for name in names)


def test_command_line_and_judges_import_nothing_heavy():
    """Help and completion must not wait for torch or Hydra, nor judge workers for torch."""
    code = (
        "import sys, pgtg.cli.main; heavy = {'torch', 'transformers', 'datasets', 'nltk', 'wandb'};"
        "assert not (heavy | {'hydra', 'omegaconf', 'yaml'}) & set(sys.modules);"
        "import pgtg.cli.calls, pgtg.cli.listing, pgtg.judges.pool, pgtg.metrics;"
        "found = heavy & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("summarize", "sample.k=1"),
        ("prompt", "judge.classifier.template=none"),
        ("preferences", "data.format=hh"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_refused_config_imports_nothing_heavy(arguments: tuple[str, ...]):
    code = (
        "import sys\nfrom pgtg.cli.main import app\n"
        "try: app()\nexcept SystemExit as ended: assert ended.code == 2, ended.code\n"
        "else: assert False\n"
        "found = {'torch', 'transformers', 'datasets', 'nltk', 'wandb'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code, "train", *arguments], check=True)


def test_a_list_of_names_needs_no_options_and_no_metrics():
    code = (
        "import sys; from pgtg.cli.listing import show; show(None); show('methods');"
        "late = {'regex', 'hydra', 'pgtg.methods.options', 'pgtg.metrics.rouge'};"
        "found = late & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
