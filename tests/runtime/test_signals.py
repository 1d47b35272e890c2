"""A signal stays a signal, also where a library meets it first."""

import signal

import pytest

from pgtg.judges import classifier
from pgtg.models import loading
from pgtg.runtime.signals import Interrupted


def test_a_signal_that_a_library_wraps_while_it_loads_stays_a_signal(
    monkeypatch: pytest.MonkeyPatch,
):
    def wraps(*args: object) -> None:
        try:
            raise Interrupted(signal.SIGTERM)
        except Interrupted as stop:
            raise RuntimeError("a library's own error") from stop

    monkeypatch.setattr(loading, "check_folder", wraps)
    with pytest.raises(Interrupted) as caught:
        loading.load_language_model("a/b")
    assert caught.value.exit_code == 143
    with pytest.raises(Interrupted):
        classifier._loaded("a/b", wraps)
