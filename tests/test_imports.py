"""Imports point down only, and what must start fast imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pgtg

PACKAGE = Path(pgtg.__file__).parent
LAYERS = (
    {"errors", "types", "interrupt", "processes", "runtime", "ops", "groups"},
    {"config", "checks", "compose", "schedule", "sizes"},
    {"files", "artifacts", "cache", "entries", "store", "console", "tracker", "log"},
    {"models", "judges", "metrics"},
    {"tasks"},
    {"context", "generations"},
    {"training", "states", "loop", "methods"},
    {"recipes", "shared"},
    {"stages"},
    {"findings"},
    {"evaluation"},
    {"train", "evaluate", "report", "explain", "plan"},
    {"sweeps", "doctor"},
    {"jobs", "calls", "completion", "listing", "cli", "__main__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HYDRA = {"compose", "jobs", "calls", "config", "cli"}  # all that may know Hydra or OmegaConf


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


def modules() -> dict[Path, str]:
    """Each file of the package with the top-level name that it belongs to."""
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files}


def test_every_module_has_a_layer():
    assert set(modules().values()) <= set(RANK)


def test_imports_point_down_only():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, own in modules().items()
        for name in imports(path)
        if name.startswith("pgtg.") and RANK[name.split(".")[1]] > RANK[own]
    ]
    assert wrong == []


def test_only_the_outermost_parts_know_hydra():
    knowing = {own for path, own in modules().items() if _hydra(imports(path))}
    assert knowing <= HYDRA


def _hydra(names: set[str]) -> bool:
    return any(name.split(".")[0] in ("hydra", "omegaconf") for name in names)


def test_command_line_and_judges_import_nothing_heavy():
    """Help and completion must not wait for torch or Hydra, nor judge workers for torch."""
    code = (
        "import sys, pgtg.cli; heavy = {'torch', 'transformers', 'datasets', 'nltk', 'wandb'};"
        "assert not heavy & set(sys.modules) and 'hydra' not in sys.modules;"
        "import pgtg.calls, pgtg.listing, pgtg.judges.pool, pgtg.metrics;"
        "found = heavy & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
