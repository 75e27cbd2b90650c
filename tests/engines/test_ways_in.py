"""A vLLM that is too old or too new for the ways in is told so, and is not stopped."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallstore.engines.vllm import plugin
from tallstore.engines.vllm.plugin import check_vllm, register
from tallstore.errors import EngineError

LOADER = "vllm/model_executor/model_loader"
FILES = {
    "vllm/__init__.py": "",
    "vllm/model_executor/__init__.py": "",
    f"{LOADER}/__init__.py": "def register_model_loader(name): ...\n",
    f"{LOADER}/base_loader.py": (
        "class BaseModelLoader:\n    def download_model(self): ...\n    def load_weights(self): ...\n"
        "    def load_model(self): ...\n"
    ),
    f"{LOADER}/reload/__init__.py": "def finalize_layerwise_reload(model): ...\n",
    f"{LOADER}/reload/inplace.py": "def reload_weights(config, model, weights_iterator): ...\n",
}


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package by that name with the ways in and nothing else."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def test_one_that_has_them_all_will_do(vllm: Path) -> None:
    check_vllm()


def test_the_loader_is_entered_when_vllm_loads_its_table_and_once(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that loads no weights imports neither the table nor the loader for it."""
    table = LOADER.replace("/", ".")
    text = "loaders = []\ndef register_model_loader(name):\n    return lambda made: loaders.append((name, made))\n"
    (vllm / LOADER / "__init__.py").write_text(text)
    monkeypatch.setattr(plugin, "entered", [])
    for _ in range(3):
        register()
    assert table not in sys.modules
    assert importlib.util.find_spec(table) is not None, "somebody who only asks for it changes nothing"
    loaders = importlib.import_module(table).loaders
    register()
    assert [name for name, _ in loaders] == ["tallstore"]
    assert "tallstore.engines.vllm.loader" not in sys.modules


@pytest.mark.parametrize(
    ("name", "text", "lacks"),
    [
        (f"{LOADER}/__init__.py", "", "register_model_loader"),
        (
            f"{LOADER}/base_loader.py",
            "class BaseModelLoader:\n    def load_weights(self): ...\n",
            "BaseModelLoader with",
        ),
        (f"{LOADER}/reload/__init__.py", "", "reload_weights of workers"),
        (f"{LOADER}/reload/inplace.py", "def reload_weights(config, model): ...\n", "reload_weights with a weights_"),
    ],
)
def test_what_is_missing_is_named(name: str, text: str, lacks: str, vllm: Path) -> None:
    (vllm / name).write_text(text)
    with pytest.raises(EngineError, match=f"has no {lacks}.*: tallstore's loader needs vLLM 0.32, or a newer"):
        check_vllm()
    with pytest.warns(UserWarning, match=f"has no {lacks}"):
        register()


@pytest.mark.slow  # a process that imports transformers
def test_a_process_that_loads_no_weights_imports_nothing_that_reads_archives(vllm: Path) -> None:
    """Each of vLLM's processes has transformers' table loaded, and asks for plug-ins."""
    code = (
        "import sys, transformers.quantizers.auto as auto\n"
        "import tallstore.engines.vllm.plugin as plugin\n"
        "plugin.register()\n"
        "assert 'tallstore' in auto.AUTO_QUANTIZER_MAPPING\n"
        "print(sorted(name for name in sys.modules if name in {'tallstore.archive', 'tallstore.format.manifest'}))\n"
    )
    paths = [str(vllm), *(path for path in sys.path if path)]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ":".join(paths)}
    )
    assert done.stdout.strip() == "[]", done.stderr
