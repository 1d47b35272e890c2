"""docs/models.md says of every family of Transformers what happens to it; slow: some minutes."""

import warnings
from pathlib import Path

import pytest

from tests.support.families import families, fare, row

DOCS = Path(__file__).parents[2] / "docs/models.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), families())
def test_the_docs_say_how_a_family_fares(kind: str, name: str):
    with warnings.catch_warnings(action="ignore"):
        found = row(kind, name, fare(kind, name))
    assert "FAILS" not in found
    assert found in DOCS.read_text().splitlines()


def test_every_family_has_its_row_and_none_fails():
    rows = DOCS.read_text()
    assert "FAILS" not in rows
    missing = [name for kind, name in families() if f"| {name} | {kind} | " not in rows]
    assert not missing
