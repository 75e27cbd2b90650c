"""Memory that is taken again: never while anything still lies over it, and no more of it than was there or is needed."""

from __future__ import annotations

import gc
import mmap
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples, near, noise, packed

from tallstore import memory
from tallstore.memory import blocks, release

pytestmark = [
    pytest.mark.usefixtures("few_objects"),
    pytest.mark.skipif(not memory._IS_THERE, reason="this system has no such memory"),
]

MIB = 1 << 20
SIZES = st.lists(st.sampled_from([100, 4 * MIB - 1, 4 * MIB, 5 * MIB, 6 * MIB, 9 * MIB]), min_size=1, max_size=3)


@pytest.fixture(autouse=True)
def _nothing_at_hand() -> Iterator[None]:
    gc.collect()
    release()
    yield
    gc.collect()
    release()


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_that_was_given_up_is_taken_again() -> None:
    first = blocks([5 * MIB, 9 * MIB, 10])
    places = {address(array) for array in first[:2]}
    assert [len(array) for array in first] == [5 * MIB, 9 * MIB, 10]
    del first
    again = blocks([9 * MIB, 5 * MIB])
    assert {address(array) for array in again} == places
    assert not memory._given_up


def test_what_fits_nothing_goes_before_more_is_made() -> None:
    del blocks([8 * MIB])[:]
    assert [len(block) for block in memory._given_up] == [8 * MIB]
    (block,) = memory._given_up
    del blocks([100])[:], block
    assert len(memory._given_up) == 1, "small memory is not of this sort"
    blocks([16 * MIB])
    gc.collect()
    assert [len(block) for block in memory._given_up] == [16 * MIB]


def test_no_more_is_kept_at_hand_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_KEPT", 12 * MIB)
    found = blocks([8 * MIB] * 3)
    del found
    assert [len(block) for block in memory._given_up] == [8 * MIB]


def test_all_of_it_can_be_released() -> None:
    held = blocks([8 * MIB, 8 * MIB])
    held[0][:] = held[1][:] = 1
    before = resident()
    del held
    release()
    assert not memory._given_up
    assert resident() < before - 12 * MIB


def test_any_view_keeps_its_memory() -> None:
    (array,) = blocks([8 * MIB])
    array[:] = 7
    tensor = torch.from_numpy(array[MIB : 2 * MIB]).view(torch.int32)[3:9].view(torch.uint8)
    view = tensor.numpy()
    del array, tensor
    gc.collect()
    assert not memory._given_up
    (other,) = blocks([8 * MIB])
    other[:] = 1
    assert view.tolist() == [7] * 24
    del view
    assert len(memory._given_up) == 1


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError, match="bytes"):
        blocks([1 << 60])


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.tuples(SIZES, st.integers(0, 5)), max_size=12))
def test_memory_of_live_arrays_is_nobody_elses(steps: list[tuple[list[int], int]]) -> None:
    live: list[tuple[np.ndarray, int]] = []
    for number, (sizes, gone) in enumerate(steps):
        for array in blocks(sizes):
            array[:: len(array) // 16] = number
            live.append((array, number))
        del array, live[: min(gone, len(live))]
        spans = sorted((address(array), address(array) + len(array)) for array, _ in live)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        assert all((array[:: len(array) // 16] == mark).all() for array, mark in live)


def test_many_threads() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            held = blocks([int(rng.choice([4, 6, 8])) * MIB for _ in range(rng.integers(1, 4))])
            for array in held:
                array[::4096] = seed
            wrong.extend(seed for array in held if not (array[::4096] == seed).all())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(map(len, memory._given_up)) <= memory.MOST_KEPT


def test_a_tensor_that_is_kept_outlives_the_load_that_it_is_of(tmp_path: Path) -> None:
    base = {name: noise(600, 1200, seed=seed) for seed, name in enumerate(("a", "b", "c"))}
    tasks = {task: {name: near(tensor, seed) for name, tensor in base.items()} for seed, task in enumerate("xy")}
    with packed(base, tasks, tmp_path / "zoo.tall") as zoo:
        first = zoo.state_dict("x")
        place, kept, due = first["a"].data_ptr(), first["b"], first["b"].clone()
        other = zoo.state_dict("y")
        del first
        assert torch.equal(kept, due)
        places = {tensor.data_ptr() for tensor in other.values()}
        del other
        again = zoo.state_dict("y")
        assert torch.equal(kept, due)
        assert {tensor.data_ptr() for tensor in again.values()} == places
        assert place not in places
        del kept, again
        assert place in {
            tensor.data_ptr() for each in (zoo.state_dict("x"), zoo.state_dict("x")) for tensor in each.values()
        }
