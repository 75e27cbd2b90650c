from __future__ import annotations

import itertools

import pytest
import torch

from tallstore.recipes.sorting_network import exchanges, sort_rows


@pytest.mark.parametrize("width", range(11))
def test_sorts_every_sequence_of_zeros_and_ones(width: int) -> None:
    """Which, by the zero-one principle, proves that it sorts everything."""
    inputs = torch.tensor(list(itertools.product((0.0, 1.0), repeat=width))).reshape(2**width, width).T
    rows = list(inputs.clone())
    sort_rows(rows, torch.empty(2**width))
    assert torch.equal(torch.stack(rows) if rows else inputs, inputs.sort(0).values)


@pytest.mark.parametrize("width", [12, 13, 16, 20, 31, 32, 33, 65])
def test_sorts_random_rows_of_odd_widths(width: int) -> None:
    inputs = torch.randn(width, 777).round(decimals=1) + 0.0
    rows = list(inputs.clone())
    spare = sort_rows(rows, torch.empty(777))
    assert torch.equal(torch.stack(rows), inputs.sort(0).values)
    assert all(spare.data_ptr() != row.data_ptr() for row in rows)


def test_the_numbers_of_exchanges_are_batchers() -> None:
    assert [len(exchanges(width)) for width in (1, 2, 4, 8, 16, 32)] == [0, 1, 5, 19, 63, 191]
