"""What a task has against a config."""

import pytest

from pgtg.config.compose import run_config
from pgtg.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("prompt.group=1", "prompt.group: found 1, expected at least 2"),
        ("sample.k=3", "sample.k: found 3; prompts are compared in groups of prompt.group"),
    ],
)
def test_the_size_of_a_comparison_group_has_one_name(value: str, said: str):
    with pytest.raises(ConfigError, match=said):
        run_config("prompt", [value])
