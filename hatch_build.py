"""Build hook: the native kernels into every wheel and every editable install, where there is a compiler.

Nothing depends on it: without a compiler, or where one fails, the package is installed all the same, and computes on
the reference path, which `tallstore --version` says. Environment variables, mostly for those who build wheels:

    TALLSTORE_BUILD            0: do not build, and do not ask for a compiler; 1: fail where it cannot be built
    TALLSTORE_BUILD_TARGET     what to build for, as zig names it (aarch64-linux-gnu.2.17, aarch64-macos); needs ziglang
    TALLSTORE_BUILD_PLATFORM   the wheel's platform tag (manylinux_2_17_aarch64, macosx_11_0_arm64)
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_ZIG_MACHINES = "x86_64 AMD64 aarch64 arm64"
"""Machines that the package ziglang is made for, among others."""


def _build_module(root: str) -> ModuleType:
    """`tallstore.kernels.native.build`, without the package, whose dependencies are not there yet."""
    path = Path(root) / "tallstore" / "kernels" / "native" / "build.py"
    spec = importlib.util.spec_from_file_location("_tallstore_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NativeKernels(BuildHookInterface):
    """See above."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """The compiler of the package ziglang, where it is needed."""
        if os.environ.get("TALLSTORE_BUILD") == "0":
            return []
        needed = "TALLSTORE_BUILD_TARGET" in os.environ or _build_module(self.root).find_compiler() is None
        return [f"ziglang>=0.13; platform_machine in '{_ZIG_MACHINES}'"] if needed else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's interface
        """Build, and put the library into the wheel. An editable install finds it in the checkout."""
        if self.target_name != "wheel" or os.environ.get("TALLSTORE_BUILD") == "0":
            return
        build = _build_module(self.root)
        target = os.environ.get("TALLSTORE_BUILD_TARGET")
        try:
            made = build.build(target=target)
        except (build.BuildError, OSError) as error:
            if os.environ.get("TALLSTORE_BUILD") == "1":
                raise
            self.app.display_warning(f"tallstore is installed without its native kernels: {error}")
            return
        for path in (made, build.sum_path(made)):
            build_data["artifacts"].append(f"/{path.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        here = sysconfig.get_platform().replace("universal2", platform.machine())
        tag = os.environ.get("TALLSTORE_BUILD_PLATFORM") or here
        build_data["tag"] = f"py3-none-{tag.replace('-', '_').replace('.', '_')}"
