"""The table of kernels: each gives what its reference gives, in every variant, and takes it where it has to."""

from __future__ import annotations

import importlib
import itertools
import pickle
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tallstore
from tallstore.kernels import registry
from tallstore.kernels.native_types import BFLOAT16, FLOAT32
from tallstore.kernels.registry import KERNELS, kernel
from tallstore.recipes.base import Tile
from tallstore.recipes.histogram import Magnitudes
from tallstore.recipes.quantizers import Quantizer

N = 3001
for _package in ("codecs", "recipes", "encoder"):
    for _module in pkgutil.iter_modules(importlib.import_module(f"tallstore.{_package}").__path__):
        importlib.import_module(f"tallstore.{_package}.{_module.name}")


def floats(rng: np.random.Generator, n: int = N) -> Any:
    """Steps of many sizes, a third of them 0."""
    values = rng.standard_normal(n) * 2.0 ** rng.integers(-8, 0, n) * rng.integers(0, 3, n).clip(0, 1)
    return values.astype(np.float32)


def near(rng: np.random.Generator, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    base = torch.from_numpy(rng.standard_normal(N).astype(np.float32)).to(dtype)
    return tuple((base + torch.from_numpy(floats(rng)) * i).to(dtype) for i in (1, 0, 2))  # type: ignore[return-value]


def magnitudes(rng: np.random.Generator) -> Magnitudes:
    return Magnitudes(np.floor(rng.random(200) * 100) + 1, 2500, 1.0).of(200 * 100, narrow=False)


def tile(rng: np.random.Generator) -> Any:
    base, weights = torch.from_numpy(floats(rng)), torch.from_numpy(np.stack([floats(rng), floats(rng)]))
    tau = weights - base
    return Tile(tensor="a", tasks=(0, 1), base=base, weights=weights, tau=tau), tau.mean(0), (0.2, 1.0, 4.0)


def symbols(rng: np.random.Generator) -> Any:
    """Signed symbols, packed, and how many are on."""
    from tallstore.kernels import reference

    marks = rng.integers(0, 12, N).astype(np.uint8)
    marks[marks > 2] = 0
    return reference.pack(marks, "signed"), "signed", N, int(np.count_nonzero(marks))


def rounded(rng: np.random.Generator) -> Any:
    from tallstore.encoder.moved_elements import moved_of
    from tallstore.encoder.rounded_levels import RoundedLevels

    weights, base, _ = (each.float().numpy() for each in near(rng, torch.bfloat16))
    moved = moved_of(weights - base, base, 7, BFLOAT16)
    levels = RoundedLevels(moved, 0.1, 0.2, 11)
    return np.zeros(len(moved.tau), np.uint8), levels, np.array([0.25, 0.5], np.float32), 0.25, 0.5, 1.6


def numbers(rng: np.random.Generator) -> Any:
    return (rng.integers(-40, 40, N) * (rng.random(N) < 0.3)).astype(np.int8)


def live(rng: np.random.Generator) -> Any:
    return np.packbits(rng.random(-(-N // 64)) < 0.5, bitorder="little")


def product(rng: np.random.Generator) -> Any:
    """Words of float16, and a matrix of rank 3 of which they are a run, from within a row on."""
    from tallstore.kernels.low_rank import LowRank

    rows, columns = (rng.integers(-127, 128, (3, count)).astype(np.int8) for count in (-(-(17 + N) // 64), 64))
    words = rng.integers(0, 1 << 16, N).astype(np.uint16)
    return "F16", words, LowRank(np.float32(1e-6), np.array([0, 4, 2], np.uint8), rows, columns, 17)


def few(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Counts, half of which are 0."""
    return rng.integers(0, 900, shape) * rng.integers(0, 2, shape)


def changes(rng: np.random.Generator) -> Any:
    """Magnitudes far below units and far above, whole ones and others; and those that are 0."""
    size = np.abs(floats(rng)) * (2.0 ** rng.integers(-30, 40, N)).astype(np.float32)
    whole = np.where(rng.random(N) < 0.5, np.rint(size), size).astype(np.float32)
    return rng.integers(0, 16, N).astype(np.uint8), whole, np.ldexp(1.0, rng.integers(-9, 3, 16))


def steps_tried(rng: np.random.Generator) -> Any:
    """Of three levels, the last of which has changes in one bin alone, of four steps up to all."""
    counts = few(rng, (3, 34 * 32)) * (rng.random((3, 34 * 32)) < 0.2)
    counts[2] = 0
    counts[:, 600] += 1
    octave = rng.integers(-3, 9, 3)[:, None] + np.array([0, 0, 1, 1])
    size = np.ldexp(np.array([1.0, 1.5, 1.0, 1.5]), octave)
    return counts, counts.sum(1) + rng.integers(0, 99, 3), size, (octave + 16) * 32, np.array([4, 1, 3])


def put(rng: np.random.Generator) -> Any:
    from tallstore.kernels.known_dither import pick

    bits, words = pick.reference(N, 77, 20, 5, np.array([0xFF, 0x0F], np.uint8), 8)
    at = np.unpackbits(bits, count=N, bitorder="little").view(bool)
    every = numbers(rng)
    return np.where(at, np.int8(0), every), bits, words, words + every[at].astype(np.uint16), 40


SYMBOLS = (np.arange(40) % 3).astype(np.uint8)
LEVELS = np.array([0.0, 0.1, 0.5, -0.1, -0.5], np.float32)
SORTING = Quantizer(bounds=(0.01, 0.1), width=0.02)

ARGUMENTS: dict[str, Callable[[np.random.Generator], Any]] = {
    "codecs.adaptive.bits_on": lambda rng: (rng.integers(0, 256, N, np.uint8),),
    "codecs.adaptive.gap_list": symbols,
    "codecs.codebook.count_indices": lambda rng: (rng.integers(0, 16, N).astype(np.uint8), 16),
    "codecs.codebook.nearest": lambda rng: (floats(rng), LEVELS),
    "codecs.codebook.pack_indices": lambda rng: (rng.integers(0, 16, N).astype(np.uint8), 4),
    "codecs.codebook.without_zeros": lambda rng: ((on := rng.integers(0, 3, N).astype(np.uint8)), int((on > 0).sum())),
    "codecs.dare_contexts.costs_of_groups": lambda rng: (few(rng, (5, 16, 8)),),
    "codecs.planes.split_words": lambda rng: (rng.integers(0, 2**32, N).astype(np.uint32), True),
    "encoder.metrics.agreement": lambda rng: (torch.from_numpy(floats(rng)), torch.from_numpy(floats(rng))),
    "encoder.quantize.agreement_of_levels": lambda rng: (
        *(floats(rng), LEVELS, rng.integers(0, 5, N).astype(np.uint8), None, FLOAT32),
    ),
    "encoder.moved_elements.scattered": lambda rng: (SYMBOLS, np.sort(rng.permutation(N)[:40]).astype(np.uint32), N, 2),
    "encoder.mark_codes.signed_levels": lambda rng: (rng.integers(0, 255, N).astype(np.uint8), 127),
    "encoder.quantize.sort_by_level": lambda rng: (
        *(np.zeros(N, np.uint8), floats(rng), SORTING, (3 * np.arange(N)).astype(np.uint32), 9),
    ),
    "encoder.rounded_levels.place_rounded": rounded,
    "encoder.row_bits.same_and_largest": lambda rng: near(rng, torch.float16)[:2],
    "encoder.row_bits.same_bits": lambda rng: near(rng, torch.float32)[:2],
    "encoder.tile.task_vector": lambda rng: near(rng, (torch.float16, torch.bfloat16)[int(rng.integers(2))])[:2],
    "kernels.known_dither.choose_classes": lambda rng: (rng.integers(0, 9, 4096).astype(np.float64), 40000),
    "kernels.known_dither.count_bins": lambda rng: (symbols(rng)[0], N, 77, 2),
    "kernels.known_dither.pack_numbers": lambda rng: (np.sign(numbers(rng)),),
    "kernels.known_dither.pick": lambda rng: (
        N,
        int(rng.integers(2**32)),
        18,
        13,
        rng.integers(0, 256, 6, np.uint8),
        6,
    ),
    "kernels.known_dither.put_back": put,
    "kernels.known_dither.take_marks": lambda rng: (symbols(rng)[0], N, 77, 19, 13, 0, live(rng)),
    "kernels.known_dither.take_numbers": lambda rng: (numbers(rng), 77, 20, 16, 1, live(rng)),
    "kernels.known_dither.unpack_numbers": lambda rng: (symbols(rng)[0], N),
    "kernels.low_rank.add_product": product,
    "recipes.histogram.magnitudes": lambda rng: (floats(rng), floats(rng)),
    "recipes.norm_match.squared_norms": tile,
    "recipes.sampled_changes.changes_by_bin": changes,
    "recipes.sampled_changes.costs_of_steps": steps_tried,
    "recipes.rate_distortion.choices": lambda rng: (magnitudes(rng), 3.0),
    "recipes.rate_distortion.dithered": lambda rng: (magnitudes(rng), 3.0),
    "recipes.rate_distortion.hard": lambda rng: (magnitudes(rng), 3.0),
    "recipes.rate_distortion.hull_of": lambda rng: (rng.random(50), rng.random(50)),
    "recipes.rate_distortion.prices": lambda rng: (magnitudes(rng), [np.array([0.5]), np.array([0.2, 1.0])]),
}
"""For every kernel of the table, arguments that the native library takes."""
BY_NAME: dict[str, list[dict[str, bool]]] = {
    "recipes.sampled_changes.costs_of_steps": [{"nearest": False}, {"nearest": True}],
}
"""Those that some are given by name, each by turns."""


def test_every_kernel_has_arguments_here() -> None:
    assert sorted(ARGUMENTS) == sorted(KERNELS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_native_and_reference_give_the_same(name: str, native: str) -> None:
    assert native
    for seed, more in itertools.product(range(3), BY_NAME.get(name, [{}])):
        quick, slow = (ARGUMENTS[name](np.random.default_rng(seed)) for _ in range(2))
        made = KERNELS[name]
        assert made.is_native(*quick, **more)
        assert said(made(*quick, **more), quick) == said(made.reference(*slow, **more), slow)


@pytest.mark.parametrize("width", [0.0, 0.02])
def test_levels_of_rows_of_which_blocks_never_moved(native: str, width: float) -> None:
    """They are passed over: whole ones, one of −0, one with a single number, and what follows the last whole one."""
    assert native
    tau = floats(np.random.default_rng(3), 6 * 1024 + 300)
    tau[1024:3072], tau[2048:3072], tau[4096:5120] = 0, -0.0, 0
    tau[5000], tau[6144:] = 0.3, 0
    levels, indices = Quantizer(bounds=(0.01, 0.1), width=width), np.ones((2, len(tau)), np.uint8)
    sort, measure = (KERNELS[f"encoder.quantize.{name}"] for name in ("sort_by_level", "agreement_of_levels"))
    found = sort(indices[0], tau, levels, None, 9), sort.reference(indices[1], tau, levels, None, 9)
    assert said(found[0], [indices[0]]) == said(found[1], [indices[1]])
    for table in (LEVELS, LEVELS + np.float32(0.25)):  # the second adds something everywhere
        arguments = tau, table, indices[0], None, FLOAT32
        assert measure(*arguments) == measure.reference(*arguments)


def said(result: Any, arguments: Any) -> list[bytes]:
    """All bits of what a kernel returned and of the arrays that it was given, which it may have set."""
    return [*parts(result), *(bits for each in arguments for bits in parts(each))]


def parts(value: Any) -> list[bytes]:
    if isinstance(value, (tuple, list)):
        return [bits for each in value for bits in parts(each)]
    if isinstance(value, torch.Tensor):
        return parts(value.contiguous().view(torch.uint8).numpy())
    if isinstance(value, np.ndarray):
        return [np.ascontiguousarray(value).tobytes()]
    if isinstance(value, Magnitudes):
        return [*parts(value.counts), pickle.dumps((value.first, float(value.base_energy)))]
    return [repr(value).encode()]


def test_arguments_that_the_library_does_not_take_go_to_the_reference(native: str) -> None:
    assert native
    same_bits = KERNELS["encoder.row_bits.same_bits"]
    assert not same_bits.is_native(torch.zeros(0), torch.zeros(0))
    assert same_bits(torch.zeros(0), torch.zeros(0))
    assert not same_bits(torch.zeros(3), -torch.zeros(3))


def test_the_reference_is_called_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    @kernel
    def who() -> str:
        """Who was called."""
        return "reference"

    @who.native
    def _() -> str:
        return "native"

    del KERNELS[who.name]
    assert who.__doc__ == "Who was called."
    monkeypatch.setenv("TALLSTORE_KERNELS", "reference")
    assert who() == "reference"
    monkeypatch.delenv("TALLSTORE_KERNELS")
    assert who() == ("reference" if registry.library.chosen() is None else "native")


def test_kernels_are_sent_by_name() -> None:
    for made in KERNELS.values():
        assert pickle.loads(pickle.dumps(made)) is made


def test_the_package_asks_nowhere_else_whether_a_function_has_a_kernel() -> None:
    """Besides the table, whole jobs are decided in these modules, each once."""
    asking = {
        str(path.relative_to(tallstore.__path__[0]))
        for path in Path(tallstore.__path__[0]).rglob("*.py")
        if any(way in path.read_text() for way in ("library.chosen()", "library.kernels_of("))
    }
    assert asking == {
        "encoder/backend.py",
        "encoder/fused_rows.py",
        "kernels/registry.py",
        "kernels/dare_fast.py",
        "kernels/decoding_backends.py",
        "kernels/drift_fast.py",
        "kernels/lattice_fast.py",
        "kernels/native/choices.py",
        "kernels/native/encode.py",
        "kernels/native/known_dither.py",
        "kernels/native/levels.py",
        "kernels/native/low_rank.py",
        "kernels/native/sampled.py",
        "kernels/products.py",
    }
