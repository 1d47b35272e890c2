"""Preference-grounded token-level guidance, from Python. The command line is `pgtg`.

    import pgtg

    pgtg.train("summarize", "seed=1", run_dir="outputs/mine")  # `pgtg train summarize seed=1 ...`
    pgtg.evaluate("outputs/mine", split="test")
    pgtg.token_rewards("outputs/mine", ["a source"], ["a text"])  # what each token earned

Everything is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgtg.cli.api import evaluate, load_policy, load_reward_model, token_rewards, train

    __version__: str

# the package that pip knows: `pgtg` is another project there
DISTRIBUTION = "pgtg-lm"

__all__ = ["__version__", "evaluate", "load_policy", "load_reward_model", "token_rewards", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(DISTRIBUTION)
    if name in __all__:
        return getattr(import_module("pgtg.cli.api"), name)
    raise AttributeError(f"module 'pgtg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
