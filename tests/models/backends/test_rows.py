"""Products with some rows of a table: the definition in float64."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pgtg.models.backends.rows import products_with_rows


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_gradient_are_the_definitions(shape: tuple[int, ...], dtype: torch.dtype):
    torch.manual_seed(0)
    table = torch.randn(50, 8, dtype=dtype)
    states = torch.randn(*shape, 8, dtype=dtype, requires_grad=True)
    rows = torch.randint(0, 50, (*shape, 6))  # a row may come twice
    grad = torch.randn(6, *shape, dtype=dtype).movedim(0, -1)  # not contiguous
    found = products_with_rows(states, table, rows)
    found.backward(grad)
    picked = table.double()[rows]
    expected = torch.einsum("...cd,...d->...c", picked, states.detach().double())
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums of 8 products of size 1
    assert_close(found.double(), expected, **close)
    of_states = torch.einsum("...cd,...c->...d", picked, grad.double())
    assert states.grad is not None
    assert_close(states.grad.double(), of_states, **close)


def test_a_table_that_is_trained_gets_its_gradient():
    table, states = torch.randn(5, 3, requires_grad=True), torch.randn(2, 3)
    products_with_rows(states, table, torch.tensor([[0, 1], [1, 4]])).sum().backward()
    expected = torch.stack([states[0], states.sum(0), *torch.zeros(2, 3), states[1]])
    assert_close(table.grad, expected)
