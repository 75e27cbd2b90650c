"""JSON as the format allows it: UTF-8, no doubled keys, finite numbers, bounded nesting; and one way to write it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from tallstore.errors import FormatError
from tallstore.format import limits

_STRING = re.compile(rb'"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
"""A string, closed or not: possessive, so that no text takes more than linear time."""
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE = (b"0" * 15, b"0e")
"""What a number has that may be out of range, every digit written as 0."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes, where: str) -> Any:
    """Parse; raise FormatError naming `where` for anything outside the strict subset."""
    bare = _STRING.sub(b"", data)
    if _depth(bare) > limits.JSON_DEPTH:
        raise FormatError(f"{where}: JSON is nested deeper than {limits.JSON_DEPTH}")

    def pairs(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(items)
        if len(members) != len(items):
            doubled = Counter(key for key, _ in items).most_common(1)[0][0]
            raise FormatError(f"{where}: JSON key {doubled!r} is there twice")
        return members

    def constant(text: str) -> NoReturn:
        raise FormatError(f"{where}: JSON number {text} is not finite")

    def integer(text: str) -> int:
        if len(text) > 17 or abs(int(text)) > limits.INTEGER:
            raise FormatError(f"{where}: JSON integer {text[:24]} is out of range")
        return int(text)

    def real(text: str) -> float:
        value = float(text)
        if value in {float("inf"), float("-inf")}:
            raise FormatError(f"{where}: JSON number {text[:24]} is out of range")
        return value

    # A number of few digits and no exponent is in range, and is best left to the parser's own code.
    plain = bare.translate(_DIGITS)
    large = any(sign in plain for sign in _LARGE)
    numbers: dict[str, Any] = {"parse_int": integer, "parse_float": real} if large else {}
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, **numbers)
        if _SURROGATE.search(data):
            dumps(parsed)  # half a surrogate pair is no Unicode text, and cannot be written
    except (UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{where}: not valid JSON ({error})") from error
    return parsed


def dumps(value: Any, *, indent: int | None = None) -> bytes:
    """Write as UTF-8: keys in the order given, no spaces unless `indent`, floats in their shortest exact form."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators, indent=indent).encode("utf-8")


def _depth(bare: bytes) -> int:
    """Most brackets open at once in JSON without its strings; perhaps more in text that is no JSON, never fewer."""
    left = bare.translate(_BRACKETS, _NO_BRACKETS)
    depth = 0
    while b"[]" in left and depth <= limits.JSON_DEPTH:
        left = left.replace(b"[]", b"")
        depth += 1
    return depth + left.count(b"[")
