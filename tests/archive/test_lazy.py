"""Decoding reads the manifest, one task's ranges, and nothing else: proved by a store that writes down every read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import RecordingStore, State, noise, raw, read_all, same_bits, slots, tiny_zoo

import tallstore
from tallstore.stores import open_store
from tallstore.zoo import Zoo


@pytest.fixture(params=["fit", "solo"])
def recipe(request: pytest.FixtureRequest) -> str:
    """One recipe with a shared vector, and one that stores everything with the task."""
    return str(request.param)


def zoo_with_heads() -> tuple[State, dict[str, State]]:
    base, tasks = tiny_zoo(3)
    for seed, state in enumerate(tasks.values()):
        state["head.weight"] = noise(20, 16, seed=seed)
    return base, tasks


def of_task(path: str, task: str) -> bool:
    return path == "tall.json" or path.startswith(("base/", "vector/", f"tasks/{task}/"))


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "plain"])
def test_opening_reads_the_manifest_alone(target: Path, mapped: bool) -> None:
    tallstore.pack(*zoo_with_heads(), target)
    store = RecordingStore(open_store(target, mapped=mapped))
    with Zoo(store) as zoo:
        assert zoo.tasks == ("a", "b", "c")
        assert zoo.info()["tasks"].keys() == {"a", "b", "c"}
    assert {path for path, _, _ in store.ranges} == {"tall.json"}


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "plain"])
def test_a_task_reads_no_byte_of_another(target: Path, mapped: bool, recipe: str, small_chunks: int) -> None:
    tallstore.pack(*zoo_with_heads(), target, recipe=recipe)
    store = RecordingStore(open_store(target, mapped=mapped))
    with Zoo(store) as zoo:
        zoo.state_dict("b")
    assert {path for path, _, _ in store.ranges if not of_task(path, "b")} == set()
    assert {path for path, _, _ in store.ranges if path.startswith("tasks/b/")} == {
        "tasks/b/mask.safetensors",
        "tasks/b/private.safetensors",
    }


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "plain"])
def test_named_tensors_read_their_own_ranges(target: Path, mapped: bool, recipe: str, small_chunks: int) -> None:
    base, tasks = zoo_with_heads()
    tallstore.pack(base, tasks, target, recipe=recipe)
    names = ["head.weight", "fc.weight"]
    allowed = [("tall.json", 0, 1 << 30)]
    for path, data in read_all(target).items():
        if path.endswith(".safetensors") and of_task(path, "b"):
            begin, places = slots(data)
            allowed += [(path, 0, begin), *((path, *places[name]) for name in names if name in places)]
    store = RecordingStore(open_store(target, mapped=mapped))
    with Zoo(store) as zoo:
        found = zoo.state_dict("b", names=names)
        read = list(store.ranges)
        whole = zoo.state_dict("b")
    assert list(found) == names
    assert all(same_bits(found[name], whole[name]) for name in names)
    strays = [
        (path, start, stop)
        for path, start, stop in read
        if not any(path == p and a <= start and stop <= b for p, a, b in allowed)
    ]
    assert strays == []


def test_no_tensor_is_read_twice(target: Path, recipe: str) -> None:
    tallstore.pack(*zoo_with_heads(), target, recipe=recipe)
    store = RecordingStore(open_store(target))
    with Zoo(store) as zoo:
        zoo.state_dict("b")
    assert len(store.ranges) == len(set(store.ranges))


def test_a_private_tensor_needs_no_base_and_no_vector(target: Path) -> None:
    tallstore.pack(*zoo_with_heads(), target)
    store = RecordingStore(open_store(target))
    with Zoo(store) as zoo:
        zoo.state_dict("c", names=["head.weight"])
    assert {path for path, _, _ in store.ranges} == {
        "tall.json",
        "tasks/c/mask.safetensors",
        "tasks/c/private.safetensors",
    }


def test_what_was_pulled_for_one_task_suffices(tmp_path: Path, recipe: str) -> None:
    """`hf download user/zoo tall.json base/ vector/ common/ tasks/b/` is a complete pull."""
    base, tasks = zoo_with_heads()
    tallstore.pack(base, tasks, tmp_path / "zoo", recipe=recipe)
    with tallstore.open(tmp_path / "zoo") as zoo:
        wanted = zoo.state_dict("b")
    for other in ("a", "c"):
        shutil.rmtree(tmp_path / "zoo" / "tasks" / other)
    with tallstore.open(tmp_path / "zoo") as zoo:
        found = zoo.state_dict("b")
        assert all(same_bits(found[name], tensor) for name, tensor in wanted.items())
        zoo.export("b", tmp_path / "out")
        with pytest.raises(tallstore.errors.DamagedError, match=r"tasks/a/mask\.safetensors is missing"):
            zoo.state_dict("a")


def test_other_tasks_may_be_rubbish(tmp_path: Path, recipe: str) -> None:
    base, tasks = zoo_with_heads()
    tallstore.pack(base, tasks, tmp_path / "zoo", recipe=recipe)
    with tallstore.open(tmp_path / "zoo") as zoo:
        wanted = zoo.state_dict("b")
    for path in (tmp_path / "zoo" / "tasks" / "a").rglob("*.safetensors"):
        path.write_bytes(b"rubbish")
    with tallstore.open(tmp_path / "zoo") as zoo:
        found = zoo.state_dict("b")
        assert all(same_bits(found[name], tensor) for name, tensor in wanted.items())
        with pytest.raises(tallstore.errors.DamagedError, match="tasks/a/mask"):
            zoo.state_dict("a")


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "plain"])
def test_tensors_outlive_the_zoo_and_never_write_through(target: Path, mapped: bool) -> None:
    base, tasks = zoo_with_heads()
    tallstore.pack(base, tasks, target, vector="f32", base_codec="raw", mask="bits", recipe="fit")
    before = read_all(target)
    with tallstore.open(target, mapped=mapped) as zoo:
        found = zoo.state_dict("a") | {"v": zoo.vector("fc.weight"), "base": zoo.base("fc.weight")}
    copies = {name: raw(tensor).tobytes() for name, tensor in found.items()}
    for name, tensor in found.items():
        assert raw(tensor).tobytes() == copies[name]
        tensor.zero_()
    assert read_all(target) == before
