"""What stands in for libFuzzer where atheris is not to be had: the same inputs and mutators, and no idea of coverage."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

from .base import Target, guarded


def plain(data: bytes, most: int, chance: random.Random) -> bytes:
    """One change of bytes as they lie."""
    at = chance.randrange(len(data) + 1)
    length = chance.choice((1, 1, 2, 4, 8, 64))
    way = chance.randrange(5)
    if way == 0:
        return data[:at] + data[at + length :]
    if way == 1:
        return (data[:at] + chance.randbytes(length) + data[at:])[:most]
    if way == 2:
        word = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\x80", b"\xff" * 4, b"\xff" * 8))
        return (data[:at] + word + data[at + len(word) :])[:most]
    if way == 3:
        start = chance.randrange(len(data) + 1)
        return (data[:at] + data[start : start + length] + data[at:])[:most]
    out = bytearray(data or b"\0")
    out[at % len(out)] ^= 1 << chance.randrange(8)
    return bytes(out)[:most]


def fuzz(target: Target, flags: Sequence[str]) -> None:
    """Run a target as libFuzzer's flags of the same names say; an input that is a finding is kept, and raised for."""
    said = dict(re.findall(r"-(\w+)=(\S+)", " ".join(flags)))
    chance = random.Random(int(said["seed"]))
    run = guarded(target.run)
    inputs = [path.read_bytes() for path in sorted(Path(flags[-1]).iterdir())]
    runs, end = int(said.get("runs", 1 << 62)), time.monotonic() + float(said.get("max_total_time", 1e9))
    done = 0
    while done < runs and time.monotonic() < end:
        data = inputs[done] if done < len(inputs) else _mutated(target, chance.choice(inputs), chance)
        done += 1
        try:
            run(data)
        except BaseException:
            Path(f"{said['artifact_prefix']}crash-{done}").write_bytes(data)
            print(f"stat::number_of_executed_units: {done}\n=== Uncaught Python exception: ===", flush=True)
            raise
    print(f"stat::number_of_executed_units: {done}", flush=True)


def _mutated(target: Target, data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 4))):
        if target.mutate is None:
            data = plain(data, target.max_len, chance)
        else:
            data = target.mutate(data, target.max_len, chance, lambda d, most: plain(d, most, chance))
    return data[: target.max_len]
