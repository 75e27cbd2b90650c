"""Whether tasks have tensors alike that the base has not: what decides is every bit, and whose it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tallstore.checkpoints import open_checkpoint
from tallstore.packing.equal_tensors import any_alike

N = 1 << 18  # more than is compared at a time


def _any_alike(base: Tensor, *tasks: Tensor) -> bool:
    opened = {f"task{number}": open_checkpoint({"weight": task}) for number, task in enumerate(tasks)}
    return any_alike(open_checkpoint({"weight": base}), opened)


@pytest.fixture
def base() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.uint8])
def test_what_two_tasks_have_and_the_base_has_not(base: Tensor, kind: torch.dtype) -> None:
    base = base.to(kind)
    other = base.clone()
    other[[N // 2, N - 3]] += 1
    assert _any_alike(base, other, other.clone())
    assert _any_alike(base, base.clone(), other, other.clone())


def test_what_is_the_bases_in_all_of_them(base: Tensor) -> None:
    assert not _any_alike(base, base.clone(), base.clone(), base.clone())


@pytest.mark.parametrize("place", [0, N // 3, N - 1])
def test_one_element_tells_two_tasks_apart(base: Tensor, place: int) -> None:
    one, two = base + 1, base + 1
    two[place] += 1
    assert not _any_alike(base, one, two)


def test_a_zero_of_the_other_sign_is_another_tensor(base: Tensor) -> None:
    one, two = base.clone(), base.clone()
    one[7], two[7] = 0.0, -0.0
    assert not _any_alike(one, one, two)
    assert _any_alike(one, two, two.clone())


def test_a_task_alone_has_nothing_alike(base: Tensor) -> None:
    assert not _any_alike(base, base + 1)
