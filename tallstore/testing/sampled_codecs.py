"""What a codec must do that keeps a share of the changes: be right where it says that it is, and refuse all else."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import numpy as np

from tallstore.codecs.base import Bytes
from tallstore.codecs.dare import DareCodec
from tallstore.errors import FormatError
from tallstore.kernels.conversion import to_bf16
from tallstore.kernels.dare import SHARES, Sampling, as_float, units
from tallstore.kernels.lattice import LATTICES, LEVELS
from tallstore.kernels.low_rank import LARGEST, LowRank
from tallstore.testing.codecs import SIZES, survives_within
from tallstore.testing.raised import refused

__all__ = ["SampledCodecContract"]

_FEW = 1024
"""Elements of chunks that are damaged in every way."""


class SampledCodecContract(ABC):
    """Inherit as `class TestX(SampledCodecContract)` and name the codec."""

    codec: ClassVar[DareCodec]
    dtypes: ClassVar[tuple[str, ...]] = ("BF16", "F16")

    def _pairs(self, dtype: str) -> Iterator[tuple[Bytes, Bytes]]:
        """Weights, and what is a few units in the last place beside them."""
        kind = LATTICES[dtype]
        for n in SIZES:
            rng = np.random.default_rng(n)
            exponents = rng.integers(kind.mask // 2 - 9, kind.mask // 2 + 2, n) << kind.shift
            base = (exponents | rng.integers(0, 1 << kind.shift, n) | rng.integers(0, 2, n) << 15).astype(kind.word)
            steps = rng.integers(-2, 3, n).astype(kind.word)
            yield base.view(np.uint8), kind.turned(kind.turned(base) + steps).view(np.uint8)

    def _samplings(self, dtype: str) -> Iterator[Sampling]:
        """All, some and next to none, with fine widths and coarse ones."""
        low = LATTICES[dtype].mask // 2 - 9
        unit = units(dtype, low).astype(np.float32)
        for share, width in ((SHARES, 1), (SHARES, 3), (SHARES // 8, 8), (40000, 1.5), (1, 4096)):
            yield Sampling(low, np.full(LEVELS, share - 1, np.uint16), to_bf16(unit * np.float32(width)))
        shares = np.arange(LEVELS, dtype=np.uint16) * np.uint16(4369)
        yield Sampling(low, shares, to_bf16((unit * np.arange(LEVELS, 0, -1)).astype(np.float32)))

    def _products(self, n: int) -> Iterator[LowRank]:
        """What may be added to n elements: few components and many, whole rows or not; to every fourth row nothing."""
        for rank, width, gone in (
            (1, 2, 0),
            (1, 7, 3),
            (2, 8, 7),
            (3, 20, 1),
            (5, 31, 30),
            (24, 64, 5),
            (64, 140, 139),
        ):
            rows = -(-(gone + n) // width)
            if rank * (rows + width) > n:
                continue
            rng = np.random.default_rng(n + rank)
            across, along = (rng.integers(-LARGEST, LARGEST + 1, (rank, m)).astype(np.int8) for m in (rows, width))
            across[:, ::4] = 0
            of = LowRank(np.float32(2.0**-20), rng.integers(0, 5, rank).astype(np.uint8), across, along, gone)
            yield of
            yield of._replace(scale=np.float32(3e-8))

    def _added(self, dtype: str) -> Iterator[tuple[Bytes, Bytes, LowRank]]:
        """Base, task, and a product that the task has been moved by beside units."""
        for base, raw in self._pairs(dtype):
            for of in self._products(len(base) // 2):
                moved = self._sums(base, dtype, of).view(np.uint16)
                steps = LATTICES[dtype].turned(raw.view(np.uint16)) - LATTICES[dtype].turned(base.view(np.uint16))
                yield base, LATTICES[dtype].turned(LATTICES[dtype].turned(moved) + steps).view(np.uint8), of

    def _sums(self, base: Bytes, dtype: str, of: LowRank) -> Bytes:
        """What the base's elements become, by whole numbers of 64 bits: finite ones alone."""
        words = base.view(np.uint16)
        row, column = np.divmod(of.gone + np.arange(len(words)), of.columns.shape[1])
        products = of.rows.astype(np.int64)[:, row] * of.columns.astype(np.int64)[:, column]
        added = (products << of.shifts.astype(np.int64)[:, None]).sum(0)
        moved = as_float(words, dtype) + of.scale * added.astype(np.float32)
        rounded = to_bf16(moved) if dtype == "BF16" else moved.astype("<f2").view(np.uint16)
        return np.where(added == 0, words, rounded).astype(np.uint16).view(np.uint8)

    def _coded(
        self,
        raw: Bytes,
        base: Bytes,
        dtype: str,
        sampling: Sampling,
        first: int = 5,
        added: LowRank | None = None,
    ) -> tuple[bytes, Bytes]:
        """What is coded, and what comes back of it."""
        coded, out = self.codec.encode(raw, base, dtype, sampling, first, added), base.copy()
        self.codec.decode(coded, out, dtype)
        return coded, out

    def test_the_same_elements_give_the_same_bytes(self) -> None:
        """And it matters nothing where they lie, or what was coded before."""
        for dtype in self.dtypes:
            for base, raw in self._pairs(dtype):
                for sampling in self._samplings(dtype):
                    coded, out = self._coded(raw, base, dtype, sampling)
                    again, same = self._coded(raw.copy(), base.copy(), dtype, Sampling(*sampling), 5)
                    assert coded == again
                    assert (out == same).all()

    def test_where_all_is_kept_whole_units_come_back_to_the_last_bit(self) -> None:
        """All shares are 1, and widths a unit in the last place of the level; other changes are rounded to one."""
        for dtype in self.dtypes:
            every = next(self._samplings(dtype))
            for base, raw in self._pairs(dtype):
                start, stop, found = (
                    as_float(each.view(np.uint16), dtype)
                    for each in (base, raw, self._coded(raw, base, dtype, every)[1])
                )
                unit = units(dtype, every.low)[LATTICES[dtype].levels(base.view(np.uint16), every.low)]
                whole = (stop - start) % unit == 0
                assert (found[whole] == stop[whole]).all()
                assert (np.abs(found - stop) < unit).all()

    def test_next_to_nothing_is_kept_of_the_least_share(self) -> None:
        """One element in 65536: mostly, the base's are what there is."""
        for dtype in self.dtypes:
            for base, raw in self._pairs(dtype):
                for sampling in self._samplings(dtype):
                    none = sampling._replace(shares=np.zeros(LEVELS, np.uint16))
                    assert (self._coded(raw, base, dtype, none)[1] != base).sum() <= 4

    def test_what_did_not_move_stays(self) -> None:
        """Whatever is kept."""
        for dtype in self.dtypes:
            for base, raw in self._pairs(dtype):
                still = (base.view(np.uint16) == raw.view(np.uint16)).repeat(2)
                for sampling in self._samplings(dtype):
                    assert (self._coded(raw, base, dtype, sampling)[1][still] == base[still]).all()

    def test_what_is_no_number_comes_back_to_the_last_bit(self) -> None:
        """Of a chunk that has it, all does: on either side."""
        for dtype in self.dtypes:
            infinite = LATTICES[dtype].mask << LATTICES[dtype].shift
            *_, sampling = self._samplings(dtype)
            for base, raw in self._pairs(dtype):
                for word in (infinite, infinite | 1, infinite | 0x8000):
                    for spoilt in (base, raw):
                        odd = spoilt.copy()
                        odd.view(np.uint16)[-1] = word
                        before, after = (odd if each is spoilt else each for each in (base, raw))
                        assert (self._coded(after, before, dtype, sampling)[1] == after).all()

    def test_damage_is_refused_or_stays_in_range(self) -> None:
        """Never a byte outside of the memory that is there."""
        for dtype in self.dtypes:
            *_, (base, raw) = self._pairs(dtype)
            for sampling in self._samplings(dtype):
                survives_within(self.codec, self._coded(raw, base, dtype, sampling)[0], base, dtype)

    def test_what_is_added_comes_back_to_the_last_bit_where_nothing_else_moved(self) -> None:
        """Whatever is kept of nothing; and from the same elements come the same bytes."""
        for dtype in self.dtypes:
            for base, _, of in self._added(dtype):
                due = self._sums(base, dtype, of)
                assert (due != base).any(), "something is added"
                for sampling in self._samplings(dtype):
                    coded, out = self._coded(due, base, dtype, sampling, added=of)
                    again, same = self._coded(due.copy(), base.copy(), dtype, sampling, added=LowRank(*of))
                    assert coded[0] == 3
                    assert coded == again
                    assert (out == due).all()
                    assert (same == due).all()

    def test_where_all_is_kept_whole_units_come_back_beside_what_is_added(self) -> None:
        """All shares are 1, and widths a unit in the last place of the level of the sum."""
        for dtype in self.dtypes:
            every = next(self._samplings(dtype))
            for base, raw, of in self._added(dtype):
                before = self._sums(base, dtype, of)
                coded, out = self._coded(raw, base, dtype, every, added=of)
                assert coded[0] == 3
                start, stop, found = (as_float(each.view(np.uint16), dtype) for each in (before, raw, out))
                unit = units(dtype, every.low)[LATTICES[dtype].levels(before.view(np.uint16), every.low)]
                whole = (stop - start) % unit == 0
                assert whole.any()
                assert (found[whole] == stop[whole]).all()
                assert (np.abs(found - stop) < unit).all()

    def test_next_to_nothing_is_kept_beside_what_is_added(self) -> None:
        """Of the least share, the sums are what there is, mostly."""
        for dtype in self.dtypes:
            for base, raw, of in self._added(dtype):
                *_, sampling = self._samplings(dtype)
                none = sampling._replace(shares=np.zeros(LEVELS, np.uint16))
                out = self._coded(raw, base, dtype, none, added=of)[1]
                assert (out != self._sums(base, dtype, of)).sum() <= 4

    def test_nothing_is_added_to_what_is_no_number(self) -> None:
        """A chunk that has it, on either side, or whose sums are too large, is coded without."""
        for dtype in self.dtypes:
            infinite = LATTICES[dtype].mask << LATTICES[dtype].shift
            *_, sampling = self._samplings(dtype)
            for base, raw, of in self._added(dtype):
                for spoilt in (base, raw):
                    odd = spoilt.copy()
                    odd.view(np.uint16)[-1] = infinite
                    before, after = (odd if each is spoilt else each for each in (base, raw))
                    coded, out = self._coded(after, before, dtype, sampling, added=of)
                    assert coded[0] == 0
                    assert (out == after).all()
                far = of._replace(scale=np.float32(3e38))
                assert (
                    self._coded(raw, base, dtype, sampling, added=far)[0] == self._coded(raw, base, dtype, sampling)[0]
                )

    def test_no_more_numbers_are_added_than_there_are_elements(self) -> None:
        """Of fewer elements, they are refused."""
        for dtype in self.dtypes:
            *_, sampling = self._samplings(dtype)
            for base, raw, of in self._added(dtype):
                coded, width = self._coded(raw, base, dtype, sampling, added=of)[0], of.columns.shape[1]
                rank, n = len(of.shifts), len(base) // 2
                few = max(m for m in range(n) if rank * (-(-(of.gone + m) // width) + width) > m)
                error = refused(FormatError, partial(self.codec.decode, coded, base[: 2 * few].copy(), dtype))
                assert "more numbers" in str(error)

    def test_damage_of_what_is_added_is_refused_or_stays_in_range(self) -> None:
        """Never a byte outside of the memory that is there."""
        for dtype in self.dtypes:
            for base, raw, of in self._added(dtype):
                if len(base) > 2 * _FEW:
                    continue
                for sampling in self._samplings(dtype):
                    coded, _ = self._coded(raw, base, dtype, sampling, added=of)
                    assert coded[0] == 3
                    survives_within(self.codec, coded, base, dtype)
