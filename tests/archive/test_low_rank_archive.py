"""Tensors whose chunks begin with a product of thin matrices, from packing to serving: every way gives the same elements."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from spec.second_reader import Archive
from support import (
    State,
    assert_same,
    both,
    check_that_all_loading_agrees,
    check_that_models_are_switched,
    kinds,
    noise,
    packed,
    packed_in_chunks,
    raw,
    read_all,
    same_bits,
    slots,
    without_kernels,
    write_folder,
)
from torch import Tensor, nn

import tallstore
from tallstore.tensors import NAME, as_bytes
from tallstore.zoo import Zoo

TYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS, COLUMNS, LAYERS = 180, 220, 2
NAMES = tuple(f"l{n}.weight" for n in range(LAYERS))


class Net(nn.Module):
    """What the zoo is of."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        for n in range(LAYERS):
            self.add_module(f"l{n}", nn.Linear(COLUMNS, ROWS, bias=False))
        self.to(dtype)


def tuned(start: Tensor, seed: int) -> Tensor:
    """Moved along three directions, and by noise."""
    pull = noise(len(start), 3, seed=seed) @ noise(3, start.shape[1], seed=seed + 1)
    own = noise(*start.shape, size=0.0003, seed=seed + 2)
    return (start.float() + 0.0005 * pull + own).to(start.dtype)


def common_zoo(dtype: torch.dtype, tasks: str = "ab") -> tuple[State, dict[str, State]]:
    base = {name: noise(ROWS, COLUMNS, size=0.05, seed=n, dtype=dtype) for n, name in enumerate(NAMES)}
    return base, {
        task: {name: tuned(tensor, 100 * ord(task) + 10 * n) for n, (name, tensor) in enumerate(base.items())}
        for task in tasks
    }


def whole_zoo(dtype: torch.dtype) -> tuple[State, dict[str, State]]:
    """With rows of its own, a head, and what did not move."""
    base, tasks = common_zoo(dtype)
    base["frozen"] = noise(400, seed=90, dtype=dtype)
    for seed, state in enumerate(tasks.values(), 92):
        state["l1.weight"] = torch.cat([state["l1.weight"], noise(3, COLUMNS, seed=seed, dtype=dtype)])
        state |= {"frozen": base["frozen"].clone(), "head": noise(7, 20, seed=seed)}
    return base, tasks


def modes(path: Path, task: str) -> dict[str, int]:
    """How the first chunk of each of a task's tensors begins."""
    part = read_all(path)[f"tasks/{task}/mask.safetensors"]
    return {name: part[begin] for name, (begin, _) in slots(part)[1].items()}


def flat(state: State, base: State) -> Tensor:
    """What the matrices changed by."""
    return torch.cat([(state[name][:ROWS].double() - base[name].double()).flatten() for name in NAMES])


@pytest.fixture(scope="module", params=TYPES, ids=str)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zoo, Path]]:
    """Packed in several chunks a tensor, which begin and end within a row."""
    path = tmp_path_factory.mktemp("low-rank") / "zoo.tall"
    with packed_in_chunks(*whole_zoo(request.param), path, 1 << 14, bits=1.0) as found:
        yield found


def dtype_of(zoo: Zoo) -> torch.dtype:
    return zoo.base("frozen").dtype


def test_chunks_begin_with_a_product_and_the_rest_is_as_it_was(zoo: tuple[Zoo, Path]) -> None:
    opened, path = zoo
    base, tasks = whole_zoo(dtype_of(opened))
    assert opened.manifest.version == "1.4"
    for task, own in tasks.items():
        found, state = kinds(opened, task), opened.state_dict(task)
        assert {found[name] for name in NAMES} == {"sampled"}
        assert {modes(path, task)[name] for name in NAMES} == {3}
        assert found["frozen"] == "base"
        assert opened.tensors(task)["l1.weight"].rows == ROWS
        assert same_bits(state["l1.weight"][ROWS:], own["l1.weight"][ROWS:])
        assert same_bits(state["head"], own["head"])
        assert same_bits(state["frozen"], base["frozen"])
    opened.verify()


def test_what_is_measured_is_what_is_lost(zoo: tuple[Zoo, Path]) -> None:
    opened, _ = zoo
    base, tasks = whole_zoo(dtype_of(opened))
    for task, own in tasks.items():
        tau, hat = (flat(each, base) for each in (own, opened.state_dict(task)))
        said = opened.info()["tasks"][task]["relative_error"]
        assert said == pytest.approx(float((hat - tau).norm() / tau.norm()), rel=1e-3)


def test_the_second_reader_and_the_reference_read_the_same(zoo: tuple[Zoo, Path]) -> None:
    opened, path = zoo
    second = Archive(path)
    for task in opened.tasks:
        with tallstore.open(path, threads=1) as other:
            quick, slow = both(partial(other.state_dict, task))
        assert_same(quick, slow)
        decoded = second.decode(task)
        for name, tensor in quick.items():
            assert decoded[name] == (NAME[tensor.dtype], tuple(tensor.shape), as_bytes(tensor.contiguous()).tobytes())


def test_everything_that_loads_agrees(zoo: tuple[Zoo, Path], tmp_path: Path) -> None:
    check_that_all_loading_agrees(
        *zoo, tmp_path, "l1.weight", ((0, 1), (17, 98), (74, 75), (73, 150), (179, 183)), [3, 178, 4]
    )


@pytest.mark.parametrize(("dtype", "native"), [(TYPES[0], True), (TYPES[1], True), (TYPES[0], False)], ids=str)
def test_models_are_switched_and_loaded(
    dtype: torch.dtype, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        without_kernels(monkeypatch)
    base, tasks = common_zoo(dtype)
    with packed(base, tasks, tmp_path / "zoo.tall", bits=1.0) as opened:
        assert set(modes(tmp_path / "zoo.tall", "a").values()) == {3}
        check_that_models_are_switched(opened, Net, dtype)


@pytest.mark.parametrize("bits", [0.75, 1.0, 2.0])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_task_comes_back_on_the_average_and_nearer_than_without_products(
    dtype: torch.dtype, bits: float, tmp_path: Path
) -> None:
    """At the same size: less than half of the error that packing without them leaves."""
    base, tasks = common_zoo(dtype, "a")
    tallstore.pack(base, tasks, tmp_path / "with.tall", bits=bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.sampled_rows.spectrum_of", lambda changes: None)
        tallstore.pack(base, tasks, tmp_path / "without.tall", bits=bits)
    assert set(modes(tmp_path / "with.tall", "a").values()) == {3}
    tau, errors, sizes = flat(tasks["a"], base), [], []
    for name in ("with", "without"):
        path = tmp_path / f"{name}.tall"
        with tallstore.open(path) as opened:
            hat = flat(opened.state_dict("a"), base)
        sizes.append(path.stat().st_size)
        errors.append(float((hat - tau).square().sum() / tau.square().sum()))
        assert float(hat @ tau / (tau @ tau)) == pytest.approx(1, abs=0.03)
    assert errors[0] < 0.5 * errors[1]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)


def test_other_draws_have_other_errors(tmp_path: Path) -> None:
    """The mean of what comes back, over tasks that are the same, is nearer to it by the root of their number."""
    base, tasks = common_zoo(torch.bfloat16, "a")
    alike = {f"t{n}": {name: tensor.clone() for name, tensor in tasks["a"].items()} for n in range(8)}
    # Equal tasks are stored once: each has a last row of its own.
    for n, state in enumerate(alike.values()):
        for name in NAMES:
            state[name][-1] = tuned(base[name], 1000 + n)[-1]
    tallstore.pack(base, alike, tmp_path / "zoo.tall", bits=0.5)
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        found = [opened.state_dict(task) for task in alike]
    tau = {name: (tasks["a"][name].double() - base[name].double())[:-1] for name in NAMES}
    hats = [{name: (state[name].double() - base[name].double())[:-1] for name in NAMES} for state in found]
    norm = sum(float(each.square().sum()) for each in tau.values())
    each = [sum(float((hat[name] - tau[name]).square().sum()) for name in NAMES) / norm for hat in hats]
    mean = {name: sum(hat[name] for hat in hats) / len(hats) for name in NAMES}
    left = sum(float((mean[name] - tau[name]).square().sum()) for name in NAMES) / norm
    assert left == pytest.approx(sum(each) / len(each) / len(hats), rel=0.15)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_same_zoo_gives_the_same_bytes(dtype: torch.dtype, tmp_path: Path) -> None:
    """With kernels and without, whatever the number of workers and of torch's threads."""
    base, tasks = whole_zoo(dtype)
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", 1 << 14)
        try:
            for threads, workers in ((1, 1), (2, 1), (3, 2)):
                torch.set_num_threads(threads)
                patch.setattr(os, "cpu_count", lambda threads=threads: threads)
                tallstore.pack(base, tasks, tmp_path / f"{threads}-{workers}", bits=1.0, workers=workers)
        finally:
            torch.set_num_threads(before)
        without_kernels(patch)
        tallstore.pack(base, tasks, tmp_path / "reference", bits=1.0, workers=1)
    first, *others = (read_all(tmp_path / name) for name in ("1-1", "2-1", "3-2", "reference"))
    assert modes(tmp_path / "1-1", "a")["l0.weight"] == 3
    for other in others:
        assert other == first


def test_processes_give_the_same_bytes(tmp_path: Path) -> None:
    base, tasks = common_zoo(torch.bfloat16, "a")
    start, own = (write_folder(tmp_path / name, state) for name, state in (("base", base), ("task", tasks["a"])))
    tallstore.pack(start, {"a": own}, tmp_path / "one", bits=1.0, workers=1)
    tallstore.pack(start, {"a": own}, tmp_path / "two", bits=1.0, engine="processes", workers=2)
    assert modes(tmp_path / "one", "a")["l0.weight"] == 3
    assert read_all(tmp_path / "one") == read_all(tmp_path / "two")


def test_tasks_are_added_and_removed(tmp_path: Path) -> None:
    base, tasks = common_zoo(torch.bfloat16, "abc")
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, {"a": tasks["a"]}, path, bits=1.0)
    with tallstore.open(path) as opened:
        before = opened.state_dict("a")
    tallstore.add(path, {"b": tasks["b"]})
    tallstore.add_merge(path, "half", "0.5*a + 0.5*b")
    later = {name: tuned(tensor, 700 + n) for n, (name, tensor) in enumerate(before.items())}
    tallstore.add(path, {"later": later}, parent="a")
    with tallstore.open(path) as opened:
        opened.verify()
        for task in ("a", "b"):
            assert set(modes(path, task).values()) == {3}
        assert_same(opened.state_dict("a"), before)
        every = {task: opened.state_dict(task) for task in opened.tasks}
        for name, tensor in every["half"].items():
            wanted = (before[name].float() * 0.5 + every["b"][name].float() * 0.5).to(tensor.dtype)
            assert same_bits(tensor, wanted)
        tau, hat = (flat(each, before) for each in (later, every["later"]))
        assert float(hat @ tau / (tau @ tau)) == pytest.approx(1, abs=0.05)
        facts = opened.tensors("later")
        assert all(facts[name].start is not None for name in NAMES)
        weights = opened.weights("later")
        assert all(same_bits(weights.get_slice(name)[40:60], tensor[40:60]) for name, tensor in every["later"].items())
    decoded = Archive(path).decode("later")
    assert all(raw(tensor).tobytes() == decoded[name][2] for name, tensor in every["later"].items())
    tallstore.remove(path, ["half"])
    tallstore.compact(path)
    with tallstore.open(path) as opened:
        opened.verify()
        assert set(opened.tasks) == {"a", "b", "later"}
        for task in opened.tasks:
            assert_same(opened.state_dict(task), every[task])


@pytest.mark.parametrize("method", ["consensus", "ties"])
def test_it_is_merged_as_it_is_decoded(method: str, tmp_path: Path) -> None:
    """Beside the same tasks stored whole, whose numbers are those that come back."""
    base, tasks = common_zoo(torch.bfloat16, "abc")
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", bits=1.0)
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        assert set(modes(tmp_path / "zoo.tall", "a").values()) == {3}
        found = opened.merged(method, alpha=0.5)
        decoded = {task: opened.state_dict(task) for task in opened.tasks}
    tallstore.pack(base, decoded, tmp_path / "whole.tall", quality="lossless")
    with tallstore.open(tmp_path / "whole.tall") as other:
        wanted = other.merged(method, alpha=0.5)
    assert_same(*(dict(getattr(each, "state", each)) for each in (found, wanted)))
