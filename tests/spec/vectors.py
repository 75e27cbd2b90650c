"""The conformance vectors as they lie in `spec/vectors`: found, never made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2] / "spec"
VECTORS = ROOT / "vectors"
VALID = sorted(path.name for path in (VECTORS / "valid").iterdir())
INVALID = sorted(path.name for path in (VECTORS / "invalid").iterdir())

Plain = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Tensor name → element type, shape, bytes; in order."""


def read_plain(path: Path) -> Plain:
    """A safetensors file as bytes, whatever its types."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:begin])
    return {
        name: (
            facts["dtype"],
            tuple(facts["shape"]),
            data[begin + facts["data_offsets"][0] : begin + facts["data_offsets"][1]],
        )
        for name, facts in header.items()
    }


@dataclass(frozen=True)
class Vector:
    """One vector."""

    folder: Path

    @property
    def archive(self) -> Path:
        """The archive, a file or a folder."""
        return next(path for path in self.folder.iterdir() if path.stem == "archive")

    @property
    def base(self) -> Path | None:
        """The referenced base, where there is one."""
        found = self.folder / "base.safetensors"
        return found if found.is_file() else None

    @property
    def expected(self) -> dict[str, Any]:
        """What an invalid vector must raise."""
        found: dict[str, Any] = json.loads((self.folder / "expected.json").read_text(encoding="utf-8"))
        return found

    def decoded(self, folder: str = "decoded") -> dict[str, Plain]:
        """Every task of a valid vector, decoded."""
        return {path.stem: read_plain(path) for path in sorted((self.folder / folder).glob("*.safetensors"))}


def valid(name: str) -> Vector:
    """A valid vector."""
    return Vector(VECTORS / "valid" / name)


def invalid(name: str) -> Vector:
    """An invalid vector."""
    return Vector(VECTORS / "invalid" / name)
