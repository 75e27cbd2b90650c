"""What will be read of a far-away archive: ranges joined into blocks, and which blocks are held in memory.

Ranges that touch become one block, up to a size; nothing between two ranges is ever part of one. A block is fetched
when something of it is first read, and with it, as far as memory allows, those that follow.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

from tallstore.stores.base import Range

BLOCK = 8 << 20
"""Bytes that a block grows to; a longer single range is one block."""
HELD = 256 << 20
"""Bytes of fetched blocks that are kept before those that were read whole are let go."""
AHEAD = 16
"""How many blocks behind the one that is read are fetched with it."""

Bytes = Future[memoryview]


@dataclass(eq=False)
class Block:
    """A range that is fetched in one request."""

    path: str
    start: int
    stop: int
    place: int = 0
    """Its place in the order of the plan."""
    data: Bytes | None = None
    served: int = field(default=0)
    """Bytes of it that were read, those read twice counted twice."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start


class BlockPlan:
    """Blocks in the order in which they are expected to be read. Not safe to use from several threads."""

    def __init__(self, submit: Callable[[Block], Bytes]) -> None:
        self._submit = submit
        self._order: list[Block] = []
        self._by_path: dict[str, list[Block]] = {}
        self._held = 0

    def add(self, ranges: Sequence[Range]) -> None:
        """Plan what is not planned yet, to be read after what is."""
        new = [piece for number, wanted in enumerate(ranges) for piece in self._lacking(number, wanted)]
        self._order = [block for block in self._order if block.served < block.size]
        for block in sorted(_joined(new), key=lambda block: block.place):
            self._order.append(block)
            insort(self._by_path.setdefault(block.path, []), block, key=lambda b: b.start)
        self._number()

    def pieces(self, wanted: Range) -> list[tuple[Block | None, int, int]]:
        """What a range is made of, in order: (block, start, stop) in the file; no block for what is not planned."""
        runs: list[tuple[Block | None, int, int]] = []
        at, stop = wanted.start, wanted.start + wanted.length
        for block in self._touching(wanted):
            if at < block.start:
                runs.append((None, at, block.start))
                at = block.start
            runs.append((block, at, min(block.stop, stop)))
            at = min(block.stop, stop)
        if at < stop:
            runs.append((None, at, stop))
        return runs

    def fetch(self, block: Block, size: int) -> Bytes:
        """The block's bytes, of which `size` are about to be used; those that follow it are sent for too."""
        if block.data is None:
            self._send(block)
        for after in islice(self._order, block.place + 1, block.place + 1 + AHEAD):
            if after.data is None and after.served < after.size and self._held + after.size <= HELD:
                self._send(after)
        block.served += size
        data = block.data
        assert data is not None
        if self._held > HELD:
            self._release()
        return data

    def drop(self, path: str | None = None) -> None:
        """Let go of what is held of one file, or of everything: it is fetched anew if it is read again."""
        for each in [path] if path is not None else list(self._by_path):
            for block in self._by_path.pop(each, ()):
                self._let_go(block)
        self._order = [block for block in self._order if block.path in self._by_path]
        self._number()

    def _number(self) -> None:
        for place, block in enumerate(self._order):
            block.place = place

    def _send(self, block: Block) -> None:
        self._held += block.size
        block.data = self._submit(block)

    def _release(self) -> None:
        for blocks in list(self._by_path.values()):
            for block in list(blocks):
                if block.data is not None and block.data.done() and block.served >= block.size and self._held > HELD:
                    self._let_go(block)
                    blocks.remove(block)

    def _let_go(self, block: Block) -> None:
        if block.data is not None:
            block.data.cancel()
            block.data = None
            self._held -= block.size

    def _touching(self, wanted: Range) -> list[Block]:
        blocks = self._by_path.get(wanted.path, [])
        first = max(0, bisect_right(blocks, wanted.start, key=lambda b: b.start) - 1)
        stop = wanted.start + wanted.length
        touching = []
        for block in islice(blocks, first, None):
            if block.start >= stop:
                break
            if block.stop > wanted.start:
                touching.append(block)
        return touching

    def _lacking(self, number: int, wanted: Range) -> Iterator[Block]:
        if not wanted.length:
            return
        for block, start, stop in self.pieces(wanted):
            if block is None:
                yield Block(wanted.path, start, stop, number)


def _joined(pieces: Sequence[Block]) -> Iterator[Block]:
    """Pieces of one file that touch or overlap made one, up to the size of a block."""
    last: Block | None = None
    for piece in sorted(pieces, key=lambda b: (b.path, b.start)):
        if last is None or last.path != piece.path or piece.start > last.stop:
            pass
        elif piece.stop <= last.stop:
            continue
        elif piece.stop - last.start <= BLOCK:
            last.stop, last.place = piece.stop, min(last.place, piece.place)
            continue
        else:
            piece.start = last.stop
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last
