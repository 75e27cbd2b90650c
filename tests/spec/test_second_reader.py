"""The second reader and tallstore decode what tallstore packs to the same bits; the second knows the spec alone."""

from __future__ import annotations

import ast
from pathlib import Path

import torch

import tallstore
from tallstore.tensors import NAME, as_bytes

from .conftest import Packed, State, task_state
from .second_reader import Archive, Decoded


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


def test_it_knows_neither_tallstore_nor_torch() -> None:
    tree = ast.parse(Path(__file__).with_name("second_reader.py").read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {
        "__future__", "collections", "hashlib", "json", "math", "pathlib", "re", "struct", "typing", "zipfile",
        "numpy", "safetensors", "xxhash", "zstandard",
    }  # fmt: skip
    assert torch.__name__ not in imported
