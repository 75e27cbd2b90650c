"""The second reader and tallstore decode what tallstore packs to the same bits; the second knows the spec alone."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tallstore
from tallstore.tensors import NAME, as_bytes

from .conftest import Packed, State, task_state
from .second_numbers import Refused
from .second_reader import Archive, Decoded
from .vectors import invalid


def plain(state: State) -> dict[str, Decoded]:
    return {name: (NAME[t.dtype], tuple(t.shape), as_bytes(t.contiguous()).tobytes()) for name, t in state.items()}


def test_it_decodes_what_pack_writes(packed: Packed) -> None:
    archive = Archive(packed.path, plain(packed.base))
    base = packed.base if archive.manifest["base"]["storage"] == "reference" else None
    with tallstore.open(packed.path, base=base) as zoo:
        assert list(zoo.tasks) == archive.tasks
        for task in zoo.tasks:
            assert plain(zoo.state_dict(task)) == archive.decode(task)


def test_exact_tasks_are_the_originals(packed: Packed) -> None:
    archive = Archive(packed.path, plain(packed.base))
    for task, facts in archive.manifest["tasks"].items():
        if "exact" in facts["parts"]:
            assert archive.decode(task, exact=True) == plain(task_state(packed.base, int(task[-1])))


PRODUCTS = ("codes-of-low-rank", "codes-of-columns")


@pytest.mark.parametrize(
    ("name", "task"), [(name, task) for name in PRODUCTS for task in invalid(name).expected["tasks"]]
)
def test_it_refuses_products_that_say_what_they_must_not(name: str, task: str) -> None:
    """The page says enough for that; and the sound one beside them is not refused."""
    archive = Archive(invalid(name).archive)
    assert list(archive.decode("a")) == ["w"]
    with pytest.raises(Refused):
        archive.decode(task)


def test_it_puts_tensors_into_the_files_that_extract_writes(tmp_path: Path) -> None:
    """A model of two folders, one of which has metadata of its own: the same files, names, bytes and headers."""
    for seed, name in enumerate(("base", "tune")):
        for folder, names in {"": ("w.weight", "b.bias"), "2_Dense": ("linear.weight",)}.items():
            (tmp_path / name / folder).mkdir(exist_ok=True, parents=True)
            tensors = {each: torch.randn(40, 16, generator=torch.manual_seed(5)) * (1 + seed / 50) for each in names}
            save_file(tensors, tmp_path / name / folder / "model.safetensors", {"made": "by hand"} if folder else None)
        (tmp_path / name / "config.json").write_text("{}")
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (path, kind) in enumerate({"": "models.Transformer", "2_Dense": "models.Dense"}.items())
        ]
        (tmp_path / name / "modules.json").write_text(json.dumps(modules))
        (tmp_path / name / "2_Dense" / "config.json").write_text("{}")
    tallstore.pack(tmp_path / "base", {"t": tmp_path / "tune"}, tmp_path / "z.tall")
    with tallstore.open(tmp_path / "z.tall") as zoo:
        zoo.export("t", tmp_path / "out")
    files = Archive(tmp_path / "z.tall").weights_files("t")
    assert sorted(files) == ["2_Dense/model.safetensors", "model.safetensors"]
    for path, (metadata, tensors) in files.items():
        with safe_open(tmp_path / "out" / path, "pt") as file:
            assert (file.metadata() or {}) == metadata
            assert plain({name: file.get_tensor(name) for name in file.keys()}) == tensors  # noqa: SIM118


def test_it_knows_neither_tallstore_nor_torch() -> None:
    parts = ("second_reader", "second_codecs", "second_dare", "second_numbers")
    nodes = [
        node
        for part in parts
        for node in ast.walk(ast.parse(Path(__file__).with_name(f"{part}.py").read_text(encoding="utf-8")))
    ]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in froms if node.level} == set(parts[1:]), "of its neighbours its own parts alone"
    imported |= {str(node.module).split(".")[0] for node in froms if not node.level}
    assert imported <= {
        "__future__", "collections", "hashlib", "json", "math", "pathlib", "re", "struct", "typing", "zipfile",
        "numpy", "safetensors", "xxhash", "zstandard",
    }  # fmt: skip
    assert torch.__name__ not in imported
