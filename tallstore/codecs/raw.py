"""Whole codec `raw`: the elements' bytes as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tallstore.codecs.base import Buffer, Bytes, WholeCodec
from tallstore.errors import FormatError


class Raw(WholeCodec):
    """Spec: `spec/codecs/raw.md`."""

    id = "raw"

    def encode(self, raw: Bytes, dtype: str) -> bytes:  # noqa: ARG002 - all types alike
        """Copy."""
        return raw.tobytes()

    def encode_pieces(self, raw: Bytes, dtype: str) -> Sequence[Buffer]:  # noqa: ARG002 - all types alike
        """The bytes where they are."""
        return [raw]

    def decode(self, data: Buffer, out: Bytes, dtype: str) -> None:  # noqa: ARG002 - all types alike
        """Copy."""
        given = np.frombuffer(data, np.uint8)
        if len(given) != len(out):
            raise FormatError(f"{len(given)} raw bytes, expected {len(out)}")
        np.copyto(out, given)
