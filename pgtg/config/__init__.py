"""The config: its schema, and how the command line's texts reach it.

The schema's names are this package's own. It is read when the first of them is asked for: help and
completion, which need none, do not wait for OmegaConf.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgtg.config.schema import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(import_module("pgtg.config.schema"), name)
