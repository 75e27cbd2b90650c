"""Which task names, tensor names and paths an archive may hold.

A task name becomes a folder on every system and a prefix in Hub patterns; a path comes from strangers. Both are
checked when written and again when read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from tallstore.errors import FormatError, TaskNameError
from tallstore.format import limits

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_WINDOWS_DEVICES = {
    "con", "prn", "aux", "nul", "conin$", "conout$", *(f"{d}{n}" for d in ("com", "lpt") for n in "123456789¹²³"),
}  # fmt: skip
_FORBIDDEN = frozenset('\\:*?"<>|[]')
_HIDDEN = {".git", ".cache"}
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def check_task_name(name: object) -> str:
    """Return `name`, or raise TaskNameError saying what is wrong with it and what is allowed."""
    remedy = "use letters, digits, '.', '_' and '-', beginning with a letter or digit"
    if not isinstance(name, str) or not name:
        raise TaskNameError(f"a task name is empty: {remedy}")
    if not _TASK.fullmatch(name) or ".." in name or name.endswith("."):
        raise TaskNameError(f"task name {name!r} is not allowed: {remedy}")
    if len(name) > limits.TASK_NAME_LENGTH:
        raise TaskNameError(f"task name {name[:40]!r}… is longer than {limits.TASK_NAME_LENGTH} characters")
    if name.lower().split(".")[0] in _WINDOWS_DEVICES:
        raise TaskNameError(f"task name {name!r} is a device name on Windows: choose another")
    return name


def check_task_names(names: Iterable[object]) -> list[str]:
    """Check each name, and that no two would be one folder on a file system that ignores case."""
    seen: dict[str, str] = {}
    for each in names:
        name = check_task_name(each)
        if (other := seen.get(name.lower())) is not None:
            raise TaskNameError(f"task names {other!r} and {name!r} are the same on some file systems: rename one")
        seen[name.lower()] = name
    return list(seen.values())


def check_tensor_name(name: object) -> str:
    """Return `name`, or raise FormatError: a tensor name is UTF-8, not empty, without control characters."""
    if not isinstance(name, str) or not name or name == "__metadata__":
        raise FormatError(f"tensor name {name!r} is not allowed")
    _utf8(name, limits.NAME_BYTES, "tensor name")
    if not (name.isascii() and name.isprintable()) and any(unicodedata.category(c) == "Cc" for c in name):
        raise FormatError(f"tensor name {name!r} holds a control character")
    return name


def check_path(path: object) -> str:
    """Return `path`, or raise FormatError: relative, normal, and a plain name on every system, piece by piece."""
    if not isinstance(path, str) or not path:
        raise FormatError(f"path {path!r} is not allowed in an archive")
    _utf8(path, limits.PATH_BYTES, "path")
    plain = path.isascii() and path.isprintable()
    if not plain and unicodedata.normalize("NFC", path) != path:
        raise FormatError(f"path {path!r} is not in Unicode normal form C")
    for piece in path.split("/"):
        if (
            piece in {"", ".", ".."}
            or piece.lower() in _HIDDEN
            or piece != piece.strip()
            or piece.endswith(".")
            or piece.lower().split(".")[0].rstrip() in _WINDOWS_DEVICES
            or not _FORBIDDEN.isdisjoint(piece)
            or (not plain and any(unicodedata.category(c)[0] == "C" for c in piece))
            or len(piece.encode()) > limits.SEGMENT_BYTES
        ):
            raise FormatError(f"path {path!r} is not allowed in an archive")
    return path


def folded(path: str) -> str:
    """What paths have alike that are one where letter case does not count: Unicode's case folding, in form C."""
    return unicodedata.normalize("NFC", path.casefold())


def check_paths(paths: Iterable[object]) -> list[str]:
    """Check each path, that no two are one where case does not count, and that none is a folder of another."""
    seen: set[str] = set()
    checked = []
    for each in paths:
        path = check_path(each)
        if folded(path) in seen:
            raise FormatError(f"path {path!r} is there twice (perhaps in other letter case)")
        seen.add(folded(path))
        checked.append(path)
    for path in checked:
        pieces = folded(path).split("/")
        for n in range(1, len(pieces)):
            if "/".join(pieces[:n]) in seen:
                raise FormatError(f"path {path!r} lies below a path that is a file")
    return checked


def check_file_names(names: Iterable[object], data: Iterable[object] = ()) -> list[str]:
    """Check the names of a model's small files: paths beside each other, none of which could pass for its weights.

    `data`: those of files whose bytes were, or will be, looked at.
    """
    plain = list(names)
    checked = check_paths([*plain, *data])
    for name in checked[: len(plain)]:
        if name.lower().endswith(_WEIGHTS):
            raise FormatError(f"file name {name!r} is one that loaders take weights from")
    return checked


def _utf8(text: str, cap: int, what: str) -> None:
    try:
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise FormatError(f"{what} {text!r} is not Unicode text") from error
    if size > cap:
        raise FormatError(f"{what} {text[:40]!r}… is longer than {cap} bytes")
