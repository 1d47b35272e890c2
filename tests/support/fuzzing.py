"""Properties in a few random cases by default, in thousands with `-m slow`."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgtg.cli.reporting import reporting
from pgtg.errors import PgtgError


def fuzzed(strategy: st.SearchStrategy, few: int, many: int) -> Callable[..., Any]:
    """A test of a property in `few` cases, and in `many` where slow tests run."""

    def wrap(check: Callable[[Any], None]) -> Callable[[int], None]:
        def one(case: Any) -> None:
            check(case)

        @pytest.mark.parametrize("cases", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(cases: int) -> None:
            how = settings(
                max_examples=cases,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            )
            how(given(strategy)(one))()

        test.__doc__ = check.__doc__
        return test

    return wrap


def exit_code(call: Callable[[], Any]) -> int:
    """As the command line reports a call; what nobody foresaw is a failure here."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), reporting():
            call()
    except typer.Exit as end:
        if not isinstance(end.__cause__, PgtgError):
            raise AssertionError(said.getvalue()) from end.__cause__
        return end.exit_code
    return 0


def ours(call: Callable[[], Any]) -> Any:
    """What a call returns, or the PgtgError that it raises; anything else is a failure."""
    try:
        return call()
    except PgtgError as error:
        return error


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
