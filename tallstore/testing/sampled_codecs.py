"""What a codec must do that keeps a share of the changes: be right where it says that it is, and refuse all else."""

from __future__ import annotations

import struct
from abc import ABC
from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import numpy as np

from tallstore.codecs.base import ALONE, Bytes, Given
from tallstore.codecs.dare import Added, DareCodec
from tallstore.codecs.low_rank import read_low_rank
from tallstore.errors import FormatError
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.kernels.conversion import to_bf16
from tallstore.kernels.dare import SHARES, Sampling, as_float, as_words, units
from tallstore.kernels.lattice import LATTICES, LEVELS
from tallstore.kernels.low_rank import LARGEST, MOST_AN_ELEMENT, LowRank
from tallstore.testing.codecs import SIZES, survives_within
from tallstore.testing.raised import refused

__all__ = ["SampledCodecContract"]

_FEW = 1024
"""Elements of chunks that are damaged in every way, and numbers of columns."""
_LEAST = 63
"""Elements of which some surely move where something is added to them."""


class SampledCodecContract(ABC):
    """Inherit as `class TestX(SampledCodecContract)` and name the codec."""

    codec: ClassVar[DareCodec]
    dtypes: ClassVar[tuple[str, ...]] = ("F32", "BF16", "F16")

    def _pairs(self, dtype: str) -> Iterator[tuple[Bytes, Bytes]]:
        """Weights, and what is a few units in the last place beside them."""
        kind = LATTICES[dtype]
        for n in SIZES:
            rng = np.random.default_rng(n)
            exponents = rng.integers(kind.mask // 2 - 9, kind.mask // 2 + 2, n) << kind.shift
            base = exponents | rng.integers(0, 1 << kind.shift, n) | rng.integers(0, 2, n) << kind.bits - 1
            base = base.astype(kind.word)
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
        """What may be added to n elements: few components and many, rows whole or not; to every fourth row nothing.

        To a row that is a chunk's only one, something.
        """
        for rank, width, gone in (
            (1, 2, 0),
            (1, 7, 3),
            (2, 8, 7),
            (3, 20, 1),
            (5, 31, 30),
            (24, 64, 5),
            (64, 140, 139),
            (3, 6000, 5),
            (2, 600, 599),
        ):
            rows = -(-(gone + n) // width)
            if rank * rows > n or rank * width > MOST_AN_ELEMENT * n or n < _LEAST:
                continue
            rng = np.random.default_rng(n + rank)
            across, along = (rng.integers(-LARGEST, LARGEST + 1, (rank, m)).astype(np.int8) for m in (rows, width))
            across[:, ::4] *= rows == 1
            of = LowRank(np.float32(2.0**-20), rng.integers(0, 5, rank).astype(np.uint8), across, along, gone)
            yield of
            yield of._replace(scale=np.float32(3e-8))

    def _added(self, dtype: str) -> Iterator[tuple[Bytes, Bytes, LowRank]]:
        """Base, task, and a product that the task has been moved by beside units."""
        for base, raw in self._pairs(dtype):
            for of in self._products(len(base) // ITEM_BYTES[dtype]):
                kind = LATTICES[dtype]
                moved, start, stop = (each.view(kind.word) for each in (self._sums(base, dtype, of), base, raw))
                steps = kind.turned(stop) - kind.turned(start)
                yield base, kind.turned(kind.turned(moved) + steps).view(np.uint8), of

    def _sums(self, base: Bytes, dtype: str, of: LowRank) -> Bytes:
        """What the base's elements become, by whole numbers of 64 bits: finite ones alone."""
        words = base.view(LATTICES[dtype].word)
        row, column = np.divmod(of.gone + np.arange(len(words)), of.columns.shape[1])
        products = of.rows.astype(np.int64)[:, row] * of.columns.astype(np.int64)[:, column]
        added = (products << of.shifts.astype(np.int64)[:, None]).sum(0)
        moved = as_float(words, dtype) + of.scale * added.astype(np.float32)
        return np.where(added == 0, words, as_words(moved, dtype)).view(np.uint8)

    def _coded(
        self,
        raw: Bytes,
        base: Bytes,
        dtype: str,
        sampling: Sampling,
        first: int = 5,
        added: LowRank | None = None,
        *,
        with_columns: bool = True,
    ) -> tuple[bytes, Bytes]:
        """What is coded, and what comes back of it."""
        told_first = None if added is None else Added(added, columns_told=with_columns)
        coded, out = self.codec.encode(raw, base, dtype, sampling, first, told_first), base.copy()
        told = None if with_columns or added is None else added.columns.copy
        self.codec.decode(coded, out, dtype, Given(columns=told))
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
                    as_float(each.view(LATTICES[dtype].word), dtype)
                    for each in (base, raw, self._coded(raw, base, dtype, every)[1])
                )
                unit = units(dtype, every.low)[LATTICES[dtype].levels(base.view(LATTICES[dtype].word), every.low)]
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
                still = (base.view(LATTICES[dtype].word) == raw.view(LATTICES[dtype].word)).repeat(ITEM_BYTES[dtype])
                for sampling in self._samplings(dtype):
                    assert (self._coded(raw, base, dtype, sampling)[1][still] == base[still]).all()

    def test_what_is_no_number_comes_back_to_the_last_bit(self) -> None:
        """Of a chunk that has it, all does: on either side."""
        for dtype in self.dtypes:
            infinite = LATTICES[dtype].mask << LATTICES[dtype].shift
            *_, sampling = self._samplings(dtype)
            for base, raw in self._pairs(dtype):
                for word in (infinite, infinite | 1, infinite | 1 << LATTICES[dtype].bits - 1):
                    for spoilt in (base, raw):
                        odd = spoilt.copy()
                        odd.view(LATTICES[dtype].word)[-1] = word
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
                start, stop, found = (as_float(each.view(LATTICES[dtype].word), dtype) for each in (before, raw, out))
                unit = units(dtype, every.low)[LATTICES[dtype].levels(before.view(LATTICES[dtype].word), every.low)]
                whole = (stop - start) % unit == 0
                assert whole.any()
                assert (found[whole] == stop[whole]).all()
                assert (np.abs(found - stop) <= unit).all(), "a whole one by the last rounding, below the lowest level"

    def test_next_to_nothing_is_kept_beside_what_is_added(self) -> None:
        """Of the least share, the sums are what there is, mostly."""
        for dtype in self.dtypes:
            for base, raw, of in self._added(dtype):
                *_, sampling = self._samplings(dtype)
                none = sampling._replace(shares=np.zeros(LEVELS, np.uint16))
                out = self._coded(raw, base, dtype, none, added=of)[1]
                assert (out != self._sums(base, dtype, of)).sum() <= 4

    def test_nothing_is_added_to_what_is_no_number(self) -> None:
        """Nor where sums are too large: a tensor's first chunk tells columns all the same, and rows of 0."""
        for dtype in self.dtypes:
            infinite = LATTICES[dtype].mask << LATTICES[dtype].shift
            *_, sampling = self._samplings(dtype)
            for base, raw, of in self._added(dtype):
                for word, spoilt in ((infinite, base), (infinite, raw), (infinite | 1, base), (infinite | 1, raw)):
                    odd = spoilt.copy()
                    odd.view(LATTICES[dtype].word)[-1] = word
                    before, after = (odd if each is spoilt else each for each in (base, raw))
                    self._tells_columns_alone(after, before, dtype, sampling, of)
                    assert (self._coded(after, before, dtype, sampling, added=of)[1] == after).all()
                self._tells_columns_alone(raw, base, dtype, sampling, of._replace(scale=np.float32(3e38)))

    def _tells_columns_alone(self, raw: Bytes, base: Bytes, dtype: str, sampling: Sampling, of: LowRank) -> None:
        """With columns, and what is coded without a product behind them; where those are told already, that alone."""
        plain, back = self._coded(raw, base, dtype, sampling)
        assert plain[0] != 3
        coded, out = self._coded(raw, base, dtype, sampling, added=of)
        assert coded[0] == 3
        assert coded.endswith(plain)
        assert (out == back).all()
        told, rest = read_low_rank(coded[1:], len(base) // ITEM_BYTES[dtype])
        assert rest.tobytes() == plain
        assert not told.rows.any()
        assert np.array_equal(told.columns, of.columns)
        found = self.codec.columns(coded)
        assert found is not None
        assert np.array_equal(found, of.columns)
        assert self._coded(raw, base, dtype, sampling, added=of, with_columns=False)[0] == plain

    def test_columns_are_told_by_the_first_chunk_alone(self) -> None:
        """What comes back is the same; the others take less by all of the columns."""
        for dtype in self.dtypes:
            for base, raw, of in self._added(dtype):
                for sampling in self._samplings(dtype):
                    first, due = self._coded(raw, base, dtype, sampling, added=of)
                    later, out = self._coded(raw, base, dtype, sampling, added=of, with_columns=False)
                    told = self.codec.columns(first)
                    assert told is not None
                    assert (told == of.columns).all()
                    assert (out == due).all()
                    (a, b), sizes = struct.unpack_from("<II", first, 14 + len(of.shifts)), 14 + len(of.shifts)
                    columns = sizes + 8 + a
                    assert b > 0
                    assert later == first[: sizes + 4] + bytes(4) + first[sizes + 8 : columns] + first[columns + b :]

    def test_fewer_components_than_the_first_chunk_tells_are_the_first_of_them(self) -> None:
        """Whatever shifts and scale they have there."""
        for dtype in self.dtypes:
            every = next(self._samplings(dtype))
            for base, raw, of in self._added(dtype):
                told = self.codec.columns(self.codec.encode(raw, base, dtype, every, 5, Added(of)))
                assert told is not None
                few = len(of.shifts) // 2 + 1
                shifts, rows = of.shifts[::-1][:few].copy(), of.rows[::-1][:few].copy()
                part = LowRank(np.float32(1e-7), shifts, rows, of.columns[:few], of.gone)
                due, out = self._sums(base, dtype, part), base.copy()
                coded = self.codec.encode(due, base, dtype, every, 5, Added(part, columns_told=False))
                self.codec.decode(coded, out, dtype, Given(columns=told.copy))
                assert (out == due).all()

    def test_columns_that_were_not_told_are_refused(self) -> None:
        """Of a first chunk itself, of fewer components, and of another width."""
        for dtype in self.dtypes:
            every = next(self._samplings(dtype))
            for base, raw, of in self._added(dtype):
                coded = self.codec.encode(raw, base, dtype, every, 5, Added(of, columns_told=False))
                rank, width = of.columns.shape
                for given, said in (
                    (Given(), "a product of a tensor's first chunk has no columns"),
                    (Given(columns=of.columns[1:].copy), f"tells {rank - 1} of {width}"),
                    (Given(columns=np.zeros((rank, width + 1), np.int8).copy), f"tells {rank} of {width + 1}"),
                    (Given(columns=partial(self.codec.columns, coded)), "the tensor's first chunk tells of no columns"),
                ):
                    error = refused(FormatError, partial(self.codec.decode, coded, base.copy(), dtype, given))
                    assert str(error).endswith(said)

    def test_no_more_numbers_of_rows_are_added_than_there_are_elements(self) -> None:
        """Of fewer elements, they are refused."""
        for dtype in self.dtypes:
            *_, sampling = self._samplings(dtype)
            for base, raw, of in self._added(dtype):
                rank, width, n = len(of.shifts), of.columns.shape[1], len(base) // ITEM_BYTES[dtype]
                few = [
                    m for m in range(-(-rank * width // MOST_AN_ELEMENT), n) if rank * -(-(of.gone + m) // width) > m
                ]
                if not few:  # of one component, whose rows are those that elements lie in
                    continue
                coded = self._coded(raw, base, dtype, sampling, added=of)[0]
                short = base[: ITEM_BYTES[dtype] * few[-1]].copy()
                error = refused(FormatError, partial(self.codec.decode, coded, short, dtype))
                rows = -(-(of.gone + few[-1]) // width)
                assert str(error) == f"a product of rank {rank} has more numbers of {rows} rows than {few[-1]}"

    def test_damage_of_what_is_added_is_refused_or_stays_in_range(self) -> None:
        """Never a byte outside of the memory that is there."""
        for dtype in self.dtypes:
            for base, raw, of in self._added(dtype):
                if len(base) > ITEM_BYTES[dtype] * _FEW or of.columns.size > _FEW:
                    continue
                for number, sampling in enumerate(self._samplings(dtype)):
                    for begins in (True, False)[: 1 + (number == 0)]:
                        coded, _ = self._coded(raw, base, dtype, sampling, added=of, with_columns=begins)
                        assert coded[0] == 3
                        given = ALONE if begins else Given(columns=of.columns.copy)
                        survives_within(self.codec, coded, base, dtype, given)
