"""What the pages state in tables and examples is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tallstore import codecs
from tallstore.codecs.base import Given
from tallstore.codecs.low_rank import MOST_NUMBERS, read_low_rank
from tallstore.format.dtypes import ITEM_BYTES, MASKABLE
from tallstore.format.part import _FIELDS, KINDS_IN_PART
from tallstore.format.version import NEWEST
from tallstore.kernels.dare import Sampling, select
from tallstore.kernels.known_dither import pick
from tallstore.kernels.lattice import LATTICES, LEVELS
from tallstore.kernels.low_rank import add_product
from tallstore.kernels.place_hash import drawn_at

from . import second_codecs, second_dare
from .vectors import ROOT, valid

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("codecs/*.md"), *ROOT.glob("vectors/*.md")])
PAGE_OF_CODEC = {
    "bits": "bits", "bits+zstd": "bits-zstd", "adaptive": "adaptive",
    "f32": "f32", "bf16": "bf16", "q8": "codebook", "q5": "codebook", "q4": "codebook", "ones": "ones",
    "raw": "raw", "planes+zstd": "planes-zstd", "lattice": "lattice", "drift": "drift", "lanes": "lanes", "dare": "dare",
    "dither": "dither", "dither-levels": "dither",
}  # fmt: skip


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def row_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_state_the_version_and_their_changes(page: Path) -> None:
    words = page.read_text(encoding="utf-8")
    assert f"Version {NEWEST} · " in words
    assert "## Change log" in words


def test_every_codec_has_its_page() -> None:
    known = {*codecs.MASK, *codecs.VECTOR, *codecs.WHOLE, *codecs.LOSSLESS, *codecs.SAMPLED}
    assert known == PAGE_OF_CODEC.keys()
    for codec, page in PAGE_OF_CODEC.items():
        assert f"`{codec}`" in text(f"codecs/{page}.md").splitlines()[0]
        assert f"codecs/{page}.md" in text("README.md")


def test_element_types_are_those_of_the_code() -> None:
    table = text("parts.md").split("## Element types")[1].split("## Entries")[0]
    found = {
        dtype: int(size)
        for types, size in re.findall(r"^\| ((?:`\w+` ?)+)\| ([0-9]) \|", table, re.MULTILINE)
        for dtype in re.findall(r"`(\w+)`", types)
    }
    assert found == ITEM_BYTES
    maskable = re.findall(r"`(\w+)`", table.split("row-major")[0].split("safetensors' types.")[1].split("maskable")[0])
    assert tuple(maskable) == MASKABLE


def test_entries_are_those_of_the_code() -> None:
    lines = [
        line
        for line in text("parts.md").splitlines()
        if re.match(r"\| `?kind`? ?\||\| `\w+` \| (base|vector|mask|exact)", line)
    ]
    members = ["dtype", "shape", "base", "rows", "scales", "to", "why"]
    assert row_cells(lines[0])[2:9] == [f"`{member}`" for member in members]
    fields, parts = {}, {kind: set() for kind in _FIELDS}
    for line in lines[1:]:
        cells = row_cells(line)
        kind = cells[0].strip("`")
        for part in cells[1].split(", "):
            parts[kind].add(part)
        coded = frozenset({"codec", "chunk", "chunks"}) if cells[9] else frozenset()
        marks = dict(zip(members, cells[2:9], strict=True))
        must = frozenset(member for member, mark in marks.items() if mark == "●")
        may = frozenset(member for member, mark in marks.items() if mark == "○")
        fields[kind] = (must | coded, may)
    assert fields == dict(_FIELDS)
    assert parts == {kind: {part for part, kinds in KINDS_IN_PART.items() if kind in kinds} for kind in _FIELDS}


def test_the_worked_example_is_the_vector_of_that_name() -> None:
    rows = re.findall(
        r"^\| ([0-9A-F]{8}) \| ([0-9A-F]{8}) \| ([012]) \| ([0-9A-F]{8}) \| ([0-9A-F]{8}) \| ([0-9A-F]{4}) \|$",
        text("arithmetic.md"),
        re.MULTILINE,
    )
    columns = [np.array([int(cell, 16) for cell in column], np.uint32) for column in zip(*rows, strict=True)]
    start, vector, symbols, step, wide, narrow = columns
    with np.errstate(all="ignore"):
        product = np.float32(0.7) * vector.view(np.float32)
        assert product.view(np.uint32).tolist() == step.tolist()
        moved = np.where(symbols == 2, start.view(np.float32) - product, start.view(np.float32) + product)
    assert np.where(symbols == 0, start, moved.view(np.uint32)).tolist() == wide.tolist()
    decoded = valid("worked-example").decoded()["a"]
    assert decoded["F32"][2] == wide.astype("<u4").tobytes()
    assert decoded["BF16"][2] == narrow.astype("<u2").tobytes()


def test_examples_of_the_codecs_hold() -> None:
    assert codecs.MASK["bits"].encode(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint8), "binary") == b"\x0d\x01"
    assert codecs.MASK["bits"].encode(np.array([1, 2, 0, 0, 2], np.uint8), "signed") == b"\x09\x02"
    minus_one = np.array([-1.0], "<f4").view(np.uint8)
    assert codecs.WHOLE["planes+zstd"].encode(minus_one, "F32") == b"\1\0\0\0" * 4 + b"\1\0\0\x7f"
    for shown, page in (("0D 01", "bits"), ("09 02", "bits"), ("01 00 00 7F", "planes-zstd")):
        assert shown in text(f"codecs/{page}.md")


def test_the_example_of_dare_holds() -> None:
    page = text("codecs/dare.md")
    cells = r"\| ([0-9]) \| ([0-9]+) \|" + r" ([0-9–]) \|" * 3 + r" ([0-9A-F]{4}) \| ([0-9A-F]{4}) \|"
    rows = re.findall(f"^{cells}", page, re.MULTILINE)
    first = page.index("    02 7E")
    chunk = re.sub(r"\s", "", page[first : page.index("\n\n", first)])
    before, after = ([int(row[at], 16) for row in rows] for at in (5, 6))
    base, out = (np.array(words, "<u2").view(np.uint8) for words in (before, after))
    for decoded in (second_dare.decode_dare(bytes.fromhex(chunk), base.tobytes(), "BF16"), _decoded(chunk, base)):
        assert decoded == out.tobytes()
    assert drawn_at(np.arange(4, dtype=np.uint32), 17).tolist() == [int(row[1]) for row in rows]
    sampling = Sampling(126, np.full(LEVELS, 16383, np.uint16), np.full(LEVELS, 0x3C80, np.uint16))
    kept = [row for row in rows if row[2] != "–"]
    for context, at in ((0x20, 3), (0, 2)):
        found = select(LATTICES["BF16"], base.view("<u2"), sampling, np.full(LEVELS, context, np.uint8), 17)
        assert found.places.tolist() == [int(row[0]) for row in kept]
        assert (found.tags >> 4).tolist() == [int(row[at]) for row in kept]


def _example_of_low_rank(page: str) -> tuple[np.ndarray, bytes, list[int]]:
    """Its table by columns, its chunk, and the elements between which it says that `lattice` codes."""
    page = page.replace("−", "-")
    cells = r"\| (-?[0-9]{1,2}) " * 6 + r"\| ([0-9A-F]{4}) \|"
    rows = [[*map(int, row[:6]), int(row[6], 16)] for row in re.findall(f"^{cells}", page, re.MULTILINE)]
    coded = bytes.fromhex("".join(line for line in page.splitlines() if re.fullmatch(r"    [0-9A-F ]+", line)))
    said = re.findall(r"\b00[0-9A-F]{2}\b", page[page.rindex("|") :].split("\n    03")[0])
    return np.array(rows).T, coded, [int(word, 16) for word in said]


def test_the_examples_of_low_rank_hold() -> None:
    """The first chunk, that tells columns, and a later one, that does not."""
    page = text("codecs/dare.md").split("### Low rank")[1].split("## For writers")[0]
    examples = [_example_of_low_rank(each) for each in page.split("**Example.**")[1:]]
    first = examples[0][1]
    codec = codecs.SAMPLED["dare"]
    columns = codec.columns(first)
    assert columns.tolist() == [[2, 0]]
    told = read_low_rank(first[1:], 4)[0]
    asked = read_low_rank(examples[1][1][1:], 3, lambda: columns)[0]
    assert [(of.scale, of.shifts.tolist(), of.gone) for of in (told, asked)] == [(2.0**-7, [1], 0), (2.0**-8, [0], 0)]
    assert examples[0][2] == [0x80, 0x80, *(0x80 + told.rows[0].astype(int)), *(0x80 + columns[0].astype(int))]
    assert examples[1][2] == [*(0x80 + asked.rows[0].astype(int)), 0x80, 0x80]
    for of, (table, coded, _), before in ((told, examples[0], None), (asked, examples[1], first)):
        places, rows, across, u, v, sums, wanted = table
        assert places.tolist() == list(range(4 if before is None else 3))
        assert of.rows[0, rows].tolist() == u.tolist()
        assert of.columns[0, across].tolist() == v.tolist()
        assert (u * v << of.shifts[0]).tolist() == sums.tolist()
        base = np.full(len(places), 0x3F80, "<u2")
        moved = base.copy()
        add_product("BF16", moved, of)
        assert moved.tolist() == wanted.tolist()
        assert second_dare.decode_dare(coded, base.tobytes(), "BF16", before) == moved.tobytes()
        out = base.view(np.uint8).copy()
        codec.decode(coded, out, "BF16", Given(columns=None if before is None else lambda: columns))
        assert out.tobytes() == moved.tobytes()


def test_pages_that_say_what_is_read_say_that_columns_are_too() -> None:
    """Whoever reads some chunks, fetches them ahead, or counts the work finds it where that is said."""
    chunks = text("parts.md").split("## Chunks")[1].split("## The chain")[0]
    for where in (chunks, text("parts.md").split("## The chain")[1], text("security.md"), text("README.md")):
        assert re.search(r"`dare`.{0,120}\bfirst\b|\bfirst\b.{0,120}`dare`", where, re.DOTALL)
    assert f"2^22 = {MOST_NUMBERS};" in text("codecs/dare.md")


def test_the_example_of_dither_holds() -> None:
    page = text("codecs/dither.md")
    rows = re.findall(r"^\| ([0-9]) \| ([0-9]+) \| ([0-9]) \| (\S+) \| (\S+) \| (−?[0-9]) \|", page, re.MULTILINE)
    chunk = bytes.fromhex(next(line for line in page.splitlines() if line.startswith("    01 14")))
    head = bytes.fromhex(re.findall(r"With `(02 [0-9A-F ]+)`", page)[0])
    assert drawn_at(np.arange(4, dtype=np.uint32), 17).tolist() == [int(row[1]) for row in rows]
    picked, words = pick(4, 17, 20, 3, np.zeros(0, np.uint8), 0)
    coded = [row for row in rows if row[3] != "–"]
    assert np.flatnonzero(np.unpackbits(picked, bitorder="little")).tolist() == [int(row[0]) for row in coded]
    assert words.tolist() == [int(row[3], 16) for row in coded]
    numbers = [int(row[5].replace("−", "-")) for row in rows]
    assert [int(row[4], 16) - int(row[3], 16) for row in coded] == [numbers[int(row[0])] for row in coded]
    for decode in (codecs.MASK["dither"].decode, _second_dither):
        assert decode(chunk, "signed", 4).tolist() == [number % 3 for number in numbers] == [2, 1, 0, 2]
    levels = head + chunk[1:]
    for values in (codecs.VECTOR["dither-levels"].decode(levels, 4), second_codecs.decode_dither_levels(levels, 4)):
        assert values.tolist() == [0.5 * number for number in numbers]


def _second_dither(chunk: bytes, kind: str, n: int) -> np.ndarray:
    return second_codecs.decode_dither(chunk, n, kind)


def test_families_of_codecs_are_those_of_the_code() -> None:
    families = text("parts.md").split("Families: ")[1].split(".")[0]
    tables = {"mask": codecs.MASK, "vector": codecs.VECTOR, "whole": codecs.WHOLE, "lossless": codecs.LOSSLESS}
    tables["sampled"] = codecs.SAMPLED
    named = {each.split()[0]: set(re.findall(r"`([^`]+)`", each)) for each in families.split(";")}
    assert named == {family: set(table) for family, table in tables.items()}


def _decoded(chunk: str, base: np.ndarray) -> bytes:
    out = base.copy()
    codecs.SAMPLED["dare"].decode(bytes.fromhex(chunk), out, "BF16")
    return out.tobytes()
