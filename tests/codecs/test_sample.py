"""What a sample tells of long data: the smaller form of marks, planes of noise, magnitudes; and where it misleads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both

from tallstore import codecs
from tallstore.codecs import adaptive, sample, zstd
from tallstore.encoder import items, measure_item
from tallstore.kernels import reference

CODEC = codecs.MASK["adaptive"]


def marks(n: int, density: float | np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """Packed symbols, each on with that probability."""
    rng = np.random.default_rng(seed)
    symbols = (rng.random(n) < density) * rng.integers(1, 2 if kind == "binary" else 3, n)
    return reference.pack(symbols.astype(np.uint8), kind)


def smallest(packed: np.ndarray, kind: str, n: int) -> bytes:
    """Both forms made of the whole chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "LONG", 1 << 40)
        return CODEC.encode_packed(packed, kind, n)


def forms(packed: np.ndarray, kind: str, n: int) -> tuple[bytes, list[str]]:
    """The chunk coded, and the forms that were made of all of it."""
    made: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, owner in (("_dense", adaptive.Adaptive), ("_sparse", adaptive)):
            real = getattr(owner, name)

            def seen(*args: object, real: Callable[..., bytes] = real, name: str = name) -> bytes:
                if any(isinstance(each, int) and each == n for each in args):
                    made.append(name)
                return real(*args)

            patch.setattr(owner, name, seen)
        return CODEC.encode_packed(packed, kind, n), made


@pytest.mark.parametrize("kind", ["binary", "signed"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.45])
def test_one_form_is_made_of_a_long_chunk_and_it_is_the_smaller_one(kind: str, density: float) -> None:
    n = 1 << 20
    packed = marks(n, density, kind)
    found, made = forms(packed, kind, n)
    assert len(made) == 1
    assert len(found) <= 1.01 * len(smallest(packed, kind, n))
    assert CODEC.decode_packed(found, kind, n).tobytes() == packed.tobytes()


@pytest.mark.parametrize("inside", [True, False], ids=["marks only in the sample", "none in the sample"])
def test_a_sample_that_misleads(inside: bool) -> None:
    n, stride = 1 << 20, sample.RUN * sample.ONE_IN
    place = np.arange(n // 4) % stride - stride // 2
    there = ((place >= 0) & (place < sample.RUN)) == inside
    packed = marks(n, np.repeat(np.where(there, 0.45, 0.0), 4), "signed")
    found, made = forms(packed, "signed", n)
    assert made == (["_dense"] if inside else ["_dense", "_sparse"])
    assert len(found) <= 1.1 * len(smallest(packed, "signed", n))
    assert CODEC.decode_packed(found, "signed", n).tobytes() == packed.tobytes()


@pytest.mark.parametrize("fill", [0, 0x55, 0xFF])
def test_chunks_all_alike(fill: int) -> None:
    kind, n = ("binary", 1 << 20) if fill == 0xFF else ("signed", 1 << 20)
    packed = np.full(reference.packed_size(kind, n), fill, np.uint8)
    found = CODEC.encode_packed(packed, kind, n)
    assert len(found) < 200
    assert CODEC.decode_packed(found, kind, n).tobytes() == packed.tobytes()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["binary", "signed"]),
    st.integers(-3, 70_000),
    st.sampled_from([0.0, 0.001, 0.05, 0.2, 0.5, 0.9]),
    st.integers(0, 2**32 - 1),
)
def test_the_same_is_chosen_with_and_without_kernels(kind: str, more: int, density: float, seed: int) -> None:
    n = sample.LONG * 8 // reference.SYMBOL_BITS[kind] + more
    packed = marks(n, density, kind, seed)
    quick, slow = both(lambda: CODEC.encode_packed(packed, kind, n))
    assert quick == slow
    assert CODEC.decode_packed(quick, kind, n).tobytes() == packed.tobytes()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_planes_that_are_noise_in_their_sample_are_not_coded(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    raw = values.view(np.uint8) if dtype == "F32" else values.view(np.uint16)[1::2].copy().view(np.uint8)
    codec = codecs.WHOLE["planes+zstd"]
    sizes: list[int] = []
    real = zstd.compress

    def seen(data: np.ndarray) -> bytes:
        sizes.append(len(data))
        return real(data)

    monkeypatch.setattr(zstd, "compress", seen)
    found = codec.encode(raw, dtype)
    assert sizes.count(1 << 20) == 1  # the exponents
    monkeypatch.setattr(sample, "LONG", 1 << 40)
    assert found == codec.encode(raw, dtype)
    out = np.empty_like(raw)
    codec.decode(found, out, dtype)
    assert out.tobytes() == raw.tobytes()


@pytest.mark.parametrize("numel", [1 << 16, (1 << 19) - 1, 1 << 19, (1 << 21) + (1 << 17), (1 << 20) + 1])
def test_a_tensor_is_sampled_or_read_whole_in_all_of_its_chunks(numel: int) -> None:
    chunk = 1 << 20
    read = 0
    for start in range(0, numel, chunk):
        item = items.Item("w", start, min(start + chunk, numel), (), ())
        runs = measure_item.sample_runs(item, numel, 8)
        assert runs
        assert all(item.start <= run.start < run.stop <= item.stop for run in runs)
        assert all(before.stop <= after.start for before, after in pairwise(runs))
        read += sum(run.stop - run.start for run in runs)
    assert (
        read == numel if numel < measure_item.SAMPLED else numel / 8 <= read <= numel / 8 + 2 * measure_item.SAMPLE_RUN
    )
