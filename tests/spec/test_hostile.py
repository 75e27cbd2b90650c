"""What is too large to commit as a vector: texts and chunks that would take a careless reader minutes or gigabytes."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from tallstore.codecs import MASK, zstd
from tallstore.errors import FormatError, TaskNameError
from tallstore.format import limits, strict_json
from tallstore.format.names import check_task_names

TEXTS: dict[str, Callable[[], bytes]] = {
    "a string of escapes that never ends": lambda: b'["' + b'\\"' * 1_000_000,
    "a string that ends in a backslash": lambda: b'["' + b'\\"' * 1_000_000 + b"\\",
    "quotes alone": lambda: b'"' * 1_000_001,
    "a doubled key behind many others": lambda: (
        b"{" + b",".join(b'"%d":0' % i for i in range(100_000)) + b',"99999":0}'
    ),
    "brackets that never close": lambda: b"[" * 4_000_000,
    "brackets that never open": lambda: b"]" * 4_000_000,
    "a number of a million digits": lambda: b"[" + b"1" * 1_000_000 + b"]",
}


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_json_is_refused_in_linear_time(name: str) -> None:
    text = TEXTS[name]()
    begun = time.monotonic()
    with pytest.raises(FormatError):
        strict_json.loads(text, "x")
    assert time.monotonic() - begun < 5


def test_a_long_string_takes_no_more_than_its_size() -> None:
    text = b'["' + b"a" * 8_000_000 + b'"]'
    tracemalloc.start()
    try:
        strict_json.loads(text, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(text)


def test_gaps_whose_sum_overflows_32_bits_are_refused() -> None:
    n = limits.CHUNK_MAX
    frame = zstd.compress(np.full(n, 254, np.uint8))
    data = struct.pack("<B3xIII", 1, n, n, len(frame)) + frame
    assert len(data) < 1 << 16
    with pytest.raises(FormatError, match="fit"):
        MASK["adaptive"].decode(data, "binary", n)


def test_a_task_named_twice_is_refused() -> None:
    with pytest.raises(TaskNameError):
        check_task_names(["mnist", "mnist"])


def test_as_many_task_names_as_there_may_be_are_checked_quickly() -> None:
    begun = time.monotonic()
    check_task_names(f"task-{n}" for n in range(limits.TASKS))
    assert time.monotonic() - begun < 5
