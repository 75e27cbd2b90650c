"""Who may import whom, without a circle, and that importing the package is quick and loads no optional package."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from processes import child
from support import ROOT

PACKAGE = ROOT / "tallstore"
LOW = {"errors", "format"}
MAY_IMPORT = {
    "errors": set(),
    "memory": set(),
    "concurrency": set(),
    "format": {"errors"},
    "kernels": {"errors"},
    "humanize": {"errors"},
    "notes": {"humanize"},
    "names": {"errors"},
    "evaluator": {"errors"},
    "tensors": {"format", "memory"},
    "stores": {"concurrency", "errors", "format"},
    "recipes": {"errors", "kernels"},
    "codecs": {"errors", "format", "kernels"},
    "merging": {"errors", "kernels", "recipes"},
    "adapters": {"errors", "format", "tensors"},
    "checkpoints": {"adapters", "errors", "format", "kernels", "names", "stores", "tensors"},
    "encoder": {
        *(
            "concurrency",
            "adapters",
            "checkpoints",
            "codecs",
            "errors",
            "format",
            "kernels",
            "merging",
            "names",
            "recipes",
            "stores",
        ),
        *("tensors", "humanize", "notes"),
    },
    "archive": {
        *(
            "concurrency",
            "adapters",
            "checkpoints",
            "codecs",
            "errors",
            "evaluator",
            "format",
            "kernels",
            "merging",
            "names",
            "recipes",
        ),
        *("stores", "tensors", "humanize", "notes"),
    },
    "serving": {"archive", "errors", "format", "kernels", "tensors"},
    "report": {"archive", "errors", "format", "stores", "humanize"},
    "hub": {"archive", "concurrency", "checkpoints", "errors", "format", "names", "stores", "tensors"},
    "packing": {"archive", "checkpoints", "encoder", "errors", "evaluator", "format", "recipes", "stores", "tensors"},
    "zoo": {"adapters", "archive", "checkpoints", "errors", "format", "hub", "report", "serving", "stores", "tensors"},
    "engines": {"archive", "checkpoints", "concurrency", "errors", "format", "hub", "stores", "tensors"},
    "editing": {"archive", "checkpoints", "codecs", "encoder", "errors", "format", "hub", "packing", "stores"},
    "demo": {"encoder", "errors", "packing", "tensors", "zoo"},
    "testing": {"checkpoints", "codecs", "concurrency", "errors", "format", "kernels", "stores", "tensors"},
    "cli": {
        *("archive", "checkpoints", "demo", "encoder", "errors", "format", "editing", "kernels", "report", "stores"),
        *("engines", "humanize"),
    },
}
"""Every part of the package and the parts that it may import besides itself: only such as stand above it."""
FACE = {"__init__", "__main__", "_version"}
"""The package itself: its names, loaded when they are first used, and `python -m tallstore`."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The syntax tree of a file, read once for all tests here."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported(path: Path) -> tuple[str, ...]:
    """The full names of modules that a file imports, anywhere in it."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports within the package are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    found = {name.split(".")[1] for name in imported(path) if name.startswith("tallstore.")}
    return found - {"_version", "__version__"}


def test_the_table_lists_every_part_of_the_package() -> None:
    assert set(MAY_IMPORT) | FACE == {layer for layer, _ in modules()}


def test_no_part_imports_one_below_itself_in_the_table() -> None:
    order = list(MAY_IMPORT)
    for layer, allowed in MAY_IMPORT.items():
        assert allowed <= set(order[: order.index(layer)]), layer


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_part_imports_only_what_the_table_allows(layer: str) -> None:
    for owner, path in modules():
        if owner == layer:
            assert layers(path) - MAY_IMPORT[layer] <= {layer}, path


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for _, path in modules()}
    graph = {
        name: {
            target
            for other in imported(path)
            for target in (other, other.rpartition(".")[0])
            if target in files and target != name
        }
        for name, path in files.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*way, name))
            done.add(name)

    for name in files:
        visit(name, ())


def test_no_two_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for _, path in modules():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_a_long_module_says_why() -> None:
    for _, path in modules():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 450:
            assert "It is long because" in (ast.get_docstring(ast.parse(text)) or "").replace("\n", " "), path


def test_no_constructor_takes_more_than_seven_parameters_but_public_ones() -> None:
    """Of constructors. What the package offers by name may have as many as its users ask for."""
    import tallstore

    for _, path in modules():
        for made in (
            each for each in nodes(path) if isinstance(each, ast.ClassDef) and each.name not in tallstore.__all__
        ):
            for each in made.body:
                if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    assert len([*each.args.args, *each.args.kwonlyargs]) <= 8, f"{path}: {made.name}"


def test_the_format_knows_no_torch() -> None:
    for owner, path in modules():
        if owner in LOW:
            assert not {name.split(".")[0] for name in imported(path)} & {"torch", "numpy", "safetensors"}, path


def test_encoder_and_archive_do_not_know_each_other() -> None:
    for owner, path in modules():
        if owner == "encoder":
            assert "archive" not in layers(path), path
        if owner == "archive":
            assert "encoder" not in layers(path), path


def test_nothing_imports_the_command_line() -> None:
    for owner, path in modules():
        if owner not in {"cli", "__main__"}:
            assert "cli" not in layers(path), path


def test_the_package_prints_nowhere_but_on_the_command_line() -> None:
    for owner, path in modules():
        if owner not in {"cli", "demo", "__main__"}:
            calls = [n for n in nodes(path) if isinstance(n, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id in {"print", "input"}], path


def test_threads_are_started_in_one_place() -> None:
    """An engine is what users choose to pack with; the build runs where nothing of the package can be imported.

    A loader inside of another's engine frees its thread of the one core that the engine bound it to, and who asks an
    engine that may die asks in a thread that can be left behind. Kernels may import
    no layer but `errors`, so that products have a pool of their own.
    """
    allowed = {
        *("concurrency.py", "encoder/engine.py", "engines/decode_ahead.py", "engines/vllm/switching.py"),
        *("kernels/native/build.py", "kernels/native/products.py"),
    }
    for _, path in modules():
        if path.relative_to(PACKAGE).as_posix() not in allowed:
            names = (
                {n.attr for n in nodes(path) if isinstance(n, ast.Attribute)}
                if "threading" in imported(path)
                else set()
            )
            assert "Thread" not in names, path
            assert "concurrent.futures.ThreadPoolExecutor" not in imported(path), path


LOADED = """
import json, sys
import tallstore
first = sorted(sys.modules)
import torch
torch_too = sorted(sys.modules)
for name in tallstore.__all__:
    getattr(tallstore, name)
import tallstore.encoder, tallstore.archive, tallstore.checkpoints, tallstore.stores, tallstore.recipes, tallstore.merging
print(json.dumps([first, torch_too, sorted(sys.modules)]))
"""


def test_importing_loads_no_optional_package() -> None:
    done = child(LOADED)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, with_torch, everything = (set(names) for names in json.loads(done.stdout))
    optional = {
        "huggingface_hub",
        "transformers",
        "peft",
        "sklearn",
        "rich",
        "typer",
        "click",
        "matplotlib",
        "jinja2",
        "scipy",
        "triton",
        "yaml",
        "fsspec",
        "aiohttp",
        "httpx",
        "httpx2",
        "s3fs",
        "distributed",
        "dask",
        "vllm",
    }
    assert not first & optional
    assert "torch" not in first, "the bare import is quick"
    assert not (everything - with_torch) & optional, "torch may bring some in; what counts is what we add to it"
    assert "tallstore.cli" not in everything
