"""Tensors of kind `sampled`, from packing to serving: every way to a task gives the same elements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import serving
from processes import child
from safetensors.torch import load_file, save_file
from spec.second_reader import Archive
from support import (
    State,
    aligned_zoo,
    assert_same,
    both,
    check_that_all_loading_agrees,
    check_that_models_are_switched,
    kinds,
    near,
    noise,
    packed,
    packed_in_chunks,
    raw,
    read_all,
    same_bits,
    without_kernels,
)
from torch import Tensor, nn

import tallstore
from tallstore.encoder.sampled_rows import encode_sampled
from tallstore.errors import DamagedError, NoSuchTensorError
from tallstore.kernels.dare import SHARES
from tallstore.kernels.lattice import LEVELS
from tallstore.recipes.sampled_changes import SampledPrecision
from tallstore.tensors import NAME, as_bytes
from tallstore.zoo import Zoo

TYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZE, LAYERS = 160, 4


class Net(nn.Module):
    """What the zoo is of: a chain of matrices."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        for n in range(LAYERS):
            self.add_module(f"l{n}", nn.Linear(SIZE, SIZE, bias=False))
        self.to(dtype)

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.children():
            values = torch.tanh(layer(values))
        return values


def rate(dtype: torch.dtype) -> dict[str, Any]:
    """At which changes of the zoo's tensors are dropped: of float32, where they have much in common and bits are some."""
    return {"bits": 1.0} if dtype == torch.float32 else {"quality": "small"}


def moved_zoo(dtype: torch.dtype) -> tuple[State, dict[str, State]]:
    """Two tasks; of float32 along few directions and a little noise."""
    base, tasks = aligned_zoo(2, dtype, SIZE, LAYERS)
    for seed, state in enumerate(tasks.values() if dtype == torch.float32 else (), 500):
        for n, (name, tensor) in enumerate(base.items()):
            pull = noise(SIZE, 3, seed=2 * seed + 10 * n) @ noise(3, SIZE, seed=2 * seed + 10 * n + 1)
            state[name] = tensor + 0.0005 * pull + noise(SIZE, SIZE, size=0.0002, seed=3 * seed + n)
    return base, tasks


def whole_zoo(dtype: torch.dtype) -> tuple[State, dict[str, State]]:
    """With rows of its own, a head, a tie, and what did not move."""
    base, tasks = moved_zoo(dtype)
    base |= {"frozen": noise(400, seed=90, dtype=dtype), "bias": noise(20, seed=91, dtype=dtype)}
    for seed, state in enumerate(tasks.values(), 92):
        state["l1.weight"] = torch.cat([state["l1.weight"], noise(3, SIZE, seed=seed, dtype=dtype)])
        state |= {"frozen": base["frozen"].clone(), "bias": near(base["bias"], seed), "head": noise(7, SIZE, seed=seed)}
        state["tied"] = state["l0.weight"]
    return base, tasks


@pytest.fixture(scope="module", params=TYPES, ids=str)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zoo, Path]]:
    """Packed in several chunks a tensor."""
    path = tmp_path_factory.mktemp("sampled") / "zoo.tall"
    with packed_in_chunks(*whole_zoo(request.param), path, 4096, **rate(request.param)) as found:
        yield found


def dtype_of(zoo: Zoo) -> torch.dtype:
    return zoo.base("frozen").dtype


def test_changes_are_kept_in_part_and_the_version_says_so(zoo: tuple[Zoo, Path]) -> None:
    opened, _ = zoo
    assert opened.manifest.version == "1.4"
    for task in opened.tasks:
        found = kinds(opened, task)
        assert {found[f"l{n}.weight"] for n in range(LAYERS)} == {"sampled"}
        assert found["frozen"] == "base"
        assert opened.tensors(task)["l1.weight"].rows == SIZE
    state, (_, tasks) = opened.state_dict("a"), whole_zoo(dtype_of(opened))
    moved = state["l0.weight"] != opened.base("l0.weight")
    own = tasks["a"]["l0.weight"] != opened.base("l0.weight")
    assert 0 < moved.sum() < own.sum()
    assert not (moved & ~own).any(), "what did not move is not moved"
    assert same_bits(state["l1.weight"][SIZE:], tasks["a"]["l1.weight"][SIZE:])
    assert state["tied"].data_ptr() == state["l0.weight"].data_ptr()


def test_the_second_reader_and_the_reference_read_the_same(zoo: tuple[Zoo, Path]) -> None:
    opened, path = zoo
    with tallstore.open(path, threads=1) as other:
        quick, slow = both(lambda: other.state_dict("a"))
    assert_same(quick, slow)
    second = Archive(path).decode("a")
    for name, tensor in opened.state_dict("a").items():
        assert second[name] == (NAME[tensor.dtype], tuple(tensor.shape), as_bytes(tensor.contiguous()).tobytes())


def test_what_is_measured_is_what_is_lost(zoo: tuple[Zoo, Path]) -> None:
    opened, _ = zoo
    base, tasks = whole_zoo(dtype_of(opened))
    state, error, norm = opened.state_dict("a"), 0.0, 0.0
    for name in (f"l{n}.weight" for n in range(LAYERS)):
        tau, hat = (each[name][:SIZE].double() - base[name].double() for each in (tasks["a"], state))
        error, norm = error + float((hat - tau).square().sum()), norm + float(tau.square().sum())
    said = opened.info()["tasks"]["a"]["relative_error"]
    assert said == pytest.approx((error / norm) ** 0.5, rel=0.001)
    report = opened.verify({"a": tasks["a"]})
    assert not report.against["a"].exact
    assert report.against["a"].relative_error == pytest.approx(said, rel=0.001)


def test_everything_that_loads_agrees(zoo: tuple[Zoo, Path], tmp_path: Path) -> None:
    check_that_all_loading_agrees(*zoo, tmp_path, "l1.weight", ((17, 98),), [3, 98, 4])
    opened, _ = zoo
    for task in opened.tasks:
        assert_same(opened.state_dict(task, names=["l2.weight"]), {"l2.weight": opened.state_dict(task)["l2.weight"]})


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("native", [True, False])
def test_models_are_switched_loaded_and_served(
    dtype: torch.dtype, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        without_kernels(monkeypatch)
    base, tasks = moved_zoo(dtype)
    with packed(base, tasks, tmp_path / "zoo.tall", **rate(dtype)) as opened:
        assert set(kinds(opened, "a").values()) == {"sampled"}
        check_that_models_are_switched(opened, Net, dtype)
        served = Net(torch.float32)
        served.load_state_dict({name: tensor.float() for name, tensor in base.items()})
        inputs = noise(4, SIZE, seed=5)
        for decoded_bytes in (0, 1 << 26):
            multi = opened.multitask(served, decoded_bytes=decoded_bytes)
            found = multi(inputs, tasks=["a", None, "b", "a"])
            for row, task in enumerate(["a", None, "b", "a"]):
                own = Net(torch.float32)
                own.load_state_dict({n: t.float() for n, t in (opened.state_dict(task) if task else base).items()})
                with torch.no_grad():
                    wanted = own(inputs[row : row + 1])[0]
                assert float((found[row] - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_slices_are_read_from_far_away(zoo: tuple[Zoo, Path]) -> None:
    opened, path = zoo
    with serving({"user/zoo": {"zoo.tall": path.read_bytes()}}) as server:
        address = f"{server.cdn}/cdn/user/zoo/{server.commit('user/zoo')}/zoo.tall"
        with tallstore.open(address) as far:
            state = opened.state_dict("b")
            assert same_bits(far.weights("b").get_slice("l2.weight")[40:50], state["l2.weight"][40:50])
            assert_same(far.state_dict("b"), state)


@pytest.mark.parametrize("method", ["arithmetic", "consensus", "ties"])
def test_it_is_merged_as_it_is_decoded(method: str, tmp_path: Path) -> None:
    """Beside the same tasks stored whole, whose numbers are those that come back."""
    base, tasks = aligned_zoo(3)
    tallstore.pack(base, tasks, tmp_path / "zoo.tall", quality="small")
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        found = opened.merged(method, alpha=0.5)
        decoded = {task: opened.state_dict(task) for task in opened.tasks}
        opened.mask_statistics()
    tallstore.pack(base, decoded, tmp_path / "whole.tall", quality="lossless")
    with tallstore.open(tmp_path / "whole.tall") as other:
        assert_same(_state(found), _state(other.merged(method, alpha=0.5)))


def _state(found: Any) -> State:
    return dict(getattr(found, "state", found))


def test_a_mask_or_a_delta_there_is_not(zoo: tuple[Zoo, Path]) -> None:
    opened, _ = zoo
    for way in (opened.mask, opened.delta):
        with pytest.raises(NoSuchTensorError, match="l0"):
            way("a", "l0.weight")


@pytest.mark.parametrize("form", ["zoo.tall", "zoo"])
def test_tasks_are_added_and_removed(form: str, tmp_path: Path) -> None:
    base, tasks = aligned_zoo(3)
    path = tmp_path / form
    tallstore.pack(base, {"a": tasks["a"]}, path, quality="small")
    with tallstore.open(path) as opened:
        before = opened.state_dict("a")
    tallstore.add(path, {"b": tasks["b"]})
    tallstore.add_merge(path, "half", "0.5*a + 0.5*b")
    tallstore.add_merge(path, "copy", "1.0*a")
    later = {name: (tensor.float() * 1.001).to(tensor.dtype) for name, tensor in tasks["a"].items()}
    tallstore.add(path, {"later": later}, parent="a")
    with tallstore.open(path) as opened:
        opened.verify()
        assert set(kinds(opened, "b").values()) == {"sampled"}
        assert_same(opened.state_dict("a"), before)
        assert_same(opened.state_dict("copy"), before)
        other = opened.state_dict("b")
        for name, tensor in opened.state_dict("half").items():
            wanted = (before[name].float() * 0.5 + other[name].float() * 0.5).to(tensor.dtype)
            assert same_bits(tensor, wanted)
        every = {task: opened.state_dict(task) for task in opened.tasks}
        second = Archive(path)
        for task, state in every.items():
            decoded = second.decode(task)
            assert all(raw(tensor).tobytes() == decoded[name][2] for name, tensor in state.items())
    tallstore.remove(path, ["copy"])
    tallstore.compact(path)
    with tallstore.open(path) as opened:
        opened.verify()
        assert "copy" not in opened.tasks
        for task in opened.tasks:
            assert_same(opened.state_dict(task), every[task])


def test_a_child_is_not_drawn_for_as_its_parent_was(tmp_path: Path) -> None:
    """With one task less, the child has its parent's number; the same places would drop the same changes twice."""
    base, tasks = aligned_zoo(2)
    path = tmp_path / "zoo.tall"
    pulls = {
        name: noise(len(tensor), 4, seed=70 + n) @ noise(4, len(tensor), seed=79 + n)
        for n, (name, tensor) in enumerate(base.items())
    }
    later = {name: (tensor.float() + 1e-5 * pulls[name].sign()).bfloat16() for name, tensor in tasks["b"].items()}
    tallstore.pack(base, tasks, path, bits=0.6)
    tallstore.remove(path, ["a"])
    tallstore.add(path, {"later": later}, parent="b")
    with tallstore.open(path) as opened:
        assert opened.manifest.tasks["later"].relatives is not None
        assert "sampled" in kinds(opened, "later").values()
        back, state = opened.state_dict("b"), opened.state_dict("later")
    tau, kept = (torch.cat([(each[n].double() - back[n].double()).flatten() for n in base]) for each in (later, state))
    assert float((tau * kept).sum() / (tau * tau).sum()) == pytest.approx(1, abs=0.1)


def test_a_later_version_starts_from_what_came_back(tmp_path: Path) -> None:
    """What was drawn for the parent is no error of the child, which is drawn for anew."""
    base, tasks = aligned_zoo(1)
    path = tmp_path / "zoo.tall"
    tallstore.pack(base, tasks, path, quality="small")
    with tallstore.open(path) as opened:
        back = opened.state_dict("a")
    pulls = {name: noise(SIZE, 4, seed=n) @ noise(4, SIZE, seed=n + 9) for n, name in enumerate(base, 70)}
    later = {name: (tensor.float() + 7e-5 * pulls[name].sign()).bfloat16() for name, tensor in back.items()}
    tallstore.add(path, {"later": later}, parent="a")
    with tallstore.open(path) as opened:
        opened.verify()
        facts, state = opened.tensors("later"), opened.state_dict("later")
        started = [name for name in base if facts[name].start is not None and facts[name].kind == "sampled"]
        assert started
        for name in started:
            tau, hat = (each[name].double() - back[name].double() for each in (later, state))
            assert float((tau * hat).sum() / (tau * tau).sum()) == pytest.approx(1, abs=0.06)
        weights = opened.weights("later")
        assert all(same_bits(weights.get_slice(name)[40:60], tensor[40:60]) for name, tensor in state.items())
        module = Net()
        opened.load_into(module, "later")
        assert_same(dict(module.named_parameters()), state)
    second = Archive(path).decode("later")
    assert all(raw(tensor).tobytes() == second[name][2] for name, tensor in state.items())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_exact_tasks_lose_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    base, tasks = whole_zoo(dtype)
    # Without a κ, exact is given by least squares, which draws nothing at random.
    with packed(base, tasks, tmp_path / "zoo.tall", **rate(dtype), exact=["a"], kappa=4) as opened:
        assert_same(opened.state_dict("a", exact=True), tasks["a"])
        assert "sampled" not in kinds(opened, "a").values(), "one layer that loses nothing takes less than two"
        assert "sampled" in kinds(opened, "b").values()
        weights = opened.weights("a", exact=True)
        assert all(same_bits(weights.get_tensor(name), tensor) for name, tensor in tasks["a"].items())


@pytest.mark.parametrize("storage", ["reference", "bf16"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_whatever_the_base_is_stored_as(dtype: torch.dtype, storage: str, tmp_path: Path) -> None:
    """Measured against the base as it will be: rounded, or given."""
    base, tasks = whole_zoo(dtype)
    wide = {name: tensor.float() for name, tensor in base.items()} if storage == "bf16" else base
    tallstore.pack(wide, tasks, tmp_path / "zoo.tall", **rate(dtype), base_storage=storage)
    given = wide if storage == "reference" else None
    with tallstore.open(tmp_path / "zoo.tall", base=given) as opened:
        opened.verify()
        assert storage == "bf16" or kinds(opened, "a")["l0.weight"] == "sampled"
        second = Archive(tmp_path / "zoo.tall", _plain(wide))
        for task in opened.tasks:
            state, decoded = opened.state_dict(task), second.decode(task)
            assert all(raw(tensor).tobytes() == decoded[name][2] for name, tensor in state.items())


def _plain(state: State) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (NAME[t.dtype], tuple(t.shape), as_bytes(t.contiguous()).tobytes()) for name, t in state.items()}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_is_infinite_comes_back_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whether or not a sample shows it: row 50 is looked at, and others are not."""
    base, tasks = moved_zoo(dtype)
    odd = tasks["a"]
    for name, row in (("l1.weight", 50), ("l2.weight", 53)):
        odd[name][row, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    with packed(base, tasks, tmp_path / "zoo.tall", **rate(dtype), allow_distant=True) as opened:
        found = opened.state_dict("a")
        assert kinds(opened, "a")["l0.weight"] == "sampled"
        assert all(same_bits(found[name], odd[name]) for name in ("l1.weight", "l2.weight"))


def test_a_zero_that_turns_over_spoils_nothing_else(tmp_path: Path) -> None:
    """A chunk in which it is drawn is coded without loss; the others are not."""
    base, tasks = aligned_zoo(1)
    base["l2.weight"][50], tasks["a"]["l2.weight"][50] = 0.0, -0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", 1024)
        patch.setattr("tallstore.encoder.encode_item.encode_sampled", partial(_by_share, SHARES // 4))
        tallstore.pack(base, tasks, tmp_path / "zoo.tall", bits=0.6)
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        opened.verify()
        assert kinds(opened, "a")["l2.weight"] == "sampled"
        flat, whole = (each["l2.weight"].view(-1) for each in (opened.state_dict("a"), tasks["a"]))
        assert same_bits(flat[7168:8192], whole[7168:8192]), "zeros lie in the eighth chunk"
        assert not same_bits(flat[:1024], whole[:1024])


def _by_share(
    share: int, weights: Tensor, base: Tensor, dtype: str, drop: SampledPrecision, start: int, seed: int, added: None
) -> Any:
    """Every level at one share, the lowest too, which did not move in what was looked at."""
    sampling = drop.sampling._replace(shares=np.full(LEVELS, share - 1, np.uint16))
    return encode_sampled(weights, base, dtype, drop._replace(sampling=sampling), start, seed, added)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_same_zoo_gives_the_same_bytes(dtype: torch.dtype, tmp_path: Path) -> None:
    """With kernels and without, whatever the number of workers."""
    base, tasks = whole_zoo(dtype)
    for name, workers in (("one", 1), ("two", 2)):
        tallstore.pack(base, tasks, tmp_path / name, **rate(dtype), workers=workers)
    with pytest.MonkeyPatch.context() as patch:
        without_kernels(patch)
        tallstore.pack(base, tasks, tmp_path / "reference", **rate(dtype), workers=1)
    one, two, slow = (read_all(tmp_path / name) for name in ("one", "two", "reference"))
    assert one == two == slow


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    base, tasks = aligned_zoo(1)
    tallstore.pack(base, tasks, tmp_path / "zoo", quality="small")
    (path,) = (tmp_path / "zoo" / "tasks" / "a").glob("mask*")
    data = bytearray(path.read_bytes())
    data[-200] ^= 4
    path.write_bytes(bytes(data))
    with tallstore.open(tmp_path / "zoo") as opened, pytest.raises(DamagedError, match=r"tasks/a/mask"):
        opened.state_dict("a")


FACTS = """
import sys
from tallstore.cli import main
for words in (["info", "--json"], ["verify"]):
    try:
        main([*words, sys.argv[1]])
    except SystemExit as end:
        assert not end.code, end
assert "torch" not in sys.modules
"""


def test_it_is_told_and_checked_without_torch(zoo: tuple[Zoo, Path]) -> None:
    done = child(FACTS, str(zoo[1]))
    assert not done.returncode, done.stderr
    facts, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert facts["tasks"].keys() == {"a", "b"}
    assert "2 tasks" in done.stdout


def test_folders_are_packed_and_given_back(tmp_path: Path) -> None:
    base, tasks = aligned_zoo(1)
    for name, state in {"base": base, **tasks}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
    tallstore.pack(tmp_path / "base", {"a": tmp_path / "a"}, tmp_path / "zoo.tall", quality="small")
    with tallstore.open(tmp_path / "zoo.tall") as opened:
        assert set(kinds(opened, "a").values()) == {"sampled"}
        out = opened.export("a", tmp_path / "out")
        assert_same(load_file(out / "model.safetensors"), opened.state_dict("a"))
