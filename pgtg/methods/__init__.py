"""Methods of policy improvement: what a policy is trained on, the run's own or a control's.

Which there are, and what each needs of a task, stands in `methods/registry.py`.
"""

from typing import TYPE_CHECKING

from pgtg.config import RunConfig
from pgtg.config.registry import method_spec

if TYPE_CHECKING:
    from pgtg.methods.method import Method


def method_of(cfg: RunConfig, control: str = "") -> "Method":
    """The run's method, or that of one of its controls."""
    name = control or cfg.method.name
    return method_spec(cfg.task, name, control=bool(control), options=cfg.method).load()
