"""Which tensors of a checkpoint are codes of quantized weights, or say what those codes stand for.

Codes times scales are the weights: a scale that is a little off bends every weight of its block, so none of these is
ever approximated. They are told by how tensors are named and typed side by side, whoever wrote them; the checkpoint's
configuration only tells what they are called.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tallstore.checkpoints.base import Checkpoint, TensorInfo
from tallstore.format.dtypes import MASKABLE

__all__ = ["Quantized", "find_quantized"]

_FEWEST = 256
"""Elements from which on integers are taken for codes: fewer are counters and the like."""
_NO_CODES = frozenset({*MASKABLE, "BOOL", "I64", "U64", "C64"})
"""Types in which nobody packs codes; 64-bit integers are positions and indices."""
_PARAMETER = re.compile(
    r"(^|[._])(scales?|scaling|zeros?|zps?|qzeros|absmax|quant\w*|code(book)?s?|scb|s|g_idx|perm|permutation|shape|amax"
    r"|meta|offsets?|bit_width|min_val|max_val)(?![a-z])",
    re.IGNORECASE | re.ASCII,
)
"""In the last piece of a name: a parameter of quantization."""
_CONFIG, _SETTINGS = "config.json", ("quantization_config", "compression_config")
_MOST = 1 << 24
"""Bytes of a configuration that are read."""
_LONGEST = 80
"""Characters of what it is called."""


@dataclass(frozen=True)
class Quantized:
    """The quantized tensors of a checkpoint."""

    form: str
    """What people call this form of quantization: `compressed-tensors int4`, `MXFP4` …"""
    tensors: frozenset[str]
    """Codes and everything that says what they stand for."""


def find_quantized(checkpoint: Checkpoint) -> Quantized | None:
    """The quantized tensors of a checkpoint; None where it has none."""
    infos = checkpoint.tensors
    codes = {name for name, info in infos.items() if info.dtype not in _NO_CODES and info.numel >= _FEWEST}
    if not codes:
        return None
    below: dict[str, set[str]] = defaultdict(set)
    for name in codes:
        pieces = name.split(".")
        for n in range(len(pieces) + 1):
            below[".".join(pieces[:n])].add(name)
    quantized: set[str] = set()
    for name in infos:
        module, _, last = name.partition(".quant_state.")[0].rpartition(".")
        if ".quant_state." in name:
            module, last = f"{module}.{last}", "quant_state"
        if not _PARAMETER.search(last):
            continue
        # Whole models are not modules: a scale at the top belongs to codes beside it alone.
        with_codes = below[module] if module else {code for code in codes if "." not in code}
        if with_codes - {name}:
            quantized |= {name, *with_codes}
    if not quantized:
        return None
    return Quantized(_configured(checkpoint) or _told(infos, quantized), frozenset(quantized))


# What it is called.


def _configured(checkpoint: Checkpoint) -> str:
    """By the checkpoint's configuration, or a component's; empty where none says anything."""
    for name, path in checkpoint.files.items():
        if name.rpartition("/")[2] == _CONFIG and (method := _read(path)):
            return method
    return ""


def _read(path: Path) -> str:
    try:
        config: Any = json.loads(path.read_bytes()) if path.stat().st_size <= _MOST else None
    except (OSError, ValueError, RecursionError):
        return ""  # whoever needs the configuration will say so
    for key in _SETTINGS:
        for place in (config, _member(config, "text_config")):
            settings = _member(place, key)
            method = _member(settings, "quant_method")
            if isinstance(method, str):
                return " ".join(dict.fromkeys([method, *_DETAILS.get(method, _by_bits)(settings)]))[:_LONGEST]
    return ""


def _member(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _by_bits(settings: Any) -> list[str]:
    bits = next((value for key in ("bits", "w_bit", "nbits") if isinstance(value := _member(settings, key), int)), None)
    return [] if bits is None else [f"int{bits}"]


def _of_groups(settings: Any) -> list[str]:
    groups = _member(settings, "config_groups")
    weights = [_member(each, "weights") for each in groups.values()] if isinstance(groups, Mapping) else []
    return [f"{_member(each, 'type')}{_member(each, 'num_bits')}" for each in weights if isinstance(each, Mapping)]


def _of_bitsandbytes(settings: Any) -> list[str]:
    if not (_member(settings, "load_in_4bit") or _member(settings, "_load_in_4bit")):
        return ["int8"]
    return [str(_member(settings, "bnb_4bit_quant_type") or "4-bit")]


def _of_torchao(settings: Any) -> list[str]:
    kind = _member(_member(_member(settings, "quant_type"), "default"), "_type") or _member(settings, "quant_type")
    return [kind] if isinstance(kind, str) else []


_DETAILS: Mapping[str, Callable[[Any], list[str]]] = {
    "compressed-tensors": _of_groups,
    "bitsandbytes": _of_bitsandbytes,
    "torchao": _of_torchao,
}


_BY_NAME = (
    (r"\.quant_state\.bitsandbytes__(\w+)$", r"bitsandbytes \1"),
    (r"\.SCB$", "bitsandbytes int8"),
    (r"(^|[._])weight_packed$", "compressed-tensors"),
    (r"\.qzeros$", "GPTQ or AWQ"),
    (r"_blocks$", "MXFP4"),
    (r"_scale_inv$", "FP8 with block scales"),
    (r"_qdata$", "torchao"),
    (r"\.W_q$", "HQQ"),
    (r"\._data$", "quanto"),
)
"""Names that only one form has, and what it is called."""


def _told(infos: Mapping[str, TensorInfo], quantized: set[str]) -> str:
    for pattern, form in _BY_NAME:
        for name in infos:
            if name in quantized and (match := re.search(pattern, name)):
                return match.expand(form)
    return (
        f"{next(infos[name].dtype for name in infos if name in quantized and infos[name].dtype not in _NO_CODES)} codes"
    )
