"""What the build hook asks of a front end: a compiler only where there is none, and only one that can be had."""

from __future__ import annotations

import importlib.util
import platform
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import ROOT

pytest.importorskip("hatchling")
needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


class Told:
    """The part of a hatchling application that the hook uses."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def display_warning(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, in an environment without settings of its own or pip's, and with no compiler in PATH."""
    for name in ("CC", "TALLSTORE_BUILD", "TALLSTORE_BUILD_TARGET", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    spec = importlib.util.spec_from_file_location("_hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = module.build_module(str(ROOT))
    monkeypatch.setattr(build, "zig", lambda: None)  # the environment of these tests may have it
    monkeypatch.setattr(module, "build_module", lambda root: build)
    return module


def asked(hook: ModuleType) -> tuple[list[str], list[str]]:
    """What is required, and what is said."""
    told: Any = Told()
    kernels = hook.NativeKernels(str(ROOT), {}, None, None, "", "wheel", told)
    return kernels.dependencies(), told.lines


def wheel(folder: Path, version: str) -> None:
    """A wheel of that name without content."""
    info = f"ziglang-{version}.dist-info"
    with zipfile.ZipFile(folder / f"ziglang-{version}-py3-none-any.whl", "w") as made:
        made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: ziglang\nVersion: {version}\n")
        made.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{info}/RECORD", "")


@needs_pip
def test_a_compiler_that_cannot_be_had_is_not_required_and_that_is_one_line(hook: ModuleType) -> None:
    required, said = asked(hook)
    assert required == []
    assert len(said) == 1
    assert "no native kernels are built" in said[0]
    assert "\n" not in said[0]


@needs_pip
@pytest.mark.parametrize(("version", "there"), [("0.13.0", True), ("0.12.0", False)])
def test_one_that_can_be_had_is_required(
    version: str, there: bool, hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, version)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    required, said = asked(hook)
    assert required == (["ziglang>=0.13"] if there else [])
    assert bool(said) != there


def test_a_compiler_of_the_machine_is_enough(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc")
    assert asked(hook) == ([], [])


def test_nothing_is_required_of_a_machine_that_the_package_is_not_for(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert asked(hook) == ([], [])


@pytest.mark.parametrize(("setting", "required"), [("0", []), ("1", ["ziglang>=0.13"])])
def test_a_setting_decides_without_asking(
    setting: str, required: list[str], hook: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLSTORE_BUILD", setting)
    assert asked(hook) == (required, [])
