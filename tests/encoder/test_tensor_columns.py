"""Columns that a tensor's chunks have in common: found once for all of them, whoever codes them and whenever."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spec.second_reader import Archive
from support import State, noise, packed_in_chunks, read_all, same_bits, write_folder
from torch import Tensor

import tallstore
from tallstore.encoder import tensor_columns
from tallstore.errors import OutputError
from tallstore.recipes.common_columns import CommonColumns, find_columns
from tallstore.recipes.exact_products import Singles

CHUNK = 1 << 14
ROWS, COLUMNS = 180, 220


def tuned(start: Tensor, seed: int) -> Tensor:
    """Moved along three directions, and by noise."""
    pull = noise(len(start), 3, seed=seed) @ noise(3, start.shape[1], seed=seed + 1)
    own = noise(*start.shape, size=0.0003, seed=seed + 2)
    return (start.float() + 0.0005 * pull + own).to(start.dtype)


def zoo_of(rows: int = ROWS, columns: int = COLUMNS) -> tuple[State, State]:
    base = {f"w{n}": noise(rows, columns, size=0.05, seed=n, dtype=torch.bfloat16) for n in range(2)}
    return base, {name: tuned(tensor, 50 + 10 * n) for n, (name, tensor) in enumerate(base.items())}


def coded_chunks(path: Path, name: str, task: str = "a") -> list[bytes]:
    """The coded bytes of a tensor's chunks."""
    parts, _ = Archive(path)._entries(task)
    return [bytes(data) for _, _, data in parts.chunks(name)]


def columns_told(chunk: bytes) -> int:
    """How many bytes of columns a chunk of mode 3 tells."""
    assert chunk[0] == 3
    rank = chunk[1]
    return int.from_bytes(chunk[18 + rank : 22 + rank], "little")


def decoded(base: State, task: State, path: Path) -> tuple[State, State, State]:
    """What comes back of a task, packed in several chunks a tensor; and what went in."""
    with packed_in_chunks(base, {"a": task}, path, CHUNK, bits=1.0, overwrite=True) as (zoo, _):
        return zoo.state_dict("a"), task, base


def error_of(found: State, task: State, base: State, start: int = 0) -> float:
    """The squared error of elements from one on, by the square of what changed."""
    flat = [[each[name].double().view(-1)[start:] for each in (found, task, base)] for name in base]
    lost = sum(float((hat - own).square().sum()) for hat, own, _ in flat)
    return lost / sum(float((own - before).square().sum()) for _, own, before in flat)


@pytest.mark.parametrize("columns", [1, 3, 576, 5000, 1 << 14, 100_000])
@pytest.mark.parametrize("rows", [2, 3, 100, 16_385, 300_000])
def test_runs_are_of_whole_rows_evenly_spaced_and_all_where_they_are_few(rows: int, columns: int) -> None:
    blocks = list(tensor_columns._blocks(rows, columns))
    runs = [run for block in blocks for run in block]
    assert all(start % columns == stop % columns == 0 and start < stop for start, stop in runs)
    assert all(before[1] <= after[0] for before, after in pairwise(runs))
    assert runs[-1][1] <= rows * columns
    seen = sum(stop - start for start, stop in runs)
    if rows * columns <= tensor_columns.SAMPLE:
        assert seen == rows * columns
    else:
        several = max(columns, 1 << 14)
        assert max(2 * columns, tensor_columns.SAMPLE - 2 * several) <= seen <= tensor_columns.SAMPLE + 2 * several
        gaps = np.diff([start for start, _ in runs])
        assert gaps.max() - gaps.min() <= columns
    assert max(sum(stop - start for start, stop in block) for block in blocks) <= max(1 << 20, columns)


@pytest.mark.parametrize("rows", [ROWS, 100])
def test_the_first_chunk_tells_columns_and_the_others_none(rows: int, tmp_path: Path) -> None:
    base, task = zoo_of(rows)
    with packed_in_chunks(base, {"a": task}, tmp_path / "zoo.tall", CHUNK, bits=1.0) as (zoo, path):
        for name in base:
            first, *others = coded_chunks(path, name)
            assert len(others) == -(-rows * COLUMNS // CHUNK) - 1
            assert columns_told(first) > 100
            assert [columns_told(each) for each in others] == [0] * len(others)
        assert error_of(zoo.state_dict("a"), task, base) < (0.3 if rows == ROWS else 0.7)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_first_chunk_that_cannot_be_computed_with_tells_columns_all_the_same(value: float, tmp_path: Path) -> None:
    """It comes back bit for bit, and the others as if it were as they are."""
    base, task = zoo_of()
    before = error_of(*decoded(base, task, tmp_path / "before.tall"), CHUNK)
    task["w0"][1, 77] = value  # of a row that statistics do not look at
    found, _, _ = decoded(base, task, tmp_path / "zoo.tall")
    first, second, third = coded_chunks(tmp_path / "zoo.tall", "w0")
    assert columns_told(first) > 100
    assert columns_told(second) == columns_told(third) == 0
    assert same_bits(found["w0"].view(-1)[:CHUNK], task["w0"].view(-1)[:CHUNK])
    assert error_of(found, task, base, CHUNK) == pytest.approx(before, rel=0.15)


def test_a_chunk_that_did_not_move_has_no_product_unless_it_is_the_first(tmp_path: Path) -> None:
    base, task = zoo_of()
    for frozen in (slice(0, 80), slice(74, 150)):
        own = {name: tensor.clone() for name, tensor in task.items()}
        own["w0"][frozen] = base["w0"][frozen]
        found, _, _ = decoded(base, own, tmp_path / "zoo.tall")
        chunks = coded_chunks(tmp_path / "zoo.tall", "w0")
        assert same_bits(found["w0"][frozen], base["w0"][frozen])
        assert [each[0] for each in chunks] == ([3, 3, 3] if not frozen.start else [3, 2, 3])


def test_rows_longer_than_what_statistics_read_of_them_have_a_product(tmp_path: Path) -> None:
    base, task = zoo_of(40, 9001)
    found, _, _ = decoded(base, task, tmp_path / "zoo.tall")
    for name in base:
        assert {each[0] for each in coded_chunks(tmp_path / "zoo.tall", name)} == {3}
    assert error_of(found, task, base) < 0.5


def test_chunks_of_a_long_table_tell_columns_of_their_own(tmp_path: Path) -> None:
    """Rows in which the first ones have other things in common than the rest: each chunk's own leave less."""
    base, task = zoo_of(2000, 40)
    for name, tensor in base.items():
        task[name][:500] = tuned(tensor[:500], 90)
    found, _, _ = decoded(base, task, tmp_path / "zoo.tall")
    for name in base:
        chunks = coded_chunks(tmp_path / "zoo.tall", name)
        assert len(chunks) == 5
        assert min(map(columns_told, chunks)) > 50
    assert error_of(found, task, base) < 0.8
    third = {"w0": base["w0"].clone()} | {"w1": task["w1"]}
    third["w0"][900:] = task["w0"][900:]
    decoded(base, third, tmp_path / "zoo.tall")
    modes = [each[0] for each in coded_chunks(tmp_path / "zoo.tall", "w0")]
    assert modes == [2, 2, 3, 3, 3], "the first chunks, which did not move, owe nothing to the others"


def test_of_a_long_table_whose_chunks_have_few_rows_the_first_rows_tell(tmp_path: Path) -> None:
    """They have other things in common than the rest, and are the nearer for it."""
    base, task = zoo_of(1000, 110)
    for name, tensor in base.items():
        task[name][440:] = tuned(tensor[440:], 90)
    found, _, _ = decoded(base, task, tmp_path / "zoo.tall")
    for name in base:
        first, *others = coded_chunks(tmp_path / "zoo.tall", name)
        assert columns_told(first) > 100
        assert not any(columns_told(each) for each in others if each[0] == 3)
    parts = [
        {name: each[name][rows] for name in base}
        for rows in (slice(440), slice(440, 1000))
        for each in (found, task, base)
    ]
    assert error_of(*parts[:3]) < 0.6 * error_of(*parts[3:])


def test_a_task_with_fewer_rows_than_the_base_has_columns_of_its_rows(tmp_path: Path) -> None:
    base, task = zoo_of()
    fewer = {name: tensor[:150].clone() for name, tensor in task.items()}
    with packed_in_chunks(base, {"a": fewer}, tmp_path / "zoo.tall", CHUNK, bits=1.0) as (zoo, path):
        for name in base:
            assert len(coded_chunks(path, name)) == 3
            assert {each[0] for each in coded_chunks(path, name)} == {3}
        found = zoo.state_dict("a")
    assert error_of(found, fewer, {name: tensor[:150] for name, tensor in base.items()}) < 0.4


def test_progress_of_columns_begins_and_ends(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    base, task = zoo_of()
    tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall", bits=1.0, progress=lambda *each: said.append(each))
    assert [each for each in said if each[0] == "columns in common"] == [
        ("columns in common", 1, 2),
        ("columns in common", 2, 2),
    ]


class Stopped(Exception):
    pass


def stop(text: str, done: int, total: int) -> None:
    """A progress that ends the run when the first tensor is coded."""
    if text == "w0":
        raise Stopped


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str], Path]:
    """A run of which columns and a tensor were done: base, tasks and target."""
    monkeypatch.setattr("tallstore.encoder.driver.CHUNK_ELEMENTS", CHUNK)
    base, task = zoo_of()
    sources = str(write_folder(tmp_path / "base", base)), {"a": str(write_folder(tmp_path / "a", task))}
    tallstore.pack(*sources, tmp_path / "whole.tall", bits=1.0)
    with pytest.raises(Stopped):
        tallstore.pack(*sources, tmp_path / "zoo.tall", bits=1.0, resume=True, workers=1, progress=stop)
    return *sources, tmp_path / "zoo.tall"


def results(path: Path) -> list[Path]:
    """What was left of columns."""
    found = sorted(path.parent.rglob("columns-*"))
    assert found
    return found


def test_columns_are_taken_up(
    stopped: tuple[str, dict[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results(stopped[2])
    monkeypatch.setattr(tensor_columns, "find_columns", None)
    report = tallstore.pack(*stopped, bits=1.0, resume=True)
    assert report.taken_up > 1
    assert read_all(stopped[2]) == read_all(tmp_path / "whole.tall")


@pytest.mark.parametrize("same", [True, False])
def test_what_was_coded_is_taken_up_only_if_columns_are_the_same(
    same: bool, stopped: tuple[str, dict[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that are found again, by another processor say, may be others: what was coded of the first ones is not used."""

    def others(sample: Iterable[Singles], step: float, rows: int, first: int) -> CommonColumns | None:
        found = find_columns(sample, step, rows, first)
        assert found is not None
        return found if same else found._replace(numbers=-found.numbers)

    for path in results(stopped[2]):
        path.unlink()
    monkeypatch.setattr(tensor_columns, "find_columns", others)
    report = tallstore.pack(*stopped, bits=1.0, resume=True)
    assert (report.taken_up > 0) is same
    assert (read_all(stopped[2]) == read_all(tmp_path / "whole.tall")) is same
    (base, task), found = zoo_of(), {}
    with tallstore.open(stopped[2]) as zoo:
        zoo.verify()
        found = zoo.state_dict("a")
    assert error_of(found, task, base) < 0.3


def test_columns_that_are_damaged_on_the_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the worker that found them and the one that codes a chunk of them."""
    base, task = zoo_of()
    place = tensor_columns.read_columns

    def damaged(columns: Any) -> CommonColumns:
        path = columns.span.path
        data = bytearray(path.read_bytes())
        data[columns.span.start] ^= 1
        path.write_bytes(data)
        return place(columns)

    monkeypatch.setattr(tensor_columns, "read_columns", damaged)
    with pytest.raises(OutputError, match=r"columns-\d+: what was just made is damaged on its disk"):
        tallstore.pack(base, {"a": task}, tmp_path / "zoo.tall", bits=1.0, workers=1)
    assert not (tmp_path / "zoo.tall").exists()
