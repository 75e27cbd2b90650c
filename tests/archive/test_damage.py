"""Damage anywhere is found, or is without effect: never a wrong weight, never an error of another class."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import bytes_of, near, raw, slots, tiny_base, write_folder

import tallstore
from tallstore.errors import ArchiveError, DamagedError, FormatError, NotAnArchiveError

Content = dict[str, dict[str, bytes]]


def small_archive(path: Path, recipe: str = "fit") -> Path:
    """Every kind of entry, of part and of file, in a few kilobytes."""
    base = tiny_base() | {"ids": torch.arange(4), "kept": torch.tensor(2.0)}
    tasks = {}
    for seed, task in ((1, "a"), (2, "b")):
        state = {name: near(t, seed) for name, t in base.items() if t.is_floating_point()}
        state |= {"ids": base["ids"].clone(), "kept": base["kept"].clone(), "head": near(torch.zeros(3, 5), seed)}
        state["emb.weight"] = torch.cat([state["emb.weight"], torch.ones(2, 16)])
        tasks[task] = write_folder(path.with_name(f"in-{path.name}-{task}"), state, task=task)
        (tasks[task] / "vocab.txt").write_text("common")
    tallstore.pack(base, tasks, path, recipe=recipe)
    for folder in tasks.values():
        shutil.rmtree(folder)
    return path


def content(path: Path, *, mapped: bool = True) -> Content:
    """All that an archive gives: every tensor of every task, and every file."""
    found: Content = {}
    with tallstore.open(path, mapped=mapped, threads=1) as zoo:
        for task in zoo.tasks:
            found[task] = {name: raw(tensor).tobytes() for name, tensor in zoo.state_dict(task).items()}
            out = zoo.export(task, path.with_name("exported"))
            found[task] |= bytes_of(out)
            shutil.rmtree(out)
    return found


def verified(path: Path) -> str:
    """Empty if `verify` finds nothing, else the error's text. Any error but those of archives is a failed test."""
    try:
        with tallstore.open(path, threads=1) as zoo:
            zoo.verify()
    except ArchiveError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return str(error)
    return ""


@pytest.fixture(scope="module", params=["fit", "solo"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_archive(tmp_path_factory.mktemp("damage") / "zoo.tall", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_archive(tmp_path / "zoo")


def flips(data: bytes, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Copies with one bit flipped: positions spread evenly, a random one within each stretch."""
    rng = random.Random(seed)
    for n in range(count):
        at = rng.randrange(n * len(data) // count, max((n + 1) * len(data) // count, n * len(data) // count + 1))
        out = bytearray(data)
        out[at] ^= 1 << rng.randrange(8)
        yield at, bytes(out)


def test_a_flipped_bit_anywhere_is_found_or_without_effect(file: Path, tmp_path: Path) -> None:
    wanted, data = content(file), file.read_bytes()
    harmless = 0
    for at, bad in flips(data, 200, seed=1):
        path = tmp_path / "bad.tall"
        path.write_bytes(bad)
        if not verified(path):
            assert content(path) == wanted, f"bit flipped in byte {at}"
            harmless += 1
    assert harmless < 0.35 * 200, "the zip's own bookkeeping alone may be without effect"


def test_damage_is_found_without_verify_too(file: Path, tmp_path: Path) -> None:
    """Decoding checks what it reads: what comes out is right, or nothing comes out."""
    wanted, data = content(file), file.read_bytes()
    for n, (at, bad) in enumerate(flips(data, 60, seed=2)):
        path = tmp_path / "bad.tall"
        path.write_bytes(bad)
        try:
            found = content(path, mapped=bool(n % 2))
        except ArchiveError:
            continue
        assert found == wanted, f"bit flipped in byte {at}"


def test_every_bit_of_a_part_counts(folder: Path) -> None:
    """In a folder there is no zip around: every bit of every file is covered."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        data = path.read_bytes()
        for at, bad in flips(data, 25, seed=3):
            path.write_bytes(bad)
            assert verified(folder), f"{path}: bit flipped in byte {at}"
        path.write_bytes(data)
    assert not verified(folder)


def test_the_damaged_part_and_tensor_are_named(folder: Path) -> None:
    for path in (
        "base/base.safetensors",
        "vector/0.safetensors",
        "tasks/a/mask.safetensors",
        "tasks/a/private.safetensors",
    ):
        data = (folder / path).read_bytes()
        with tallstore.open(folder) as zoo:
            needed = {facts.base for facts in zoo.tensors("a").values()} | set(
                slots(data)[1] if "tasks" in path else ()
            )
        for tensor, (start, _) in slots(data)[1].items():
            if tensor not in needed:
                continue
            bad = bytearray(data)
            bad[start] ^= 1
            (folder / path).write_bytes(bad)
            with tallstore.open(folder) as zoo, pytest.raises(DamagedError) as caught:
                zoo.state_dict("a")
            assert f"{path}: tensor {tensor!r} is damaged" in str(caught.value)
            assert "fetch or pack it again" in str(caught.value)
        (folder / path).write_bytes(data)


def test_a_truncated_file(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    lengths = {
        0,
        1,
        21,
        22,
        23,
        len(data) - 1,
        len(data) - 22,
        len(data) - 23,
        *range(0, len(data), 997),
        *range(0, len(data), 64 * 11),
    }
    for length in sorted(lengths):
        (tmp_path / "bad.tall").write_bytes(data[:length])
        with pytest.raises(NotAnArchiveError, match=r"not a \.tall file, or cut off .* fetch or pack it again"):
            tallstore.open(tmp_path / "bad.tall")


def test_a_hole_in_a_file(file: Path, tmp_path: Path) -> None:
    """A stretch of zeros, as an interrupted copy leaves it."""
    data, wanted = file.read_bytes(), content(file)
    for start in range(0, len(data), 1500):
        path = tmp_path / "bad.tall"
        path.write_bytes(data[:start] + bytes(min(700, len(data) - start)) + data[start + 700 :])
        assert verified(path) or content(path) == wanted


@pytest.mark.parametrize("extra", [b"\0", b"trailing rubbish" * 10])
def test_bytes_after_the_end(extra: bytes, file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.tall").write_bytes(file.read_bytes() + extra)
    assert verified(tmp_path / "bad.tall") or content(tmp_path / "bad.tall") == content(file)


def test_truncated_parts(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        data = path.read_bytes()
        for length in sorted({0, 1, 7, 8, 9, len(data) // 3, len(data) // 2, len(data) - 1} & set(range(len(data)))):
            path.write_bytes(data[:length])
            assert path.name in verified(folder), f"{path} cut to {length}"
        path.write_bytes(data + b"\0")
        assert path.name in verified(folder), f"{path} grown"
        path.write_bytes(data)
    assert not verified(folder)


def test_missing_files(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        data = path.read_bytes()
        path.unlink()
        text = verified(folder)
        assert path.name in text
        assert "missing" in text or path.name == "tall.json"
        path.write_bytes(data)
    assert not verified(folder)


SWAPS: dict[str, Callable[[Path], object]] = {
    "tasks": lambda f: swap(f / "tasks/a/mask.safetensors", f / "tasks/b/mask.safetensors"),
    "private parts": lambda f: swap(f / "tasks/a/private.safetensors", f / "tasks/b/private.safetensors"),
    "vector and base": lambda f: swap(f / "vector/0.safetensors", f / "base/base.safetensors"),
    "files": lambda f: swap(f / "tasks/a/files/config.json", f / "tasks/b/files/config.json"),
    "mask and private": lambda f: swap(f / "tasks/a/mask.safetensors", f / "tasks/a/private.safetensors"),
}


def swap(one: Path, other: Path) -> None:
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


@pytest.mark.parametrize("case", SWAPS)
def test_parts_in_each_others_place_are_found(case: str, folder: Path) -> None:
    SWAPS[case](folder)
    assert verified(folder)
    with pytest.raises((DamagedError, FormatError)):
        content(folder)


def test_parts_of_another_archive_are_found(folder: Path, tmp_path: Path) -> None:
    other = small_archive(tmp_path / "other", recipe="tall")
    for path in ("vector/0.safetensors", "tasks/a/mask.safetensors", "tall.json"):
        held = (folder / path).read_bytes()
        (folder / path).write_bytes((other / path).read_bytes())
        assert verified(folder)
        with pytest.raises((DamagedError, FormatError)):
            content(folder)
        (folder / path).write_bytes(held)
    assert not verified(folder)


def test_strangers_in_a_folder_are_told_and_ignored(folder: Path) -> None:
    wanted = content(folder)
    (folder / "notes.txt").write_text("x")
    (folder / "tasks" / "a" / "extra.safetensors").write_bytes(b"x")
    (folder / "README.md").write_text("# my zoo")
    with tallstore.open(folder) as zoo:
        assert set(zoo.verify().unlisted) == {"notes.txt", "tasks/a/extra.safetensors"}
    assert content(folder) == wanted


def test_links_do_not_lead_out_of_an_archive(folder: Path, tmp_path: Path) -> None:
    """A link to the right bytes is fine (the Hub's cache is made of links); to others it is damage like any other."""
    part = folder / "tasks" / "a" / "mask.safetensors"
    part.rename(tmp_path / "blob")
    part.symlink_to(tmp_path / "blob")
    assert not verified(folder)
    part.unlink()
    part.symlink_to("/etc/passwd")
    assert "tasks/a/mask.safetensors" in verified(folder)
