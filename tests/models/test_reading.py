"""A memory that is forked is two memories."""

import pytest
import torch

from pgtg.models.batch import token_batch
from tests.support.tiny_models import build


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_what_a_fork_reads_or_selects_its_origin_does_not_see(family: str):
    """Each gives what a pass over its own rows gives."""
    lm = build(family).eval()
    sources, first, second = [[5, 6, 7], [8, 9]], [[1, 2, 3], [4, 5, 6]], [[9], [10]]
    batch = token_batch(sources, first, [0, 1])
    with torch.no_grad():
        reading = lm.prefill(batch.source, batch.source_mask, logits=False)
        other = reading.fork().select([1, 1])
        twice = token_batch(sources, second, [1, 1])
        found = lm.extend(other, twice.tokens, twice.mask, logits=False)
        torch.testing.assert_close(found, lm.states(twice)[:, 1:], rtol=1e-5, atol=1e-5)
        found = lm.extend(reading, batch.tokens, batch.mask, logits=False)
        torch.testing.assert_close(found, lm.states(batch)[:, 1:], rtol=1e-5, atol=1e-5)
