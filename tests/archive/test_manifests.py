"""What whoever packed was told, the archive tells again: in `info`, in its JSON and on the report's page."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support import noise, tiny_zoo

import tallstore
from tallstore.archive.manifests import warnings_of
from tallstore.format.manifest import Base, BaseTensor, Group, Manifest, Task


def _of_groups(path: Path) -> tuple[str, ...]:
    return tallstore.pack(*tiny_zoo(2), path, recipe="solo", groups=2).warnings


def _of_an_unscored_task(path: Path) -> tuple[str, ...]:
    base, tasks = tiny_zoo(2)
    tallstore.pack(base, {"a": tasks["a"]}, path, evaluate=lambda state, task: 1.0, min_retention=0.9)
    return tallstore.add(path, {"b": tasks["b"]}).warnings


def _of_swapped_places(path: Path) -> tuple[str, ...]:
    base, tasks = tiny_zoo(1)
    return tallstore.pack(base | {"pooler.weight": noise(8, 8)}, tasks, path).warnings


def _of_a_head(path: Path) -> tuple[str, ...]:
    base, tasks = tiny_zoo(2)
    tasks = {name: state | {"head.weight": noise(2 + n, 16)} for n, (name, state) in enumerate(tasks.items())}
    tallstore.pack(base, tasks, path)
    return tallstore.add_merge(path, "mix", "0.5*a + 0.5*b", head="a").warnings


def _of_a_foreign_tensor(path: Path) -> tuple[str, ...]:
    base, tasks = tiny_zoo(1)
    return tallstore.pack(base, {"a": tasks["a"] | {"tower.weight": noise(64, 64)}}, path).warnings


RUNS: Mapping[str, Callable[[Path], tuple[str, ...]]] = {
    "groups of a recipe that has none": _of_groups,
    "a promise without an evaluator": _of_an_unscored_task,
    "base and task swapped": _of_swapped_places,
    "a merge's head": _of_a_head,
    "no counterpart": _of_a_foreign_tensor,
}


@pytest.mark.parametrize("run", RUNS)
def test_every_warning_of_a_run_is_in_info_and_on_the_page(run: str, tmp_path: Path) -> None:
    path, page = tmp_path / "zoo.tall", tmp_path / "page.html"
    said = RUNS[run](path)
    assert said
    with tallstore.open(path) as zoo:
        recorded = zoo.info()["warnings"]
        zoo.report(page)
    shown = html.unescape(page.read_text())
    for warning in said:
        (told,) = (each for each in recorded if warning.endswith(each.partition(": ")[2]))
        assert told in shown


def test_a_sentence_of_several_tasks_is_told_once() -> None:
    measured: list[Mapping[str, Any]] = [{"warnings": ["w", "own"]}, {"warnings": ["w"]}, {}, {"warnings": "odd"}]
    tasks = {
        name: Task(group="g", parts={"mask": ()}, measured=each) for name, each in zip("abcd", measured, strict=True)
    }
    manifest = _manifest(tasks)
    assert list(warnings_of(manifest)) == ["a, b: w", "a: own"]
    more = manifest.warned({"a": ["new"], "c": ["w"], "gone": ["w"], "b": []})
    assert list(warnings_of(more)) == ["a, b, c: w", "a: own", "a: new"]
    assert manifest.tasks["c"].measured == {}


def _manifest(tasks: Mapping[str, Task]) -> Manifest:
    base = Base(storage="reference", tensors={"t": BaseTensor(dtype="F32", shape=(1,), sha256="0" * 64)})
    return Manifest(base=base, groups=(Group(id="g", tasks=tuple(tasks)),), tasks=tasks, parts={})
