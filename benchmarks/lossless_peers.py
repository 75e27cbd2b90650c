"""Peers of `lossless.py`: what other packages make of a tensor, or of a whole checkpoint, given the base's.

Packages that are not installed are left out. All of it is one thread's work, on bytes in memory where the package takes
these, on files where it does not.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

_NAMES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
_LONG = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
Bytes = np.ndarray


class Peer(NamedTuple):
    """A way to code a tensor's bytes, given the base's and the type by the format's name; and back."""

    encode: Callable[[Bytes, Bytes, str], Any]
    decode: Callable[[Any, Bytes, str], Any]
    size: Callable[[Any], int] = len


def tensor_peers(*, others: bool) -> dict[str, Peer]:
    """By name. `others`: other packages too."""
    found = {"xor": Peer(_xor, _undo_xor, lambda planes: sum(map(len, planes)))}
    z4ai, zipnn = (optional(name) if others else None for name in ("z4ai", "zipnn"))
    if z4ai is not None:
        found["z4ai"] = Peer(
            lambda new, old, dtype: z4ai.compress_delta(new.tobytes(), old.tobytes(), dtype=_NAMES[dtype], threads=1),
            lambda data, old, _: z4ai.decompress_delta(data, old.tobytes()),
        )
    if zipnn is not None:

        def tool(dtype: str) -> Any:
            return zipnn.ZipNN(input_format="byte", bytearray_dtype=_LONG[dtype], threads=1)

        found["zipnn"] = Peer(
            lambda new, _, dtype: tool(dtype).compress(bytearray(new.tobytes())),
            lambda data, _, dtype: tool(dtype).decompress(data),
        )
        found["zipnn of xor"] = Peer(
            lambda new, old, dtype: tool(dtype).compress(bytearray((new ^ old).tobytes())),
            lambda data, old, dtype: np.frombuffer(tool(dtype).decompress(data), np.uint8) ^ old,
        )
    return found


def _xor(new: Bytes, old: Bytes, dtype: str) -> list[bytes]:
    item = {"F32": 4, "BF16": 2, "F16": 2}[dtype]
    split = np.ascontiguousarray((new ^ old).reshape(-1, item).T)
    return [zstandard.compress(plane, 3) for plane in split]


def _undo_xor(planes: list[bytes], old: Bytes, _: str) -> Bytes:
    split = [np.frombuffer(zstandard.decompress(plane), np.uint8) for plane in planes]
    found: Bytes = np.stack(split, axis=1).reshape(-1) ^ old
    return found


def file_peers(base: Path, task: Path) -> Iterator[tuple[str, int, float, float]]:
    """Name, bytes, and processor seconds to encode and to decode, of packages that take whole files."""
    reminis = optional("reminis")
    if reminis is not None:
        with tempfile.TemporaryDirectory() as folder, io.StringIO() as nowhere:
            at = Path(folder)
            names = [str(at / name) for name in ("base.db", "task.db", "delta.db", "back.db")]
            with contextlib.redirect_stdout(nowhere):
                reminis.safetensors_to_sqlite(str(base), names[0], verbose=False)
                start = time.process_time()
                reminis.safetensors_to_sqlite(str(task), names[1], verbose=False)
                reminis.diff_models(*names[:3], verbose=False)
                middle = time.process_time()
                reminis.apply_delta(names[0], names[2], names[3], verify=False, verbose=False)
                end = time.process_time()
            yield "reminis", Path(names[2]).stat().st_size, middle - start, end - middle
    bigsmall = optional("bigsmall")
    if bigsmall is not None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            coded = Path(folder) / "task.bs"
            start = time.process_time()
            bigsmall.compress_delta(task, base, coded, workers=1, progress=False)
            middle = time.process_time()
            bigsmall.decompress_delta(coded, base, progress=False)
            end = time.process_time()
            yield "bigsmall", coded.stat().st_size, middle - start, end - middle


def optional(name: str) -> Any:
    """A package, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
