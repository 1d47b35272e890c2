"""What a task has against a config."""

from dataclasses import asdict

import pytest

from pgtg.config.compose import completed, run_config
from pgtg.errors import ConfigError


def test_a_template_that_the_data_set_lacks_is_said_before_anything_is_made():
    said = "judge.classifier.template: the data set has no 'manul'; did you mean 'manual'"
    with pytest.raises(ConfigError, match=said):
        run_config("prompt", ["judge.classifier.template=manul"])


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


def test_a_run_made_when_the_group_had_another_name_is_read():
    saved = asdict(run_config("prompt", ["prompt.group=4"]))
    saved["sample"]["k"] = saved["prompt"].pop("group")
    found = run_config("prompt", [], saved=completed("prompt", saved)[0])
    assert found.prompt is not None and (found.prompt.group, found.sample.k) == (4, 1)
