"""What a target is, and what counts as a finding whatever the target."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tallstore.errors import TallstoreError

ROOT = Path(__file__).resolve().parents[2]
VALID = ROOT / "spec" / "vectors" / "valid"
INVALID = ROOT / "spec" / "vectors" / "invalid"
GROWTH = 256 << 10
"""KiB of memory that one input may take: far more than any honest one of its size."""

Plain = Callable[[bytes, int], bytes]
"""The fuzzer's own mutation of bytes: at most so many come out."""
Mutate = Callable[[bytes, int, random.Random, Plain], bytes]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that takes bytes from strangers."""

    run: Callable[[bytes], object]
    """Returns, or raises an error of our own tree; anything else is a finding."""
    seeds: Callable[[], Iterable[bytes]]
    """What to begin from."""
    mutate: Mutate | None = None
    """Mutation that knows how the input is built: input, largest size, a source of chance, plain mutation."""
    max_len: int = 1 << 14


def guarded(run: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """The target as the fuzzer calls it: our own errors pass, if a person can read them; a leap in memory does not."""

    def one(data: bytes) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            run(data)
        except TallstoreError as error:
            assert str(error), "an error says what is wrong"
            assert "\n" not in str(error), "an error is one line"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < GROWTH, f"{len(data)} bytes took {grown >> 10} MiB"

    return one
