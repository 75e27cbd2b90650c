from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from tallstore.merging import Agreement, count_agreement, used_bits


def packed(masks: npt.NDArray[Any]) -> list[npt.NDArray[np.uint8]]:
    return list(np.packbits(masks, axis=1, bitorder="little"))


def expected(masks: npt.NDArray[Any]) -> Agreement:
    n_tasks, n = masks.shape
    on = masks.astype(np.int64)
    return Agreement(
        size=np.full(n_tasks, n),
        on=on.sum(1),
        alone=(on * (on.sum(0) == 1)).sum(1),
        both=on @ on.T,
        used_by=np.bincount(on.sum(0), minlength=n_tasks + 1),
    )


def same(a: Agreement, b: Agreement) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Agreement.__dataclass_fields__)


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(1, 20), st.integers(0, 300), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.97]))
def test_counts_are_those_of_unpacked_masks(n_tasks: int, n: int, seed: int, density: float) -> None:
    masks = np.random.default_rng(seed).random((n_tasks, n)) < density
    assert same(count_agreement(packed(masks), n, n_tasks), expected(masks))


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 4, 7, 8, 31, 32, 33])
def test_over_many_blocks(n_tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.random.default_rng(n_tasks).random((n_tasks, 5003)) < 0.3
    monkeypatch.setattr("tallstore.merging.agreement.BLOCK", 40)
    assert same(count_agreement(packed(masks), 5003, n_tasks), expected(masks))


def test_runs_add_up_in_any_order() -> None:
    masks = np.random.default_rng(0).random((5, 4000)) < 0.4
    parts = [count_agreement(packed(masks[:, a : a + 999]), min(999, 4000 - a), 5) for a in range(0, 4000, 999)]
    assert same(sum(reversed(parts), Agreement.nothing(5)), expected(masks))


def test_tensors_that_few_tasks_have() -> None:
    masks = np.array([[1, 1, 0], [0, 1, 0]])
    counted = count_agreement(packed(masks), 3, 4, tasks=(1, 3)) + count_agreement([], 5, 4, tasks=())
    assert counted.size.tolist() == [0, 3, 0, 3]
    assert counted.on.tolist() == [0, 2, 0, 1]
    assert counted.alone.tolist() == [0, 1, 0, 0]
    assert counted.used_by.tolist() == [6, 1, 1, 0, 0]
    assert counted.parameters == 8


def test_shares() -> None:
    counted = count_agreement(packed(np.array([[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])), 4, 3)
    assert counted.profile.tolist() == [0.25, 0.5, 0.25, 0]
    assert (counted.catastrophic, counted.selfish) == (0.25, 0.5)
    assert counted.density.tolist() == [0.75, 0.25, 0]
    assert counted.jaccard.tolist() == [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]
    assert counted.containment.tolist() == [[1, 1 / 3, 0], [1, 1, 0], [0, 0, 0]]


def test_shares_of_nothing_are_zero() -> None:
    nothing = Agreement.nothing(2)
    assert nothing.profile.tolist() == [0, 0, 0]
    assert nothing.density.tolist() == [0, 0]
    assert (nothing.catastrophic, nothing.selfish) == (0, 0)


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40))
def test_signed_masks_count_as_used(symbols: list[int]) -> None:
    marks = np.array([*symbols, *[0] * (-len(symbols) % 4)], np.uint8).reshape(-1, 4)
    pairs = (marks << np.array([0, 2, 4, 6], np.uint8)).sum(1).astype(np.uint8)
    bits = np.unpackbits(used_bits(pairs, "signed"), count=len(symbols), bitorder="little")
    assert bits.tolist() == [int(symbol > 0) for symbol in symbols]
    assert len(used_bits(pairs, "signed")) == -(-len(symbols) // 8)
    assert used_bits(pairs, "binary") is pairs
