"""How marks and levels are coded: given what drew them where a dither did, and as they were where none did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import drawn_zoo, nothing_dropped, same_bits

import tallstore
from tallstore.codecs import MASK, VECTOR
from tallstore.encoder.mark_codes import code_levels, code_marks
from tallstore.errors import OptionError
from tallstore.kernels.reference import pack

SYMBOLS = ((np.arange(5000) % 7 == 0) * (1 + np.arange(5000) % 2)).astype(np.uint8)
PACKED = pack(SYMBOLS, "signed")
TABLE = np.array([0, 0.25, 0.5, 1, -0.25, -0.5, -1], np.float32)


def test_drawn_marks_are_coded_given_their_dither() -> None:
    codec, data = code_marks(MASK["adaptive"], PACKED, "signed", 5000, 0.1, 77)
    assert (codec, data) == ("dither", MASK["dither"].encode_drawn(PACKED, 5000, 77))
    assert np.array_equal(MASK[codec].decode(data, "signed", 5000), SYMBOLS)


@pytest.mark.parametrize(("mask", "width"), [("adaptive", 0.0), ("bits", 0.1), ("bits+zstd", 0.1)])
def test_other_marks_are_coded_as_was_asked_for(mask: str, width: float) -> None:
    """By another codec, or since no dither drew them."""
    found = code_marks(MASK[mask], PACKED, "signed", 5000, width, 77)
    assert found == (mask, MASK[mask].encode_packed(PACKED, "signed", 5000))
    binary = pack(SYMBOLS & 1, "binary")
    assert code_marks(MASK[mask], binary, "binary", 5000, width, 77).codec == mask


@pytest.mark.parametrize("used", [0, 1, 2, 3])
def test_drawn_levels_are_coded_up_to_the_last_that_is_used(used: int) -> None:
    indices = np.concatenate([np.arange(used + 1), np.arange(4, 4 + used)]).repeat(50).astype(np.uint8)
    counts = np.bincount(indices, minlength=7)
    codec, data = code_levels(TABLE, indices, counts, 0.1, 5)
    assert (codec, data[0]) == ("dither-levels", used)
    assert VECTOR[codec].decode(data, len(indices)).tobytes() == TABLE[indices].tobytes()


def test_a_level_of_one_sign_alone_is_coded() -> None:
    indices = np.array([0, 6, 0, 4, 0], np.uint8)
    codec, data = code_levels(TABLE, indices, np.bincount(indices, minlength=7), 0.1, 5)
    assert VECTOR[codec].decode(data, 5).tolist() == [0, -1, 0, -0.25, 0]


@pytest.mark.parametrize(("count", "codec"), [(7, "q4"), (8, "q5"), (15, "q5"), (16, "q8"), (127, "q8")])
def test_other_levels_are_in_the_smallest_codebook(count: int, codec: str) -> None:
    table = np.arange(1, count + 1, dtype=np.float32)
    table = np.concatenate([np.zeros(1, np.float32), table, -table])
    indices = (np.arange(900) % len(table)).astype(np.uint8)
    found = code_levels(table, indices, np.bincount(indices, minlength=len(table)), 0.0, 5)
    assert found.codec == codec
    assert np.array_equal(VECTOR[codec].decode(found.data, 900), table[indices])


@pytest.mark.parametrize(("quality", "drawn"), [("small", "dither"), ("high", "dither-levels")])
def test_an_archive_needs_the_version_of_what_it_uses(
    quality: str, drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And comes back as one of another codec does; where nothing is drawn, any reader of 1.0 takes it."""
    nothing_dropped(monkeypatch)
    base, task = drawn_zoo()
    for mask in ("adaptive", "bits"):
        tallstore.pack(base, {"a": task}, tmp_path / mask, quality=quality, mask=mask)
    with tallstore.open(tmp_path / "adaptive") as zoo, tallstore.open(tmp_path / "bits") as other:
        codecs = {facts.codec for facts in zoo.tensors("a").values()}
        assert drawn in codecs
        assert zoo.manifest.version == "1.4"
        wanted, found = zoo.state_dict("a"), other.state_dict("a")
        assert all(same_bits(wanted[name], found[name]) for name in wanted)
        zoo.verify()
    with pytest.raises(OptionError, match="dither"):
        tallstore.pack(base, {"a": task}, tmp_path / "asked", quality=quality, mask="dither")
    tallstore.pack(base, {"a": task}, tmp_path / "solid", recipe="fit")
    with tallstore.open(tmp_path / "solid") as zoo:
        assert zoo.manifest.version == "1.0"


def test_levels_of_a_small_tensor_are_in_a_codebook(tmp_path: Path) -> None:
    """What is told of a dither takes more there than it saves."""
    base, task = drawn_zoo()
    few = {"few": torch.zeros(40, 50)}
    moved = {"few": torch.randn(40, 50, generator=torch.Generator().manual_seed(1))}
    tallstore.pack(base | few, {"a": task | moved}, tmp_path / "zoo.tall", quality="high", allow_distant=True)
    with tallstore.open(tmp_path / "zoo.tall") as zoo:
        facts = zoo.tensors("a")
        assert facts["few"].kind == "delta"
        assert facts["few"].codec in {"q4", "q5", "q8"}
