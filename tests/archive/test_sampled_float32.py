"""float32 tensors whose changes are of low rank, in matrices of any shape: what is told first, and what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spec.second_reader import Archive
from support import State, kinds, noise, packed_in_chunks, raw, same_bits
from torch import Tensor

import tallstore
from tallstore.recipes.coherence import COLUMNS
from tallstore.recipes.low_rank import matrix_of
from tallstore.zoo import Zoo

SHAPES = {
    "linear": ((180, 220), 220),
    "filters": ((48, 40, 3, 3), 360),
    "kernels": ((20, 30, 64), 64),
    "wide kernels": ((16, 130, 72), 72),
    "wide rows": ((24, 9001), 9001),
}
"""And how long a row of the product is."""
assert COLUMNS < 130 * 72
assert COLUMNS % 72, "those of a row that are looked at are cut to whole kernels"


def pulled(start: Tensor, seed: int) -> Tensor:
    """Moved along three directions of the matrix that it is told as, and by noise."""
    rows, columns = matrix_of(start.shape)
    pull = noise(rows, 3, seed=seed) @ noise(3, columns, seed=seed + 1)
    return start + 0.0005 * pull.reshape(start.shape) + noise(*start.shape, size=0.0002, seed=seed + 2)


def zoo_of(tasks: str) -> tuple[State, dict[str, State]]:
    base = {name: noise(*shape, size=0.05, seed=n) for n, (name, (shape, _)) in enumerate(SHAPES.items())}
    return base, {
        task: {name: pulled(tensor, 100 * ord(task) + 10 * n) for n, (name, tensor) in enumerate(base.items())}
        for task in tasks
    }


def check_chunks(path: Path, task: str) -> None:
    """All of a tensor's chunks begin with a product, of rows as long as they should be; changes are of one level."""
    parts, entries = Archive(path)._entries(task)
    for name, (_, width) in SHAPES.items():
        assert entries[name]["dtype"] == "F32"
        for _, _, data in parts.chunks(name):
            assert data[0] == 3
            assert int.from_bytes(data[2:6], "little") == width
            told = sum(int.from_bytes(data[at : at + 4], "little") for at in (14 + data[1], 18 + data[1]))
            rest = data[22 + data[1] + told :]
            assert rest[:2] == bytes([2, 255]), "all elements are of level 0"


def check_error(zoo: Zoo, task: str, own: State, base: State) -> None:
    """What comes back is as far from the task as is said, and right on the average."""
    state = zoo.state_dict(task)
    tau, hat = (
        torch.cat([(each[name][: len(base[name])].double() - base[name].double()).flatten() for name in base])
        for each in (own, state)
    )
    said = zoo.info()["tasks"][task]["relative_error"]
    assert said == pytest.approx(float((hat - tau).norm() / tau.norm()), rel=1e-3)
    assert said < 0.6
    assert float(hat @ tau / (tau @ tau)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("chunk", [1 << 14, 1 << 20])
@pytest.mark.parametrize("tasks", ["a", "ab"])
def test_it_is_packed_in_part_and_comes_back_as_near_as_is_said(tasks: str, chunk: int, tmp_path: Path) -> None:
    """Alone and beside another task, in one chunk and in several."""
    base, states = zoo_of(tasks)
    with packed_in_chunks(base, states, tmp_path / "zoo.tall", chunk, bits=1.0) as (zoo, path):
        for task, own in states.items():
            assert set(kinds(zoo, task).values()) == {"sampled"}
            check_chunks(path, task)
            check_error(zoo, task, own, base)
        if (tasks, chunk) == ("a", 1 << 14):
            second = Archive(path).decode("a")
            assert all(raw(tensor).tobytes() == second[name][2] for name, tensor in zoo.state_dict("a").items())


def test_filters_of_its_own_are_stored_beside_it(tmp_path: Path) -> None:
    """Of a convolution of long kernels too, one filter of which is many rows."""
    base, states = zoo_of("a")
    own = states["a"]
    for name in ("kernels", "linear"):
        own[name] = torch.cat([own[name], noise(2, *base[name].shape[1:], seed=7)])
    with packed_in_chunks(base, states, tmp_path / "zoo.tall", 1 << 14, bits=1.0) as (zoo, path):
        assert set(kinds(zoo, "a").values()) == {"sampled"}
        check_chunks(path, "a")
        check_error(zoo, "a", own, base)
        for name in ("kernels", "linear"):
            state, count = zoo.state_dict("a")[name], len(base[name])
            assert same_bits(state[count:], own[name][count:])
            assert same_bits(zoo.weights("a").get_slice(name)[count - 3 : count + 1], state[count - 3 : count + 1])


def test_tasks_that_are_added_are_packed_as_they_are_alone(tmp_path: Path) -> None:
    base, states = zoo_of("ab")
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, {"a": states["a"]}, path, bits=1.0)
    tallstore.add(path, {"b": states["b"]}, bits=1.0)
    later = {name: pulled(tensor, 7000 + n) for n, (name, tensor) in enumerate(states["b"].items())}
    tallstore.add(path, {"later": later}, parent="b", bits=1.0)
    with tallstore.open(path) as zoo:
        zoo.verify()
        for task in ("a", "b"):
            assert set(kinds(zoo, task).values()) == {"sampled"}
            check_error(zoo, task, states[task], base)
        start = zoo.state_dict("b")
        assert "sampled" in kinds(zoo, "later").values()
        tau, hat = (
            torch.cat([(each[name].double() - start[name].double()).flatten() for name in base])
            for each in (later, zoo.state_dict("later"))
        )
        assert float(hat @ tau / (tau @ tau)) == pytest.approx(1, abs=0.05)
        second = Archive(path).decode("later")
        assert all(raw(tensor).tobytes() == second[name][2] for name, tensor in zoo.state_dict("later").items())


def test_where_changes_have_nothing_in_common_it_comes_back_as_near_as_is_said(tmp_path: Path) -> None:
    """Whatever is chosen there."""
    base, _ = zoo_of("a")
    own = {
        name: tensor + noise(*tensor.shape, size=0.001, seed=60 + n) for n, (name, tensor) in enumerate(base.items())
    }
    with packed_in_chunks(base, {"a": own}, tmp_path / "zoo.tall", 1 << 14, bits=2.0) as (zoo, _):
        tau, hat = (
            torch.cat([(each[name].double() - base[name].double()).flatten() for name in base])
            for each in (own, zoo.state_dict("a"))
        )
        said = zoo.info()["tasks"]["a"]["relative_error"]
        assert said == pytest.approx(float((hat - tau).norm() / tau.norm()), rel=1e-3)


@pytest.mark.parametrize("sizes", [(1.0, 1.4), (1.0, 2.45), (1.0, 3.0)], ids=str)
def test_of_few_magnitudes_none_is_wrong_in_its_own_way(sizes: tuple[float, float], tmp_path: Path) -> None:
    """As steps by the signs of gradients add up to: what comes back is not short of the task."""
    base = noise(320, 400, seed=1)
    change = noise(320, 400, seed=2).sign() * torch.where(noise(320, 400, seed=3) > 0, *sizes) * 1e-3
    for bits in (0.6, 1.0, 2.0):
        tallstore.pack({"w": base}, {"a": {"w": base + change}}, tmp_path / "zoo", bits=bits, overwrite=True)
        with tallstore.open(tmp_path / "zoo") as zoo:
            got = (zoo.state_dict("a")["w"] - base).double()
        gain = float((got * change).sum() / change.double().square().sum())
        assert abs(gain - 1) < 0.02, bits
