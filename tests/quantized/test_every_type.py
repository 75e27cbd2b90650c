"""Every element type of safetensors 0.8 goes in and comes back, from files and from memory, whatever torch makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import kinds, noise, packed, tiny_zoo

import tallstore
from tallstore.errors import CheckpointError, FormatError
from tallstore.format import safetensors
from tallstore.format.dtypes import ITEM_BITS, MASKABLE, PACKED, size_of
from tallstore.tensors import NAME, TORCH, as_bytes, shape_of

SHAPES = {"F4": (6, 2048), "F6_E2M3": (96, 128), "F6_E3M2": (96, 128)}
ODD = {"F4": (3, 2), "F6_E2M3": (2, 2), "F6_E3M2": (4, 1, 3)}
"""Shapes whose rows do not all end with a byte."""


def shape(dtype: str) -> tuple[int, ...]:
    return SHAPES.get(dtype, (130, 96))


def content(dtype: str, seed: int, of: tuple[int, ...]) -> bytes:
    if dtype == "BOOL":
        return np.random.default_rng(seed).integers(0, 2, size_of(dtype, of), np.uint8).tobytes()
    if dtype in MASKABLE:
        return as_bytes(torch.randn(of, generator=torch.Generator().manual_seed(seed)).to(TORCH[dtype])).tobytes()
    return np.random.default_rng(seed).integers(0, 100, size_of(dtype, of), np.uint8).tobytes()


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    head = safetensors.build([(name, dtype, of) for name, (dtype, of, _) in tensors.items()], {"format": "pt"}, align=8)
    path.write_bytes(head + b"".join(data for _, _, data in tensors.values()))
    return path


def slots(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    data = path.read_bytes()
    head = json.loads(data[8 : (start := 8 + int.from_bytes(data[:8], "little"))])
    head.pop("__metadata__", None)
    return {
        name: (s["dtype"], s["shape"], data[start + s["data_offsets"][0] : start + s["data_offsets"][1]])
        for name, s in head.items()
    }


@pytest.mark.parametrize("dtype", ITEM_BITS)
def test_files_come_back_byte_for_byte(dtype: str, target: Path) -> None:
    folder = target.parent
    wide = ("F32", (64, 64), content("F32", 7, (64, 64)))

    def made(seed: int, change: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        data = bytearray(content(dtype, 1, shape(dtype)))
        for at in range(0, len(data), 97):
            data[at] ^= change
        odd = ODD.get(dtype, (3,))
        return {
            "w": (dtype, shape(dtype), bytes(data)),
            "odd": (dtype, odd, content(dtype, seed, odd)),
            "none": (dtype, (0, 4), b""),
            "wide": wide,
        }

    base = write(folder / "base.safetensors", made(1, 0))
    tasks = {"same": write(folder / "same.safetensors", made(1, 0)), "b": write(folder / "b.safetensors", made(2, 1))}
    with packed(base, tasks, target, quality="lossless", allow_distant=True) as zoo:
        zoo.verify(dict(tasks))
        for task, source in tasks.items():
            zoo.export(task, folder / f"out-{task}")
            assert slots(folder / f"out-{task}" / "model.safetensors") == slots(source)
            found = zoo.state_dict(task)
            for name, (_, of, data) in slots(source).items():
                if name != "wide":
                    assert found[name].dtype == TORCH[dtype]
                    assert tuple(found[name].shape) == shape_of(dtype, of)
                    assert as_bytes(found[name].contiguous()).tobytes() == data
                    assert zoo.weights(task).get_slice(name).get_shape() == of
        assert kinds(zoo, "same")["w"] == "base"
        assert kinds(zoo, "b")["w"] == "lossless"
        part = zoo.weights("b").get_slice("w")[2:3]
        assert as_bytes(part).tobytes() == as_bytes(zoo.state_dict("b")["w"][2:3].contiguous()).tobytes()


@pytest.mark.parametrize("dtype", [d for d in NAME if NAME[d] not in MASKABLE], ids=str)
def test_state_dicts_come_back_in_torchs_own_types(dtype: torch.dtype, target: Path) -> None:
    codes = torch.randint(0, 2, (96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    held = codes.view(dtype) if dtype != torch.bool else codes.bool()
    moved = (codes ^ (torch.arange(96) % 7 == 0).to(torch.uint8)[:, None]).view(torch.uint8)
    tuned = moved.view(dtype) if dtype != torch.bool else moved.bool()
    base, tasks = tiny_zoo(2)
    with packed(base | {"w": held}, {"a": tasks["a"] | {"w": tuned}, "b": tasks["b"] | {"w": held}}, target) as zoo:
        assert kinds(zoo, "a")["w"] == ("lossless" if held.nbytes >= 1 << 13 else "private")
        assert kinds(zoo, "b")["w"] == "base"
        for task, wanted in (("a", tuned), ("b", held)):
            found = zoo.state_dict(task)["w"]
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            assert as_bytes(found).tobytes() == as_bytes(wanted).tobytes()
            assert as_bytes(zoo.weights(task).get_tensor("w")).tobytes() == as_bytes(wanted).tobytes()
        assert zoo.manifest.version == "1.1"


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float4_e2m1fn_x2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_stock_files_of_new_types(name: str, target: Path) -> None:
    kind = getattr(torch, name)
    codes = torch.randint(1, 100, (64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for file in ("base", "a"):
        save_file({"w": noise(256, 256), "scale": codes.view(kind)}, target.parent / f"{file}.safetensors")
    with packed(target.parent / "base.safetensors", {"a": target.parent / "a.safetensors"}, target) as zoo:
        zoo.export("a", target.parent / "out")
    back = load_file(target.parent / "out" / "model.safetensors")
    assert back["scale"].dtype == kind
    assert torch.equal(back["scale"].view(torch.uint8), codes)


@pytest.mark.parametrize("dtype", sorted(PACKED))
def test_elements_that_do_not_fill_their_last_byte_are_refused(dtype: str) -> None:
    head = json.dumps({"w": {"dtype": dtype, "shape": [3], "data_offsets": [0, 2]}}).encode()
    data = len(head).to_bytes(8, "little") + head
    with pytest.raises(FormatError, match=r"tensor 'w'.*do not fill whole bytes"):
        safetensors.parse(data, len(data) + 2, "file")


def test_what_no_file_can_hold_says_what_helps(target: Path) -> None:
    wide = torch.zeros(4, dtype=torch.complex128)
    with pytest.raises(CheckpointError, match=r"tensor 'w' \(torch.complex128.*has no such type: convert it"):
        tallstore.pack({"w": wide}, {"a": {"w": wide}}, target)
    assert not target.exists()


def test_tensors_that_hold_others_are_refused(target: Path) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    state = {"w": TwoTensor(torch.randn(4), torch.randn(4))}
    with pytest.raises(CheckpointError, match=r"'w'.*TwoTensor, which holds other tensors: save the model"):
        tallstore.pack(state, {"a": state}, target)
    assert not target.exists()
