"""Chains without loss: checkpoints coded given their parent and the base, decoded in every way, and damaged midway."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import State, assert_same, bytes_of, noise
from torch import Tensor
from trust.damage import Held

import tallstore
from tallstore.archive.reader import Reader
from tallstore.errors import ArchiveError, DamagedError
from tallstore.stores import open_store
from tallstore.zoo import Zoo

CHAIN = {"six": None, "nine": "six", "three": "nine"}
"""Each task's parent."""


def base() -> State:
    return {
        "w": noise(60, 50, size=0.1, seed=1, dtype=torch.bfloat16),
        "wide": noise(40, 90, size=0.1, seed=2),
        "narrow": noise(1200, seed=4, dtype=torch.float16),
        "rows": noise(30, 20, size=0.1, seed=5, dtype=torch.bfloat16),
    }


def at(step: int) -> State:
    """A checkpoint that went on in one direction, with rows of its own: bfloat16 rounds most of it away."""
    state = {}
    for name, tensor in base().items():
        size = {torch.bfloat16: 1e-4, torch.float16: 1e-4, torch.float32: 1.5e-9}[tensor.dtype]
        pull = noise(*tensor.shape, size=size, seed=7) + noise(*tensor.shape, size=size / 9, seed=step)
        state[name] = (tensor.double() + step * pull.double()).to(tensor.dtype)
    state["rows"] = torch.cat([state["rows"], noise(2, 20, seed=step, dtype=torch.bfloat16)])
    return state


@pytest.fixture
def tasks() -> dict[str, State]:
    return {"six": at(6), "nine": at(9), "three": at(3)}


@pytest.fixture(params=["embed", "reference"])
def zoo(request: pytest.FixtureRequest, tasks: dict[str, State], tmp_path: Path) -> tuple[Path, State | None]:
    """Two links of small chunks; the base given where it is not in the archive."""
    out, given = tmp_path / "zoo", base() if request.param == "reference" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", 1024)
        tallstore.pack(base(), {"six": tasks["six"]}, out, quality="lossless", base_storage=request.param)
        for name, parent in CHAIN.items():
            if parent is not None:
                tallstore.add(out, {name: tasks[name]}, parent=parent, base=given)
    return out, given


def test_a_chain_comes_back_to_the_bit_in_every_way(
    zoo: tuple[Path, State | None], tasks: dict[str, State], tmp_path: Path
) -> None:
    path, given = zoo
    with open_store(path) as store, tallstore.open(path, base=given) as opened:
        opened.verify()
        manifest, modes = opened.manifest, []
        assert manifest.version == "1.3"
        assert manifest.tasks["three"].relatives is not None
        reader = Reader(store, manifest)
        for name in ("nine", "three"):
            places = reader.places(manifest.tasks[name].parts["mask"], "relative", name)
            for tensor, place in places.items():
                assert place.entry.coded is not None
                if tensor != "rows":  # whose place in the base has another shape
                    assert place.entry.coded.codec == "drift", tensor
                    modes.append(bytes(reader.chunk(place, 0, tensor))[0])
        assert 4 in modes
        for name, state in tasks.items():
            assert_same(opened.state_dict(name), state)
            held: dict[str, Tensor] = {n: torch.zeros_like(t) for n, t in state.items()}
            model = _Module(held)
            opened.load_into(model, name)
            assert_same(dict(model.named_parameters()), state)
            with opened.weights(name) as weights:
                rows = weights.get_slice("w")
                assert torch.equal(rows[17:52], state["w"][17:52])
                assert torch.equal(rows[:, 3:9], state["w"][:, 3:9])
        if given is None:
            opened.write_subset(["three"], tmp_path / "part.tall")
    if given is None:
        with tallstore.open(tmp_path / "part.tall") as part:
            assert set(part.tasks) == {"six", "nine", "three"}
            assert_same(part.state_dict("three"), tasks["three"])


class _Module(torch.nn.Module):
    """Tensors as parameters."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))


def test_damage_in_the_middle_of_a_chain_is_found_and_named(tasks: dict[str, State], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", 1024)
        tallstore.pack(
            base(), {"six": tasks["six"], "other": at(2)}, tmp_path / "zoo", quality="lossless", relatives=False
        )
        tallstore.add(tmp_path / "zoo", {"nine": tasks["nine"]}, parent="six")
        tallstore.add(tmp_path / "zoo", {"three": tasks["three"]}, parent="nine")
    files = bytes_of(tmp_path / "zoo")
    (path,) = (each for each in files if each.startswith("tasks/nine/mask"))
    for place in range(0, len(files[path]), max(1, len(files[path]) // 12)):
        bad = bytearray(files[path])
        bad[place] ^= 1 << place % 8
        with Zoo(Held({**files, path: bytes(bad)}), threads=1) as zoo:
            assert_same(zoo.state_dict("six"), tasks["six"])
            assert_same(zoo.state_dict("other"), at(2))
            for name in ("nine", "three"):
                try:
                    found = zoo.state_dict(name)
                except ArchiveError as error:
                    assert "tasks/nine" in str(error), (place, error)
                else:
                    assert_same(found, tasks[name])
            with pytest.raises(ArchiveError):
                zoo.verify()
    with Zoo(Held({name: data for name, data in files.items() if name != path})) as zoo, pytest.raises(DamagedError):
        zoo.state_dict("three")
