"""A chunk that is filled, checked and changed in one call is what reading, hashing and adding by themselves give."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from elements import anything, bits, gaps_of
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples
from torch import Tensor

from tallstore.codecs.planes import Planes
from tallstore.kernels import reference
from tallstore.kernels.decoding_backends import decoding
from tallstore.kernels.fill import FillSource, part_of
from tallstore.kernels.pairs import Pairs
from tallstore.kernels.steps import Steps
from tallstore.tensors import NAME, as_bytes

pytestmark = pytest.mark.usefixtures("native")
RUN = 1 << 17
"""Bytes that the kernels take at a time."""
SIZES = st.one_of(
    st.integers(1, 3000), st.sampled_from([n + d for n in (1024, RUN, 2 * RUN, 3 * RUN) for d in range(-65, 66, 5)])
)
LENGTHS = st.sampled_from([61, 64, 1023, 4096, RUN // 4, RUN // 4 + 1, RUN // 2 - 1, RUN // 2, RUN + 77])


@pytest.fixture(scope="module")
def put(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], int]]:
    """Puts bytes into a file, whose descriptor it gives."""
    path = tmp_path_factory.mktemp("fill") / "bytes"
    handles: list[int] = []

    def write(data: bytes) -> int:
        path.write_bytes(data)
        handles.append(os.open(path, os.O_RDONLY))
        if len(handles) > 1:
            os.close(handles.pop(0))
        return handles[-1]

    yield write
    for handle in handles:
        os.close(handle)


def due(source: FillSource | None) -> FillSource:
    assert source is not None
    return source


@settings(max_examples=examples(120), deadline=None)
@given(SIZES, st.integers(0, 4096), st.integers(0, 63), st.integers(0, 2**32))
def test_bytes_and_hash_are_the_file_s(put: Callable[[bytes], int], size: int, at: int, offset: int, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(at + size + 9)
    handle = put(data)
    room = np.zeros(size + 200, np.uint8)
    out = room[64 + offset : 64 + offset + size]
    source = due(decoding().file(handle, at))
    assert decoding().whole(part_of(out), source)
    assert out.tobytes() == data[at : at + size]
    assert source.digest == xxhash.xxh3_64_digest(data[at : at + size])
    assert not room[: 64 + offset].any()
    assert not room[64 + offset + size :].any()
    again = due(decoding().file(handle, at))
    assert decoding().check(again, size)
    assert again.digest == source.digest


@pytest.mark.parametrize("size", [1, 241, 5000, RUN + 1, 3 * RUN])
def test_a_file_that_ends_before_or_cannot_be_read_is_not_filled(put: Callable[[bytes], int], size: int) -> None:
    handle = put(bytes(size - 1))
    out = np.zeros(size, np.uint8)
    for source in (decoding().file(handle, 0), decoding().file(handle, size), decoding().file(-1, 0)):
        assert not decoding().whole(part_of(out), due(source))
        assert not decoding().check(due(source), size)


@settings(max_examples=examples(40), deadline=None)
@given(LENGTHS, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 15), st.integers(0, 99))
def test_planes_are_joined_wherever_they_go(n: int, dtype: torch.dtype, offset: int, seed: int) -> None:
    values = anything(n, dtype, seed)
    coder, raw, name = Planes(), as_bytes(values), NAME[dtype]
    planes = coder.decode_planes(coder.encode(raw, name), n, name)
    assert planes is not None
    room = torch.zeros(n + 64, dtype=dtype)
    out = room[offset * 8 // dtype.itemsize :][:n] if offset < 8 else room[:n]
    target = decoding().target(out)
    assert target is not None
    assert decoding().whole(target.part(0, n), due(decoding().planes(planes)))
    assert torch.equal(bits(out), bits(values))


def test_other_planes_are_left_to_their_codec() -> None:
    assert decoding().planes([np.zeros(3, np.uint8)] * 8) is None
    assert Planes().decode_planes(Planes().encode(np.zeros(6, np.uint8), "U16"), 3, "U16") is None


def steps_of(kind: str, n: int, dtype: torch.dtype, rng: np.random.Generator) -> Steps:
    """A chunk's steps of one sort."""
    scale, density = float(np.float32(rng.uniform(0.001, 0.1))), rng.choice([0.0, 0.02, 0.3, 1.0])
    if kind.startswith("delta"):
        width = int(kind[-1])
        packed = rng.integers(0, 256, -(-n * width // 8)).astype(np.uint8)
        table = np.concatenate([[0], rng.standard_normal((1 << width) - 1)]).astype(np.float32)
        return decoding().levels(packed, width, n, table, dtype)
    sort = "signed" if "signed" in kind else "binary"
    symbols = np.where(rng.random(n) < density, rng.integers(1, 3 if sort == "signed" else 2, n), 0).astype(np.uint8)
    if kind.startswith("gaps"):
        gaps, signs = gaps_of(symbols)
        return decoding().gaps(gaps, signs if sort == "signed" else signs[:0], sort, n, scale, dtype)
    vector: np.ndarray | Pairs | None = rng.standard_normal(n).astype(np.float32) if "vector" in kind else None
    if "levels" in kind:
        vector = Pairs(rng.integers(0, 256, -(-n // 2)).astype(np.uint8), rng.standard_normal(16).astype(np.float32))
    return decoding().mask(reference.pack(symbols, sort), sort, n, scale, dtype, vector)


KINDS = ("gaps signed", "gaps binary", "mask signed", "mask binary", "mask signed vector", "mask binary vector")
KINDS += ("mask signed levels", "mask binary levels")
KINDS += ("delta4", "delta8")


def both(put: Callable[[bytes], int], base: Tensor, steps: Steps, source: str) -> tuple[bool, Tensor, Tensor]:
    """Whether one call filled a chunk, what it wrote, and what is written without it."""
    n, dtype, out, wanted = len(base), base.dtype, torch.zeros_like(base), torch.zeros_like(base)
    steps.begin()(wanted, base.clone())
    if source == "file":
        found = decoding().file(put(as_bytes(base).tobytes()), 0)
    else:
        coder = Planes()
        planes = coder.decode_planes(coder.encode(as_bytes(base), NAME[dtype]), n, NAME[dtype])
        assert planes is not None
        found = decoding().planes(planes)
    target = decoding().target(out)
    assert target is not None
    return steps.fills and steps.fill(target.part(0, n), due(found)), out, wanted


@settings(max_examples=examples(150), deadline=None)
@given(st.sampled_from(KINDS), LENGTHS, st.sampled_from(["file", "planes"]), st.integers(0, 2**32))
def test_steps_are_added_as_always(put: Callable[[bytes], int], kind: str, n: int, source: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = anything(n, torch.float32, seed % 1000)
    if seed % 3:
        base = torch.where(base.isnan(), torch.tensor(-0.0), base)
    done, out, wanted = both(put, base, steps_of(kind, n, torch.float32, rng), source)
    assert done or (kind.startswith("mask") and bool(base.isnan().any()))
    if done:
        assert torch.equal(bits(out), bits(wanted))


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sampled_from(["gaps signed", "gaps binary", "mask signed", "delta4"]),
    LENGTHS,
    st.sampled_from([torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 2**32),
)
def test_other_types_are_added_to_as_always_or_left_alone(
    put: Callable[[bytes], int], kind: str, n: int, dtype: torch.dtype, seed: int
) -> None:
    base = anything(n, dtype, seed % 1000)
    done, out, wanted = both(put, base, steps_of(kind, n, dtype, np.random.default_rng(seed)), "file")
    odd = bool(base.isnan().any())
    left = odd and (dtype != torch.float64 or kind.startswith("mask"))
    assert done != left
    if done:
        assert torch.equal(bits(out), bits(wanted))


def test_values_and_negative_scales_are_added_too(put: Callable[[bytes], int]) -> None:
    base = torch.tensor([-0.0, 0.0, 1.0, 2.0**-149] * 25)
    symbols = reference.pack(np.arange(100, dtype=np.uint8) % 3, "signed")
    for steps in (
        decoding().values(np.linspace(-1, 1, 100, dtype=np.float32), torch.float32),
        decoding().mask(symbols, "signed", 100, -1.0, torch.float32),
        decoding().mask(symbols, "signed", 100, -0.0, torch.float32),
    ):
        done, out, wanted = both(put, base, steps, "file")
        assert done
        assert torch.equal(bits(out), bits(wanted))


def test_memory_that_is_not_a_run_of_words_is_no_target() -> None:
    assert decoding().target(torch.zeros(10)[::2]) is None
    assert decoding().target(torch.zeros(0)) is None
    assert decoding().target(torch.zeros(9, dtype=torch.bfloat16)[1:]) is None
    assert decoding().target(torch.zeros(9)[2:]) is not None


def test_a_path_that_is_a_folder_is_not_filled(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        assert not decoding().check(due(decoding().file(handle, 0)), 500)
    finally:
        os.close(handle)
