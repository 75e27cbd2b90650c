"""JSON that stays JSON: one value of a text taken out, put elsewhere, or exchanged for one that readers stumble over."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tallstore import codecs
from tallstore.format import limits
from tallstore.format.dtypes import ITEM_BYTES
from tallstore.format.part import KINDS_IN_PART

from .base import Plain

NUMBERS = (
    0, 1, 2, 3, 7, 8, 63, 64, 255, 256, 1023, 1024, 1025, 2048, limits.CHUNK_MAX, limits.HEADER_BYTES,
    limits.FILE_BYTES, 1 << 31, (1 << 32) - 1, limits.ELEMENTS, limits.ELEMENTS + 1, limits.INTEGER,
    limits.INTEGER + 1, 1 << 63, 1 << 64, -1, -(1 << 31), 0.0, -0.0, 0.5, 1e-45, 3.4e38, 1e39, 1e308,
)  # fmt: skip
WORDS = (
    *ITEM_BYTES, *codecs.MASK, *codecs.VECTOR, *codecs.WHOLE, *KINDS_IN_PART, *sorted(set().union(*KINDS_IN_PART.values())),
    "", ".", "..", "/", "../x", "tall.json", "con", "a" * 300, "\u00e9", "e\u0301", "\x00", "\ud800", "\u202e", "__metadata__",
    "rows", "scales", "to", "base", "chunk", "chunks", "1.0", "1.9", "2.0", "embed", "reference", "tallstore",
)  # fmt: skip
ODD = (None, True, False, [], {}, [[]], {"": 0})

Place = tuple[Any, Any]
"""A container, and the key or index of a value in it."""


def places(value: Any) -> list[Place]:
    """Every value of a document, by the container that holds it."""
    found: list[Place] = []
    waiting = [value]
    while waiting:
        here = waiting.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        found += [(here, key) for key in keys]
        waiting += [here[key] for key in keys]
    return found


def _exchange(document: Any, place: Place, chance: random.Random) -> None:
    held, key = place
    other = chance.choice(places(document))
    held[key] = json.loads(json.dumps(other[0][other[1]]))


def _number(document: Any, place: Place, chance: random.Random) -> None:
    held, key = place
    old = held[key]
    near = [old + step for step in (-1, 1, 8, -8)] + [2 * old, -old] if type(old) in {int, float} else []
    held[key] = chance.choice([*NUMBERS, *near * 8])


def _word(document: Any, place: Place, chance: random.Random) -> None:
    place[0][place[1]] = chance.choice(WORDS)


def _odd(document: Any, place: Place, chance: random.Random) -> None:
    place[0][place[1]] = json.loads(json.dumps(chance.choice(ODD)))


def _remove(document: Any, place: Place, chance: random.Random) -> None:
    del place[0][place[1]]


def _rename(document: Any, place: Place, chance: random.Random) -> None:
    held, key = place
    if not isinstance(held, dict):
        held.append(json.loads(json.dumps(held[key])))
        return
    names = [k for container, k in places(document) if isinstance(container, dict)]
    held[chance.choice([*names, *WORDS])] = held[key] if chance.random() < 0.5 else held.pop(key)


def _swap(document: Any, place: Place, chance: random.Random) -> None:
    held, key = place
    other = chance.choice([k for container, k in places(document) if container is held])
    held[key], held[other] = held[other], held[key]


_WAYS: tuple[Callable[[Any, Place, random.Random], None], ...] = (
    _exchange, _exchange, _number, _number, _word, _odd, _remove, _rename, _swap,
)  # fmt: skip


def change(document: Any, chance: random.Random) -> None:
    """One change, in place. A value of its own kind comes more often than any other."""
    found = places(document)
    if not found:
        return
    place = chance.choice(found)
    value = place[0][place[1]]
    way = chance.choice(_WAYS)
    if chance.random() < 0.5:
        way = _number if type(value) in {int, float} else _word if isinstance(value, str) else way
    way(document, place, chance)


def dumps(document: Any) -> bytes:
    """As the format's writers write it; half a surrogate pair goes out as an escape."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(document, separators=(",", ":")).encode()


def loads(data: bytes) -> Any:
    """The document, or None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def mutate(data: bytes, most: int, chance: random.Random, plain: Plain) -> bytes:
    """A few changes of a document; now and then of its text."""
    document = loads(data)
    if not isinstance(document, dict | list) or chance.random() < 0.2:
        return plain(data, most)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        change(document, chance)
    return dumps(document)
